"""The pages: links lead somewhere, YAML and commands in them are valid, the reference is fresh."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from ci import matrix, reference
from steps.core.case import build_case
from steps.core.yamlsource import parse_yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OURS = ("index", "add-a-case", "read-a-verdict", "nightly", "extend", "from-run-sh")
MINE = [page for page in PAGES if page.stem in OURS]
BLOCK = re.compile(r"^ *```(\S*) ?(\S*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    text = page.read_text(encoding="utf-8")
    return [(label, body) for kind, label, body in BLOCK.findall(text) if kind == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\(([\w-]+\.md)\)", text))
    missing = {page.name for page in MINE if page.stem != "index"} - named
    assert not missing


@pytest.mark.parametrize("page", MINE, ids=lambda page: page.name)
def test_yaml_in_a_page_is_a_valid_case_or_matrix(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for label, text in blocks(page, "yaml"):
        if label == "matrix":
            (tmp_path / "m.yaml").write_text(text, encoding="utf-8")
            assert matrix.load(tmp_path / "m.yaml").entries
        else:
            assert build_case(parse_yaml(text, page.name)).benchmarks


@pytest.mark.parametrize("page", MINE, ids=lambda page: page.name)
def test_commands_in_a_page_parse(page: Path) -> None:
    """Each is a session of ours with options its parser takes."""
    for _, text in blocks(page, "console"):
        for line in filter(None, text.splitlines()):
            words = shlex.split(line)
            assert words[:2] == ["nox", "-s"], line
            module, function = reference.PARSERS[f"nox -s {words[2]} --"]
            parser = getattr(importlib.import_module(module), function)()
            parser.parse_args(words[words.index("--") + 1 :] if "--" in words else [])


def test_the_reference_is_fresh() -> None:
    fresh = reference.PAGE.read_text(encoding="utf-8") == reference.page()
    assert fresh, "docs/reference.md is old: run `python -m ci.reference`"


def test_every_variable_that_is_read_is_in_the_reference() -> None:
    names = {name for name, _ in reference.variables()}
    assert {"MULTINODE_HISTORY", "MULTINODE_CACHE", "KUBECONFIG", "COLUMNS"} <= names


def test_every_session_of_the_pages_exists() -> None:
    sessions = re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    for page in MINE:
        for name in re.findall(r"nox -s (\w+)", page.read_text(encoding="utf-8")):
            assert name in sessions, f"{page.name}: {name}"
