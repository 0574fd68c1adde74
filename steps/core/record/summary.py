"""The verdict as Markdown for people.

Enters: a run that is over. Leaves: text. Touches: looks which logs are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steps.core import foreign
from steps.core.case.gates import ACCEPTED, METRICS, GateResult
from steps.core.plan.faults import deadly
from steps.core.plan.plan import Plan
from steps.core.record import telemetry
from steps.core.record.devicetime import OTHER, Spent
from steps.core.record.outcome import Finished
from steps.core.record.records import BenchResult, Record
from steps.core.record.verdict import Verdict

#: What is shown of a benchmark besides what is gated.
SHOWN = ("output_throughput", "ttft_p99_ms", "tpot_mean_ms", "accuracy")


def headline(verdict: Verdict) -> str:
    """One line: the verdict, the case, how long it took."""
    tail = " (rehearsed)" if verdict.rehearsed else ""
    return f"{verdict.verdict.upper()}{tail}: {verdict.case} in {verdict.seconds:.1f} s"


def markdown(over: Finished, remarks: Sequence[str] = ()) -> str:
    """The whole summary, the verdict and its cause first.

    Args:
        remarks: paragraphs that the runner has to say about the verdict.
    """
    plan, verdict, found = over.plan, over.verdict, over.records
    mark = "✅" if verdict.verdict == "pass" else "❌"
    parts = [f"# {mark} {foreign.markdown(headline(verdict))}"]
    parts += _cause(verdict)
    parts += map(foreign.markdown, remarks)
    parts.append(f"Run {foreign.code(verdict.run)} of {foreign.code(plan.case_file)}.")
    if verdict.rehearsed:
        parts.append("Stand-ins played the engines: baselines were not judged.")
        parts += _survived(plan, verdict)
    parts += _benchmarks(verdict)
    parts += _time(over)
    parts += _checks(verdict)
    parts += _phases(plan, verdict, over.spent)
    parts += _fleet(plan, found)
    parts += _logs(over)
    if plan.notes:
        parts.append("\n".join(f"- {foreign.markdown(note)}" for note in plan.notes))
    return "\n\n".join(parts) + "\n"


def _survived(plan: Plan, verdict: Verdict) -> list[str]:
    """Faults that were asked for and harmed nobody: a pass shows nothing about them."""
    rehearsal = plan.cluster.rehearsal
    if rehearsal is None or verdict.verdict != "pass":
        return []
    return [
        f"**Fault {foreign.code(fault)} changed nothing:** its moment never came, or nothing "
        "depended on what it befell. This pass does not show that it would be noticed."
        for fault in deadly(rehearsal.faults)
    ]


def _cause(verdict: Verdict) -> list[str]:
    cause = verdict.cause
    if cause is None:
        return []
    lines = [f"**Cause:** {foreign.markdown(str(cause))}"]
    if cause.evidence:
        lines.append(foreign.fence(cause.evidence))
    if cause.log:
        lines.append(f"Log: {foreign.code(cause.log)}")
    if cause.hint:
        lines.append(f"**Next:** {foreign.markdown(cause.hint)}")
    if verdict.consequences:
        rest = "\n".join(f"- {foreign.markdown(str(entry))}" for entry in verdict.consequences[:10])
        lines.append(f"What followed from it:\n\n{rest}")
    if verdict.missing:
        names = ", ".join(f"node {index}" for index in verdict.missing)
        lines.append(f"No record came from {names}.")
    return lines


def _benchmarks(verdict: Verdict) -> list[str]:
    if not verdict.benchmarks:
        return ["No benchmarks: the case lists none."]
    lines = ["## Benchmarks"]
    heads = ("benchmark", "metric", "value", "baseline", "change", "gate", "verdict")
    rows = []
    for result in verdict.benchmarks:
        cells: list[tuple[str, ...]] = [gate_cells(gate, result) for gate in result.gates]
        gated = {gate.metric for gate in result.gates}
        cells += [
            (metric, with_unit(metric, result.metrics[metric]), "", "", "", "")
            for metric in SHOWN
            if metric in result.metrics and metric not in gated
        ]
        for number, row in enumerate(cells):
            rows.append((result.name if number == 0 else "", *row))
    if rows:
        lines.append(table(heads, rows))
    lines.append(
        "\n".join(f"- {foreign.markdown(sentence(result))}" for result in verdict.benchmarks)
    )
    for result in verdict.benchmarks:
        if result.points:
            lines += [f"Points of {foreign.markdown(result.name)}:", table(*points_table(result))]
    return lines


#: What is shown of each point: the metric and the head of its column.
POINT = {
    "output_throughput": "output token/s",
    "goodput": "goodput req/s",
    "ttft_p99_ms": "TTFT p99 ms",
    "tpot_mean_ms": "TPOT mean ms",
    "tpot_p99_ms": "TPOT p99 ms",
}


def points_table(result: BenchResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows of a benchmark that was measured at several loads."""
    shown = [name for name in POINT if any(name in point.metrics for point in result.points)]
    rows = []
    for point in result.points:
        cells = [f"{point.metrics[n]:.2f}" if n in point.metrics else "" for n in shown]
        judged = f"missed: {point.missed}" if point.missed else "counts"
        judged = "holds" if point.held else judged
        rows.append(
            (str(point), *cells, f"does not count: {point.wrong}" if point.wrong else judged)
        )
    return ("point", *(POINT[name] for name in shown), "verdict"), rows


