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

    Binary segmentation: the split that parts two medians furthest, measured in
    the pooled robust noise of both sides, is a change when it reaches
    ``sigmas`` of the standard error and 1 % of the level; each side is then
    searched anew. Both sides have at least ``least`` values, so one bad night
    is no change.
    """
    found: list[int] = []
    pending = [(0, len(values))]
    while pending:
        low, high = pending.pop()
        best, at = 0.0, 0
        for split in range(low + least, high - least + 1):
            left, right = values[low:split], values[split:high]
            before, after = statistics.median(left), statistics.median(right)
            step = abs(after - before)
            if step < 0.01 * max(abs(before), abs(after)):
                continue
            inner = [abs(v - before) for v in left] + [abs(v - after) for v in right]
            sigma = max(MAD_TO_SIGMA * statistics.median(inner), 1e-3 * max(abs(before), 1e-9))
            error = sigma * math.sqrt(1 / len(left) + 1 / len(right))
            score = step / error
            if score > best:
                best, at = score, split
        if best >= sigmas:
            found.append(at)
            pending += [(low, at), (at, high)]
    return sorted(found)
