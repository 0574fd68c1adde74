"""A run in forms that other tools read: OpenMetrics text, and a trace for Perfetto.

Enters: a run directory. Leaves: ``metrics.txt`` (OpenMetrics), and ``trace.json`` (phases,
processes, requests and telemetry; ui.perfetto.dev and chrome://tracing open it). Touches: reads
the run directory, writes those files.

    nox -s export -- runs/latest
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ci.report.requests import samples
from steps.core import door
from steps.core.case.numbers import dumps, is_finite
from steps.core.plan.plan import LEADER
from steps.core.record import outcome, telemetry
from steps.core.record.outcome import Finished
from steps.core.record.rundir import RunDir, write_text

#: What is drawn of an engine, and of a machine, as counters.
_ENGINE = ("running", "waiting", "kv_usage")
_MACHINE = ("cpu||", "memory||")
Labels = Mapping[str, object]


def openmetrics(over: Finished) -> str:
    """The results as text; a family of samples for each metric."""
    families: dict[str, list[str]] = {}
    own = {"case": over.verdict.case, "run": over.verdict.run}

    def add(name: str, value: float | None, more: Labels | None = None) -> None:
        if value is not None and is_finite(value):
            pairs = ",".join(f'{k}="{_escaped(v)}"' for k, v in {**own, **(more or {})}.items())
            families.setdefault(f"multinode_{name}", []).append(f"{{{pairs}}} {value:g}")

    add("run_passed", float(over.verdict.verdict == "pass"), {"verdict": over.verdict.verdict})
    add("run_seconds", over.verdict.seconds)
    add("npu_minutes", over.spent.total)
    for phase in over.verdict.phases:
        add("phase_seconds", phase["seconds"], {"node": phase["node"], "phase": phase["name"]})
    for result in over.verdict.benchmarks:
        for name, value in result.metrics.items():
            add(name, value, {"benchmark": result.name})
        for gate in result.gates:
            passed = None if gate.passed is None else float(gate.passed)
            add("gate_passed", passed, {"benchmark": result.name, "gate": gate.gate})
    for side, engines in telemetry.by_side(over.engines).items():
        found = telemetry.figures(engines, over.measured)
        for name in ("running", "waiting", "kv_usage_max", "idle", "tokens_rate", "preemptions"):
            add(f"side_{name}", getattr(found, name), {"side": side})
    lines = []
    for name, rows in families.items():
        lines += [f"# TYPE {name} gauge", *(f"{name}{row}" for row in dict.fromkeys(rows))]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _escaped(value: object) -> str:
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def trace(over: Finished) -> str:
    """The whole timeline as JSON; times in microseconds since the run's start, a node a process."""
    events = [*_lives(over), *_requests(over), *_counters(over)]
    return dumps({"displayTimeUnit": "ms", "traceEvents": events}) + "\n"


def _span(over: Finished, name: str, at: float, seconds: float, where: tuple[int, int]) -> Any:
    pid, tid = where
    start = round(1e6 * (at - over.verdict.started))
    long = round(1e6 * max(seconds, 0.0))
    return {"ph": "X", "name": name, "ts": start, "dur": long, "pid": pid, "tid": tid}


def _name(what: str, name: str, pid: int, tid: int = 0) -> Any:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _lives(over: Finished) -> Iterator[Any]:
    """Phases and processes of every node; the first error."""
    for node in over.plan.nodes:
        record = over.records.get(node.index)
        yield _name("process", f"{node.name} {node.role} {node.side}", node.index)
        yield _name("thread", "phases", node.index)
        for phase in record.phases if record else ():
            yield _span(over, phase.name, phase.started, phase.seconds, (node.index, 0))
        for at, process in enumerate(record.processes if record else (), start=1):
            end = float(process.exit["at"]) if process.exit else record.ended if record else 0.0
            yield _name("thread", process.name, node.index, at)
            seconds = end - process.started
            yield _span(over, process.name, process.started, seconds, (node.index, at))
    cause = over.verdict.cause
    if cause and cause.at:
        at = round(1e6 * (cause.at - over.verdict.started))
        yield {"ph": "i", "s": "g", "name": str(cause), "ts": at, "pid": cause.node or 0, "tid": 0}


def _requests(over: Finished) -> Iterator[Any]:
    """Each request of each benchmark; a client's own start-up is not known, and left out."""
    for number, result in enumerate(over.verdict.benchmarks):
        pid = 1_000_000 + number
        yield _name("process", f"requests of {result.name}, from the benchmark's start", pid)
        place = over.run_dir.node(LEADER).bench / result.directory
        for at, sample in enumerate(samples(place) if result.directory else ()):
            pair = {"cat": "request", "name": "request", "id": at, "pid": pid, "tid": 0}
            start = result.started + sample.begun - over.verdict.started
            told = {"output_tokens": sample.output_tokens, "ok": sample.ok, "ttft": sample.ttft}
            yield {**pair, "ph": "b", "ts": round(1e6 * start), "args": told}
            yield {**pair, "ph": "e", "ts": round(1e6 * (start + (sample.e2el or 0.0)))}


def _counters(over: Finished) -> Iterator[Any]:
    for engine in over.engines:
        for short in _ENGINE:
            key = f"{short}|{engine.label}|"
            name = f"{engine.process} {engine.label} {short}"
            yield from _counter(over, engine.track, key, name, engine.node.index)
    for node in over.plan.nodes:
        track = over.tracks[node.index].get(telemetry.MACHINE, telemetry.Track())
        for key in _MACHINE:
            yield from _counter(over, track, key, f"machine {key.strip('|')} %", node.index)


def _counter(
    over: Finished, track: telemetry.Track, key: str, name: str, pid: int
) -> Iterator[Any]:
    for moment, value in zip(*track.series.get(key, ((), ())), strict=True):
        at = round(1e6 * (moment - over.verdict.started))
        yield {"ph": "C", "name": name, "ts": at, "pid": pid, "args": {"value": value}}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", nargs="?", default="runs/latest", help="default: runs/latest")


def work(arguments: argparse.Namespace) -> int:
    """Write both, and print where they are."""
    run_dir = RunDir(Path(arguments.run_dir))
    run_dir.check_there("Name one.")
    door.keep_in(run_dir.path)
    over = outcome.read(run_dir)
    for name, text in (("metrics.txt", openmetrics(over)), ("trace.json", trace(over))):
        write_text(run_dir.path / name, text)
        print(run_dir.path / name)
    return 0


main = door.Verb("export", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
