"""Plots as SVG that takes its colours from the page.

Enters: plain values. Leaves: SVG text without a network, a script or a fixed
colour: every colour is a CSS variable, so one picture serves light, dark and
print. Touches nothing, but for :func:`save_trends`, which writes a file.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.tools.canvas import COLOURS, figure, ink, legend, svg
from steps.core import foreign
from steps.core.record import stats

#: Colour of a bar -> what it means, in the timeline's legend.
MEANINGS = {
    "a": "prepare, stop, collect",
    "b": "install, load",
    "d": "probe, proof",
    "c": "benchmark",
    "idle": "hold; a process lives",
    "bad": "failed",
}
#: What a phase's bar is coloured as.
PHASE_COLOURS = {
    "load": "b",
    "pool": "b",
    "install": "b",
    "probe": "d",
    "bench": "c",
    "proof": "d",
    "hold": "idle",
}
MAX_ROWS = 100
#: Of a chart's share of its axes; its name has the rest.
CHART_HEIGHT = 0.74


@dataclass(frozen=True)
class Bar:
    """A stretch of time on the timeline; seconds since the run's start."""

    start: float
    end: float
    colour: str
    label: str = ""
    title: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the timeline: a node's phases, or a process."""

    name: str
    bars: tuple[Bar, ...]
    head: bool = False


@dataclass(frozen=True)
class Chart:
    """Something of a side over the timeline: a value for each stretch between two ``edges``.

    Attributes:
        lows, means, highs: over the engines of the side; not a number in a gap.
        outlier: the engine that is named in ``name``, if there is one.
        titles: what hovering over a stretch shows.
    """

    name: str
    edges: tuple[float, ...]
    lows: tuple[float, ...]
    means: tuple[float, ...]
    highs: tuple[float, ...]
    titles: tuple[str, ...]
    outlier: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curve:
    """A metric over time: (time, value) of each run."""

    title: str
    points: tuple[tuple[float, float], ...]
    unit: str


