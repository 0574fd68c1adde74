"""History, trends, baselines and known issues."""

from __future__ import annotations

import datetime
import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest

from ci.nightly import baseline, known, trend
from ci.nightly.history import (
    DirectoryStore,
    GitStore,
    Result,
    case_key,
    decode,
    encode,
    open_store,
)
from steps.core.case.build import load_case
from steps.core.case.source import parse_yaml
from steps.core.errors import CaseError, UsageError
from steps.core.plan.clusters import ROOT
from steps.core.plan.plan import Plan
from steps.core.record import stats
from steps.core.record.records import Cause
from steps.core.record.verdict import Verdict
from steps.core.system.git import git


def result(number: int, value: float = 1000.0, **more: object) -> Result:
    fields = {
        "run": f"run-{number}",
        "case": "quickstart",
        "time": 1.7e9 + 86400.0 * number,
        "verdict": "pass",
        "commit": f"c{number:03}",
        "benchmarks": {"chat": {"output_throughput": value}},
        **more,
    }
    return Result(**fields)  # type: ignore[arg-type]


def series(*values: float) -> list[Result]:
    return [result(number, value) for number, value in enumerate(values)]


def test_a_result_survives_its_encoding() -> None:
    one = result(1, cause="Ausfall: \ud800 ✗")
    assert decode(encode(one)) == one


@pytest.mark.parametrize("cut", [2, 20, 200])
def test_a_torn_or_changed_result_is_no_result(cut: int) -> None:
    text = encode(result(1))
    odd = (text[:-cut], text.replace("1000.0", "2000.0"), "[]", '{"result": 1, "sha256": 2}')
    for torn in odd:
        with pytest.raises(ValueError, match=r"checksum|no result"):
            decode(torn)


def test_a_newer_schema_is_passed_over_and_an_unknown_field_is_not() -> None:
    with pytest.raises(ValueError, match="schema"):
        decode(encode(result(1, schema=2)))


def test_the_newest_results_come_in_order_each_once(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for number in (40, 3, 80, 3):
        store.append(result(number))
    (store.path / "quickstart" / "2023-11" / "x.json").parent.mkdir(exist_ok=True)
    (store.path / "quickstart" / "2023-11" / "x.json").write_text('{"torn')
    assert [r.run for r in store.results("quickstart")] == ["run-3", "run-40", "run-80"]
    assert [r.run for r in store.results("quickstart", 2)] == ["run-40", "run-80"]
    assert store.results("other") == [] and store.cases() == ["quickstart"]


def _append(path: Path, first: int) -> None:
    for number in range(first, first + 20):
        DirectoryStore(path).append(result(number))


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append, args=(tmp_path, at)) for at in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(DirectoryStore(tmp_path).results("quickstart")) == 30
    assert not list(tmp_path.rglob("*.part"))


def test_a_git_branch_keeps_results_of_two_clones(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", str(tmp_path / "r.git"))
    where = f"git:{tmp_path / 'r.git'}#results"
    store = open_store(where)
    assert isinstance(store, GitStore) and store.results("quickstart") == []
    store.append(result(1))
    open_store(where).append(result(2))
    open_store(where).append(result(2))
    assert [r.run for r in store.results("quickstart")] == ["run-1", "run-2"]
    assert store.cases() == ["quickstart"]


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (str(ROOT / "configs/cpu/smollm2.yaml"), "cpu--smollm2"),
        ("configs/DeepSeek-V3.2.yaml", "DeepSeek-V3.2"),
        ("/elsewhere/a case!.yaml", "a-case"),
    ],
)
def test_the_key_of_a_case(file: str, key: str) -> None:
    assert case_key(file) == key


def test_one_bad_night_is_no_change_of_level_but_a_step_is() -> None:
    wobble = [1000 + (7 * i) % 11 for i in range(12)]
    assert stats.change_points([*wobble, 700, *wobble]) == []
    assert stats.change_points([*wobble, *(0.9 * v for v in wobble)]) == [12]
    assert stats.change_points([5.0] * 20) == []


@pytest.mark.parametrize(
    ("share", "samples", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (1.0, 10, 0.7225, 1.0), (0.0, 0, 0.0, 1.0)],
)
def test_wilsons_interval(share: float, samples: int, low: float, high: float) -> None:
    assert stats.wilson(share, samples) == pytest.approx((low, high), abs=2e-4)


def test_a_trend_says_level_and_what_changed_it() -> None:
    text = trend.text(
        "quickstart", series(*[1000, 1004, 998, 1001, 1003] * 2, *[900, 903, 898] * 3)
    )
    assert "median 900 token/s" in text and "-10." in text
    assert "harness c009..c010" in text


def product(number: int) -> str:
    return f"{number:02d}" * 20


