"""The matrix: its mistakes are found with their lines, a change picks what it can affect."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ci.nightly import matrix
from ci.nightly.matrix import Entry, Matrix, affected, as_github, as_json, select
from steps.core.errors import CaseError, UsageError
from steps.core.system import git as runner

ENTRY = """\
a3:
  - name: one
    case: configs/quickstart.yaml
    size: 2
    profile: a3
    runner: [self-hosted, npu]
    cadence: nightly
    owner: us
"""


@pytest.fixture
def build(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Matrix]:
    """The matrix of a text, beside the repository's own cases."""
    monkeypatch.chdir(root)

    def make(text: str) -> Matrix:
        file = tmp_path / "nightly.yaml"
        file.write_text(text, encoding="utf-8")
        return matrix.load(file)

    return make


def problems(build: Callable[[str], Matrix], text: str) -> list[str]:
    with pytest.raises(CaseError) as caught:
        build(text)
    return [f"{p.place.line}: {p.message}" for p in caught.value.problems]


def entry(name: str, **changes: object) -> Entry:
    made = Entry("a3", name, f"configs/{name}.yaml", 2, "a3", ("npu",), "nightly", "us")
    return replace(made, **changes)


def test_the_repositorys_own_matrix_is_valid(root: Path) -> None:
    found = matrix.load(root / matrix.MATRIX)
    assert set(found.max_parallel) == set(found.socs)
    assert all(Path(e.case).is_file() for e in found.entries)


def test_entries_are_what_fromjson_takes(build: Callable[[str], Matrix]) -> None:
    found = build(ENTRY)
    text = as_json(found.entries)
    assert "\n" not in text
    (job,) = json.loads(text)["include"]
    assert job["name"] == "one" and job["runner"] == ["self-hosted", "npu"] and job["size"] == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "quickstart.yaml",
            "nowhere.yaml",
            "3: a3: one names configs/nowhere.yaml, which does not exist",
        ),
        ("size: 2", "size: 3", "4: a3: one has size 3, configs/quickstart.yaml has num_nodes 2"),
        ("owner: us", "ownr: us", "8: a3.0.ownr: unknown field"),
        ("cadence: nightly", "cadence: hourly", "7: a3.0.cadence: unallowed value hourly"),
        ("size: 2", "size: two", "4: a3.0.size: must be of integer type"),
        ("a3:", "a 3:", "1: a 3: no name of a SoC"),
        ("owner: us", "owner: us\n    minutes: 0", "9: a3.0.minutes: min value is 1"),
        ("name: one", "name: One/../x", "2: a3.0.name: value does not match regex"),
    ],
)
def test_a_mistake_is_found_at_its_line(
    build: Callable[[str], Matrix], old: str, new: str, expected: str
) -> None:
    found = problems(build, ENTRY.replace(old, new))
    assert any(text.startswith(expected) for text in found), found


def test_a_name_given_twice_is_found_across_socs(build: Callable[[str], Matrix]) -> None:
    text = ENTRY + ENTRY.replace("a3:", "a2:", 1)
    assert problems(build, text) == ["10: a2: the name one is used twice"]


def test_all_problems_come_at_once(build: Callable[[str], Matrix]) -> None:
    text = ENTRY.replace("size: 2", "size: 5") + ENTRY.replace("a3:", "a2:", 1)
    assert len(problems(build, text)) == 2


def test_github_output_names_each_soc(build: Callable[[str], Matrix]) -> None:
    found = build("max_parallel: {a3: 4}\n" + ENTRY)
    lines = dict(line.split("=", 1) for line in as_github(found, found.entries).splitlines())
    assert lines["soc-a3-count"] == "1" and lines["soc-a3-parallel"] == "4"
    assert json.loads(lines["soc-a3"]) == json.loads(lines["all"])


def test_only_names_an_entry_whatever_its_cadence() -> None:
    found = Matrix((entry("one"), entry("two", cadence="manual")), {})
    assert [e.name for e in select(found, cadences=["nightly"])] == ["one"]
    assert [e.name for e in select(found, only=["two"], cadences=["nightly"])] == ["two"]


def test_big_fleets_come_first() -> None:
    sizes = (2, 4, 1, 4)
    found = Matrix(tuple(entry(f"e{at}", size=size) for at, size in enumerate(sizes)), {})
    assert [e.name for e in select(found)] == ["e1", "e3", "e0", "e2"]


def test_a_name_may_have_capitals_and_dots(build: Callable[[str], Matrix]) -> None:
    found = build(ENTRY.replace("name: one", "name: Qwen3.5-27B_w8a8"))
    assert (found.entries[0].name, found.entries[0].minutes) == ("Qwen3.5-27B_w8a8", 480)


def test_an_unknown_name_is_refused_with_a_close_one() -> None:
    found = Matrix((entry("deepseek-v3"),), {})
    with pytest.raises(UsageError, match="Did you mean deepseek-v3"):
        select(found, only=["deepseek-v4"])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["configs/one.yaml"], ["one"]),
        (["configs/clusters/cpu.yaml"], ["two"]),
        (["docs/index.md", "tests/x.py", "rehearsal/engine/serve.py", "CHANGELOG.md"], []),
        (["steps/serve.py"], ["one", "two"]),
        (["docs/x.md", "setup.cfg"], ["one", "two"]),
        (["configs/other.yaml"], []),
    ],
)
def test_a_change_picks_what_it_can_affect(changed: list[str], expected: list[str]) -> None:
    entries = (entry("one"), entry("two", profile="cpu"))
    assert [e.name for e in affected(entries, changed, None)] == expected


def test_a_change_of_the_matrix_picks_the_entries_it_changed() -> None:
    before = (entry("one"), entry("two"))
    now = (entry("one"), entry("two", size=4), entry("three"))
    assert [e.name for e in affected(now, ["ci/nightly.yaml"], before)] == ["two", "three"]


def test_changed_since_is_what_the_branch_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        runner.git(tmp_path, *arguments)

    git("init", "-q", "-b", "main")
    (tmp_path / "old").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    git("checkout", "-qb", "change")
    (tmp_path / "new").write_text("1")
    git("add", ".")
    git("commit", "-qm", "two")
    assert matrix.changed_since("main", tmp_path) == ["new"]
    with pytest.raises(UsageError, match="nowhere"):
        matrix.changed_since("nowhere", tmp_path)
