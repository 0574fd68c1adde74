"""How often a search for the border ends within 5 % of it: known curves, 3 % noise.

    python benchmarks/sizing_odds.py [--runs 1000] [--noise 0.03]

A row a kind of curve: runs within 5 %, the interval held the border, measurements (mean, most).
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from steps.sizing.search import Search, Seen

#: What a load, the border and a shape between 0 and 1 make of a metric, as a share of its limit.
Curve = Callable[[float, float, float], float]


def line(load: float, border: float, shape: float) -> float:
    """TPOT over requests in flight: 20 to 50 % of it at the border does not depend on them."""
    floor = 0.2 + 0.3 * shape
    return floor + (1 - floor) * load / border


def queue(load: float, border: float, shape: float) -> float:
    """TTFT over the request rate: 1 / (1 - use), the border at 50 to 95 % of what can be served.

    Beyond that the queue grows as long as the load lasts.
    """
    use = 0.5 + 0.45 * shape
    share = min(use * load / border, 0.995)
    over = max(0.0, use * load / border - 0.995)
    return (1 - use) / (1 - share) * (1 + 20 * over)


def wall(load: float, border: float, shape: float) -> float:
    """Flat, then steep: 5 to 30 % of the limit until a slot is no longer free at once."""
    flat = 0.05 + 0.25 * shape
    return flat + (1 - flat) * (load / border) ** 9


CURVES: dict[str, tuple[Curve, ...]] = {
    "line": (line,),
    "queue": (queue,),
    "wall": (wall,),
    "line and wall": (line, wall),
}


@dataclass(frozen=True)
class Row:
    """What the runs of one kind of curve came to."""

    name: str
    within: float
    covered: float
    mean: float
    most: int


def once(curves: Sequence[Curve], source: random.Random, noise: float) -> tuple[float, bool, int]:
    """The error of one search as a logarithm, whether its interval held the border, its length."""
    low, ratio = 1.0, 10 ** source.uniform(1.5, 3)
    search = Search(low, low * ratio)
    shapes = [source.random() for _ in curves]
    borders = [low * ratio ** source.uniform(0.1, 0.9) for _ in curves]
    seen: list[Seen] = []
    while (load := search.next(seen)) is not None:
        excess = {
            str(number): math.log(curve(load, border, shape)) + source.gauss(0, noise)
            for number, (curve, border, shape) in enumerate(
                zip(curves, borders, shapes, strict=True)
            )
        }
        seen.append(Seen(load, excess))
    found, border = search.border(seen), min(borders)
    return math.log(found.best / border), found.low <= border <= found.high, len(seen)


def simulate(name: str, runs: int, noise: float = 0.03, seed: int = 0) -> Row:
    """Search so often, each time another border, range and shape."""
    source = random.Random(f"{name}/{seed}")
    told = [once(CURVES[name], source, noise) for _ in range(runs)]
    lengths = [length for _, _, length in told]
    return Row(
        name,
        statistics.fmean(abs(error) <= math.log(1.05) for error, _, _ in told),
        statistics.fmean(covered for _, covered, _ in told),
        statistics.fmean(lengths),
        max(lengths),
    )


def main() -> int:
    """Print the table; 1 when a kind of curve misses 95 % or 12 measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.03)
    arguments = parser.parse_args()
    print(f"{'curve':<16}{'within 5 %':>12}{'in interval':>13}{'mean':>7}{'most':>6}")
    missed = 0
    for name in CURVES:
        row = simulate(name, arguments.runs, arguments.noise)
        print(
            f"{row.name:<16}{100 * row.within:>10.1f} %{100 * row.covered:>11.1f} %"
            f"{row.mean:>7.1f}{row.most:>6}",
            flush=True,
        )
        missed += row.within < 0.95 or row.most > 12
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
