"""What is said of a load while it goes on, and which of its requests hangs."""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace
from typing import Any

import pytest

from steps.bench_drivers import Job, progress, smoke, stuck
from steps.bench_drivers.aisbench import pace
from steps.bench_drivers.progress import Counts, Forecast, remaining, row, side_row
from steps.bench_drivers.stuck import Seen, Signs
from steps.core.node.noderun import StepFailed
from steps.core.plan.plan import Endpoint
from steps.core.record.events import Event, sentence
from tests.bench import engine
from tests.bench.conftest import Bench

# How long it still takes


def course(points: list[tuple[float, float]]) -> Forecast:
    found = Forecast()
    for now, work in points:
        found.note(now, work)
    return found


def test_nobody_knows_before_there_is_a_pace() -> None:
    assert course([(n, 0) for n in range(100)]).left(50) is None, "nothing came yet"
    assert course([(n, 8) for n in range(100)]).left(50) is None, "a first wave, then nothing"
    assert course([(n, n) for n in range(5)]).left(50) is None, "too few to tell"
    assert remaining(None) == ""


def test_an_even_course_is_told_in_one_number_and_a_rough_one_in_two() -> None:
    even = course([(n, n) for n in range(101)]).left(200)
    assert even == pytest.approx((100, 100))
    assert remaining(even) == "about 100 s left"
    rough = course([(n, n if n < 50 else 50 + 2 * (n - 50)) for n in range(101)]).left(250)
    assert rough == pytest.approx((50, 100))
    assert remaining(rough) == "50 s to 100 s left"


def test_a_course_that_stood_still_has_no_end_that_is_known() -> None:
    halted = course([(n, min(n, 50)) for n in range(101)]).left(150)
    assert halted == (pytest.approx(100), None)
    assert remaining(halted) == "at least 100 s left"


def test_the_truth_lies_in_the_range_about_as_often_as_it_says() -> None:
    """Requests that end at random: four stretches hold their mean pace in 7 of 8 courses."""
    inside = 0
    for seed in range(200):
        rng, now, done = random.Random(seed), 0.0, Forecast()
        ends = [now := now + rng.expovariate(1.0) for _ in range(400)]
        for number, end in enumerate(ends[:200]):
            done.note(end, number + 1.0)
        low, high = done.left(400) or (0.0, 0.0)
        inside += low <= 200.0 <= (high or 1e9)
    assert inside >= 160


def test_a_long_course_keeps_few_points() -> None:
    found = course([(n, n) for n in range(10_000)])
    assert len(found._points) <= progress.POINTS
    assert found.left(20_000) == pytest.approx((10_001, 10_001), rel=0.05)


# In words


def test_rows_say_what_is_known() -> None:
    counts = Counts(1024, 412, 128, 2, 9.0, 0.84, 0.0312)
    assert row("chat", counts, 4312.4, "about 45 s left") == (
        "chat: 412 of 1,024 done, 2 failed, 128 in flight, 4,312 tokens/s, TTFT 840 ms, "
        "TPOT 31 ms, about 45 s left"
    )
    assert row("chat", Counts(0, 3, 1), None, "") == "chat: 3 done, 1 in flight"
    first = {"running": 1.0, "prompt_tokens": 100.0, "ttft_sum": 1.0, "ttft_count": 1.0}
    now = {"running": 7.0, "waiting": 2.0, "prompt_tokens": 300.0, "ttft_sum": 4.0}
    now |= {"ttft_count": 3.0, "generation_tokens": 60.0, "itl_sum": 0.9, "itl_count": 30.0}
    assert side_row("prefiller", now, first, first, 2.0) == (
        "prefillers: 7 running, 2 waiting, 100 prompt tokens/s, TTFT 1500 ms"
    )
    assert side_row("decoder", now, first, first, 2.0) == (
        "decoders: 7 running, 2 waiting, 30 tokens/s, TPOT 30 ms"
    )
    assert "100 prompt tokens/s, 30 tokens/s, TTFT 1500 ms" in side_row(
        "plain", now, first, first, 2
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rows": ["a", "b"], "say": True}, "a; b"),
        ({"rows": ["a", "b"], "say": False}, ""),
        ({"rows": "odd", "say": True}, ""),
        ({"rows": [1, None], "say": True}, "1; None"),
        ({}, ""),
    ],
)
def test_ci_is_told_each_half_minute_and_odd_events_harm_nobody(
    fields: dict[str, Any], said: str
) -> None:
    assert sentence(Event(0, "r", 0, "bench", "load", fields)) == said


def test_a_watch_tells_of_both_and_knows_for_how_long_no_engine_moved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    told = {"running": 0.0, "generation_tokens": 0.0}
    bench.run.load = told.copy
    watch = progress.Watch(bench.run, "chat")
    assert not watch.due()
    for turn in range(1, 40):
        clock[0] = 1000 + 2.0 * turn
        assert watch.due()
        told = {"running": 4.0, "generation_tokens": 200.0 * min(turn, 30)}
        bench.run.load = told.copy
        watch.tell(Counts(100, turn, 4, work=turn, whole=100, settled=turn > 4))
    events = [event for event in bench.seen if event.what == "load"]  # type: ignore[attr-defined]
    assert events[0].fields["rows"] == [
        "chat: 1 of 100 done, 4 in flight",
        "engines: 4 running, 0 waiting, 100 tokens/s",
    ]
    assert events[-1].fields["rows"][0].endswith("4 in flight, about 122 s left"), events[-1]
    assert [n for n, event in enumerate(events) if event.fields["say"]] == [14, 29]
    assert watch.still == pytest.approx(18)
    bench.run.load = dict
    watch.tell(Counts(100, 40, 4))
    assert watch.still is None, "an engine that tells nothing may be at work"


