"""The pages: links lead somewhere, YAML and commands in them are valid, the reference is fresh."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from invoke.parser import Parser
from invoke.program import Program

import tasks
from ci.backends.hosts import inventory
from ci.nightly import matrix
from ci.tools import reference
from steps.core.case.build import build_case, cases_in
from steps.core.case.source import parse_yaml
from steps.core.plan.profile import load_profile
from tests.core.test_house import FLOORS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OURS = (
    "index",
    "tour",
    "add-a-case",
    "read-a-verdict",
    "nightly",
    "extend",
    "from-run-sh",
    "products",
)
#: The generated reference lists commands without what they need.
ALL = [
    *(page for page in PAGES if page.stem != "reference"),
    ROOT / "README.md",
    ROOT / "README.zh.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
]
SESSIONS = re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
MINE = [page for page in PAGES if page.stem in OURS]
BLOCK = re.compile(r"^ *```(\S*) ?(\S*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    text = page.read_text(encoding="utf-8")
    return [(label, body) for kind, label, body in BLOCK.findall(text) if kind == language]


@pytest.mark.parametrize("page", [*ALL, *PAGES], ids=lambda page: page.name)
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
        elif label == "profile":
            (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
            assert load_profile(tmp_path / "p.yaml").known_products()[1]
        else:
            for case in map(build_case, cases_in(parse_yaml(text, page.name)).values()):
                assert case.benchmarks or case.only


def commands(page: Path) -> list[str]:
    """What a page tells to type: lines of its blocks, and code within a sentence."""
    found = []
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        typed = re.split(r" {3,}|\s#", line.strip())[0] if not line.startswith("|") else ""
        spans = re.findall(r"`([^`]+)`", line)
        for text in [typed, *spans]:
            for part in re.split(r"&&|;|\|", text.removeprefix("$ ")):
                command = re.sub(r"^(\w+=\S+ )+", "", part.strip()).partition(" > ")[0]
                command = re.sub(r"[\[\]]|\s*\.\.\.$", "", command)
                if re.match(r"(python[0-9.]* -m )?(nox -s|invoke) \w|python[0-9.]* -m \w", command):
                    found.append(command)
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_commands_in_a_page_parse(page: Path) -> None:
    """Each is a session, a task or a module of ours, with options that it takes."""
    for command in commands(page):
        words = shlex.split(command)
        if words[0].startswith("python"):
            words = words[2:]
        if words[0] == "nox":
            assert words[2] in SESSIONS, command
            rest = words[words.index("--") + 1 :] if "--" in words else []
            takes(f"nox -s {words[2]} --", rest)
        elif words[0] == "invoke":
            contexts = tasks.namespace.to_contexts()
            core = Program(namespace=tasks.namespace).initial_context
            Parser(contexts=contexts, initial=core).parse_argv(words[1:])
        elif words[0].split(".")[0] in ("ci", "steps", "k8s", "tests"):
            assert importlib.util.find_spec(words[0]), command


def takes(command: str, options: list[str]) -> None:
    if command in reference.PARSERS:
        importlib.import_module(reference.PARSERS[command]).main.parser().parse_args(options)


def test_commands_are_found_where_pages_have_them() -> None:
    """The test above could find nothing and be content."""
    counts = {page.name: len(commands(page)) for page in ALL}
    few = ("README.md", "hosts.md", "kubernetes.md", "real-cpu.md", "validate.md", "nightly.md")
    assert all(counts[name] >= 3 for name in few), counts


def test_the_hosts_file_of_the_page_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
    block = re.search(r"^    defaults:.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    assert block
    path = tmp_path / "hosts.yaml"
    path.write_text(textwrap.dedent(block.group()), encoding="utf-8")
    assert [host.address for host in inventory.of_file(path).hosts] == ["10.0.0.1", "10.0.0.2"]


def test_the_reference_is_fresh() -> None:
    fresh = reference.PAGE.read_text(encoding="utf-8") == reference.page()
    assert fresh, "docs/reference.md is old: run `python -m ci.tools.reference`"


def test_every_variable_that_is_read_is_in_the_reference() -> None:
    names = {name for name, _ in reference.variables()}
    assert {"MULTINODE_HISTORY", "MULTINODE_CACHE", "KUBECONFIG", "COLUMNS"} <= names


def test_every_session_of_the_pages_exists() -> None:
    for page in ALL:
        for name in re.findall(r"nox -s (\w+)", page.read_text(encoding="utf-8")):
            assert name in SESSIONS, f"{page.name}: {name}"


HEADINGS = {"multinode": "multinode", "Why": "为什么", "Use": "使用", "Pages": "文档"}


def shape(page: Path) -> list[list[str]]:
    """What two languages have in common: headings, commands, code and links, block by block."""
    blocks = []
    for block in page.read_text(encoding="utf-8").strip().split("\n\n"):
        if block.startswith("#"):
            level, _, heading = block.partition(" ")
            blocks.append([level, HEADINGS.get(heading, heading)])
        elif block.startswith("    "):
            blocks.append([block])
        else:
            for part in re.split(r"^(?=[-|])", block, flags=re.MULTILINE):
                code = re.findall(r"`[^`]+`", part)
                links = re.findall(r"\]\(([^)]+)\)", part.replace("README.zh.md", "README.md"))
                blocks.append([*sorted(code), *sorted(links)])
    return blocks


def test_the_chinese_page_is_in_step() -> None:
    """Each heading, command and link of the first page, in the same place of the other."""
    english, chinese = shape(ROOT / "README.md"), shape(ROOT / "README.zh.md")
    assert english == chinese
    text = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    for line in re.sub(r"`[^`]*`", "", text).splitlines():
        translated = re.search("[\u4e00-\u9fff]", line) or not re.search(r"[A-Za-z]", line)
        assert translated or line.startswith(("    ", "# multinode", "[English]")), line


def test_every_claim_of_the_security_page_is_shown_by_a_test() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    shown = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(shown) > 25
    for file, test in shown:
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (file, test)
    for table in text.split("|---|---|\n")[1:]:
        for row in table.partition("\n\n")[0].splitlines():
            assert "`tests/" in row.split("|")[2], row


def test_the_tour_names_what_is_there() -> None:
    walks = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(walks) == 2
    for walk in walks:
        stations = re.findall(r"^\d+\. `([^`]+)` `([^`]+)`", walk, re.MULTILINE)
        assert len(stations) == len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) <= 12
        files = [name for name, _ in stations]
        assert len(set(files)) == len(files), "a walk goes back"
        for name, piece in stations:
            tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
            there = {getattr(node, "name", "") for node in tree.body}
            assert piece in there, f"docs/tour.md: {name} has no {piece}"


def test_the_rooms_are_in_the_contributors_table() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [
        room
        for row in re.findall(r"^\| (`[^|]+/`) \|", text, re.MULTILINE)
        for room in re.findall(r"`([^`]+)/`", row)
    ]
    floors = [floor.replace(".", "/") for floor in FLOORS]
    assert [room for room in named if room != "rehearsal"] == floors
