"""trend: how a case did over time.

Enters: a case and a history. Leaves: a table, a line of bars a metric, and
with ``--plot`` a picture. Touches: reads the store, writes the picture.

    nox -s trend                                cases with a history
    nox -s trend -- DeepSeek-V3.yaml            its last runs
    nox -s trend -- DeepSeek-V3.yaml --plot trend.svg
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.nightly.history import Result, Store, case_key, open_store, short
from steps.core import door, foreign, settings
from steps.core.case.gates import METRICS, Gate
from steps.core.errors import UsageError
from steps.core.plan.plan import Plan
from steps.core.record import stats
from steps.core.record.summary import change, with_unit

#: What is followed when nothing else is asked for: the first of these a benchmark has.
MAIN = ("capacity", "output_throughput", "accuracy", "ttft_p99_ms")
BARS = "▁▂▃▄▅▆▇█"
#: Fewer good runs than this say nothing about noise.
ENOUGH = 5


@dataclass(frozen=True)
class Point:
    """One good value of a metric."""

    time: float
    value: float
    run: str
    commit: str
    versions: Mapping[str, str]


def series(results: Sequence[Result], benchmark: str, metric: str) -> list[Point]:
    """The values of a metric over real runs, oldest first; failed measurements are no values.

    Only runs that compare with the newest count: on its cluster, by its driver, told to test the
    same. So a pull request's runs and the nightly ones keep apart.
    """
    real = _measured(results, benchmark, metric)
    return [
        Point(r.time, r.benchmarks[benchmark][metric], r.run, r.commit, r.versions)
        for r in real
        if r.compares(real[-1]) and r.drivers.get(benchmark) == real[-1].drivers.get(benchmark)
    ]


def _measured(results: Sequence[Result], benchmark: str, metric: str) -> list[Result]:
    return [r for r in results if not r.rehearsed and metric in r.benchmarks.get(benchmark, {})]


def level(points: Sequence[Point]) -> list[Point]:
    """The points since the level last changed."""
    changes = stats.change_points([point.value for point in points])
    return list(points[changes[-1] :] if changes else points)


def main_metrics(results: Sequence[Result]) -> list[tuple[str, str]]:
    """(benchmark, metric) of what each benchmark is mainly about."""
    names = dict.fromkeys(name for result in results for name in result.benchmarks)
    found = []
    for name in names:
        has = {metric for r in results for metric in r.benchmarks.get(name, {})}
        found += [(name, metric) for metric in MAIN if metric in has][:1]
    return found


def noise_warnings(plan: Plan, results: Sequence[Result]) -> list[str]:
    """A sentence for each gate that is tighter than the noise of the runs before, pure."""
    said = []
    for entry in plan.benchmarks:
        name = entry.benchmark.name
        like = [
            r
            for r in results
            if r.cluster == plan.cluster.name and r.drivers.get(name) == entry.driver
        ]
        for gate in entry.gates:
            values = [point.value for point in level(series(like, name, gate.metric))]
            allowed, noise = _allowed(gate, values), stats.noise(values)
            if len(values) >= ENOUGH and allowed is not None and 2 * noise > allowed:
                said.append(
                    f"**Noise:** '{gate}' of {name} allows {100 * allowed:.1f} %, but the last "
                    f"{len(values)} good runs vary by ±{200 * noise:.1f} % (2 sigma): good runs "
                    "will miss it. Widen the gate, or measure more often with `repeat`."
                )
    return said


def _allowed(gate: Gate, values: Sequence[float]) -> float | None:
    """How far a good run may stray before it misses a gate, as a share.

    Of the baseline, or for a fixed limit of the median; None for a gate that
    says nothing of noise, or that the median itself misses.
    """
    if gate.op not in (">=", "<=", ">", "<") or not values:
        return None
    if gate.of_baseline:
        return abs(1 - gate.number)
    middle = statistics.median(values)
    room = middle - gate.number if gate.op.startswith(">") else gate.number - middle
    return room / abs(middle) if middle and room >= 0 else None


def sparkline(values: Sequence[float]) -> str:
    """The values as bars, from their lowest to their highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)


