"""bench: measure, and hold the numbers against their gates.

Enters: a :class:`NodeRun` on the leader whose fleet is ready. Leaves: a
:class:`BenchResult` a benchmark, and its files in ``node-0/bench/<name>``.
Touches: what the driver touches; probes the servers' health meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steps import bench_drivers, checks
from steps.bench_drivers import Measurement
from steps.bench_drivers.series import Series
from steps.core.case import gates
from steps.core.node import alone
from steps.core.node.http import look
from steps.core.node.noderun import NodeRun, StepFailed, stage
from steps.core.plan import drivers
from steps.core.plan.plan import BenchmarkPlan, NodePlan, Process
from steps.core.record import stats
from steps.core.record.records import BenchResult, to_dict
from steps.core.record.rundir import write_json
from steps.sizing import measure


@dataclass(frozen=True)
class Patience:
    """How health is probed during a benchmark.

    A miss counts only when the server's log did not grow either; ``misses`` in
    a row make a cause. Busy is not dead, and the process table, which is
    watched all the time, is stronger evidence than a probe. ``dying`` is how long
    a server that has failed requests, and is not healthy, may take to end.
    """

    every: float
    timeout: float
    misses: int
    dying: float


REAL = Patience(5.0, 10.0, 8, 20.0)
REHEARSED = Patience(0.5, 2.0, 4, 3.0)


def run(run: NodeRun) -> None:
    """Run every benchmark in order; a failed one does not keep the next from running."""
    health = threading.Event()
    threading.Thread(target=_watch_health, args=(run, health), daemon=True).start()
    try:
        for number, entry in enumerate(run.plan.benchmarks):
            stage(run, number + 1)
            result = _benchmark(run, entry, number)
            run.benchmarks.append(result)
            run.events.emit("benchmark", text=_sentence(result), name=result.name)
            if result.status == "fail" and result.fault == "functional":
                _await_deaths(run)
        checks.behind(run)
    finally:
        health.set()


def _await_deaths(run: NodeRun) -> None:
    """Let servers that fail requests because they are dying end, and so be the cause.

    vLLM answers every open request with an error, then ends, seconds later.

    Raises:
        RunEnded: one has ended.
    """
    patience = REHEARSED if run.plan.rehearsed else REAL
    probes = [process.probe for _, process in run.plan.probes() if process.probe]
    began = time.monotonic()
    while time.monotonic() - began < patience.dying:
        if all(look(probe, patience.timeout).ok for probe in probes):
            return
        run.sleep(0.1)


def _benchmark(run: NodeRun, entry: BenchmarkPlan, number: int) -> BenchResult:
    name = entry.benchmark.name
    directory, earlier = _fresh(run.dir.bench / _file_name(name, number))
    began, started = time.monotonic(), time.time()
    driver = drivers.chosen(entry.driver, run.plan.rehearsed)
    if not driver.module:
        return _result(entry, "skipped", entry.skip_gates, started=started)
    run.events.emit("benchmark", text=f"{name}: {entry.driver}{_scale_note(entry)}", name=name)
    series = Series(run, number, driver, earlier)

    def size() -> BenchResult:
        found = measure.measure(run, entry, series, directory)
        return judge_sized(entry, found, started, time.monotonic() - began, directory.name)

    def take(places: Sequence[Path]) -> BenchResult:
        series.take(places, confirms=bool(series.found))
        seconds = time.monotonic() - began
        return judge(entry, series.found, started, seconds, directory.name, series.way)

    repeat = entry.benchmark.repeat
    try:
        if entry.benchmark.sized:
            result = size()
        else:
            result = take(_places(directory, "run", repeat) if repeat > 1 else [directory])
        if not result.points and to_confirm(entry, result):
            run.events.emit("benchmark", text=f"{name}: again: {result.reason}", name=name)
            result = take(_places(directory, "confirm", entry.benchmark.confirm))
    except StepFailed as failure:
        cause = failure.cause
        run.benchmarks.append(
            _result(
                entry,
                "error",
                cause.reason,
                fault=cause.verdict,
                started=started,
                seconds=round(time.monotonic() - began, 3),
                directory=directory.name,
            )
        )
        raise
    write_json(directory / "result.json", to_dict(result))
    return result


def _fresh(directory: Path) -> tuple[Path, int]:
    """This directory, or one beside those of earlier measurements; how many there are."""
    places = itertools.chain([directory], (Path(f"{directory}.{n}") for n in itertools.count(2)))
    return next((place, number) for number, place in enumerate(places) if not any(place.glob("*")))


def _places(directory: Path, what: str, count: int) -> list[Path]:
    return [directory / f"{what}-{number + 1}" for number in range(count)]


def to_confirm(entry: BenchmarkPlan, result: BenchResult) -> bool:
    """Whether to measure again before it counts: numbers that can be believed missed a gate."""
    return (
        entry.benchmark.confirm > 0
        and entry.benchmark.case_type == "performance"
        and result.status == "fail"
        and result.fault == "performance"
        and all(gate.found is not None for gate in result.gates if gate.passed is False)
        and not any(check.status == "fail" for check in result.checks)
    )


def judge(
    entry: BenchmarkPlan,
    found: Sequence[Measurement],
    started: float,
    seconds: float,
    directory: str,
    way: str = "",
) -> BenchResult:
    """A benchmark's result from its measurements, a pure function.

    With repetitions each metric is the median over them; the evidence checks
    must hold in every one. ``way`` says how the caches were the same for each.
    """
    found = [bench_drivers.believed(measurement) for measurement in found]
    last = found[-1]
    seen = tuple(check for measurement in found for check in measurement.checks)
    metrics = with_confidence(_median(found), last.requests.get("ok", 0))
    common = {
        "metrics": metrics,
        "requests": last.requests,
        "checks": seen,
        "runs": tuple(m.metrics for m in found) if len(found) > 1 else (),
        "note": "; ".join(filter(None, (spread_note(entry, found), way))),
        "started": started,
        "seconds": round(seconds, 3),
        "directory": directory,
    }
    if last.skipped:
        return _result(entry, "skipped", last.skipped, **common)
    if last.error:
        return _result(entry, "error", last.error, fault=last.fault, **common)
    failed = [check for check in seen if check.status == "fail"]
    if failed:
        reason = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        return _result(entry, "fail", reason, fault=last.fault, **common)
    if not metrics:
        return _result(entry, "error", "the driver measured nothing", fault="infra", **common)
    held = tuple(
        gates.GateResult(
            str(gate), gate.metric, None, metrics.get(gate.metric), None, entry.skip_gates
        )
        if entry.skip_gates and gate.metric not in entry.judged
        else gates.hold(gate, metrics, entry.benchmark.baseline)
        for gate in entry.gates
    )
    missed = [gate for gate in held if gate.passed is False]
    if missed:
        fault = "accuracy" if entry.benchmark.case_type == "accuracy" else "performance"
        reason = "; ".join(_miss(gate, metrics) for gate in missed)
        return _result(entry, "fail", reason, fault=fault, gates=held, **common)
    return _result(entry, "pass", "", gates=held, **common)


def judge_sized(
    entry: BenchmarkPlan, found: measure.Sized, started: float, seconds: float, directory: str
) -> BenchResult:
    """The result of a benchmark at several loads: of its best point, if all is well."""
    result = judge(entry, [found.measured], started, seconds, directory)
    result = replace(result, points=found.points, note=found.note)
    if not found.missed or result.status == "error":
        return result
    broken = any(point.wrong for point in found.points)
    if entry.skip_gates and not broken:
        return replace(result, note=f"{found.missed}; {found.note}".strip("; "))
    fault = "functional" if broken else "performance"
    return replace(result, status="fail", reason=found.missed, fault=fault)


def with_confidence(metrics: dict[str, float], samples: int) -> dict[str, float]:
    """The metrics, a score with its 95 % interval from the number of samples."""
    score = metrics.get("accuracy")
    if score is None or samples < 1:
        return metrics
    low, high = stats.wilson(score / 100, samples)
    return {**metrics, "accuracy_low": 100 * low, "accuracy_high": 100 * high}


def spread_note(entry: BenchmarkPlan, found: Sequence[Measurement]) -> str:
    """How the gated metrics spread over several measurements; empty for one."""
    if len(found) < 2:
        return ""
    parts = []
    for metric in dict.fromkeys(gate.metric for gate in entry.gates):
        values = [m.metrics[metric] for m in found if metric in m.metrics]
        if len(values) > 1:
            listed = ", ".join(f"{value:g}" for value in values)
            parts.append(f"{metric} {listed} (spread {100 * stats.spread(values):.1f} %)")
    return f"median of {len(found)} measurements: {'; '.join(parts)}" if parts else ""


def _miss(gate: gates.GateResult, metrics: Mapping[str, float]) -> str:
    found = "nothing" if gate.found is None else f"{gate.found:g}"
    limit = "" if gate.limit is None else f" (that is {gate.limit:g})"
    tail = f": {gate.reason}" if gate.reason else ""
    low, high = metrics.get("accuracy_low"), metrics.get("accuracy_high")
    if gate.metric == "accuracy" and low is not None and high is not None:
        tail += f", 95 % interval {low:.2f} to {high:.2f}"
        if gate.limit is not None and low <= gate.limit <= high:
            tail += ", which holds the limit: this may be chance"
    return f"gate '{gate.gate}'{limit} missed: found {found}{tail}"


def _result(entry: BenchmarkPlan, status: str, reason: str, **more: object) -> BenchResult:
    benchmark = entry.benchmark
    return BenchResult(
        name=benchmark.name,
        driver=entry.driver,
        case_type=benchmark.case_type,
        status=status,
        reason=reason,
        baseline=benchmark.baseline,
        threshold=benchmark.threshold,
        scaled=entry.scaled,
        **more,  # type: ignore[arg-type]
    )


def _median(found: Sequence[Measurement]) -> dict[str, float]:
    names = set(found[0].metrics).intersection(*(m.metrics for m in found)) if found else set()
    return {
        name: statistics.median(m.metrics[name] for m in found)
        for name in found[0].metrics
        if name in names
    }


def _file_name(name: str, number: int) -> str:
    return f"{number:02d}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:60]}"


def _scale_note(entry: BenchmarkPlan) -> str:
    return f", scaled down: {entry.scaled}" if entry.scaled else ""


def _sentence(result: BenchResult) -> str:
    words = [f"{result.name}: {result.status}"]
    if result.reason:
        words.append(f"({result.reason})")
    if result.note:
        words.append(result.note)
    requests = result.requests
    if requests:
        words.append(f"{requests.get('ok', 0)} of {requests.get('asked', 0)} requests ok")
    for key, label, unit in (
        ("output_throughput", "output", "token/s"),
        ("ttft_p99_ms", "TTFT p99", "ms"),
        ("tpot_mean_ms", "TPOT", "ms"),
        ("accuracy", "accuracy", "%"),
    ):
        if key in result.metrics:
            words.append(f"{label} {result.metrics[key]:.1f} {unit}")
    skipped = [gate for gate in result.gates if gate.passed is None]
    if skipped:
        words.append(f"{len(skipped)} gates skipped: {skipped[0].reason}")
    return ", ".join(words)


def _watch_health(run: NodeRun, over: threading.Event) -> None:
    """Probe every API server until the benchmarks are over."""
    patience = REHEARSED if run.plan.rehearsed else REAL
    for node, process in run.plan.probes():
        if process.api:
            threading.Thread(
                target=_watch_one, args=(run, over, patience, node, process), daemon=True
            ).start()


def _watch_one(
    run: NodeRun, over: threading.Event, patience: Patience, node: NodePlan, process: Process
) -> None:
    probe = process.probe
    assert probe is not None
    misses, before = 0, -1
    while not (over.wait(patience.every) or run.ended.is_set()):
        answer = look(probe, patience.timeout)
        size = _log_size(run, node, process)
        if answer.ok or size != before:
            misses = 0
        else:
            misses += 1
        before = size
        if misses and misses < patience.misses:
            run.events.emit(
                "note", text=f"{node.name} {process.name}: health missed {misses}: {answer.detail}"
            )
        if misses >= patience.misses and not over.is_set():
            sick = answer.status != 0
            run.add_cause(
                run.cause_of(
                    "health",
                    "crash" if sick else "hang",
                    f"{misses} health probes in a row failed: {answer.detail}, and its log stands "
                    "still, while the process lives",
                    node=node,
                    process=process.name,
                    log=f"{node.name}/{process.log}",
                    hint="It stopped serving without ending; its stacks and log tell where.",
                )
            )
            return


def _log_size(run: NodeRun, node: NodePlan, process: Process) -> int:
    if node.index == run.me.index:
        return run.log_sizes().get(process.name, 0)
    member = run.leader.members.get(node.index) if run.leader else None
    if member:
        return int(member.progress.get(process.name, 0))
    with contextlib.suppress(OSError):  # without a rendezvous: where its log is here
        return (run.run_dir.path / node.name / process.log).stat().st_size
    return 0


main = alone.step("bench", __doc__, lambda _: [("bench", run)], starts=True, needs=True)

if __name__ == "__main__":
    raise SystemExit(main())