def _time(over: Finished) -> list[str]:
    """Where the benchmarks' time went, as the engines tell it."""
    lines = telemetry.where_time_went(over.engines, over.measured)
    if not lines:
        return []
    return ["## Where the time went", "\n".join(f"- {foreign.markdown(line)}" for line in lines)]


def sentence(result: BenchResult) -> str:
    """A benchmark in one line: how it ended, why, and what to know about its numbers."""
    parts = [f"{result.name} ({result.driver}): {result.status}"]
    if result.reason:
        parts[0] += f": {result.reason}"
    if result.requests:
        ok, asked = result.requests.get("ok", 0), result.requests.get("asked", 0)
        parts.append(f"{ok} of {asked} requests ok")
    if result.note:
        parts.append(result.note)
    if "accuracy_low" in result.metrics:
        low, high = result.metrics["accuracy_low"], result.metrics["accuracy_high"]
        parts.append(f"95 % interval of the score {low:.2f} to {high:.2f} %")
    rates = [value for name, value in result.metrics.items() if name.startswith(ACCEPTED)]
    if rates:
        listed = ", ".join(f"{rate:.3f}" for rate in rates)
        drafts = result.metrics.get("drafts", 0)
        parts.append(f"of {drafts:g} drafts accepted, by position: {listed}")
    if result.scaled:
        parts.append(f"scaled down: {result.scaled}")
    return "; ".join(parts)


def gate_cells(gate: GateResult, result: BenchResult) -> tuple[str, ...]:
    """metric, value, baseline, change, gate, verdict of one gate."""
    found = gate.found if gate.found is not None else result.metrics.get(gate.metric)
    judged = {True: "pass", False: "**miss**", None: f"skipped: {gate.reason}"}[gate.passed]
    if gate.passed is False and gate.reason:
        judged += f": {gate.reason}"
    limit = "" if gate.limit is None or "baseline" not in gate.gate else f" ({gate.limit:g})"
    value = "" if found is None else with_unit(gate.metric, found)
    usual = gate.metric in ("accuracy", "output_throughput") and "capacity" not in result.metrics
    compared = usual or "baseline" in gate.gate
    base = result.baseline if compared else None
    return (
        gate.metric,
        value,
        "" if base is None else f"{base:g}",
        change(gate.metric, found, base) if gate.passed is not None else "",
        f"{gate.gate}{limit}",
        judged,
    )


def change(metric: str, found: float | None, base: float | None) -> str:
    """How far a value is from its baseline: points for a score, else a share."""
    if found is None or not base:
        return ""
    if METRICS.get(metric, ("", True))[0] == "%":
        return f"{found - base:+.2f} points"
    return f"{100 * (found / base - 1):+.1f} %"


def _checks(verdict: Verdict) -> list[str]:
    if not verdict.checks:
        return []
    rows = [(check.name, check.status, check.detail) for check in verdict.checks]
    return ["## Checks", table(("check", "status", "detail"), rows)]