def test_a_trend_is_by_the_product_s_commit() -> None:
    results = [
        result(n, value, versions={"vllm-ascend": "0.30", "vllm-ascend-commit": product(n)})
        for n, value in enumerate([1000.0, 1004, 998, 1001, 1003] * 2 + [900.0, 903, 898] * 3)
    ]
    text = trend.text("quickstart", results)
    assert f"vllm-ascend {product(9)[:12]}..{product(10)[:12]}, harness c009..c010" in text
    assert f"pass     vllm-ascend {product(3)[:12]} " in text


def test_what_a_run_was_told_to_test_keeps_apart() -> None:
    nightly = series(*[1000.0] * 6)
    asked = {"asked": {"vllm-ascend": "pr/7"}, "versions": {"vllm-ascend-commit": product(7)}}
    pull = result(9, 800.0, **asked)
    assert len(trend.series([*nightly, pull], "chat", "output_throughput")) == 1
    assert len(trend.series([pull, *nightly], "chat", "output_throughput")) == 6
    assert decode(encode(pull)) == pull and pull.product == f"vllm-ascend {product(7)[:12]}"


def test_an_entry_of_before_is_a_result() -> None:
    body = json.loads(json.loads(encode(result(1)))["result"])
    del body["asked"]
    text = json.dumps(body)
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = decode(json.dumps({"sha256": digest, "result": text}))
    assert (found.commit, found.product, found.asked) == ("c001", "", {})


def test_the_trend_command_lists_shows_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    store = DirectoryStore(tmp_path)
    for entry in series(*range(100, 108)):
        store.append(entry)
    assert trend.main(["--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "quickstart\n"
    plot = tmp_path / "trend.svg"
    assert trend.main(["quickstart", "--store", str(tmp_path), "--plot", str(plot)]) == 0
    assert "<svg" in plot.read_text() and "#010205" not in plot.read_text()
    assert trend.main(["nothing", "--store", str(tmp_path)]) == 2
    assert "The store has: quickstart" in capsys.readouterr().err


CASE = """\
model: demo/tiny   # the model
num_nodes: 1
npu_per_node: 1
deployment:
  - server_cmd: vllm serve demo/tiny --port 8000
benchmarks:
  chat:
    case_type: performance
    baseline: 900.0   # measured on A3
    dataset_path: demo/set
    threshold: 0.97
"""


def propose(text: str, results: list[Result], tmp_path: Path, lower: bool = False) -> tuple:
    path = tmp_path / "case.yaml"
    path.write_text(text, encoding="utf-8")
    case = load_case(path)
    proposals = [baseline.propose(entry, results, lower) for entry in case.benchmarks]
    return proposals[0], *baseline.diff(case, text, proposals)


def test_a_baseline_is_raised_as_a_diff_that_keeps_everything_else(tmp_path: Path) -> None:
    good = series(1000, 1010, 990, 1005, 995)
    proposal, new, change = propose(CASE, good, tmp_path)
    assert proposal.value == 1000
    assert new == CASE.replace("900.0 ", "1000 ")
    assert (
        "-    baseline: 900.0   # measured on A3\n+    baseline: 1000   # measured on A3" in change
    )


def test_a_baseline_is_never_lowered_unless_asked(tmp_path: Path) -> None:
    slow = series(800, 810, 790, 805, 795)
    proposal, new, change = propose(CASE, slow, tmp_path)
    assert proposal.value is None and "NOT lowered" in proposal.reason
    assert new == CASE and change == ""
    assert propose(CASE, slow, tmp_path, lower=True)[0].value == 800


def test_a_missing_baseline_is_added_under_the_case_type(tmp_path: Path) -> None:
    text = CASE.replace("    baseline: 900.0   # measured on A3\n", "")
    _, new, _ = propose(text, series(*[1000.0] * 6), tmp_path)
    assert "    case_type: performance\n    baseline: 1000\n    dataset_path" in new


def test_few_runs_or_rehearsals_propose_nothing(tmp_path: Path) -> None:
    few, _, change = propose(CASE, series(1000, 1000), tmp_path)
    assert few.value is None and "expected at least 5" in few.reason and change == ""
    rehearsed = [result(n, 1000, rehearsed=True) for n in range(9)]
    assert propose(CASE, rehearsed, tmp_path)[0].value is None


def test_only_the_last_level_counts(tmp_path: Path) -> None:
    proposal, _, _ = propose(CASE, series(*[700.0] * 8, *[1200.0] * 8), tmp_path)
    assert proposal.value == 1200 and "harness c007..c008" in proposal.reason


def test_a_baseline_shared_by_an_anchor_is_refused() -> None:
    text = (
        CASE.replace("900.0", "&b 900.0")
        + "  two:\n    case_type: performance\n    baseline: *b\n    dataset_path: demo/set\n"
    )
    with pytest.raises(UsageError, match="by hand"):
        baseline.edited(parse_yaml(text, "c.yaml"), text, "chat", 1000.0)


ISSUE = """\
issues:
  - signature: 'HCCL.*lost'
    case: configs/quick*
    link: https://example.com/1
    expiry: 2030-01-31
    reason: a link drops
"""


def issues(text: str, tmp_path: Path) -> tuple[known.Known, ...]:
    path = tmp_path / "known.yaml"
    path.write_text(text)
    return known.load(path)


def verdict(name: str, **more: object) -> Verdict:
    cause = Cause("exit", name, "died", **more)  # type: ignore[arg-type]
    return Verdict("r", "c", name, cause, (), (), (), 1.0, 0.0, False)


def test_a_known_issue_explains_its_failure_only(tmp_path: Path) -> None:
    found = known.of_case(
        issues(ISSUE, tmp_path), "configs/quickstart.yaml", datetime.date(2030, 1, 31)
    )
    hit = verdict("crash", evidence=("E: HCCL link lost",))
    assert known.explaining(found, hit) is found[0]
    assert "still not green" in known.remark(found[0])
    assert known.explaining(found, verdict("crash", evidence=("other",))) is None
    assert known.explaining(found, verdict("infra", evidence=("HCCL lost",))) is None
    assert known.of_case(found, "configs/other.yaml", datetime.date(2031, 1, 1)) == ()


def test_an_expired_issue_is_an_error_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"known.yaml:2:.*expired on 2030-01-31"):
        known.of_case(
            issues(ISSUE, tmp_path),
            str(ROOT / "configs/quickstart.yaml"),
            datetime.date(2030, 2, 1),
        )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("2030-01-31", "soon", "must be of date type"),
        ("    link: https://example.com/1\n", "", "required field"),
        ("'HCCL.*lost'", "'('", "not a regular expression"),
    ],
)
def test_a_wrong_list_says_where(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(CaseError, match=expected):
        issues(ISSUE.replace(old, new), tmp_path)


def test_noise_wider_than_the_threshold_is_said(tmp_path: Path) -> None:
    from tests.ci.runs import plan_of

    plan = plan_of()
    assert trend.noise_warnings(plan, series(*[1000, 900, 1100] * 4)) == []
    data = json.loads(json.dumps({"gate": "output_throughput >= 0.97 * baseline"}))
    from dataclasses import replace

    from steps.core.case import gates

    entry = replace(plan.benchmarks[0], gates=(gates.parse(data["gate"]),))
    noisy = replace(plan, benchmarks=(entry,))
    assert trend.noise_warnings(noisy, here(plan, 1000, 1001, 999)) == []
    (text,) = trend.noise_warnings(noisy, here(plan, 1000, 900, 1100))
    assert "allows 3.0 %" in text
    elsewhere = [replace(one, cluster="other") for one in here(plan, 1000, 900, 1100)]
    assert trend.noise_warnings(noisy, elsewhere) == []


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("output_throughput >= 980", "allows 2.0 %"),
        ("output_throughput <= 1500", None),
        ("output_throughput >= 1200", None),
        ("output_throughput == 1000", None),
    ],
)
def test_a_fixed_limit_within_the_noise_is_said_too(gate: str, expected: str | None) -> None:
    from dataclasses import replace

    from steps.core.case import gates
    from tests.ci.runs import plan_of

    plan = plan_of()
    plan = replace(plan, benchmarks=(replace(plan.benchmarks[0], gates=(gates.parse(gate),)),))
    said = trend.noise_warnings(plan, here(plan, 1000, 900, 1100))
    assert [expected in text for text in said if expected] == ([True] if expected else [])
    assert bool(said) is bool(expected)


