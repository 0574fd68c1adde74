"""A benchmark of a case: its numbers, which may be quoted, and its gates.

Enters: an entry of ``benchmarks``. Leaves: a :class:`Benchmark`, and what is wrong with it.
Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from steps.core.case import gates
from steps.core.case.asked import SAMPLING
from steps.core.case.case import RANDOM, Benchmark
from steps.core.case.parts import sizing
from steps.core.errors import cut

#: Takes a rule, a message, a hint and the words of a YAML path.
Report = Callable[..., None]
#: What upstream leaves out of the requests where it is 0.
UNSENT_AT_ZERO = frozenset(SAMPLING) - {"temperature", "ignore_eos"}
SAMPLED = tuple(key for key in SAMPLING if key != "ignore_eos")


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
    _data(entry, partial(problem, "MN004"), path)
    rates = _rates(entry, lambda message, hint: problem("MN023", message, hint, *path, "baseline"))
    numbers = {key: _number(entry.get(key)) for key in ("request_rate", "baseline", "threshold")}
    if _number(entry.get("tpot_threshold")) == 0:
        hint = "Upstream judges it, and no fleet passes: write a limit, or remove it."
        problem("MN023", "found 0, which no answer can keep", hint, *path, "tpot_threshold")
    own_gates += _upstream_limits(entry)
    wrong = partial(_of_loads, problem, name)
    return Benchmark(
        name=name,
        case_type=entry["case_type"],
        dataset_path=entry.get("dataset_path", ""),
        dataset_path_local=entry.get("dataset_path_local", ""),
        model_path=entry.get("model_path", ""),
        request_conf=entry.get("request_conf", ""),
        dataset_conf=entry.get("dataset_conf", ""),
        num_prompts=_whole(entry.get("num_prompts")),
        input_len=_whole(entry.get("input_len")) or 0,
        max_out_len=_whole(entry.get("max_out_len")) or 512,
        batch_size=_whole(entry.get("batch_size")) or 1,
        request_rate=float(numbers["request_rate"] or 0),
        baseline=None if rates else numbers["baseline"],
        rates=rates,
        threshold=numbers["threshold"],
        sampling=_sampling(entry),
        # Upstream asks whether it is anything at all, and so is text such as "false".
        thinking=bool(entry.get("thinking")),
        reasoning_effort=entry.get("reasoning_effort", ""),
        num_warmups=_whole(entry.get("num_warmups")),
        no_pred=_switch(entry.get("no_pred", False)),
        trust_remote_code=_switch(entry.get("trust_remote_code", True)),
        gates=tuple(own_gates),
        no_gate_reason=entry.get("reason", "") if entry.get("gate") else "",
        repeat=entry.get("repeat", 1),
        confirm=entry.get("confirm", 2),
        sweep=sizing.sweep(entry, wrong),
        find=sizing.find(entry, wrong),
    )


def _data(entry: Mapping[str, Any], missing: Report, path: tuple[str, ...]) -> None:
    named = entry.get("dataset_path") or entry.get("dataset_path_local")
    if not named and entry.get("dataset_conf") != RANDOM:
        text = "neither 'dataset_path' nor 'dataset_path_local' is there"
        missing(text, "Name the data set: a hub id, or a path on the leader.", *path)


def _of_loads(problem: Report, name: str, message: str, hint: str, *at: Any) -> None:
    rule = "MN019" if "subject_to" in at else "MN023"
    problem(rule, message, hint, "benchmarks", name, *at)


def _sampling(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into each request."""
    numbers = {key: _number(entry.get(key)) for key in SAMPLED}
    found = {
        key: number
        for key, number in numbers.items()
        if number is not None and (number or key not in UNSENT_AT_ZERO)
    }
    if "ignore_eos" in entry:
        found["ignore_eos"] = _switch(entry["ignore_eos"])
    return found


def _rates(entry: Mapping[str, Any], wrong: Callable[[str, str], None]) -> tuple[float, ...]:
    """The acceptance rates that a spec_decode benchmark is held against, by position."""
    baseline, listed = entry.get("baseline"), isinstance(entry.get("baseline"), list)
    if entry["case_type"] != "spec_decode":
        if listed:
            wrong("found a list, expected a number", "Only spec_decode has a rate a position.")
        return ()
    if not listed or not baseline:
        wrong(
            f"found {cut(str(baseline), 40)}, expected a list of rates",
            "List the acceptance rate of each drafted position.",
        )
        return (0.0,)
    if len(baseline) > gates.POSITIONS:
        wrong(f"has {len(baseline)} rates, expected at most {gates.POSITIONS}", "")
        return (0.0,)
    return tuple(map(float, baseline))


#: Upstream's further limits: the key, the metric and how it is held; 0 judges nothing.
_LIMITS = (
    ("tpot_threshold", "tpot_mean_ms", "<="),
    ("ttft_threshold", "ttft_mean_ms", "<="),
    ("input_throughput_threshold", "input_throughput", ">="),
)


def _upstream_limits(entry: Mapping[str, Any]) -> list[gates.Gate]:
    return [
        gates.Gate(metric, op, float(limit))
        for key, metric, op in _LIMITS
        if (limit := _number(entry.get(key)))
    ]


def _number(value: Any) -> Any:
    if isinstance(value, str):
        return float(value) if "." in value else int(value)
    return value


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _switch(value: Any) -> bool:
    return value is True or str(value).lower() == "true"