def _phases(plan: Plan, verdict: Verdict, minutes: Spent) -> list[str]:
    names = list(dict.fromkeys([*(str(phase["name"]) for phase in verdict.phases)]))
    nodes = sorted({int(phase["node"]) for phase in verdict.phases})
    if not names:
        return []
    order = [name for name in minutes.phases if name not in names]
    rows = []
    for name in [*[o for o in order if o != OTHER], *names, OTHER]:
        cells = [_phase_cell(verdict, name, node) for node in nodes]
        spent_here = minutes.phases.get(name)
        rows.append((name, *cells, "" if spent_here is None else f"{spent_here:.1f}"))
    rows.append(("**all**", *[""] * len(nodes), f"**{minutes.total:.1f}**"))
    if minutes.wasted:
        rows.append(("after the first failure", *[""] * len(nodes), f"{minutes.wasted:.1f}"))
    devices = sum(node.devices for node in plan.nodes)
    kind = "NPU-minutes (rehearsed)" if plan.rehearsed else "NPU-minutes"
    heads = ("phase", *(f"node {n}" for n in nodes), kind)
    return [f"## Phases, {devices} devices", table(heads, rows)]


def _phase_cell(verdict: Verdict, name: str, node: int) -> str:
    here = [p for p in verdict.phases if p["name"] == name and p["node"] == node]
    if not here:
        return ""
    text = f"{sum(float(p['seconds']) for p in here):.1f} s"
    return text if here[-1]["outcome"] == "done" else f"{text} {here[-1]['outcome']}"


def _fleet(plan: Plan, found: Mapping[int, Record | None]) -> list[str]:
    rows = []
    for node in plan.nodes:
        record = found.get(node.index)
        role = node.role if node.side == "plain" else f"{node.role}, {node.side}"
        if node.headless:
            role += ", headless"
        names = ", ".join(process.name for process in node.processes)
        ended = record.outcome if record else "**no record**"
        host = record.host if record else ""
        rows.append((str(node.index), role, node.address, host, names, ended))
    heads = ("node", "role", "address", "host", "processes", "ended")
    lines = [
        f"## Fleet: {plan.cluster.name}, engine {foreign.markdown(plan.engine or 'vllm')}",
        table(heads, rows),
    ]
    if plan.cluster.products:
        asked = ", ".join(map(str, plan.cluster.products))
        lines.append(f"Asked to test: {foreign.markdown(asked)}")
    versions = {r.node: dict(r.versions) for r in found.values() if r and r.versions}
    if not versions:
        return lines
    if len({tuple(sorted(v.items())) for v in versions.values()}) == 1:
        first = next(iter(versions.values()))
        text = ", ".join(f"{name} {version}" for name, version in sorted(first.items()))
        return [*lines, f"Versions: {foreign.markdown(text)}"]
    differing = differences(versions)
    columns = ["version of", *(f"node {index}" for index in versions)]
    return [*lines, "**Versions differ between nodes:**", table(columns, differing)]


def differences(values: Mapping[int, Mapping[str, str]]) -> list[tuple[str, ...]]:
    """Rows (name, value on each node) of what is not the same on all nodes."""
    names = sorted({name for one in values.values() for name in one})
    rows = [(name, *(one.get(name, "-") for one in values.values())) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _logs(over: Finished) -> list[str]:
    """Where the logs are, the cause's first; what went with its machine is not."""
    root, cause = over.run_dir.path, over.verdict.cause
    logs = [
        (path.relative_to(root).as_posix(), path.stat().st_size)
        for index in over.records
        for path in over.run_dir.node(index).path.rglob("*.log")
        if path.is_file()
    ]
    first = cause.log if cause else ""
    logs.sort(key=lambda entry: (entry[0] != first, entry[0]))
    if not logs:
        return []
    lines = [f"- {foreign.code(path)} ({max(size, 1) / 1000:,.0f} kB)" for path, size in logs[:40]]
    if len(logs) > 40:
        lines.append(f"- and {len(logs) - 40} more")
    return ["## Logs, in the run directory", "\n".join(lines)]


def with_unit(metric: str, value: float) -> str:
    """A metric's value with its unit."""
    unit = METRICS.get(metric, ("", True))[0]
    return f"{value:.2f} {unit}".strip()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(foreign.markdown(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
