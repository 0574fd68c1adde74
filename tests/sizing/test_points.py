"""Points: the load of each, which of them count, and what a sweep or a search comes to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from steps import bench
from steps.bench_drivers import Measurement, caches, goodput, problems
from steps.core.case.build import load_case
from steps.core.case.case import Benchmark, Find
from steps.core.case.gates import Gate, each, parse
from steps.core.case.numbers import dumps
from steps.core.plan import clusters
from steps.core.plan.plan import BenchmarkPlan
from steps.core.plan.resolver import Options, resolve
from steps.core.record.records import BenchResult, Check, Point, bench_from, to_dict
from steps.sizing import measure, points
from steps.sizing.search import Search
from tests.sizing.test_form import CASE

SWEEP = "sweep: {batch_size: [1, 2]}"

FIND = Find("batch_size", (parse("tpot_p99_ms <= 50"),), 1, 64)


def entry(**more: object) -> BenchmarkPlan:
    made = {"num_prompts": 16, "batch_size": 4, "max_out_len": 16, **more}
    return BenchmarkPlan(Benchmark("chat", "performance", **made), "aisbench")  # type: ignore[arg-type]


def found(asked: int = 64, **metrics: float) -> Measurement:
    told = {"output_throughput": 100.0, "duration_ms": 1000.0, **metrics}
    return Measurement(
        told, {"asked": asked, "ok": asked}, (Check("requests failed", "pass", "0"),)
    )


def test_requests_and_warm_ups_grow_with_the_load() -> None:
    made = points.at(entry(), {"batch_size": 64}).benchmark
    assert (made.batch_size, made.num_prompts, made.num_warmups) == (64, 256, 8)
    made = points.at(entry(num_prompts=None), {"batch_size": 64}).benchmark
    assert made.num_prompts is None  # all of the data set, which the verdict counts
    made = points.at(entry(num_warmups=40), {"batch_size": 8}).benchmark
    assert made.num_warmups == 40 and made.num_prompts == 32


def test_a_request_rate_lasts_and_nothing_else_holds_requests_back() -> None:
    made = points.at(entry(), {"request_rate": 10.0}).benchmark
    assert (made.num_prompts, made.batch_size) == (300, 300)
    made = points.at(entry(), {"request_rate": 10.0, "batch_size": 5}).benchmark
    assert made.batch_size == 5


@pytest.mark.parametrize(
    ("measured", "wrong"),
    [
        (found(), ""),
        (found(asked=15), "15 requests are too few for 8 at a time"),
        (replace(found(), checks=(Check("requests failed", "fail", "3"),)), "requests failed: 3"),
        (replace(found(), checks=(Check("answers truncated", "fail", "1"),)), "truncated"),
        (Measurement(error="no result"), "no result"),
        (Measurement(skipped="rehearsed: no pictures"), "no pictures"),
        (found(tpot_p99_ms=float("nan")), "metrics are numbers"),
    ],
)
def test_a_point_counts_only_with_evidence(measured: Measurement, wrong: str) -> None:
    made = points.at(entry(), {"batch_size": 8})
    point = points.judged(made, {"batch_size": 8}, measured, "point-01")
    assert wrong in point.wrong and bool(wrong) == bool(point.wrong)


def test_a_client_that_does_not_send_what_it_was_told_is_named() -> None:
    assert points.sent([at / 10 for at in range(100)], 10) == ""
    assert "sent 5" in points.sent([at / 5 for at in range(100)], 10)


def result(made: measure.Sized, plan: BenchmarkPlan) -> BenchResult:
    return bench.judge_sized(plan, made, 1.0, 2.0, "00-chat")


def test_a_sweep_is_judged_by_its_best_point_and_never_green_with_a_bad_one() -> None:
    plan = entry(sweep=({"batch_size": 1}, {"batch_size": 8}))
    plan = replace(plan, gates=(Gate("output_throughput", ">=", 150),))
    good = [
        Point({"batch_size": 1}, {"output_throughput": 90.0}),
        Point({"batch_size": 8}, {"output_throughput": 160.0}),
    ]
    told = result(measure.swept(plan, good), plan)
    assert (told.status, told.metrics["output_throughput"]) == ("pass", 160.0)
    assert bench_from(to_dict(told)) == told
    bad = [good[1], replace(good[0], wrong="requests failed: 3")]
    told = result(measure.swept(plan, bad), plan)
    assert (told.status, told.fault) == ("fail", "functional")
    assert "batch_size 1: requests failed: 3" in told.reason
    told = result(measure.swept(plan, [replace(bad[1])]), plan)
    assert told.status == "error"
    skipped = replace(plan, skip_gates="rehearsed")
    assert result(measure.swept(skipped, bad), skipped).status == "fail"


def walked(border: float, failing: float = 1e9) -> list[Point]:
    """The points of a search on a fleet whose TPOT reaches 50 ms at the border."""
    search = points.search_of(FIND, 4)
    told: list[Point] = []
    while (load := search.next([points.seen(FIND, point) for point in told])) is not None:
        tpot = 50 * (0.4 + 0.6 * load / border)
        held = tpot <= 50
        metrics = {"tpot_p99_ms": tpot, "output_throughput": 1000 * load / tpot}
        wrong = "requests failed: 1" if load >= failing else ""
        told.append(Point({"batch_size": int(load)}, metrics, {"asked": 99, "ok": 99}, wrong, held))
    return told


def sought(told: list[Point], plan: BenchmarkPlan, find: Find = FIND) -> BenchResult:
    search: Search = points.search_of(find, 4)
    return result(measure.sought(plan, find, search, told), plan)


def test_a_search_gates_its_capacity_and_says_the_interval() -> None:
    plan = replace(entry(find=FIND, baseline=20.0), gates=(Gate("capacity", ">=", 0.97, True),))
    told = sought(walked(20.5), plan)
    assert told.status == "pass", told
    assert 19 <= told.metrics["capacity"] <= 21 and told.metrics["tpot_p99_ms"] <= 50
    assert told.metrics["capacity_low"] <= 20 <= told.metrics["capacity_high"]
    assert "95 %" in told.note and len(told.points) <= 12
    assert sought(walked(15.5), plan).fault == "performance"


def test_a_fleet_that_holds_nothing_fails_and_one_that_holds_all_says_so() -> None:
    plan = entry(find=FIND)
    told = sought(walked(0.4), plan)
    assert (told.status, told.fault) == ("fail", "performance") and "no load holds" in told.reason
    told = sought(walked(0.4), replace(plan, skip_gates="rehearsed"))
    assert told.status == "pass" and "no load holds" in told.note
    told = sought(walked(400), plan)
    assert told.metrics["capacity"] == 64 and "end of the range" in told.note


def test_failing_requests_bound_the_load() -> None:
    told = sought(walked(50, failing=20), entry(find=FIND))
    assert told.metrics["capacity"] < 20 and "requests failed: 1" in told.note


def test_a_rate_at_the_end_of_its_range_is_that_end() -> None:
    find = Find("request_rate", (parse("ttft_mean_ms <= 100"),), 1 / 7, 10 / 3)
    asked: list[float] = []

    class Walk:
        points: ClassVar[list[Point]] = []
        broken = None

        def __init__(self, *_: object) -> None:
            self.points.clear()

        def go(self, changes: dict[str, float]) -> bool:
            asked.append(changes["request_rate"])
            metrics = {"ttft_mean_ms": 20.0 + changes["request_rate"]}
            self.points.append(Point(changes, metrics, held=True))
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_Walk", Walk)
        plan = entry(find=find)
        made = measure.measure(None, plan, SimpleNamespace(way=""), Path())  # type: ignore[arg-type]
    assert asked[-1] == 10 / 3 and len(asked) <= 4
    assert made.measured.metrics["capacity"] == pytest.approx(10 / 3, rel=1e-3)


class Fake:
    """Measurements of a client that sends a request each fifth of a second."""

    way = "the caches stay warm"

    def __init__(self, *told: Measurement) -> None:
        self.found: list[Measurement] = []
        self._told = [*told]

    def take(self, places: list[Path], **_: object) -> None:
        for place in places:
            if self._told:
                place.mkdir(parents=True)
                rows = [dumps({"begun": number / 5}) + "\n" for number in range(100)]
                (place / "requests.jsonl").write_text("".join(rows))
                self.found.append(self._told.pop(0))


RUN = SimpleNamespace(events=SimpleNamespace(emit=lambda *_, **__: None))


@pytest.mark.parametrize("judged", [True, False])
def test_a_client_that_is_the_limit_ends_a_benchmark_that_is_judged(
    tmp_path: Path, judged: bool
) -> None:
    plan = replace(entry(sweep=({"request_rate": 10.0},)), skip_gates="" if judged else "rehearsed")
    made = measure.measure(RUN, plan, Fake(found(asked=300)), tmp_path)  # type: ignore[arg-type]
    told = result(made, plan)
    assert (told.status, told.fault) == (("error", "infra") if judged else ("pass", ""))
    assert ("it is the limit here" in told.reason) == judged


def test_a_point_that_is_measured_several_times_is_their_median(tmp_path: Path) -> None:
    plan = entry(sweep=({"batch_size": 2},), repeat=3)
    series = Fake(*(found(tpot_mean_ms=tpot) for tpot in (10.0, 90.0, 12.0)))
    made = measure.measure(RUN, plan, series, tmp_path)  # type: ignore[arg-type]
    assert made.points[0].metrics["tpot_mean_ms"] == 12


def test_caches_that_stay_warm_end_it(tmp_path: Path) -> None:
    plan = entry(sweep=({"batch_size": 2}, {"batch_size": 4}))
    told = result(measure.measure(RUN, plan, Fake(found()), tmp_path), plan)  # type: ignore[arg-type]
    assert (told.status, told.fault) == ("error", "infra")
    assert "point 2 could not be measured like the first: the caches stay warm" in told.reason


def test_the_output_at_the_border_is_what_is_maximised() -> None:
    find = replace(FIND, maximise="output_throughput")
    told = sought(walked(20.5), entry(find=find), find)
    assert told.metrics["capacity"] == pytest.approx(1000 * 20.5 / 50, rel=0.05)


def test_the_front_is_what_no_other_beats() -> None:
    assert points.front([(1, 9), (2, 8), (2, 7), (3, 8), (4, 1)]) == [4, 3, 0]


def test_goodput_counts_requests_that_met_every_limit(tmp_path: Path) -> None:
    rows = [
        {"ttft": 0.1, "e2el": 1.0, "output_tokens": 11, "error": ""},  # 90 ms a token
        {"ttft": 0.1, "e2el": 0.4, "output_tokens": 11, "error": ""},
        {"ttft": 0.3, "e2el": 0.5, "output_tokens": 11, "error": ""},  # late
        {"ttft": 0.1, "e2el": 0.2, "output_tokens": 11, "error": "HTTP 500"},
        {"ttft": 0.1, "e2el": 0.1, "output_tokens": 1, "error": ""},
        {"ttft": 0.0, "e2el": 0.1, "output_tokens": 1, "error": ""},  # its first token was not seen
    ]
    (tmp_path / "requests.jsonl").write_text("".join(dumps(row) + "\n" for row in rows))
    limits = (parse("ttft_p99_ms <= 200"), parse("tpot_mean_ms <= 50"))
    assert each(limits) == {"ttft": 200, "tpot": 50}
    plan = replace(entry(), gates=limits)
    assert goodput.added(found(), plan, tmp_path).metrics["goodput"] == 2.0
    assert "goodput" not in goodput.added(found(), entry(), tmp_path).metrics
    searched = entry(find=FIND)
    assert goodput.added(found(), searched, tmp_path).metrics["goodput"] == 4.0


def test_engines_whose_caches_cannot_be_reset_are_known_before_they_start(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    for words, env, said in (
        ("", "", "VLLM_SERVER_DEV_MODE=1"),
        ("", "env_common: {VLLM_SERVER_DEV_MODE: 1}", ""),
        ("--no-enable-prefix-caching", "", ""),
    ):
        text = CASE.replace("$SERVER_PORT", f"$SERVER_PORT {words}")
        path.write_text(text.format(more=SWEEP, kind="performance") + env)
        case = load_case(path)
        plan = resolve(case, clusters.local(case), Options("r"))
        reason = caches.unable(plan, plan.nodes[0], lambda process: process.env)
        assert said in reason and bool(said) == bool(reason)
        run = SimpleNamespace(
            plan=plan, me=plan.nodes[0], is_leader=True, supervisor=SimpleNamespace()
        )
        run.supervisor.environment = lambda process: process.env
        told = [text for text in problems(run) if "several loads" in text]  # type: ignore[arg-type]
        assert bool(told) == bool(said)


def test_a_point_says_which_limit_it_missed_and_a_limit_nobody_measures_is_not_held() -> None:
    plan = points.at(entry(), {"batch_size": 8})
    plan = replace(plan, benchmark=replace(plan.benchmark, find=FIND))
    point = points.judged(plan, {"batch_size": 8}, found(tpot_p99_ms=73.0), "p")
    assert not point.held and point.missed == "tpot_p99_ms <= 50 (73)"
    point = points.judged(plan, {"batch_size": 8}, found(), "p")
    assert not point.held and point.missed == "tpot_p99_ms <= 50 (not measured)"
    assert points.seen(FIND, point).broke
