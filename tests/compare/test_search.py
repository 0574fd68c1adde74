"""A search over commits whose truth is known."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest

from ci.compare.search import Answer, Kind, Search, Seen, Start, more_often

Fleet = Callable[[int, random.Random], Seen]


def search(what: Search, fleet: Fleet, seed: int = 0) -> tuple[Answer, list[Seen]]:
    """The answer, and the starts that it took."""
    rng, seen = random.Random(seed), list[Seen]()
    while isinstance(step := what.step(seen), Start):
        assert step.commit not in what.out
        assert 0 <= step.commit <= what.last
        seen.append(fleet(step.commit, rng))
    return step, seen


def slower(culprit: int, loss: float = 0.05, noise: float = 0.01) -> Fleet:
    return lambda commit, rng: Seen(
        commit, (1 - loss * (commit >= culprit)) * (1 + rng.gauss(0, noise))
    )


def crashes(culprit: int, chance: float) -> Fleet:
    return lambda commit, rng: Seen(commit, failed=commit >= culprit and rng.random() < chance)


@pytest.mark.parametrize("culprit", [1, 2, 31, 63, 64])
def test_a_step_is_found(culprit: int) -> None:
    answer, seen = search(Search(64), slower(culprit))
    assert answer.kind is Kind.CULPRIT
    assert list(answer.suspects) == [culprit]
    assert answer.suspects[culprit] > 0.99
    assert answer.share == pytest.approx(1, abs=0.4)
    for commit in (culprit - 1, culprit):
        assert sum(one.commit == commit for one in seen) >= 4


def test_the_same_starts_give_the_same_step() -> None:
    _, seen = search(Search(64), slower(20))
    for count in range(len(seen)):
        assert Search(64).step(seen[:count]) == Search(64).step(seen[:count])


def test_one_candidate_is_confirmed_as_well() -> None:
    answer, _ = search(Search(1), slower(1))
    assert (answer.kind, list(answer.suspects)) == (Kind.CULPRIT, [1])


def test_noise_without_a_change_is_not_reproduced() -> None:
    found = Counter(search(Search(64), slower(65), seed)[0].kind for seed in range(20))
    assert found[Kind.NOT_REPRODUCED] >= 19
    assert not found[Kind.CULPRIT]


@pytest.mark.parametrize("chance", [0.5, 1.0])
def test_a_crash_is_found(chance: float) -> None:
    what = Search(32, by_value=False, ends=(3, 16), starts=100)
    found = Counter(
        answer.kind if answer.kind is not Kind.CULPRIT else list(answer.suspects) == [11]
        for answer in (search(what, crashes(11, chance), seed)[0] for seed in range(20))
    )
    assert found[True] >= 18
    assert not found[False]


def test_a_good_end_that_fails_as_bad_does_is_the_environment() -> None:
    answer, _ = search(Search(9, by_value=False), crashes(0, 1.0))
    assert answer.kind is Kind.ENVIRONMENT


def test_a_failure_that_never_comes_is_not_reproduced() -> None:
    answer, seen = search(Search(9, by_value=False), crashes(10, 1.0))
    assert answer.kind is Kind.NOT_REPRODUCED
    assert len(seen) < 20


def test_commits_that_cannot_be_built_make_a_set() -> None:
    what = Search(16, out=frozenset({5, 6, 7}))
    answer, _ = search(what, slower(6))
    assert answer.kind is Kind.SUSPECTS
    assert sorted(answer.suspects) == [5, 6, 7, 8]
    answer, _ = search(what, slower(12))
    assert (answer.kind, list(answer.suspects)) == (Kind.CULPRIT, [12])


def test_of_two_changes_one_is_named_and_its_share_is_said() -> None:
    def fleet(commit: int, rng: random.Random) -> Seen:
        level = 1 - 0.08 * (commit >= 10) - 0.04 * (commit >= 40)
        return Seen(commit, level * (1 + rng.gauss(0, 0.01)))

    answer, _ = search(Search(64), fleet)
    assert (answer.kind, list(answer.suspects)) == (Kind.CULPRIT, [10])
    assert answer.share == pytest.approx(2 / 3, abs=0.15)


def test_a_drift_has_no_culprit() -> None:
    def fleet(commit: int, rng: random.Random) -> Seen:
        return Seen(commit, 1 - 0.1 * commit / 64 + rng.gauss(0, 0.01))

    answer, _ = search(Search(64), fleet)
    assert answer.kind in (Kind.SUSPECTS, Kind.BUDGET)
    assert len(answer.suspects) > 0


def test_a_budget_that_is_over_leaves_a_window() -> None:
    answer, seen = search(Search(64, starts=9), slower(20))
    assert answer.kind is Kind.BUDGET
    assert len(seen) == 9
    assert 20 in answer.suspects
    assert sum(answer.suspects.values()) >= 0.95


@pytest.mark.parametrize("by_value", [True, False])
def test_a_commit_that_only_fails_otherwise_is_left_out(by_value: bool) -> None:
    """In the middle, where it would be asked for again and again; the culprit is behind it."""
    fleet = slower(7) if by_value else crashes(7, 1.0)
    other = {8, 9}

    def odd(commit: int, rng: random.Random) -> Seen:
        return Seen(commit, failed=None) if commit in other else fleet(commit, rng)

    what = Search(16) if by_value else Search(16, by_value=False, ends=(3, 16))
    answer, seen = search(what, odd)
    assert (answer.kind, list(answer.suspects)) == (Kind.CULPRIT, [7])
    assert max(Counter(one.commit for one in seen if one.commit in other).values()) <= 3
    other = {6, 7}  # the culprit is one of them
    answer, seen = search(what, odd)
    assert answer.kind is Kind.SUSPECTS
    assert set(answer.suspects) == {6, 7, 8}


def test_a_commit_that_mostly_fails_otherwise_is_left_out_with_what_it_showed() -> None:
    turns = itertools.count()

    def odd(commit: int, rng: random.Random) -> Seen:
        if commit == 8 and next(turns) % 4 != 3:
            return Seen(commit, failed=None)
        return slower(3, noise=0.004)(commit, rng)

    answer, seen = search(Search(16), odd)
    assert (answer.kind, list(answer.suspects)) == (Kind.CULPRIT, [3])
    assert sum(one.commit == 8 for one in seen) <= 4


def test_an_end_that_only_fails_otherwise_is_said() -> None:
    def at(end: int) -> Fleet:
        return lambda k, rng: Seen(k, failed=None) if k == end else slower(3)(k, rng)

    answer, seen = search(Search(8), at(0))
    assert (answer.kind, len(seen) < 9) == (Kind.ENVIRONMENT, True)
    answer, seen = search(Search(8), at(8))
    assert (answer.kind, len(seen) < 9) == (Kind.NOT_REPRODUCED, True)


def test_unlikely_commits_go_last() -> None:
    documentation = {k: 0.01 for k in range(1, 65) if k % 4}
    answer, seen = search(Search(64, weights=documentation), slower(32, noise=0.002))
    plain, more = search(Search(64), slower(32, noise=0.002))
    assert list(answer.suspects) == list(plain.suspects) == [32]
    assert len(seen) < len(more)


def test_failing_more_often() -> None:
    assert more_often((0, 3), (3, 0)) == pytest.approx(1 - 1 / 70)
    assert more_often((2, 2), (2, 2)) == pytest.approx(0.5)
    assert more_often((3, 0), (0, 3)) == pytest.approx(1 / 70)
