"""Small statistics: spread of repetitions, confidence of a score, changes of level.

Enters: numbers. Leaves: numbers. Touches nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

#: Standard deviations of a normal distribution that hold 95 %.
Z95 = 1.959964
#: Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_SIGMA = 1.4826


def spread(values: Sequence[float]) -> float:
    """Highest less lowest, as a share of the median; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = statistics.median(values)
    return (max(values) - min(values)) / abs(middle) if middle else 0.0


def noise(values: Sequence[float]) -> float:
    """Robust standard deviation as a share of the median (1.4826 x MAD / median)."""
    if len(values) < 2:
        return 0.0
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    return MAD_TO_SIGMA * deviation / abs(middle) if middle else 0.0


def wilson(share: float, samples: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (0 to 1) seen in ``samples`` trials.

    Wilson's score interval: it stays within 0 and 1 and holds near both ends
    (E. B. Wilson, 1927, Journal of the American Statistical Association 22).
    """
    if samples < 1:
        return 0.0, 1.0
    share = min(1.0, max(0.0, share))
    scale = 1 + Z95**2 / samples
    centre = (share + Z95**2 / (2 * samples)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / samples + Z95**2 / (4 * samples**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def change_points(values: Sequence[float], least: int = 4, sigmas: float = 4.0) -> list[int]:
    """Indices at which the level of a series changes for good, in order.

    Binary segmentation: the split with the least absolute deviation from the
    medians of its sides is a change when the medians differ by ``sigmas``
    standard errors (robust, pooled) and by 1 % of the level; each side is then
    searched anew. Both sides have at least ``least`` values, so one bad night
    is no change.
    """
    found: list[int] = []
    pending = [(0, len(values))]
    while pending:
        low, high = pending.pop()
        splits = range(low + least, high - least + 1)
        if not splits:
            continue
        at = min(splits, key=lambda split: sum(_deviations(values, low, split, high)))
        before, after = statistics.median(values[low:at]), statistics.median(values[at:high])
        step, size = abs(after - before), max(abs(before), abs(after))
        inner = _deviations(values, low, at, high)
        sigma = max(MAD_TO_SIGMA * statistics.median(inner), 1e-3 * size)
        error = sigma * math.sqrt(1 / (at - low) + 1 / (high - at))
        if step >= 0.01 * size and step >= sigmas * error > 0:
            found.append(at)
            pending += [(low, at), (at, high)]
    return sorted(found)


def _deviations(values: Sequence[float], low: int, split: int, high: int) -> list[float]:
    """How far each value is from the median of its side."""
    before, after = statistics.median(values[low:split]), statistics.median(values[split:high])
    return [abs(v - before) for v in values[low:split]] + [
        abs(v - after) for v in values[split:high]
    ]
