"""The search for the largest load: ends near the border, says how sure it is, and when to stop."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.sizing_odds import CURVES, simulate
from steps.core.case.gates import parse
from steps.sizing.search import Search, Seen, excess


@pytest.mark.parametrize("name", CURVES)
def test_the_border_is_found_within_five_percent(name: str) -> None:
    row = simulate(name, 40)
    assert row.within >= 0.95
    assert row.covered >= 0.85
    assert row.most <= 12


def seek(search: Search, measure) -> list[Seen]:  # type: ignore[no-untyped-def]
    seen: list[Seen] = []
    while (load := search.next(seen)) is not None:
        seen.append(measure(load))
    return seen


def linear(border: float, noise: float = 0.0, seed: int = 1):  # type: ignore[no-untyped-def]
    source = random.Random(seed)
    return lambda load: Seen(
        load, {"tpot": math.log(0.3 + 0.7 * load / border) + source.gauss(0, noise)}
    )


def test_a_fleet_that_carries_everything_is_above_the_range() -> None:
    search = Search(1, 64)
    seen = seek(search, linear(900, 0.03))
    assert search.border(seen).above > 0.975
    assert seen[-1].load == 64 and len(seen) <= 4


def test_a_fleet_that_carries_nothing_is_below_the_range() -> None:
    search = Search(8, 64)
    seen = seek(search, linear(2, 0.03))
    assert search.border(seen).below > 0.975
    assert seen[-1].load == 8 and len(seen) <= 4


def test_whole_loads_are_whole_and_the_border_lies_between_two() -> None:
    search = Search(1, 32, whole=True)
    seen = seek(search, linear(6.5, 0.01))
    assert all(one.load == int(one.load) for one in seen)
    border = search.border(seen)
    assert int(border.best) == 6 and border.low <= 6.5 <= border.high


def test_requests_that_fail_bound_the_load_though_the_limit_is_held() -> None:
    def measure(load: float) -> Seen:
        return Seen(load, {"tpot": math.log(0.2 + 0.1 * load / 40)}, broke=load > 40)

    search = Search(1, 1000)
    border = search.border(seek(search, measure))
    assert 36 < border.best < 44


def test_limits_without_a_size_are_bisected() -> None:
    search = Search(1, 1000)
    seen = seek(search, lambda load: Seen(load, {}, broke=load > 70))
    assert abs(math.log(search.border(seen).best / 70)) < 0.06 and len(seen) <= 12


def test_one_odd_measurement_does_not_move_the_border() -> None:
    good = linear(50, 0.01)
    seen = [good(load) for load in (10, 30, 45, 50, 55, 50, 48)]
    odd = Seen(50, {"tpot": math.log(1.6)})
    search = Search(1, 1000)
    moved = search.border([*seen, odd]).best / search.border(seen).best
    assert abs(math.log(moved)) < 0.03


def test_a_first_guess_is_measured_first_but_within_the_range() -> None:
    assert Search(1, 100, start=30).next([]) == 30
    assert Search(1, 100, start=300).next([]) == 100


@pytest.mark.parametrize(
    ("limit", "found", "over"),
    [
        ("ttft_p99_ms <= 100", 200.0, math.log(2)),
        ("output_throughput >= 100", 50.0, math.log(2)),
        ("ttft_p99_ms < 100", 50.0, -math.log(2)),
        ("success_ratio == 1", 1.0, None),
        ("preemptions <= 0", 3.0, None),
        ("ttft_p99_ms <= 100", None, None),
    ],
)
def test_how_far_over_a_limit(limit: str, found: float | None, over: float | None) -> None:
    told = excess(parse(limit), found)
    assert told == (pytest.approx(over) if over is not None else None)
