"""The report of a run: one HTML file that needs nothing else.

Enters: a run directory, and the history of its case. Leaves: ``report.html``:
no network, no other file, at most about 5 MB whatever the run left. Touches:
reads the run directory, writes that file.

    nox -s report -- runs/latest
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.nightly.history import Result, case_key, open_store
from ci.nightly.trend import main_metrics, series
from ci.report import logs, sizing, timeseries
from ci.report.requests import Sample, samples
from ci.tools import plots
from ci.tools.plots import Bar, Row
from steps.core import door, foreign, settings
from steps.core.case.gates import METRICS
from steps.core.plan.plan import NodePlan, Plan
from steps.core.record import outcome, summary
from steps.core.record.events import Event, console_line, read_events
from steps.core.record.outcome import Finished
from steps.core.record.records import BenchResult, Record
from steps.core.record.rundir import RunDir, read_json, write_text
from steps.core.record.verdict import Verdict
from steps.core.redaction import here

TEMPLATES = Path(__file__).parent / "templates"
STATS = ("mean", "min", "median", "p75", "p90", "p95", "p99", "max")
TIMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
MAX_EVENTS = 1500
#: Fewer requests than this are no curve: the table says all of them.
FEW = 3


@dataclass(frozen=True)
class BenchView:
    """A benchmark as the page shows it."""

    result: BenchResult
    sentence: str
    gates: tuple[tuple[str, ...], ...]
    others: tuple[tuple[str, str], ...]
    percentiles: tuple[tuple[str, ...], ...]
    plots: tuple[str, ...]
    runs: tuple[tuple[str, ...], ...]
    points: tuple[tuple[str, ...], ...] = ()


def write(
    over: Finished,
    history: Sequence[Result] = (),
    remarks: Sequence[str] = (),
    against: Path | None = None,
) -> Path:
    """Make ``report.html`` in a run's directory.

    Args:
        history: results of the case before this run, oldest first.
        remarks: what the runner said about the verdict, as Markdown paragraphs.
        against: another run, whose loads are laid beside.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    path = over.run_dir.path / "report.html"
    write_text(path, render(over, history, remarks, sizing.beside(over, against)))
    return path


def warm() -> None:
    """Load what a page needs, most of its time, before there is anything to write.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    template()
    plots.warm()


@functools.cache
def template(name: str = "report.html") -> Any:
    """A template of ours, which escapes whatever it is given."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup
    return environment.get_template(name)


def style() -> str:
    """The sheet of every page."""
    return (TEMPLATES / "report.css").read_text(encoding="utf-8")


def refuse(run_dir: RunDir, verdict: Verdict, case_text: str = "") -> Path:
    """Make ``report.html`` of a run that never had a plan: what was wrong, and with what.

    Args:
        case_text: the case as it was found.

    Raises:
        ImportError: jinja2 is not installed.
    """
    page = template("refused.html").render(
        verdict=verdict,
        cause=verdict.cause,
        headline=summary.headline(verdict),
        when=_when(verdict.started),
        case_lines=case_text.splitlines(),
        style=style(),
    )
    path = run_dir.path / "report.html"
    write_text(path, foreign.html(page))
    return path


