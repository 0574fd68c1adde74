"""What a benchmark at several loads showed, for the report: throughput against what users feel.

Enters: a run, the run to lay beside it. Leaves: plots and a table. Touches: reads verdicts of
other runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ci.tools import plots
from ci.tools.plots import Dot, Loads
from steps.core.case.numbers import Refused
from steps.core.errors import UsageError
from steps.core.record import outcome
from steps.core.record.outcome import Finished
from steps.core.record.records import BenchResult, Point, bench_from
from steps.core.record.rundir import RunDir, read_json
from steps.sizing.points import front

#: So many runs beside this one are looked at for the last good one.
LOOKED = 50


@dataclass(frozen=True)
class Other:
    """The points of another run, by benchmark."""

    label: str
    devices: int
    points: dict[str, tuple[Point, ...]]


def devices_of(plan: Any) -> int:
    """Devices of a fleet; of one without any its nodes count."""
    return sum(node.devices for node in plan.nodes) or len(plan.nodes)


def beside(over: Finished, against: Path | None = None) -> list[Other]:
    """The last good run of the same case, and the one that was asked for.

    Raises:
        UsageError: nothing of what was asked for can be laid beside.
    """
    names = [result.name for result in over.verdict.benchmarks if result.points]
    if against is not None:
        found = [_asked(over, RunDir(against), names)]
    elif names:
        found = []
    else:
        return []
    for path in _earlier(over.run_dir.path)[:LOOKED]:
        verdict = read_json(path / "verdict.json")
        if not isinstance(verdict, dict) or verdict.get("run") == over.verdict.run:
            continue
        before = float(verdict.get("started") or 0) < over.verdict.started
        same = verdict.get("case") == over.verdict.case and verdict.get("verdict") == "pass"
        if before and same and bool(verdict.get("rehearsed")) == over.verdict.rehearsed:
            with contextlib.suppress(Exception):  # a run that cannot be read is none to compare
                other = _other(RunDir(path), f"last good run, {path.name}")
                if any(other.points.values()):
                    found.append(other)
                    break
    return found


def _asked(over: Finished, run_dir: RunDir, names: Sequence[str]) -> Other:
    """A run that somebody named, with what it does not share with this one in its label."""
    hint = "Both runs need a benchmark of one name with a sweep or a search."
    if not names:
        raise UsageError(f"--against: {over.run_dir.path} itself has no loads", hint)
    other = _other(run_dir, run_dir.path.name)
    if not any(other.points.get(name) for name in names):
        raise UsageError(f"--against: {run_dir.path} has no loads of {', '.join(names)}", hint)
    plan = outcome.plan_of(run_dir)
    facts = [plan.model] if plan.model != over.plan.model else []
    facts += ["rehearsed"] if plan.rehearsed and not over.plan.rehearsed else []
    facts += ["not rehearsed"] if over.plan.rehearsed and not plan.rehearsed else []
    return replace(other, label=f"{other.label} ({', '.join(facts)})") if facts else other


def _earlier(path: Path) -> list[Path]:
    """Directories of runs beside this one, also of other searches, the newest first."""
    runs = path.resolve().parent
    places = [*runs.glob("*/verdict.json"), *runs.parent.glob("size-*/run/verdict.json")]
    made = sorted({place.parent for place in places if not place.parent.is_symlink()}, key=_age)
    return [place for place in made if place != path.resolve()]


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return -path.joinpath("verdict.json").stat().st_mtime
    return 0.0


def _other(run_dir: RunDir, label: str) -> Other:
    """The points of a run.

    Raises:
        InfraError: it has no plan.
    """
    plan = outcome.plan_of(run_dir)
    verdict = read_json(run_dir.verdict)
    entries = verdict.get("benchmarks", ()) if isinstance(verdict, dict) else ()
    points = {}
    for entry in entries:
        with contextlib.suppress(Refused):
            result = bench_from(entry)
            points[result.name] = result.points
    return Other(label, devices_of(plan), points)


def pictures(result: BenchResult, devices: int, others: Sequence[Other]) -> Iterator[str]:
    """Throughput a device against interactivity, and against the time to the first token."""
    sets = [("this run", devices, result.points)]
    sets += [
        (o.label, o.devices, o.points[result.name]) for o in others if o.points.get(result.name)
    ]
    unit = "output token/s a device"
    title = f"{result.name}: throughput a device against interactivity"
    shown = [_loads(name, points, count, "tpot_mean_ms") for name, count, points in sets]
    if any(loads.dots for loads in shown):
        yield plots.fronts(title, shown, "interactivity, tokens/s/user", unit)
    title = f"{result.name}: throughput a device against TTFT p99"
    shown = [_loads(name, points, count, "ttft_p99_ms") for name, count, points in sets]
    if any(loads.dots for loads in shown):
        yield plots.fronts(title, shown, "TTFT p99, ms", unit, log=True)


def _loads(name: str, points: Sequence[Point], devices: int, time: str) -> Loads:
    """The points of a run; the faster one answers, the better."""
    made, places = [], []
    for point in points:
        output, took = point.metrics.get("output_throughput"), point.metrics.get(time)
        if point.wrong or not output or not took:
            continue
        speed = 1000 / took
        x = speed if time.startswith("tpot") else took
        words = f"{name}, {point}: {output / devices:.1f} token/s a device, {time} {took:.1f}"
        made.append(Dot(x, output / devices, words))
        places.append((speed, output / devices))
    return Loads(name, tuple(made), tuple(front(places)))
