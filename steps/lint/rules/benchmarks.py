"""Benchmarks: gates that gate, names that keep their promise, loads that fit the fleet."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from steps.core.case.asked import BENCHMARK
from steps.core.case.benchmark import UNSENT_AT_ZERO
from steps.core.case.case import RANDOM, Benchmark
from steps.core.errors import Place, Severity
from steps.core.vllm import options
from steps.lint.fleet import Fleet
from steps.lint.registry import Finding, rule

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
_WARMUP = re.compile(r"w(?:ar|ra)m[-_ ]?up|smoke|prefill_?only|dry[-_ ]?run", re.IGNORECASE)
_PROMISE = re.compile(r"(?<![A-Za-z])(TPOT|TTFT)[-_]?(\d+)?", re.IGNORECASE)
_KINDS = ("gsm8k", "aime", "gpqa", "textvqa", "ceval", "cmmlu", "mmlu", "math500", "livecodebench")


def _at(fleet: Fleet, entry: Benchmark, *keys: str) -> Place:
    for key in keys:
        mark = fleet.case.source.marks.get(("benchmarks", entry.name, key))
        if mark:
            return Place(fleet.case.file, *mark)
    return fleet.case.place("benchmarks", entry.name)


def is_warmup(entry: Benchmark) -> bool:
    """It warms the fleet up and is not meant to judge it."""
    return bool(_WARMUP.search(entry.name)) or entry.num_prompts in (1, 2)


@rule("MN701", WARNING, "No benchmark")
def any_benchmark(fleet: Fleet) -> Iterator[Finding]:
    """Nothing is measured: the case proves that the fleet starts and answers, and its checks of
    content."""
    if not fleet.case.benchmarks:
        yield Finding(
            "no benchmark: nothing is measured",
            fleet.case.place("benchmarks"),
            "Add one, or say why not with an ignore.",
        )


@rule("MN702", WARNING, "Baseline that gates nothing")
def gates_something(fleet: Fleet) -> Iterator[Finding]:
    """A performance benchmark passes from `threshold` x `baseline` on: with a baseline of 0 or 1
    (tokens a second) every fleet passes. Without any baseline or gate nothing is judged either.
    Warm-ups are left alone. `gate: none` with a `reason` says that it is meant so."""
    for entry in fleet.case.benchmarks:
        if entry.gates or entry.rates or entry.no_gate_reason or entry.find or is_warmup(entry):
            continue
        performance = entry.case_type == "performance"
        if entry.baseline is None:
            yield Finding(
                f"benchmark {entry.name} has no baseline and no gate: it cannot fail",
                _at(fleet, entry),
                "Add a baseline or gates, or 'gate: none' with a reason.",
            )
        elif performance and entry.baseline <= 1:
            yield Finding(
                f"benchmark {entry.name}: a baseline of {entry.baseline:g} token/s gates nothing",
                _at(fleet, entry, "baseline"),
                "Write the throughput it had, or 'gate: none' with a reason.",
            )
        elif performance and (entry.threshold is not None and entry.threshold <= 0.1):
            yield Finding(
                f"benchmark {entry.name}: a threshold of {entry.threshold:g} lets nine tenths of "
                "the throughput go",
                _at(fleet, entry, "threshold"),
                "The threshold is the least share of the baseline, usually 0.97.",
            )


@rule("MN703", WARNING, "Accuracy that cannot fail")
def accuracy_can_fail(fleet: Fleet) -> Iterator[Finding]:
    """A score passes within `threshold` of `baseline`, both in percent: a threshold as large as
    the baseline lets a score of 0 pass, one of more than 25 lets almost anything pass."""
    for entry in fleet.case.benchmarks:
        if entry.case_type != "accuracy" or entry.baseline is None or entry.no_gate_reason:
            continue
        width = 1 if entry.threshold is None else entry.threshold
        if entry.baseline - width <= 0:
            yield Finding(
                f"benchmark {entry.name}: {entry.baseline:g} within {width:g} passes from 0 on",
                _at(fleet, entry, "threshold", "baseline"),
                "Both are percentages; a usual threshold is 3 to 10.",
            )
        elif width > 25:
            yield Finding(
                f"benchmark {entry.name}: {entry.baseline:g} within {width:g} passes from "
                f"{entry.baseline - width:g} on",
                _at(fleet, entry, "threshold"),
                "A usual threshold is 3 to 10.",
            )


@rule("MN704", WARNING, "A name that promises more than is gated")
def promises(fleet: Fleet) -> Iterator[Finding]:
    """A benchmark (or a case) with TPOT or TTFT in its name is expected to hold that latency, but
    nothing gates it: a throughput baseline does not. Told once a file for each of the two."""
    measured = [
        entry
        for entry in fleet.case.benchmarks
        if entry.case_type == "performance" and not is_warmup(entry)
    ]
    gated = {gate.metric.split("_")[0] for entry in measured for gate in entry.gates}
    told: set[str] = set()
    broken: dict[str, list[tuple[re.Match[str], Place]]] = {}
    for entry in measured:
        own = {gate.metric.split("_")[0] for gate in entry.gates}
        for match in _PROMISE.finditer(entry.name):
            word = match[1].lower()
            told.add(word)
            if word not in own and not entry.no_gate_reason:
                broken.setdefault(word, []).append((match, _at(fleet, entry)))
    for found in broken.values():
        yield _promise(*found[0], tuple(place for _, place in found[1:]))
    name = fleet.case.source.data.get("test_name") or ""
    text, place = (name, fleet.case.place("test_name"))
    if not _PROMISE.search(text):
        text, place = Path(fleet.case.file).stem, fleet.case.source.place()
    for match in _PROMISE.finditer(text):
        word = match[1].lower()
        if measured and word not in gated and word not in told:
            yield _promise(match, place)
            break


def _promise(match: re.Match[str], place: Place, others: tuple[Place, ...] = ()) -> Finding:
    word, limit = match[1].lower(), (match[2] or "").lstrip("0") or "LIMIT"
    more = f"; nor do {len(others)} more hold theirs" if others else ""
    upstream = f"'tpot_threshold: {limit}', or " if word == "tpot" else ""
    return Finding(
        f"'{match.string}' promises {word.upper()}{match[2] or ''}, but nothing gates it{more}",
        place,
        f"Add {upstream}'gates: [{word}_mean_ms <= {limit}]'.",
        others,
    )


@rule("MN705", INFO, "More requests at once than the fleet takes")
def concurrency(fleet: Fleet) -> Iterator[Finding]:
    """`batch_size` is above `--max-num-seqs` x data-parallel ranks of the serving (decode) side:
    the rest waits in the queue, and latencies measure that."""
    side = "plain" if fleet.case.split is None else "decoder"
    servers = fleet.side(side)
    if not servers or any(server.command.option("--max-num-seqs") is None for server in servers):
        return
    room = sum(
        server.command.number("--max-num-seqs", 0) * max(server.local, 1) for server in servers
    )
    for entry in fleet.case.benchmarks:
        if entry.case_type == "performance" and entry.batch_size > room > 0:
            yield Finding(
                f"benchmark {entry.name} keeps {entry.batch_size} requests in flight, the fleet "
                f"runs {room}",
                _at(fleet, entry, "batch_size"),
                "",
                (servers[0].command.value_place("--max-num-seqs"),),
            )


@rule("MN706", INFO, "Fewer prompts than the concurrency")
def enough_prompts(fleet: Fleet) -> Iterator[Finding]:
    """With fewer prompts than `batch_size` the load never reaches it."""
    for entry in fleet.case.benchmarks:
        if entry.num_prompts is not None and entry.num_prompts < entry.batch_size:
            yield Finding(
                f"benchmark {entry.name}: {entry.num_prompts} prompts never fill batch_size "
                f"{entry.batch_size}",
                _at(fleet, entry, "num_prompts"),
                "",
                (_at(fleet, entry, "batch_size"),),
            )


@rule("MN707", WARNING, "Data set and configuration do not go together")
def dataset_fits(fleet: Fleet) -> Iterator[Finding]:
    """`dataset_conf` reads another data set than `dataset_path` names, or is one for performance
    (`_perf`) on an accuracy benchmark, which then has no answers to score."""
    for entry in fleet.case.benchmarks:
        path = (entry.dataset_path or entry.dataset_path_local).lower()
        conf = entry.dataset_conf.lower().rsplit("/", 1)[-1]
        named = next((kind for kind in _KINDS if kind in path), "")
        read = next((kind for kind in _KINDS if conf.startswith(kind)), "")
        if named and read and named != read:
            yield Finding(
                f"benchmark {entry.name}: the data set is {named}, dataset_conf reads {read}",
                _at(fleet, entry, "dataset_conf"),
                "",
                (_at(fleet, entry, "dataset_path", "dataset_path_local"),),
            )
        if entry.case_type != "performance" and conf.endswith("_perf"):
            yield Finding(
                f"benchmark {entry.name}: {entry.case_type} with a performance dataset_conf",
                _at(fleet, entry, "dataset_conf"),
                "Choose the one without '_perf'.",
                (_at(fleet, entry, "case_type"),),
            )


@cache
def _configurations(key: str) -> frozenset[str]:
    """The names AISBench has for a field, without their folder."""
    names = options.aisbench()["requests" if key == "request_conf" else "datasets"]
    return frozenset(name.rsplit("/", 1)[-1] for name in names)


@rule("MN708", WARNING, "Benchmark configuration that AISBench does not have")
def spelled(fleet: Fleet) -> Iterator[Finding]:
    """AISBench has no `request_conf` or `dataset_conf` of this name (it has other ones in other
    versions: those compared here are of ais-bench-benchmark 3.1.20260630). The folder before the
    slash may be another, or left out: it is not looked at. `random` is of `--bench vllm-bench`."""
    for entry in fleet.case.benchmarks:
        for key, name in (
            ("request_conf", entry.request_conf),
            ("dataset_conf", entry.dataset_conf),
        ):
            last = name.strip().rsplit("/", 1)[-1]
            if name in ("", RANDOM) or last in _configurations(key):
                continue
            close = difflib.get_close_matches(last, sorted(_configurations(key)), 1, 0.75)
            version = options.aisbench()["version"]
            yield Finding(
                f"benchmark {entry.name}: AISBench {version} has no {key} '{name}'",
                _at(fleet, entry, key),
                f"Did you mean '{close[0]}'?" if close else "Check it against your AISBench.",
            )


@rule("MN711", WARNING, "Threshold that is no share")
def share(fleet: Fleet) -> Iterator[Finding]:
    """The threshold of a performance benchmark is the least share of the baseline, not a
    percentage: 97 asks for 97 times the baseline."""
    for entry in fleet.case.benchmarks:
        asked = entry.threshold if entry.case_type == "performance" else None
        if asked is not None and asked > 2 and (entry.baseline or 0) > 1:
            yield Finding(
                f"benchmark {entry.name}: a threshold of {asked:g} asks for {asked:g} times the "
                "baseline",
                _at(fleet, entry, "threshold"),
                "The threshold is the least share of the baseline, usually 0.97.",
            )


@rule("MN712", WARNING, "Benchmark key that is a trap upstream")
def traps(fleet: Fleet) -> Iterator[Finding]:
    """Upstream's meaning, which is kept, is not what the text says: `thinking: "false"` in quotes
    asks for thinking, and `thinking: false` for nothing; a sampling key of 0 is not sent; an
    accuracy benchmark without `threshold` passes within 1; `ignore_eos`, which upstream does not
    read, is obeyed here, so that a performance load with `ignore_eos: false` is another one."""
    for name, entry in (fleet.case.source.data.get("benchmarks") or {}).items():
        found = dict(_traps(entry)) if isinstance(entry, dict) else {}
        for key, text in found.items():
            place = fleet.case.place("benchmarks", name, *([key] if key in entry else []))
            yield Finding(f"benchmark {name}: {text}", place, "Write what is meant.")


def _traps(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    thinking, kind = entry.get("thinking"), entry.get("case_type")
    if isinstance(thinking, str) and thinking.lower() == "false":
        yield "thinking", f"thinking: '{thinking}' is text, and asks for thinking"
    for key in sorted(UNSENT_AT_ZERO & set(entry)):
        if entry[key] is not None and float(entry[key]) == 0:
            yield key, f"{key} of 0 is not sent"
    if kind == "accuracy" and entry.get("baseline") and entry.get("threshold") is None:
        yield "threshold", "without a threshold a score passes within 1 of the baseline"
    if kind == "performance" and str(entry.get("ignore_eos")).lower() == "false":
        yield "ignore_eos", "upstream sends ignore_eos: true whatever stands here"


@rule("MN709", WARNING, "Benchmark field that is not read")
def judged(fleet: Fleet) -> Iterator[Finding]:
    """A field that nobody here reads, such as one of another harness; or a benchmark without any
    field, which is left out."""
    for name, entry in (fleet.case.source.data.get("benchmarks") or {}).items():
        place = fleet.case.place("benchmarks", name)
        if entry is None:
            yield Finding(f"benchmark {name} is empty and left out", place, "Fill or remove it.")
            continue
        for key in entry:
            if key not in BENCHMARK:
                yield Finding(
                    f"benchmark {name}: '{key}' is not read here",
                    fleet.case.place("benchmarks", name, key),
                    "Remove it, or keep it for a harness that reads it.",
                )