@dataclass(frozen=True)
class Dot:
    """A load that was measured."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Loads:
    """The loads of one run, and which of them no other beats, in order."""

    name: str
    dots: tuple[Dot, ...]
    front: tuple[int, ...]


def warm() -> None:
    """Load matplotlib and its fonts, which takes longer than a plot.

    Raises:
        ImportError: it is not installed.
    """
    percentiles("warm", {"warm": (1.0, 10.0)}, "ms")


def timeline(
    rows: Sequence[Row],
    mark: float | None = None,
    mark_text: str = "",
    charts: Sequence[Chart] = (),
    shades: Sequence[tuple[float, float]] = (),
) -> str:
    """All rows over one time axis, charts below on the same one.

    Args:
        mark: where the first error was.
        shades: stretches in which benchmarks ran.
    """
    shown = rows[:MAX_ROWS]
    titles: dict[str, str] = {}
    heights = [1.15 + 0.27 * len(shown), *([1.1 * len(charts)] if charts else [])]
    left = min(0.25 + 0.066 * max((len(row.name) for row in shown), default=0), 4.0)
    with figure(9.6, heights, left, shared=True) as (drawn, every):
        axes = every[0]
        span = max((bar.end for row in shown for bar in row.bars), default=1.0) or 1.0
        _draw_rows(axes, shown, span, titles)
        if mark is not None:
            for each in every:
                each.axvline(mark, color=ink("bad"), linewidth=1.6)
            right = mark > 0.6 * span
            axes.annotate(
                foreign.plot(mark_text),
                (mark, -0.7),
                xytext=(-4 if right else 4, 0),
                textcoords="offset points",
                ha="right" if right else "left",
                va="center",
                color=ink("bad"),
                weight="bold",
                annotation_clip=False,
            )
        axes.set_ylim(len(shown) - 0.4, -1.1 if mark is not None else -0.6)
        for start, end in shades if charts else ():
            every[1].axvspan(start, end, color=ink("c"), alpha=0.12, linewidth=0)
        if charts:
            _draw_charts(every[1], charts, titles)
        axes.set_xlim(0, span * 1.01)
        every[-1].set_xlabel("seconds into the run")
        return svg(drawn, "Timeline of all nodes and processes", titles)


def _draw_rows(axes: Any, shown: Sequence[Row], span: float, titles: dict[str, str]) -> None:
    for at, row in enumerate(shown):
        for bar in row.bars:
            length = max(bar.end - bar.start, 0.0)
            thick = 0.72 if row.head else 0.42
            (patch,) = axes.barh(
                at, length, left=bar.start, height=thick, color=ink(bar.colour), linewidth=0
            )
            gid = f"bar-{len(titles)}"
            patch.set_gid(gid)
            titles[gid] = bar.title
            if bar.label and (bar.end - bar.start) > 0.012 * span * len(bar.label):
                middle = (bar.start + bar.end) / 2
                words = foreign.plot(bar.label)
                axes.text(middle, at, words, ha="center", va="center", color="#fffffe")
    used = {bar.colour for row in shown for bar in row.bars}
    for colour in (name for name in MEANINGS if name in used):
        axes.barh(0, 0, color=ink(colour), label=MEANINGS[colour])
    if used:
        legend(axes, 6)
    axes.set_yticks(range(len(shown)), [foreign.plot(row.name) for row in shown])
    axes.grid(axis="y", visible=False)


def _draw_charts(axes: Any, charts: Sequence[Chart], titles: dict[str, str]) -> None:
    """One below the other on common axes, each with a scale from 0 to its highest value.

    Axes of their own would take most of a report's time.
    """
    places, words = [], []
    for at, chart in enumerate(charts):
        tall = max((value for value in chart.highs if not math.isnan(value)), default=0.0) or 1.0
        places += [-at, -at + CHART_HEIGHT]
        words += ["0", f"{tall:,.4g}"]
        _draw_chart(axes, chart, -at, CHART_HEIGHT / tall, titles)
    axes.set_yticks(places, words)
    axes.set_ylim(1 - len(charts) - 0.06, 1.06)


def _draw_chart(axes: Any, chart: Chart, base: float, scale: float, titles: dict[str, str]) -> None:
    """Mean and spread over the engines of a side; a strip for each stretch says its values."""

    def placed(values: Sequence[float]) -> list[float]:
        # A gap is no number, and nothing is drawn there.
        return [base + value * scale for value in values]

    middles = [(low + high) / 2 for low, high in itertools.pairwise(chart.edges)]
    lows, highs = placed(chart.lows), placed(chart.highs)
    axes.fill_between(middles, lows, highs, color=ink("a"), alpha=0.25, linewidth=0)
    axes.plot(middles, placed(chart.means), color=ink("a"), linewidth=1, marker=".", markersize=3)
    if chart.outlier:
        axes.plot(middles, placed(chart.outlier), color=ink("b"), linewidth=0.8)
    name = foreign.plot(chart.name)
    across = axes.get_yaxis_transform()
    axes.text(0, base + CHART_HEIGHT + 0.03, name, fontsize=8, va="bottom", transform=across)
    widths = [high - low for low, high in itertools.pairwise(chart.edges)]
    tall = [CHART_HEIGHT] * len(middles)
    strips = axes.bar(middles, tall, widths, base, color=ink("a"), alpha=0, linewidth=0)
    for strip, said in zip(strips, chart.titles, strict=True):
        gid = f"bar-{len(titles)}"
        strip.set_gid(gid)
        titles[gid] = said


def latencies(title: str, values: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Points (second sent, ms taken) of every request, by what was measured."""
    with figure(4.7, [3.0]) as (drawn, (axes,)):
        for colour, (name, points) in zip("abcd", values.items(), strict=False):
            xs, ys = _dots(points)
            axes.plot(
                xs,
                ys,
                color=ink(colour),
                linewidth=3,
                alpha=0.55,
                solid_capstyle="round",
                label=foreign.plot(name),
            )
        axes.set_xlabel("second in which the request was sent")
        axes.set_ylabel("ms")
        axes.set_ylim(bottom=0)
        legend(axes)
        return svg(drawn, title)


def percentiles(title: str, values: Mapping[str, Sequence[float]], unit: str) -> str:
    """Each series' values by percentile, on a logarithmic axis."""
    from matplotlib.ticker import LogLocator

    with figure(4.7, [3.0]) as (drawn, (axes,)):
        for colour, (name, found) in zip("abcd", values.items(), strict=False):
            ordered = sorted(found)
            points = _thin(ordered)
            xs, ys = [p for p, _ in points], [v for _, v in points]
            axes.plot(xs, ys, color=ink(colour), label=foreign.plot(name))
        for percentile in (50, 90, 99):
            axes.axvline(percentile, color=ink("faint"), linewidth=0.6, linestyle=":")
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 25, 50, 75, 90, 99], ["0", "25", "50", "75", "90", "99"])
        axes.set_xlabel("percentile of the requests")
        axes.set_ylabel(foreign.plot(unit))
        legend(axes)
        return svg(drawn, title)