def text(case: str, results: Sequence[Result]) -> str:
    """The trend for a terminal: a line a run, then bars and changes of level a metric."""
    wanted = main_metrics(results)
    heads = ["time", "verdict", "product", *(f"{name} {metric}" for name, metric in wanted)]
    rows = []
    for result in results:
        cells = [time.strftime("%Y-%m-%d %H:%M", time.localtime(result.time)), result.verdict]
        cells[1] += " (rehearsed)" if result.rehearsed else ""
        cells.append(result.product or "-")
        for name, metric in wanted:
            value = result.benchmarks.get(name, {}).get(metric)
            cells.append("-" if value is None else with_unit(metric, value))
        rows.append(cells)
    table = [[foreign.line(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    lines = [f"{foreign.line(case)}: {len(results)} runs"]
    for row in table:
        lines.append("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    for name, metric in wanted:
        lines += ["", *map(foreign.line, _metric_lines(results, name, metric))]
    return "\n".join(lines)


def _metric_lines(results: Sequence[Result], name: str, metric: str) -> list[str]:
    points = series(results, name, metric)
    values = [point.value for point in points]
    if not values:
        return [f"{name} {metric}: no good measurement"]
    now = [point.value for point in level(points)]
    unit = METRICS.get(metric, ("", True))[0]
    lines = [
        f"{name} {metric}: {sparkline(values[-60:])}",
        f"  median {statistics.median(now):g} {unit}, noise {100 * stats.noise(now):.1f} %, "
        f"over the last {len(now)} good runs",
    ]
    left_out = len(_measured(results, name, metric)) - len(points)
    if left_out:
        lines.append(
            f"  {left_out} runs on another cluster or by another driver, or told to test "
            "something else, are left out"
        )
    changes = stats.change_points(values)
    for start, index, end in zip([0, *changes], changes, [*changes[1:], len(values)], strict=False):
        before, after = points[index - 1], points[index]
        moment = time.strftime("%Y-%m-%d", time.localtime(after.time))
        old, new = statistics.median(values[start:index]), statistics.median(values[index:end])
        lines.append(
            f"  level changed on {moment}: {change(metric, new, old)}; {span(before, after)}"
        )
    return lines


def span(before: Point, after: Point) -> str:
    """What changed between two runs: the product's commits first, then versions, the harness."""
    parts = []
    names = sorted({*before.versions, *after.versions}, key=lambda n: (n[-7:] != "-commit", n))
    for name in names:
        one, other = before.versions.get(name, "none"), after.versions.get(name, "none")
        if one != other and name.endswith("-commit"):
            parts.append(f"{name.removesuffix('-commit')} {short(one)}..{short(other)}")
        elif one != other:
            parts.append(f"{name} {one} -> {other}")
    if before.commit and after.commit and before.commit != after.commit:
        parts.append(f"harness {before.commit}..{after.commit}")
    return ", ".join(parts) or f"same commit and versions, runs {before.run} and {after.run}"


def store_of(arguments: argparse.Namespace) -> Store:
    """The store a command line means.

    Raises:
        UsageError: it names none.
    """
    where = arguments.store or settings.read().history
    if not where:
        raise UsageError(
            "no history: neither --store nor MULTINODE_HISTORY is set",
            "Name a directory, or git:URL#BRANCH.",
        )
    return open_store(where)


def results_of(store: Store, case: str, last: int, only: str = "") -> list[Result]:
    """The newest results of a case; ``only`` is its name among several of its file.

    Raises:
        UsageError: there are none; lists the cases that have some.
    """
    key = case_key(case, only)
    found = store.results(key, last)
    if not found:
        known = ", ".join(store.cases()) or "no case at all"
        raise UsageError(f"no history of '{key}'", f"The store has: {known}.")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What trend and baseline share."""
    parser.add_argument("--only", default="", metavar="NAME", help="of a file of several cases")
    parser.add_argument("--store", default="", help="default: $MULTINODE_HISTORY")
    parser.add_argument(
        "--last", type=door.at_least(1, int), default=60, help="runs to look at; default 60"
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", nargs="?", help="a case: a path, or a name in configs/")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG picture")
    add_arguments(parser)


def work(arguments: argparse.Namespace) -> int:
    """Print the trend of a case."""
    store = store_of(arguments)
    if not arguments.case:
        print("\n".join(map(foreign.line, store.cases())) or "no results yet")
        return 0
    results = results_of(store, arguments.case, arguments.last, arguments.only)
    print(text(case_key(arguments.case, arguments.only), results))
    if arguments.plot:
        from ci.tools import plots

        curves = [
            plots.Curve(
                f"{name} {metric}",
                tuple((point.time, point.value) for point in series(results, name, metric)),
                METRICS.get(metric, ("", True))[0],
            )
            for name, metric in main_metrics(results) or [("", "")]
        ]
        plots.save_trends(curves, arguments.plot)
        print(f"\nplotted to {arguments.plot}")
    return 0


main = door.Verb("trend", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
