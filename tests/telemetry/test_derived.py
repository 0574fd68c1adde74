"""What follows from tracks: figures, balance, and where the time went."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from steps.core.plan.plan import Plan
from steps.core.record import telemetry
from steps.core.record.telemetry import Engine, Track
from tests.core.cases import SPLIT, plan_of


def track(**series: Sequence[float]) -> Track:
    """A track that answered each second from 100 on; ``a_b`` is spelt ``a__b`` for a label."""
    made = Track(seen=array("d", range(100, 111)))
    for name, values in series.items():
        key = name if "|" in name else f"{name}|0|"
        made.series[key] = array("d", range(100, 100 + len(values))), array("d", values)
    return made


def of(plan: Plan, *tracks: Track) -> list[Engine]:
    return [
        Engine(node, server.name, "0", found)
        for (node, server), found in zip(plan.servers(), tracks, strict=True)
    ]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(SPLIT)


SPAN = (100.0, 110.0)


def test_figures_of_one_engine(plan: Plan) -> None:
    queue = {f"queue_bucket|0|{bound}": [0, at] for bound, at in (("1", 8), ("2", 10))}
    more: dict[str, Sequence[float]] = {"accepted|0|0": [0, 90], "accepted|0|1": [0, 40]}
    more |= {"requests|0|stop": [1, 11], "queue_bucket|0|+Inf": [0, 10], **queue}
    found = track(
        running=[0, 0, 4],
        waiting=[0, 9],
        kv_usage=[0.1, 0.9, 0.5],
        prompt_tokens=[100, 1100],
        generation_tokens=[0, 500],
        preemptions=[1, 3],
        prefix_queries=[0, 100],
        prefix_hits=[0, 25],
        drafts=[0, 100],
        queue_sum=[0, 5],
        queue_count=[0, 10],
        kv_failed=[0, 2],
        **more,
    )
    told = telemetry.figures(of(plan, found, Track())[:1], SPAN)
    assert (told.running_max, told.kv_usage_max, told.preemptions) == (4, 0.9, 2)
    assert told.idle == pytest.approx(1 / 10)
    assert (told.waiting, told.waiting_p95) == (9, 9)
    assert (told.prompt_rate, told.generation_rate) == (100, 50)
    assert (told.prefix_hits, told.external_hits) == (0.25, None)
    assert told.acceptance == (0.9, 0.4)
    assert (told.queue, told.queue_p95, told.decode) == (0.5, 2.0, None)
    assert (told.kv_failed, told.requests) == (2, 10)


def test_nothing_is_made_of_nothing(plan: Plan) -> None:
    told = telemetry.figures([], SPAN)
    assert (told.seen, told.running, told.idle, told.kv_usage_max) == (0, None, None, None)
    assert telemetry.where_time_went([], SPAN) == []
    assert telemetry.where_time_went(of(plan, Track(), Track()), SPAN) == []
    assert telemetry.balance([], SPAN) is None


def test_gaps_are_no_time_in_which_anything_is_known(plan: Plan) -> None:
    found = track(running=[4, 0])
    found.seen = array("d", [100, 101, 110])
    told = telemetry.figures(of(plan, found, Track())[:1], (99.0, 110.0))
    assert told.seen == 3
    assert told.idle == pytest.approx(2 / 3)


def test_what_grew_to_the_end_of_a_short_benchmark_is_seen_after_it(plan: Plan) -> None:
    found = track(generation_tokens=[0, 0, 50])
    told = telemetry.figures(of(plan, found, Track())[:1], (101.2, 101.7))
    assert told.generation_rate == pytest.approx(100)


def test_three_lines_say_where_the_time_went(plan: Plan) -> None:
    prefiller = track(
        running=[8], waiting=[41], prompt_tokens=[0, 5000], queue_sum=[0, 30], queue_count=[0, 10],
        prefill_sum=[0, 10], prefill_count=[0, 10],
    )  # fmt: skip
    decoder = track(
        running=[1, *[0] * 4, 2], kv_usage=[0.2, 0.83], generation_tokens=[0, 2000],
        preemptions=[0, 7], decode_sum=[0, 60], decode_count=[0, 10],
    )  # fmt: skip
    lines = telemetry.where_time_went(of(plan, prefiller, decoder), SPAN)
    assert len(lines) == 3
    assert "decoders: 200 tokens/s, nothing to run 40 % of the time" in lines[0]
    assert "prefillers: 500 tokens/s" in lines[0]
    assert "node-0 server queue p95 41" in lines[0]
    assert lines[1].startswith(
        "of the time of requests in engines: decoders: decode 60 %, prefillers: queue 30 %"
    )
    assert "decoders: KV cache 83 % full on the mean, at most 83 %, 7 preemptions" in lines[2]


def test_the_outlying_rank_is_named(plan: Plan) -> None:
    series: dict[str, Sequence[float]] = {f"running|{rank}|": [1] for rank in range(2)}
    series |= {f"generation_tokens|{rank}|": [0, 100 + 200 * rank] for rank in range(2)}
    whole = track(**series)
    node, server = next(iter(plan.servers()))
    both = [Engine(node, server.name, label, whole) for label in whole.engines()]
    assert telemetry.balance(both, SPAN) == telemetry.Balance(1.5, "node-0 server engine 1")
    assert "node-0 server engine 1 did 1.50 times the mean" in " ".join(
        telemetry.where_time_went(both, SPAN)
    )
