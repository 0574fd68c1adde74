"""Each rule's own examples: failing ones are found, passing ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.core.errors import Problem
from steps.lint import matrix, reference
from steps.lint.examples import BASES, Example, data, text_of
from steps.lint.registry import RULES
from steps.validate import validate

CASE_RULES = [code for code in sorted(RULES) if code[2] != "8"]
FAILS = [(code, n, e) for code in CASE_RULES for n, e in enumerate(RULES[code].fails)]
PASSES = [(code, n, e) for code in CASE_RULES for n, e in enumerate(RULES[code].passes)]


def found(example: Example, folder: Path) -> list[Problem]:
    path = folder / "example.yaml"
    path.write_text(text_of(example), encoding="utf-8")
    return validate([path])


def test_examples_belong_to_rules() -> None:
    assert set(data("examples")) <= set(RULES)
    kinds = {kind for entry in data("examples").values() for kind in entry}
    assert kinds == {"fails", "passes"}


@pytest.mark.parametrize("base", BASES)
def test_a_base_case_is_clean(base: str, tmp_path: Path) -> None:
    assert found(Example(base), tmp_path) == []


@pytest.mark.parametrize(("code", "number", "example"), FAILS)
def test_failing_example_is_found(code: str, number: int, example: Example, tmp_path: Path) -> None:
    problems = found(example, tmp_path)
    mine = [problem for problem in problems if problem.rule == code]
    assert mine, [str(problem) for problem in problems]
    lines = text_of(example).count("\n")
    assert all(1 <= problem.place.line <= lines for problem in mine)
    assert all(problem.message for problem in mine)


@pytest.mark.parametrize(("code", "number", "example"), PASSES)
def test_passing_example_is_not_found(
    code: str, number: int, example: Example, tmp_path: Path
) -> None:
    problems = found(example, tmp_path)
    assert [str(problem) for problem in problems if problem.rule == code] == []


@pytest.mark.parametrize("code", [c for c in CASE_RULES if RULES[c].check is not None])
def test_a_rule_has_examples_and_an_explanation(code: str) -> None:
    assert RULES[code].fails
    assert len(RULES[code].explanation) > 40


@pytest.mark.parametrize("code", sorted(RULES))
def test_every_rule_can_be_explained(code: str) -> None:
    text = reference.explain(code.lower())
    assert text.startswith(f"{code}: {RULES[code].title}")


def test_the_reference_page_is_fresh() -> None:
    fresh = reference.PAGE.read_text(encoding="utf-8") == reference.page()
    assert fresh, "docs/rules.md is old: run `python -m steps.lint.reference`"


def test_the_linters_flag_table_is_the_stand_ins() -> None:
    ours = Path("steps/core/vllm/data/vllm_flags.json").read_text(encoding="utf-8")
    theirs = Path("rehearsal/engine/flags.json")
    again = f"run `cp {theirs} steps/core/vllm/data/vllm_flags.json`"
    assert ours == theirs.read_text(encoding="utf-8"), again


def test_matrix_rules_need_a_matrix() -> None:
    assert all(RULES[code].check for code in RULES if code[2] == "8")
    assert matrix.locate("", Path("ci/nightly.yaml")) is None