def fronts(title: str, runs: Sequence[Loads], x: str, y: str, *, log: bool = False) -> str:
    """Every load of each run; those that no other beats are full and joined, the rest hollow."""
    from matplotlib.ticker import LogLocator

    titles: dict[str, str] = {}
    with figure(4.7, [3.0]) as (drawn, (axes,)):
        for number, (colour, loads) in enumerate(zip("abd", runs, strict=False)):
            dark = ink(colour)
            best = [loads.dots[index] for index in loads.front]
            name = foreign.plot(f"{loads.name}: front")
            xs, ys = [dot.x for dot in best], [dot.y for dot in best]
            style = "--" if number else "-"
            axes.plot(xs, ys, color=dark, linewidth=1.4, linestyle=style, label=name)
            for index, dot in enumerate(loads.dots):
                full = dark if index in loads.front else "none"
                (mark,) = axes.plot(
                    [dot.x], [dot.y], marker="o", markersize=5, color=dark, markerfacecolor=full
                )
                gid = f"bar-{len(titles)}"
                mark.set_gid(gid)
                titles[gid] = dot.title
        if log:
            axes.set_xscale("log", subs=[])
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.legend(loc="best")
        return svg(drawn, title, titles)


def trend(
    title: str, points: Sequence[tuple[float, float]], unit: str, baseline: float | None = None
) -> str:
    """A metric over time, with its level, where that changed, and the baseline."""
    with figure(9.6, [2.5]) as (drawn, (axes,)):
        _draw_trend(axes, points, unit, baseline)
        return svg(drawn, title)


def save_trends(curves: Sequence[Curve], path: Path) -> None:
    """Write all curves as one SVG picture with colours of its own."""
    with figure(9.6, [2.6] * len(curves), gap=0.85) as (drawn, every):
        for axis, curve in zip(every, curves, strict=True):
            _draw_trend(axis, curve.points, curve.unit, None)
            axis.set_title(foreign.plot(curve.title), loc="left", pad=20)
        buffer = io.StringIO()
        drawn.savefig(buffer, format="svg", facecolor="white")
    text = buffer.getvalue()
    for stand_in, colour in COLOURS.values():
        text = text.replace(stand_in, colour)
    path.write_text(foreign.html(text), encoding="utf-8")


def _draw_trend(
    axes: Any, points: Sequence[tuple[float, float]], unit: str, baseline: float | None
) -> None:
    import statistics

    from matplotlib import dates

    xs = [dates.date2num(_moment(moment)) for moment, _ in points]
    ys = [value for _, value in points]
    axes.plot(xs, ys, color=ink("a"), marker="o", markersize=3.5, linewidth=1, label="runs")
    edges = [0, *stats.change_points(ys), len(ys)]
    for low, high in itertools.pairwise(edges):
        if high > low:
            middle = statistics.median(ys[low:high])
            name = "level" if low == 0 else None
            axes.hlines(middle, xs[low], xs[high - 1], color=ink("b"), linewidth=1.6, label=name)
    for edge in edges[1:-1]:
        axes.axvline((xs[edge - 1] + xs[edge]) / 2, color=ink("bad"), linewidth=1, linestyle="--")
    if baseline:
        axes.axhline(baseline, color=ink("faint"), linewidth=1, linestyle=":", label="baseline")
    axes.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=8))
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.set_ylabel(foreign.plot(unit))
    if points:
        legend(axes)


def _moment(seconds: float) -> Any:
    import datetime

    return datetime.datetime.fromtimestamp(seconds)


def _dots(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points as strokes of no length: one SVG path instead of an element each."""
    xs: list[float] = []
    ys: list[float] = []
    for x, y in points:
        xs += [x, x, float("nan")]
        ys += [y, y, float("nan")]
    return xs, ys


def _thin(ordered: Sequence[float], most: int = 400) -> list[tuple[float, float]]:
    """(percentile, value) of sorted values, no more than a screen can show."""
    count = len(ordered)
    picks = (
        {round(i * (count - 1) / (most - 1)) for i in range(most)} if count > most else range(count)
    )
    last = max(count - 1, 1)
    return [(100 * i / last, max(ordered[i], 1e-6)) for i in sorted(picks)]