def here(plan: Plan, *values: float) -> list[Result]:
    """Twelve good runs on the cluster of a plan, by the driver it names."""
    entry = plan.benchmarks[0]
    more = {"cluster": plan.cluster.name, "drivers": {entry.benchmark.name: entry.driver}}
    return [result(number, value, **more) for number, value in enumerate(values * 4)]


def test_runs_of_another_cluster_or_driver_do_not_count(tmp_path: Path) -> None:
    fast = [result(n, 2000.0, cluster="a3", drivers={"chat": "aisbench"}) for n in range(8)]
    slow = [result(n, 1000.0, cluster="a2", drivers={"chat": "aisbench"}) for n in range(8, 14)]
    smoke = [result(n, 9.0, cluster="a2", drivers={"chat": "smoke"}) for n in range(14, 16)]
    last = [result(16, 1000.0, cluster="a2", drivers={"chat": "aisbench"})]
    results = [*fast, *slow, *smoke, *last]
    assert propose(CASE, results, tmp_path)[0].value == 1000
    said = trend.text("quickstart", results)
    assert "level changed" not in said and "10 runs on another cluster or by another" in said


def test_each_change_of_level_is_against_the_level_before_it() -> None:
    said = trend.text("quickstart", series(*[700.0] * 8, *[1400.0] * 8, *[1260.0] * 8))
    assert "+100.0 %" in said and "-10.0 %" in said