# What hangs


def test_a_silent_request_is_stuck_when_others_are_not() -> None:
    signs = Signs()
    for index in range(3):
        signs.begin(index, 0.0)
    assert signs.stuck(10_000.0, 300) == (None, False), "no token of any: nothing is known"
    for now in (1.0, 2.0):
        signs.text(0, now)
        signs.text(1, now)
    signs.begin(3, 200.0)
    assert signs.stuck(301.9, 300)[0].index == 2  # type: ignore[union-attr]
    assert signs.stuck(299.0, 300)[0] is None
    signs.end(2)
    signs.text(0, 302.5)  # after a pause of 300 s, which this load may have
    assert signs.stuck(400.0, 300)[0] is None
    assert signs.quiet(400.0, 300) == "request 1 silent for 398 s"
    found, all_silent = signs.stuck(1200.0, 300)
    assert found is not None and (found.index, all_silent) == (1, False), "three times as long"
    assert signs.stuck(2000.0, 300)[1]


def test_prompts_that_wait_for_one_another_are_no_false_alarm() -> None:
    """64 prompts, each prefilled for 100 s, one after the other: the last waits 6,400 s."""
    signs = Signs()
    for index in range(64):
        signs.begin(index, 0.0)
    for index in range(64):
        for now in (100.0 * index + 50, 100.0 * index + 99):
            assert signs.stuck(now, 300)[0] is None, (index, now)
        signs.text(index, 100.0 * (index + 1))
        signs.text(index, 100.0 * (index + 1) + 0.1)
        signs.end(index)


def test_the_engine_that_stands_still_has_it() -> None:
    one, two, idle = (0, "server", "0"), (0, "server", "1"), (1, "server", "")
    before = {one: Seen(2, ("5",)), two: Seen(2, ("5",)), idle: Seen(0, ("5",))}
    moved = {**before, one: Seen(2, ("6",))}
    assert stuck.suspects(before, moved) == [two]
    assert stuck.suspects(before, {**moved, two: Seen(1, ("7",))}) == [one, two]
    assert stuck.suspects(before, {place: Seen(0, ()) for place in before}) == []


def test_a_stream_that_stops_ends_the_load_and_is_named(
    bench: Bench,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "ODD", "hang")
    monkeypatch.setattr(engine, "STREAMED", [0])
    monkeypatch.setattr(progress, "FIRST", 0.1)
    entry = bench.run.plan.benchmarks[0]
    asked = replace(entry.benchmark, num_prompts=9, max_out_len=8, batch_size=3, request_rate=0.0)
    bench.budget(60)
    budgets = {
        **bench.run.plan.budgets,
        "request": replace(bench.run.plan.budgets["bench"], seconds=1.0),
    }
    bench.run.plan = replace(bench.run.plan, budgets=budgets)
    began = time.monotonic()
    with pytest.raises(StepFailed) as caught:
        smoke.measure(
            bench.run,
            Job(replace(entry, benchmark=asked), Endpoint(url, "m", "server"), bench.place),
        )
    cause = caught.value.cause
    assert (cause.kind, cause.verdict) == ("stuck", "hang")
    assert re.search(
        r"request \d of 9 is stuck: nothing for [12] s since its 3\. piece", cause.reason
    )
    assert time.monotonic() - began < 30
    lines = (bench.place / "requests.jsonl").read_text().splitlines()
    assert any("given up" in line for line in lines)
    assert any('"error": ""' in line for line in lines)


def test_aisbench_counts_are_read_from_its_bars() -> None:
    bar = "POST=16 (1.2/s)  RECV=11 (0.9/s)  FAIL=1 (0.0/s)  FIN=12 (0.9/s)   "
    assert pace.read(f"Progress:  50%|#####     | 8/16\n{bar.replace('16', '9')}\r{bar}\n") == (
        16,
        1,
        12,
    )
    assert pace.read(bar.replace("FIN", "FINISH")) == (16, 1, 12)
    assert pace.read("Progress:   0%| | 0/16 POST=") == (0, 0, 0)


def test_aisbench_s_last_requests_hang_when_neither_it_nor_an_engine_moves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stuck, "look", lambda plan: {(0, "server", ""): Seen(1, ("5",))})
    monkeypatch.setattr(stuck, "APART", 0.0)
    told = {"running": 1.0, "kv_usage": 0.1}
    bench.run.load = told.copy
    log = bench.place / "bench.log"
    found = pace.Pace(bench.run, bench.run.plan.benchmarks[0].benchmark, 16, log)
    log.write_text("POST=16 (1.2/s)  RECV=15 (0.9/s)  FAIL=0 (0.0/s)  FIN=15 (0.9/s)\n")
    limit = stuck.limit(bench.run.plan)

    def passes(seconds: float) -> None:
        clock[0] += seconds
        found.tell()

    passes(2.1)
    passes(limit - 1)
    told["kv_usage"] = 0.2  # a long prompt is still prefilled
    bench.run.load = told.copy
    passes(5)
    passes(limit - 1)
    with pytest.raises(StepFailed) as caught:
        passes(11)
    assert caught.value.cause.process == "server"
    assert "1 of 16 requests are stuck" in caught.value.cause.reason
    assert caught.value.cause.reason.endswith("node-0 server has it")
