"""How often the search over commits names the wrong one, beside a fixed-limit binary search.

    python benchmarks/bisect_odds.py --searches 1000 --pairs 1000

64 candidates; the culprit stands anywhere. Each row is searched with `ci.compare.search`
and with the rule that upstream's tool follows: binary search over pass and fail at 0.97 of
good's level, both ends checked once, a failure asked once more, a pass never. Then pairs of
variants are judged with `ci.compare.pair`. Targets: wrong in at most 1 % of any row, right
in at least 90 % where good and bad differ by two standard deviations; equal variants called
worse in at most 1 %, a loss of 5 % at 1.5 % noise found in at least 95 %.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ci.compare import nights
from ci.compare.pair import Finding, Pair, Started
from ci.compare.search import Answer, Kind, Search, Seen, Start

CANDIDATES = 64
LIMIT = 0.97


@dataclass(frozen=True)
class Truth:
    """What the commits of one search really do."""

    culprits: tuple[int, ...]
    level: Callable[[int], float]
    noise: float = 0.0
    between: float = 0.0
    crash: float = 0.0
    out: frozenset[int] = frozenset()
    odd: frozenset[int] = frozenset()
    nights: tuple[Seen, ...] = ()

    def start(self, commit: int, rng: random.Random) -> tuple[float, bool]:
        """The measured value, and whether the fleet crashed."""
        if commit in self.odd:
            return 0.0, True
        crashed = bool(self.crash) and commit >= self.culprits[0] and rng.random() < self.crash
        spread = rng.gauss(0, self.noise) + rng.gauss(0, self.between)
        return self.level(commit) * (1 + spread), crashed


def step(bad: float, noise: float, **more: float) -> Callable[[random.Random], Truth]:
    """One culprit anywhere: 1.00 before it, ``bad`` from it on."""

    def made(rng: random.Random) -> Truth:
        at = rng.randint(1, CANDIDATES)
        return Truth((at,), lambda commit: bad if commit >= at else 1.0, noise, **more)

    return made


def two(rng: random.Random) -> Truth:
    """Two culprits of 5 % each."""
    first, second = sorted(rng.sample(range(1, CANDIDATES + 1), 2))
    level = lambda commit: 1 - 0.05 * (commit >= first) - 0.05 * (commit >= second)  # noqa: E731
    return Truth((first, second), level, 0.015)


def between(rng: random.Random) -> Truth:
    """Two culprits of 6 %, and an improvement of 4 % between them."""
    a, b, c = sorted(rng.sample(range(1, CANDIDATES + 1), 3))
    level = lambda k: 1 - 0.06 * (k >= a) + 0.04 * (k >= b) - 0.06 * (k >= c)  # noqa: E731
    return Truth((a, c), level, 0.015)


def drift(rng: random.Random) -> Truth:
    """10 % lost little by little; nobody did it."""
    return Truth((), lambda commit: 1 - 0.1 * commit / CANDIDATES, 0.015)


def unbuildable(rng: random.Random) -> Truth:
    """A loss of 5 %; each commit between the ends cannot be built with 20 %."""
    at = rng.randint(1, CANDIDATES)
    out = frozenset(k for k in range(1, CANDIDATES) if rng.random() < 0.2)
    return Truth((at,), lambda commit: 0.95 if commit >= at else 1.0, 0.015, out=out)


def otherwise(rng: random.Random) -> Truth:
    """A loss of 5 %; each commit between the ends only crashes, with 20 %, which bad does not."""
    at = rng.randint(1, CANDIDATES)
    odd = frozenset(k for k in range(1, CANDIDATES) if rng.random() < 0.2)
    return Truth((at,), lambda commit: 0.95 if commit >= at else 1.0, 0.015, odd=odd)


def after_nights(same: bool) -> Callable[[random.Random], Truth]:
    """A loss of 5 %; twelve nights saw it, or another loss where something else had changed."""

    def made(rng: random.Random) -> Truth:
        at = rng.randint(1, CANDIDATES)
        seen_at = at if same else rng.randint(1, CANDIDATES)
        seen = tuple(
            Seen(k, (0.95 if k >= seen_at else 1.0) * (1 + rng.gauss(0, 0.015)))
            for k in sorted(rng.sample(range(1, CANDIDATES), 12))
        )
        return Truth((at,), lambda commit: 0.95 if commit >= at else 1.0, 0.015, nights=seen)

    return made


ROWS: dict[str, Callable[[random.Random], Truth]] = {
    "1.00 and 0.90, noise 2 %": step(0.90, 0.02),
    "1.00 and 0.95, noise 1 %": step(0.95, 0.01),
    "1.00 and 0.95, noise 1.5 %": step(0.95, 0.015),
    "1.00 and 0.95, noise 2 %": step(0.95, 0.02),
    "1.00 and 0.96, noise 1 %": step(0.96, 0.01),
    "crash in half of the starts": step(1.0, 0.01, crash=0.5),
    "two culprits of 5 %, noise 1.5 %": two,
    "6 % lost, 4 % won, 6 % lost": between,
    "a drift of 10 %, noise 1.5 %": drift,
    "0.90, starts differ by 3 %": step(0.90, 0.01, between=0.03),
    "0.95, 20 % cannot be built": unbuildable,
    "no change, noise 1.5 %": step(1.0, 0.015),
    "0.95, 20 % crash otherwise": otherwise,
    "0.95, nights saw it": after_nights(True),
    "0.95, nights saw another": after_nights(False),
}


@dataclass
class Tally:
    """What became of the searches of a row."""

    answers: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    def share(self, name: str) -> str:
        """In percent of all searches."""
        return f"{100 * self.answers[name] / max(self.answers.total(), 1):5.1f}"


def ours(truth: Truth, rng: random.Random) -> tuple[str, int]:
    """Whether the answer is right, a set that holds it, wrong, or none; and the starts it took."""
    weights = nights.weights(truth.nights, CANDIDATES, True)
    search = Search(CANDIDATES, out=truth.out, weights=weights)
    if truth.crash:
        search = Search(CANDIDATES, by_value=False, ends=(3, 16), starts=100)
    seen: list[Seen] = []
    while isinstance(found := search.step(seen), Start):
        value, crashed = truth.start(found.commit, rng)
        one = Seen(found.commit, None, crashed) if truth.crash else Seen(found.commit, value)
        one = Seen(found.commit, None, None) if found.commit in truth.odd else one
        seen.append(one)
    return _judged(found, truth), len(seen)


def _judged(answer: Answer, truth: Truth) -> str:
    if answer.kind is Kind.CULPRIT:
        return "right" if set(answer.suspects) <= set(truth.culprits) else "wrong"
    if answer.kind is Kind.SUSPECTS and truth.culprits:
        return "set" if set(answer.suspects) & set(truth.culprits) else "wrong"
    return "none"


def upstreams(truth: Truth, rng: random.Random) -> tuple[str, int]:
    """The same by a fixed limit."""
    count = 0

    def fails(commit: int) -> bool | None:
        nonlocal count
        for _ in range(2):
            count += 1
            value, crashed = truth.start(commit, rng)
            if not (crashed or value < LIMIT):
                return False if _ == 0 else None
        return True

    low, high, skipped = 0, CANDIDATES, set(truth.out)
    if fails(high) is not True or fails(low) is not False:
        return "none", count
    while True:
        middle = [k for k in range(low + 1, high) if k not in skipped]
        if not middle:
            break
        at = min(middle, key=lambda k: abs(k - (low + high) // 2))
        verdict = fails(at)
        if verdict is None:
            skipped.add(at)
        elif verdict:
            high = at
        else:
            low = at
    # The first that was skipped, or bad, is called the culprit.
    return "right" if low + 1 in truth.culprits else "wrong", count


def pairs(loss: float, noise: float, many: int) -> tuple[Counter[Finding], float]:
    """How pairs with this loss are judged, and the mean of starts."""
    rng, pair = random.Random(2), Pair({"output_throughput": True})
    found: Counter[Finding] = Counter()
    starts = 0
    for _ in range(many):
        seen: list[Started] = []
        while (turn := pair.turn(seen)) is not None:
            value = (1 - loss * turn) * (1 + rng.gauss(0, noise))
            seen.append(Started(turn, {"output_throughput": (value,)}))
        found[pair.finding(seen)] += 1
        starts += len(seen)
    return found, starts / many


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--row", default="", help="only rows whose name holds this")
    parser.add_argument("--pairs", type=int, default=1000)
    arguments = parser.parse_args()
    worst = 0.0
    print("| row | right | a set | wrong | none | starts | fixed limit: right | wrong | starts |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number, (name, made) in enumerate(ROWS.items()):
        if arguments.row not in name:
            continue
        rng, one, other = random.Random(number), Tally(), Tally()
        for _ in range(arguments.searches):
            truth = made(rng)
            for tally, search in ((one, ours), (other, upstreams)):
                verdict, starts = search(truth, rng)
                tally.answers[verdict] += 1
                tally.starts += starts
        worst = max(worst, one.answers["wrong"] / arguments.searches)
        cells = [one.share(word) for word in ("right", "set", "wrong", "none")]
        cells += [f"{one.starts / arguments.searches:.1f}", other.share("right")]
        cells += [other.share("wrong"), f"{other.starts / arguments.searches:.1f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for loss, noise in ((0.0, 0.015), (0.0, 0.03), (0.05, 0.015), (0.03, 0.015), (0.01, 0.015)):
        found, starts = pairs(loss, noise, arguments.pairs)
        told = ", ".join(f"{kind.name} {found[kind]}" for kind in Finding)
        print(f"loss {loss:.0%}, noise {noise:.1%}: {told}; {starts:.1f} starts")
    print(f"wrong culprits at worst: {worst:.1%}")
    return int(worst > 0.01)


if __name__ == "__main__":
    sys.exit(main())
