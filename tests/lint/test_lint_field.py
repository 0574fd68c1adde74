"""What real case files taught the rules: weights, one finding a file, hints that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.core.errors import Problem, Severity
from steps.lint.examples import Example, text_of
from steps.validate import validate
from tests.lint.edits import parallel, routing, split

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
PORT_OF_BOTH = (('"kv_port": "14000"', '"kv_port": "40000"'), ('"14200"', '"40200"'))
BINDING, MULS = '{"enable_cpu_binding": true}', '{"fuse_muls_add": true}'


def found(example: Example, folder: Path, rule: str) -> list[Problem]:
    path = folder / "case.yaml"
    path.write_text(text_of(example), encoding="utf-8")
    return [problem for problem in validate([path]) if problem.rule == rule]


def sizes(prefiller: str, decoder: str) -> Example:
    """The split case in which either side is told other sizes."""
    told = (
        '"prefill": {"dp_size": 2, "tp_size": 8},\n        "decode": {"dp_size": 4, "tp_size": 4}'
    )
    return split((told, prefiller), (told, decoder))


TOLD_P = '"prefill": {"dp_size": %s, "tp_size": %s}'
TOLD_D = '"decode": {"dp_size": %s, "tp_size": %s}'


@pytest.mark.parametrize(
    ("example", "rule", "severities"),
    [
        (sizes(TOLD_P % (2, 4), TOLD_D % (4, 4)), "MN406", [ERROR]),
        (sizes(f"{TOLD_P % (2, 8)}, {TOLD_D % (4, 8)}", TOLD_D % (4, 4)), "MN406", [ERROR]),
        (sizes(f"{TOLD_P % (2, 8)}, {TOLD_D % (9, 4)}", TOLD_D % (4, 4)), "MN406", [INFO]),
        (sizes(TOLD_P % (2, 8), TOLD_P % (2, 4)), "MN406", [WARNING]),
        (sizes(TOLD_P % (2, 8), TOLD_P % (9, 8)), "MN406", [INFO]),
        (split(*PORT_OF_BOTH), "MN409", [INFO]),
        (split(('"14000"', '"40000"'), ('"14200"', '"21000"')), "MN409", [WARNING]),
        (split((BINDING, MULS)), "MN112", [INFO]),
        (split((BINDING, MULS.replace("true", "false"))), "MN112", [WARNING]),
        (parallel(("--max-num-seqs 32\n", "--max-num-seqs 32 --max-num-seqs 64\n")), "MN108",
         [WARNING]),
        (parallel(("npu_per_node: 16", "npu_per_node: 8")), "MN301", [WARNING, WARNING]),
        (routing(("tp_size: 4\n", "tp_size: 8\n")), "MN301", [ERROR]),
    ],
)  # fmt: skip
def test_a_finding_weighs_what_it_costs(
    example: Example, rule: str, severities: list[Severity], tmp_path: Path
) -> None:
    assert [problem.severity for problem in found(example, tmp_path, rule)] == severities


def test_the_default_written_at_the_wrong_level_is_told_once(tmp_path: Path) -> None:
    twice = split(
        (BINDING, MULS),
        ("--max-num-seqs 24", f"--max-num-seqs 24\n      --additional-config '{MULS}'"),
    )
    (only,) = found(twice, tmp_path, "MN112")
    assert len(only.related) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("perf_tpot50", "Add 'tpot_threshold: 50', or 'gates: [tpot_mean_ms <= 50]'."),
        ("perf_tpot0", "Add 'tpot_threshold: LIMIT', or 'gates: [tpot_mean_ms <= LIMIT]'."),
        ("perf_ttft2000", "Add 'gates: [ttft_mean_ms <= 2000]'."),
    ],
)
def test_the_hint_for_a_promise_is_one_that_can_hold(name: str, hint: str, tmp_path: Path) -> None:
    (only,) = found(parallel(("  perf:\n", f"  {name}:\n")), tmp_path, "MN704")
    assert only.hint == hint


def test_a_promise_that_several_make_is_told_once(tmp_path: Path) -> None:
    one = "  perf:\n"
    entry = text_of(parallel()).split(one)[1].split("  acc:")[0]
    text = f"  perf_TPOT50_a:\n{entry}  perf_TPOT20_b:\n{entry}{one}"
    (only,) = found(parallel((one, text)), tmp_path, "MN704")
    assert "nor do 1 more" in only.message
    assert len(only.related) == 1
