"""The verdict as Markdown for people, and as the JSON that upstream's users know.

Enters: plan, verdict, records. Leaves: text and values. Touches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from steps.core.gates import METRICS, GateResult
from steps.core.plan import Plan
from steps.core.records import BenchResult, Record
from steps.core.verdict import Verdict


def headline(verdict: Verdict) -> str:
    """One line: the verdict, the case, how long it took."""
    tail = " (rehearsed)" if verdict.rehearsed else ""
    return f"{verdict.verdict.upper()}{tail}: {verdict.case} in {verdict.seconds:.1f} s"


def markdown(plan: Plan, verdict: Verdict, found: Mapping[int, Record | None]) -> str:
    """The whole summary."""
    mark = "✅" if verdict.verdict == "pass" else "❌"
    parts = [f"# {mark} {headline(verdict)}", f"Run `{verdict.run}` of `{plan.case_file}`."]
    if verdict.rehearsed:
        parts.append("Stand-ins played the engines: baselines were not judged.")
    parts += _cause(verdict)
    parts += _benchmarks(verdict)
    parts += _checks(verdict)
    parts += _phases(verdict)
    parts += _fleet(plan, found)
    if plan.notes:
        parts.append("\n".join(f"- {note}" for note in plan.notes))
    return "\n\n".join(parts) + "\n"


def _cause(verdict: Verdict) -> list[str]:
    cause = verdict.cause
    if cause is None:
        return []
    lines = [f"**Cause:** {_cell(str(cause))}"]
    if cause.evidence:
        lines.append("```\n" + "\n".join(cause.evidence) + "\n```")
    if cause.log:
        lines.append(f"Log: `{cause.log}`")
    if cause.hint:
        lines.append(f"**Next:** {cause.hint}")
    if verdict.consequences:
        rest = "\n".join(f"- {_cell(str(entry))}" for entry in verdict.consequences[:10])
        lines.append(f"What followed from it:\n\n{rest}")
    if verdict.missing:
        names = ", ".join(f"node {index}" for index in verdict.missing)
        lines.append(f"No record came from {names}.")
    return lines


def _benchmarks(verdict: Verdict) -> list[str]:
    if not verdict.benchmarks:
        return ["No benchmarks: the case lists none."]
    rows = ["| benchmark | driver | result | metric | value | gate | judged |", "|" + "---|" * 7]
    for result in verdict.benchmarks:
        reason = f": {result.reason}" if result.reason else ""
        head = f"| {_cell(result.name)} | {result.driver} | {_cell(result.status + reason)} |"
        lines = [_gate_cells(gate, result) for gate in result.gates]
        gated = {gate.metric for gate in result.gates}
        for metric in ("output_throughput", "ttft_p99_ms", "tpot_mean_ms", "accuracy"):
            if metric in result.metrics and metric not in gated:
                lines.append(f" {metric} | {_value(metric, result.metrics[metric])} | | |")
        for number, line in enumerate(lines or [" | | | |"]):
            rows.append((head if number == 0 else "| | | |") + line)
        if result.scaled:
            rows.append(f"| | | scaled down: {_cell(result.scaled)} | | | | |")
    return ["## Benchmarks", "\n".join(rows)]


def _gate_cells(gate: GateResult, result: BenchResult) -> str:
    found = gate.found if gate.found is not None else result.metrics.get(gate.metric)
    judged = {True: "pass", False: "**miss**", None: f"skipped: {gate.reason}"}[gate.passed]
    limit = "" if gate.limit is None else f" ({gate.limit:g})"
    value = "" if found is None else _value(gate.metric, found)
    return f" {gate.metric} | {value} | {_cell(gate.gate)}{limit} | {_cell(judged)} |"


def _checks(verdict: Verdict) -> list[str]:
    if not verdict.checks:
        return []
    rows = ["| check | status | detail |", "|---|---|---|"]
    rows += [f"| {_cell(c.name)} | {c.status} | {_cell(c.detail)} |" for c in verdict.checks]
    return ["## Checks", "\n".join(rows)]


def _phases(verdict: Verdict) -> list[str]:
    names = list(dict.fromkeys(str(phase["name"]) for phase in verdict.phases))
    nodes = sorted({int(phase["node"]) for phase in verdict.phases})
    if not names:
        return []
    rows = ["| phase | " + " | ".join(f"node {n}" for n in nodes) + " |"]
    rows.append("|---|" + "---|" * len(nodes))
    for name in names:
        cells = []
        for node in nodes:
            here = [p for p in verdict.phases if p["name"] == name and p["node"] == node]
            text = ""
            if here:
                text = f"{sum(float(p['seconds']) for p in here):.1f} s"
                if here[-1]["outcome"] != "done":
                    text += f" {here[-1]['outcome']}"
            cells.append(text)
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return ["## Phases", "\n".join(rows)]


def _fleet(plan: Plan, found: Mapping[int, Record | None]) -> list[str]:
    rows = ["| node | role | address | processes | ended |", "|---|---|---|---|---|"]
    for node in plan.nodes:
        record = found.get(node.index)
        role = node.role if node.side == "plain" else f"{node.role}, {node.side}"
        if node.headless:
            role += ", headless"
        names = ", ".join(process.name for process in node.processes)
        ended = record.outcome if record else "**no record**"
        rows.append(f"| {node.index} | {role} | {node.address} | {names} | {ended} |")
    lines = ["## Fleet", "\n".join(rows)]
    versions = {r.node: dict(r.versions) for r in found.values() if r and r.versions}
    if versions:
        same = len({tuple(sorted(v.items())) for v in versions.values()}) == 1
        first = next(iter(versions.values()))
        text = ", ".join(f"{name} {version}" for name, version in sorted(first.items()))
        lines.append(
            f"Versions: {text}" if same else f"**Versions differ between nodes:** {versions}"
        )
    return lines


def _value(metric: str, value: float) -> str:
    unit = METRICS.get(metric, ("", True))[0]
    return f"{value:.2f} {unit}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def upstream_results(
    plan: Plan, verdict: Verdict, found: Mapping[int, Record | None]
) -> dict[str, dict[str, Any]]:
    """File name -> content of the results JSON that the upstream harness leaves."""
    leader = found.get(0)
    versions = dict(leader.versions) if leader else {}
    tasks = [
        {
            "name": result.name,
            "metrics": dict(result.metrics),
            "test_input": {
                key: value
                for key, value in {
                    "num_prompts": entry.benchmark.num_prompts,
                    "max_out_len": entry.benchmark.max_out_len,
                    "batch_size": entry.benchmark.batch_size,
                    "request_rate": entry.benchmark.request_rate,
                    "dataset": entry.benchmark.dataset_path or entry.benchmark.dataset_path_local,
                }.items()
                if value is not None
            },
            "target": {"baseline": result.baseline, "threshold": result.threshold},
            "pass_fail": {"pass": "pass", "skipped": "skipped"}.get(result.status, "fail"),
        }
        for entry, result in zip(plan.benchmarks, verdict.benchmarks, strict=True)
    ]
    text = " ".join(word for _, process in plan.servers() for word in process.argv)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plan.case_name).strip("-") or "case"
    features = [
        label
        for label, flag in (
            ("disaggregated_prefill", plan.proxy is not None),
            ("expert_parallel", "--enable-expert-parallel" in text),
            ("speculative", "--speculative-config" in text),
        )
        if flag
    ]
    content = {
        "model_name": plan.model,
        "hardware": "rehearsal" if plan.rehearsed else plan.cluster.name,
        "dtype": "w8a8" if re.search(r"w8a8", plan.model + text, re.I) else "auto",
        "feature": features,
        "vllm_version": versions.get("vllm", ""),
        "vllm_ascend_version": versions.get("vllm-ascend", ""),
        "verdict": verdict.verdict,
        "tasks": tasks,
        "serve_cmd": {
            f"{node.name}/{process.name}": list(process.argv) for node, process in plan.servers()
        },
        "environment": {
            f"{node.name}/{process.name}": dict(process.env) for node, process in plan.servers()
        },
    }
    return {f"results-{name[:80]}.json": content}
