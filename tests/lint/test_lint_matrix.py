"""The nightly matrix against its cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.core.errors import Problem
from steps.lint.examples import PARALLEL
from steps.validate import validate

GOOD = """\
a3:
  - {name: parallel, case: parallel.yaml, size: 2}
excluded:
  other: needs a licence
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ci").mkdir()
    (tmp_path / "configs").mkdir()
    for name in ("parallel", "other"):
        (tmp_path / "configs" / f"{name}.yaml").write_text(PARALLEL, encoding="utf-8")
    return tmp_path


def check(folder: Path, text: str) -> list[Problem]:
    matrix = folder / "ci" / "nightly.yaml"
    matrix.write_text(text, encoding="utf-8")
    return validate(sorted((folder / "configs").glob("*.yaml")), matrix)


def test_a_right_matrix_is_clean(folder: Path) -> None:
    assert check(folder, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("parallel.yaml", "paralel.yaml", "MN801"),
        ("size: 2", "size: 4", "MN802"),
        ("excluded:\n  other: needs a licence\n", "", "MN803"),
        ("a3:\n", "a2:\n  - {name: parallel, case: other.yaml, size: 2}\na3:\n", "MN804"),
    ],
)
def test_a_mistake_is_found(folder: Path, old: str, new: str, rule: str) -> None:
    assert old in GOOD
    problems = check(folder, GOOD.replace(old, new))
    assert rule in {problem.rule for problem in problems}
    assert {problem.rule for problem in problems} <= {rule, "MN803"}


def test_a_case_may_say_that_no_job_runs_it(folder: Path) -> None:
    marked = PARALLEL + "lint:\n  ignore:\n    MN803: run by hand\n"
    (folder / "configs" / "other.yaml").write_text(marked, encoding="utf-8")
    assert check(folder, GOOD.replace("excluded:\n  other: needs a licence\n", "")) == []


@pytest.mark.parametrize("text", ["", "- a\n", "a3: [1, {}, {case: x}]\n", "a3: {x: 1}\n"])
def test_an_odd_matrix_is_no_traceback(folder: Path, text: str) -> None:
    assert check(folder, text)
