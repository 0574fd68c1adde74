"""A benchmark of a case: its numbers, which may be quoted, and its gates.

Enters: an entry of ``benchmarks``. Leaves: a :class:`Benchmark`, and what is wrong with it.
Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steps.core.case import fields, gates
from steps.core.case.case import Benchmark
from steps.core.case.source import cut

#: Takes a rule, a message, a hint and the words of a YAML path.
Report = Callable[..., None]
SAMPLED = tuple(key for key in fields.SAMPLING if key != "ignore_eos")


def build(name: str, entry: Mapping[str, Any], problem: Report) -> Benchmark:
    """A benchmark of a case whose form is right; ``problem`` is told what is wrong with it."""
    path = ("benchmarks", name)
    own_gates = []
    for at, text in enumerate(entry.get("gates") or ()):
        try:
            gate = gates.parse(text)
        except ValueError as error:
            problem("MN019", f"found {cut(text, 80)!r}, {error}", "", *path, "gates", at)
            continue
        if gate.of_baseline and entry.get("baseline") is None:
            problem("MN019", "uses the baseline, but there is none", "", *path, "gates", at)
        own_gates.append(gate)
    if entry.get("gate") and not entry.get("reason"):
        problem("MN019", "needs a reason", "Add 'reason: why nothing is gated'.", *path, "gate")
    if entry.get("gate") and own_gates:
        problem("MN019", "is none, but 'gates' has entries", "Keep one.", *path, "gate")
    if not (entry.get("dataset_path") or entry.get("dataset_path_local")):
        problem(
            "MN004",
            "neither 'dataset_path' nor 'dataset_path_local' is there",
            "Name the data set: a hub id, or a path on the leader.",
            *path,
        )
    numbers = {
        key: _number(entry.get(key)) for key in ("request_rate", "baseline", "threshold", *SAMPLED)
    }
    sampling = {key: numbers[key] for key in SAMPLED if numbers[key] is not None}
    if "ignore_eos" in entry:
        sampling["ignore_eos"] = _switch(entry["ignore_eos"])
    own_gates += _upstream_limits(entry)
    return Benchmark(
        name=name,
        case_type=entry["case_type"],
        dataset_path=entry.get("dataset_path", ""),
        dataset_path_local=entry.get("dataset_path_local", ""),
        model_path=entry.get("model_path", ""),
        request_conf=entry.get("request_conf", ""),
        dataset_conf=entry.get("dataset_conf", ""),
        num_prompts=_whole(entry.get("num_prompts")),
        max_out_len=_whole(entry.get("max_out_len")) or 512,
        batch_size=_whole(entry.get("batch_size")) or 1,
        request_rate=float(numbers["request_rate"] or 0),
        baseline=numbers["baseline"],
        threshold=numbers["threshold"],
        sampling=sampling,
        thinking=_switch(entry["thinking"]) if "thinking" in entry else None,
        no_pred=_switch(entry.get("no_pred", False)),
        trust_remote_code=_switch(entry.get("trust_remote_code", False)),
        gates=tuple(own_gates),
        no_gate_reason=entry.get("reason", "") if entry.get("gate") else "",
        repeat=entry.get("repeat", 1),
        confirm=entry.get("confirm", 2),
    )


def _upstream_limits(entry: Mapping[str, Any]) -> list[gates.Gate]:
    """Gates of upstream's later fields: mean milliseconds, 0 for none."""
    found = []
    for key, metric in (("tpot_threshold", "tpot_mean_ms"), ("ttft_threshold", "ttft_mean_ms")):
        limit = _number(entry.get(key))
        if limit:
            found.append(gates.Gate(metric, "<=", float(limit)))
    return found


def _number(value: Any) -> Any:
    if isinstance(value, str):
        return float(value) if "." in value else int(value)
    return value


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _switch(value: Any) -> bool:
    return value is True or str(value).lower() == "true"
