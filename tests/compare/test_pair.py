"""B against A: when it is worse, when it is not, and when nobody can tell."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ci.compare.pair import Finding, Pair, Started

PAIR = Pair({"output_throughput": True, "ttft": False})


def fleet(loss: float, noise: float, seed: int, crash: float = 0.0) -> list[Started]:
    """Starts until the pair is judged; B has ``loss`` less throughput and more latency."""
    rng, seen = random.Random(seed), list[Started]()
    while (turn := PAIR.turn(seen)) is not None:
        if turn and rng.random() < crash:
            seen.append(Started(turn, failure="crash: EngineCore died"))
            continue
        speed = (1 - loss * turn) * (1 + rng.gauss(0, noise))
        values = {"output_throughput": (100 * speed,), "ttft": (50 / speed,)}
        seen.append(Started(turn, values))
    return seen


@pytest.mark.parametrize(
    ("loss", "finding"), [(0.05, Finding.WORSE), (0.0, Finding.NO_WORSE), (-0.05, Finding.NO_WORSE)]
)
def test_most_pairs_are_judged_rightly(loss: float, finding: Finding) -> None:
    found = Counter(PAIR.finding(fleet(loss, 0.01, seed)) for seed in range(40))
    assert found[finding] >= 38
    assert loss > 0 or found[Finding.WORSE] <= 1


def test_it_stops_early_when_it_is_clear_and_says_when_it_is_not() -> None:
    assert len(fleet(0.3, 0.01, 1)) == 6
    noisy = fleet(0.02, 0.05, 1)
    assert len(noisy) == 20
    assert PAIR.finding(noisy) is Finding.UNKNOWN


def test_variants_take_turns() -> None:
    assert [one.variant for one in fleet(0.02, 0.05, 1)][:8] == [0, 1, 1, 0, 0, 1, 1, 0]


def test_crashes_are_counted_apart_from_values() -> None:
    seen = fleet(0.0, 0.01, 1, crash=1.0)
    failures, throughput, _ = PAIR.judged(seen)
    assert PAIR.finding(seen) is failures.finding is Finding.WORSE
    assert throughput.finding is Finding.UNKNOWN
    assert failures.p == pytest.approx(2 / 70)
    assert (failures.a, failures.b) == ((0.0,) * 4, (1.0,) * 4)


def test_two_that_never_serve_are_not_called_equal() -> None:
    seen = [Started(turn, failure="crash") for turn in (0, 1, 1, 0, 0, 1)]
    assert PAIR.finding(seen) is Finding.UNKNOWN


def test_latency_that_rises_is_a_loss() -> None:
    seen = [Started(v, {"output_throughput": (100.0,), "ttft": (50 + 9 * v + n,)})
            for n in (0, 1, 2) for v in (0, 1)]  # fmt: skip
    _, throughput, ttft = PAIR.judged(seen)
    assert ttft.effect is not None
    assert ttft.effect.estimate == pytest.approx(-9 / 51)
    assert ttft.finding is Finding.WORSE
    assert throughput.finding is Finding.NO_WORSE


def test_repeats_of_one_start_are_one_value() -> None:
    seen = [Started(v, {"output_throughput": (100.0, 101.0, 99.0)}) for v in (0, 1, 1, 0)]
    assert Pair({"output_throughput": True}).judged(seen)[1].a == (100.0, 100.0)