def render(
    over: Finished,
    history: Sequence[Result],
    remarks: Sequence[str],
    others: Sequence[sizing.Other] = (),
) -> str:
    """The page as text."""
    from markupsafe import Markup

    run_dir, plan, verdict = over.run_dir, over.plan, over.verdict
    events = read_events(run_dir.events)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    records = {index: record for index, record in over.records.items() if record}
    versions = summary.differences({index: record.versions for index, record in records.items()})
    environment = environments(plan)
    page: str = template().render(
        plan=plan,
        verdict=verdict,
        headline=summary.headline(verdict),
        cause=verdict.cause,
        remarks=[_bare(text) for text in remarks],
        timeline=timeline(over, records),
        phases=phase_table(verdict),
        spent=over.spent,
        benchmarks=[bench_view(over, result, others) for result in verdict.benchmarks],
        trends=list(trends(plan, history)),
        check_rows=[(check.name, check.status, check.detail) for check in verdict.checks],
        node_rows=[_node_row(node, records.get(node.index)) for node in plan.nodes],
        commands=commands(plan),
        port_rows=[
            (
                p.node,
                f"{p.port} to {p.port + p.count - 1}" if p.count > 1 else p.port,
                p.purpose,
                p.process,
            )
            for p in plan.ports
        ],
        versions=versions,
        version_heads=["version of", *(f"node {index}" for index in records)],
        all_versions=next((dict(r.versions) for r in records.values()), {}),
        environments=summary.differences(environment),
        environment_heads=["variable", *(f"node {index}" for index in environment)],
        logs=logs.excerpts(run_dir, plan, verdict, here()),
        events=[line for line in event_lines(events, verdict.started) if line][:MAX_EVENTS],
        event_count=len(events),
        when=_when(verdict.started),
        style=style(),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return foreign.html(page)


def _node_row(node: NodePlan, record: Record | None) -> tuple[Any, ...]:
    return (
        node.index,
        node.role + (", headless" if node.headless else ""),
        node.side,
        node.address,
        record.host if record else "",
        node.devices,
        ", ".join(process.name for process in node.processes),
        record.outcome if record else "left no record",
    )


def _when(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def _bare(markdown: str) -> str:
    return markdown.replace("**", "").replace("`", "")


# Timeline


def timeline(over: Finished, records: Mapping[int, Record]) -> str:
    """Phases of every node and lives of every process, what engines did, the first error."""
    plan, verdict = over.plan, over.verdict
    start = verdict.started
    rows = []
    for node in plan.nodes:
        record = records.get(node.index)
        role = f"{node.name} {node.side if node.side != 'plain' else node.role}"
        if record is None:
            rows.append(Row(f"{role}: no record", (), True))
            continue
        bars = tuple(
            Bar(
                phase.started - start,
                phase.started - start + phase.seconds,
                "bad" if phase.outcome == "failed" else plots.PHASE_COLOURS.get(phase.name, "a"),
                phase.name,
                f"{node.name} {phase.name}: {phase.seconds:.1f} s, {phase.outcome}",
            )
            for phase in record.phases
        )
        rows.append(Row(role, bars, True))
        for process in record.processes:
            exited = process.exit
            end = float(exited["at"]) if exited else record.ended
            how = str(exited["how"]) if exited else "was still there"
            bad = not exited.get("expected", False) if exited else True
            bar = Bar(
                process.started - start,
                end - start,
                "bad" if bad and verdict.verdict != "pass" else "idle",
                "",
                f"{node.name} {process.name} (pid {process.pid}): {end - process.started:.1f} s, "
                f"{how}",
            )
            rows.append(Row(f"  {process.name}", (bar,)))
    cause = verdict.cause
    mark = cause.at - start if cause and cause.at and start else None
    if mark is not None and mark < 0:
        mark = None
    what = "interrupted" if verdict.verdict == "interrupted" else f"first error: {_where(verdict)}"
    measured = [(b.started - start, b.started - start + b.seconds) for b in verdict.benchmarks]
    end = max((bar.end for row in rows for bar in row.bars), default=0.0)
    charts = tuple(timeseries.charts(over, end)) if end > 0 else ()
    return plots.timeline(rows, mark, what if mark is not None else "", charts, measured)


def _where(verdict: Verdict) -> str:
    cause = verdict.cause
    if cause is None or cause.node is None:
        return verdict.verdict
    return f"node {cause.node} {cause.process}".strip()


def phase_table(verdict: Verdict) -> tuple[list[int], list[tuple[str, list[str]]]]:
    """(nodes, rows of phase and each node's seconds): the timeline in words."""
    nodes = sorted({int(phase["node"]) for phase in verdict.phases})
    names = dict.fromkeys(str(phase["name"]) for phase in verdict.phases)
    rows = []
    for name in names:
        cells = []
        for node in nodes:
            here = [p for p in verdict.phases if p["name"] == name and p["node"] == node]
            words = [f"{float(p['seconds']):.1f} s" for p in here]
            words += [str(p["outcome"]) for p in here[-1:] if p["outcome"] != "done"]
            cells.append(" ".join(words))
        rows.append((name, cells))
    return nodes, rows


# Benchmarks


def bench_view(
    over: Finished, result: BenchResult, beside: Sequence[sizing.Other] = ()
) -> BenchView:
    """Tables and plots of one benchmark."""
    metrics = result.metrics
    timed = {f"{key}_{stat}_ms" for key in TIMES for stat in STATS}
    gated = {gate.metric for gate in result.gates}
    percentiles = tuple(
        (label, *(_cell(metrics.get(f"{key}_{stat}_ms")) for stat in STATS))
        for key, label in TIMES.items()
        if any(f"{key}_{stat}_ms" in metrics for stat in STATS)
    )
    others = tuple(
        (name, summary.with_unit(name, value))
        for name, value in metrics.items()
        if name not in timed and name not in gated
    )
    gates = tuple(
        tuple(_bare(cell) for cell in summary.gate_cells(gate, result)) for gate in result.gates
    )
    place = over.run_dir.node(0).bench / result.directory
    found = samples(place) if result.directory and not result.points else []
    names = list(dict.fromkeys(gate.metric for gate in result.gates)) or ["output_throughput"]
    runs = tuple(
        (str(number + 1), *(_cell(run.get(name)) for name in names))
        for number, run in enumerate(result.runs)
    )
    drawn = request_plots(result.name, found, len(result.runs))
    heads, rows = summary.points_table(result)
    if result.points:
        drawn = sizing.pictures(result, sizing.devices_of(over.plan), beside)
    return BenchView(
        result,
        summary.sentence(result),
        gates,
        others,
        percentiles,
        tuple(drawn),
        (("measurement", *names), *runs) if runs else (),
        (heads, *rows) if rows else (),
    )


def request_plots(name: str, found: Sequence[Sample], runs: int = 0) -> Iterator[str]:
    """Percentiles and latencies of the requests of ``runs`` measurements; none for a handful."""
    good = [sample for sample in found if sample.ok and sample.e2el is not None]
    if len(good) < FEW:
        return
    words = f"{len(good)} requests" + (f" of {runs} measurements" if runs > 1 else "")
    firsts = [1000 * sample.ttft for sample in good if sample.ttft is not None]
    wholes = [1000 * sample.e2el for sample in good if sample.e2el is not None]
    steps = [1000 * sample.tpot for sample in good if sample.tpot is not None]
    curves = {"TTFT": firsts, "TPOT": steps, "whole request": wholes}
    yield plots.percentiles(
        f"{name}: latencies of {words} by percentile",
        {label: values for label, values in curves.items() if values},
        "ms",
    )
    yield plots.latencies(
        f"{name}: latency of each of {words}",
        {
            "whole request": [(s.begun, 1000 * s.e2el) for s in good if s.e2el is not None],
            "TTFT": [(s.begun, 1000 * s.ttft) for s in good if s.ttft is not None],
        },
    )


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def trends(plan: Plan, history: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """(title, plot) of each benchmark's main metric over the runs before and this one."""
    asked = {entry.benchmark.name: entry.benchmark for entry in plan.benchmarks}
    for name, metric in main_metrics(history):
        points = [(point.time, point.value) for point in series(history, name, metric)]
        if len(points) > 1:
            unit = METRICS.get(metric, ("", True))[0]
            benchmark = asked.get(name)
            compared = benchmark is not None and metric == benchmark.compared
            base = benchmark.baseline if benchmark and compared else None
            base = None if base in (0.0, 1.0) else base
            title = f"{name} {metric}, {len(points)} runs"
            yield title, plots.trend(title, points, unit, base)


# Nodes


def environments(plan: Plan) -> dict[int, dict[str, str]]:
    """What each node's servers have in their environment, by variable."""
    found: dict[int, dict[str, str]] = {}
    for node in plan.nodes:
        servers = [process for process in node.processes if process.kind == "server"]
        found[node.index] = dict(servers[0].env) if servers else {}
    return found


def commands(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """Node -> each process's name, command and environment as text."""
    return {
        node.name: [
            (
                process.name,
                "\n".join(
                    [
                        shlex.join(process.argv),
                        *(f"{k}={v}" for k, v in sorted(process.env.items())),
                    ]
                ),
            )
            for process in node.processes
        ]
        for node in plan.nodes
    }


def event_lines(events: Iterable[Event], started: float) -> Iterator[str]:
    """The run's events as a person reads them."""
    for event in events:
        yield console_line(event, started)


def known_of(run_dir: RunDir) -> list[str]:
    """Remarks that the run's own end wrote down."""
    data: Any = read_json(run_dir.verdict)
    remarks = data.get("remarks") if isinstance(data, dict) else None
    return [str(text) for text in remarks] if isinstance(remarks, list) else []


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", nargs="?", default="runs/latest", help="default: runs/latest")
    parser.add_argument("--against", type=Path, help="a run whose loads are laid beside")
    parser.add_argument("--store", default="", help="history; default: $MULTINODE_HISTORY")


def work(arguments: argparse.Namespace) -> int:
    """Make the report of a run, and print where it is."""
    run_dir = RunDir(Path(arguments.run_dir))
    run_dir.check_there("Name one.")
    if arguments.against:
        RunDir(arguments.against).check_there("Name a run for --against.")
    door.keep_in(run_dir.path)
    over = outcome.read(run_dir)
    where = arguments.store or settings.read().history
    history = (
        open_store(where).results(case_key(over.plan.case_file, over.plan.only), 60)
        if where
        else []
    )
    print(write(over, history, known_of(run_dir), arguments.against))
    return 0


main = door.Verb("report", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
