"""Pictures of a comparison and of a search.

Enters: plain values. Leaves: SVG text. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ci.tools.canvas import figure, ink, legend, svg
from steps.core import foreign


def samples(title: str, values: Mapping[str, Sequence[float]], unit: str) -> str:
    """Samples below each other on one axis, each with its mean."""
    wide = max(map(len, values), default=0)
    with figure(4.7, [0.75 + 0.35 * len(values)], min(0.3 + 0.08 * wide, 2)) as (drawn, (axes,)):
        for at, (colour, found) in enumerate(zip("abcd", values.values(), strict=False)):
            axes.plot(found, [at] * len(found), "o", color=ink(colour), markersize=4, alpha=0.7)
            if found:
                mean = sum(found) / len(found)
                axes.plot([mean, mean], [at - 0.35, at + 0.35], color=ink(colour), linewidth=2)
        axes.set_yticks(range(len(values)), [foreign.plot(name) for name in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlabel(foreign.plot(unit))
        axes.grid(axis="y", visible=False)
        return svg(drawn, title)


def walk(
    title: str,
    points: Sequence[tuple[int, float]],
    mark: int | None,
    out: Sequence[int],
    unit: str,
) -> str:
    """Values over the places of an axis, with a level on each side of ``mark``."""
    with figure(9.6, [2.8]) as (drawn, (axes,)):
        xs, ys = [place for place, _ in points], [value for _, value in points]
        axes.plot(xs, ys, "o", color=ink("a"), markersize=4, alpha=0.7, label="a start")
        if mark is not None:
            axes.axvline(mark - 0.5, color=ink("bad"), linewidth=1, linestyle="--")
            for side in ([p for p in points if p[0] < mark], [p for p in points if p[0] >= mark]):
                if side:
                    mean = sum(value for _, value in side) / len(side)
                    ends = (min(side)[0] - 0.3, max(side)[0] + 0.3)
                    axes.hlines(mean, *ends, color=ink("b"), linewidth=1.6)
        foot = axes.get_ylim()[0]
        if out:
            axes.plot(out, [foot] * len(out), "x", color=ink("bad"), label="left out")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("commit")
        axes.set_ylabel(foreign.plot(unit))
        legend(axes)
        return svg(drawn, title)
