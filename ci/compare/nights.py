"""What earlier nights tell of a search: a good end, and where the change is likely.

Enters: results of the history. Leaves: a commit that passed; weights of candidates.
Touches nothing.

Nights were measured in the environment of their day, so they never stand beside today's starts.
What they say of the place of the change counts before the search begins, for half of what is
believed: they make it shorter, and cannot decide it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence

from ci.compare.commits import Commit
from ci.compare.search import Seen, Sums
from ci.nightly.history import Result
from steps.core.case.gates import METRICS

#: Nights of which less can be told than that there were some.
FEWEST = 4
SHARE = 0.5
_COMMIT = re.compile("[0-9a-f]{7,40}")


def commit_of(result: Result, product: str) -> str:
    """The product's commit in a run; empty: nobody knows, or its nodes differed."""
    found = result.versions.get(f"{product}-commit", "")
    return found if _COMMIT.fullmatch(found) else ""


def comparable(results: Sequence[Result], rehearsed: bool) -> list[Result]:
    """The nights that were played as these starts are, on the newest one's cluster, told alike."""
    found = [one for one in results if one.rehearsed == rehearsed]
    return [one for one in found if one.compares(found[-1])]


def last_good(results: Iterable[Result], product: str) -> str:
    """The commit of the newest run that passed; empty: there is none."""
    good = (commit_of(one, product) for one in results if one.verdict == "pass")
    return next(filter(None, reversed(list(good))), "")


def seen(
    results: Iterable[Result], commits: Sequence[Commit], metric: str, failure: str
) -> list[Seen]:
    """What nights showed of the commits of a search.

    Args:
        metric: ``benchmark metric`` that is followed.
        failure: the signature that is searched; its class is all that history keeps.
    """
    found = []
    name, _, key = metric.rpartition(" ")
    for one in results:
        sha = commit_of(one, commits[-1].product)
        at = next((k for k, c in enumerate(commits) if sha and c.sha.startswith(sha)), None)
        value = one.benchmarks.get(name, {}).get(key)
        if at is None:
            continue
        if failure:
            same = one.verdict == failure.partition(" ")[0]
            failed = same or (False if one.verdict in ("pass", "performance") else None)
            found.append(Seen(at, None, failed))
        elif value is not None:
            found.append(Seen(at, value if METRICS[key][1] else -value))
    return [one for one in found if one.failed is not None]


def weights(nights: Sequence[Seen], last: int, by_value: bool) -> dict[int, float]:
    """Candidate -> how much likelier than usual it is; empty: the nights tell nothing."""
    marks = sorted({one.commit for one in nights})
    if len(nights) < FEWEST or len(marks) < 2:
        return {}
    gaps = [range(low + 1, high + 1) for low, high in itertools.pairwise([0, *marks, last])]
    gaps = [gap for gap in gaps if gap]
    values = [one.value for one in nights if one.value is not None]
    wide = (max(values) - min(values) or 1.0) if by_value else 0.0
    logs = [_log(Sums.of(nights), gap, marks, wide) + math.log(len(gap)) for gap in gaps]
    total = sum(math.exp(one - max(logs)) for one in logs)
    return {
        k: 1 - SHARE + SHARE * last * math.exp(one - max(logs)) / total / len(gap)
        for gap, one in zip(gaps, logs, strict=True)
        for k in gap
    }


def _log(sums: Sums, gap: range, marks: Sequence[int], wide: float) -> float:
    """How well a change in this gap explains the nights; without ``wide`` by their failures."""
    old, new = range(marks[0], gap[0]), range(gap[0], marks[-1] + 1)
    if not wide:
        return sums.rates((old, new))
    if not old or not new or sums.mean(old) <= sums.mean(new):
        return sums.levels((range(marks[0], marks[-1] + 1),), wide)  # before, after, or none
    return sums.levels((old, new), wide)
