"""The model: one for all, long enough, batched and captured to fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from steps.core.case.case import Benchmark
from steps.core.errors import Severity
from steps.core.vllm.commandline import integer, whole
from steps.lint.fleet import Fleet, Server
from steps.lint.registry import Finding, rule

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
_INPUT = re.compile(r"(?:^|[-_])in(\d+)(k?)(?=[-_.]|$)", re.IGNORECASE)


def _plain(model: str) -> str:
    """A model's own name: without owner, path, and ModelScope's spelling of dots."""
    return PurePath(model.strip().rstrip("/")).name.replace("___", ".").lower()


@rule("MN501", ERROR, "Different models")
def one_model(fleet: Fleet) -> Iterator[Finding]:
    """All servers of a fleet serve the model that the case names. Two models in one fleet are an
    error; a case that names another model than all its commands gets a warning (upstream's
    benchmarks would ask for a model that nobody serves)."""
    having = [server for server in fleet.commands if server.command.model]
    if not having:
        return
    names = {_plain(server.command.model) for server in having}
    if len(names) > 1:
        wanted = _plain(fleet.case.model)
        right = [s for s in having if _plain(s.command.model) == wanted] or having[:1]
        first = right[0]
        for server in having:
            if _plain(server.command.model) != _plain(first.command.model):
                yield Finding(
                    f"node {server.index} serves {server.command.model}, node {first.index} "
                    f"serves {first.command.model}",
                    server.command.place(server.command.model_at),
                    "A fleet serves one model.",
                    (first.command.place(first.command.model_at), fleet.case.place("model")),
                )
        return
    served = having[0]
    if fleet.routing or _plain(fleet.case.model) in names or "$" in fleet.case.model:
        return
    if _plain(fleet.case.model) == _plain(served.command.text("--served-model-name")):
        return
    yield Finding(
        f"the case names {fleet.case.model}, its commands serve {served.command.model}",
        fleet.case.place("model"),
        "Name the model that the commands serve.",
        (served.command.place(served.command.model_at),),
        severity=WARNING,
    )


@rule("MN502", ERROR, "Quantisation differs")
def one_quantisation(fleet: Fleet) -> Iterator[Finding]:
    """The ranks of a group load the weights in one way: two different ways are an error. A node
    that does not say (the plugin may find out itself), and prefill against decode, are
    warnings."""
    for group in fleet.groups:
        first = group.first
        seen = {first.index}
        for member in group.members[1:]:
            if member.index in seen or _quantisation(member) == _quantisation(first):
                continue
            seen.add(member.index)
            both = _quantisation(member) != "none" != _quantisation(first)
            yield _quantisations(member, first, ERROR if both else WARNING)
    firsts = [group.first for group in fleet.groups]
    for server in firsts[1:]:
        if _quantisation(server) != _quantisation(firsts[0]):
            yield _quantisations(server, firsts[0], WARNING)


def _quantisation(server: Server) -> str:
    return server.command.text("--quantization", "none")


def _quantisations(server: Server, other: Server, severity: Severity) -> Finding:
    return Finding(
        f"node {server.index} has quantization {_quantisation(server)}, node {other.index} "
        f"{_quantisation(other)}",
        server.command.place_of("--quantization"),
        "Use the same on all nodes.",
        (other.command.place_of("--quantization"),),
        severity=severity,
    )


def input_length(entry: Benchmark) -> int | None:
    """Input tokens that the data set's name promises, as ``in3500`` does; None: it does not say."""
    name = PurePath(entry.dataset_path or entry.dataset_path_local).name
    match = _INPUT.search(name)
    if not match:
        return None
    return (integer(match[1]) or 0) * (1000 if match[2] else 1)


def _longest(server: Server) -> int | None:
    text = server.command.text("--max-model-len")
    return whole(text) if text else None


@rule("MN503", ERROR, "Benchmark longer than the model takes")
def long_enough(fleet: Fleet) -> Iterator[Finding]:
    """The input (when the data set's name says it) and `max_out_len` together are at most
    `--max-model-len`: vLLM refuses longer requests. A prefiller only needs room for the input.
    Lengths in names are rounded: within a twentieth it is a warning."""
    for entry in fleet.case.benchmarks:
        given = input_length(entry)
        reported: set[str] = set()
        for server in fleet.commands:
            limit = _longest(server)
            if not limit or server.side in reported:
                continue
            output = 1 if server.side == "prefiller" else entry.max_out_len
            needs = (given or 0) + output
            if needs <= limit and not (given is None and output >= limit):
                continue
            reported.add(server.side)
            surely = output > limit or needs > limit * 1.05
            what = f"{given} input + {output} output tokens" if given else f"{output} output tokens"
            path = ("benchmarks", entry.name)
            at_input = server.side == "prefiller"
            yield Finding(
                f"benchmark {entry.name} needs {what}, node {server.index} has max-model-len "
                f"{limit}",
                fleet.case.place(*path, "dataset_path" if at_input else "max_out_len"),
                "Make it shorter, or --max-model-len longer.",
                (server.command.value_place("--max-model-len"),),
                severity=ERROR if surely else WARNING,
            )


@rule("MN504", ERROR, "Prompts that fit no batch")
def batch_fits_prompt(fleet: Fleet) -> Iterator[Finding]:
    """Without chunked prefill a prompt is computed in one batch, so `--max-num-batched-tokens` is
    at least `--max-model-len`: vLLM refuses the rest. Chunked prefill is on unless it is switched
    off (by vllm-ascend's older `ascend_scheduler_config` too: a warning)."""
    for server in fleet.commands:
        command = server.command
        off = command.option("--enable-chunked-prefill") is not None and not command.has(
            "--enable-chunked-prefill"
        )
        scheduler = command.mapping("--additional-config").get("ascend_scheduler_config")
        plugin = (
            isinstance(scheduler, dict)
            and str(scheduler.get("enabled", "")).lower() == "true"
            and not scheduler.get("enable_chunked_prefill")
            and not command.has("--enable-chunked-prefill")
        )
        length, batch = _longest(server), command.number("--max-num-batched-tokens", 0)
        if (off or plugin) and length and 0 < batch < length:
            yield Finding(
                f"node {server.index}: max-num-batched-tokens {batch} is less than max-model-len "
                f"{length} without chunked prefill",
                command.value_place("--max-num-batched-tokens"),
                "Raise it, or switch chunked prefill on.",
                (command.value_place("--max-model-len"),),
                severity=ERROR if off else WARNING,
            )


def _speculative(server: Server) -> int:
    value: Any = server.command.mapping("--speculative-config").get("num_speculative_tokens", 0)
    if not value:
        value = server.command.number("--spec-tokens", 0)
    return max(integer(value) or 0, 0)


@rule("MN505", ERROR, "Fewer tokens than sequences")
def batch_fits_sequences(fleet: Fleet) -> Iterator[Finding]:
    """Each running sequence takes a token a step, and one more for each speculative token:
    `--max-num-batched-tokens` below `--max-num-seqs` is refused by vLLM; below `--max-num-seqs` x
    (1 + speculative tokens) not all sequences fit in a step (a warning)."""
    for server in fleet.commands:
        command = server.command
        batch = command.number("--max-num-batched-tokens", 0)
        sequences = command.number("--max-num-seqs", 0)
        tokens = _speculative(server)
        if not batch or not sequences or batch >= sequences * (1 + tokens):
            continue
        surely = batch < sequences
        if not surely and server.side == "prefiller":
            continue
        extra = f" x (1 + {tokens} speculative)" if tokens else ""
        yield Finding(
            f"node {server.index}: max-num-batched-tokens {batch} is less than max-num-seqs "
            f"{sequences}{extra}",
            command.value_place("--max-num-batched-tokens"),
            f"Write at least {sequences * (1 + tokens)}.",
            (command.value_place("--max-num-seqs"),),
            severity=ERROR if surely else WARNING,
        )


def _captures(server: Server) -> list[int]:
    config = server.command.mapping("--compilation-config")
    sizes = config.get("cudagraph_capture_sizes")
    if sizes is None:
        option = server.command.option("--cudagraph-capture-sizes")
        sizes = [size for size in map(whole, option.values) if size] if option else []
    if not isinstance(sizes, list):
        return []
    return [size for size in sizes if isinstance(size, int) and size > 0]


@rule("MN506", WARNING, "Graphs that no decode step fits")
def captures_fit(fleet: Fleet) -> Iterator[Finding]:
    """With k speculative tokens a decode step of n sequences has n x (k + 1) tokens: capture sizes
    that are no multiple of k + 1 are never replayed (a warning). When the largest is below
    `--max-num-seqs` x (k + 1), full batches run without a graph (info)."""
    for server in fleet.commands:
        sizes = _captures(server)
        if not sizes or server.command.has("--enforce-eager"):
            continue
        width = 1 + _speculative(server)
        given = "cudagraph_capture_sizes" in server.command.mapping("--compilation-config")
        place = (
            server.key_place("--compilation-config", "cudagraph_capture_sizes")
            if given
            else server.command.place_of("--cudagraph-capture-sizes")
        )
        odd = [size for size in sizes if size % width and size > 1]
        mode = str(server.command.mapping("--compilation-config").get("cudagraph_mode", ""))
        if odd and width > 1 and "FULL" in mode.upper():
            yield Finding(
                f"node {server.index}: capture sizes {', '.join(map(str, odd[:6]))} are no "
                f"multiples of {width} (1 + {width - 1} speculative tokens)",
                place,
                f"Use multiples of {width}.",
                (server.command.place_of("--speculative-config", "--spec-tokens"),),
            )
        sequences = server.command.number("--max-num-seqs", 0)
        if sequences and server.side != "prefiller" and max(sizes) < sequences * width:
            yield Finding(
                f"node {server.index}: the largest graph has {max(sizes)} tokens, a full decode "
                f"step {sequences * width}",
                place,
                f"Add {sequences * width} if full batches matter.",
                (server.command.value_place("--max-num-seqs"),),
                severity=INFO,
            )


@rule("MN507", ERROR, "Served names differ")
def served_names(fleet: Fleet) -> Iterator[Finding]:
    """A proxy passes one model name on to both sides: all API servers know it. A served name other
    than the case's model is a warning: upstream's benchmarks ask for the model."""
    serving = [server for server in fleet.commands if not server.headless]
    if not serving:
        return
    first = serving[0]
    wanted = _names(first)
    for server in serving[1:]:
        if fleet.case.split is not None and not set(_names(server)) & set(wanted):
            yield Finding(
                f"node {server.index} serves the name {_names(server)[0]}, node {first.index} "
                f"{wanted[0]}",
                server.command.place_of("--served-model-name"),
                "Serve one name on all nodes.",
                (first.command.place_of("--served-model-name"),),
            )
    if first.command.option("--served-model-name") is None or not fleet.case.benchmarks:
        return
    if fleet.case.model not in wanted:
        yield Finding(
            f"node {first.index} serves the name {wanted[0]}, the case's model is "
            f"{fleet.case.model}",
            first.command.value_place("--served-model-name"),
            "Upstream's benchmarks ask for the model's name; serve it too.",
            (fleet.case.place("model"),),
            severity=WARNING,
        )


def _names(server: Server) -> tuple[str, ...]:
    option = server.command.option("--served-model-name")
    if option is not None and option.values:
        return option.values
    return (server.command.model,)


#: Options that all ranks of a group should share, with what a difference weighs.
_SHARED: tuple[tuple[str, Severity], ...] = (
    ("--max-model-len", WARNING),
    ("--max-num-seqs", WARNING),
    ("--max-num-batched-tokens", WARNING),
    ("--block-size", WARNING),
    ("--kv-cache-dtype", WARNING),
    ("--enable-expert-parallel", WARNING),
    ("--enable-prefix-caching", WARNING),
    ("--enforce-eager", WARNING),
    ("--speculative-config", WARNING),
    ("--compilation-config", WARNING),
    ("--additional-config", WARNING),
    ("--async-scheduling", WARNING),
    ("--dtype", WARNING),
    ("--seed", INFO),
    ("--gpu-memory-utilization", INFO),
)


@rule("MN508", WARNING, "Options differ within a group")
def group_options(fleet: Fleet) -> Iterator[Finding]:
    """The ranks of one group run the same model in step: lengths, batch sizes, speculation,
    graphs and the plugin's configuration should be the same on all its nodes."""
    for group in fleet.groups:
        first = group.first
        seen = {first.index}
        for member in group.members[1:]:
            if member.index in seen:
                continue
            seen.add(member.index)
            for name, severity in _SHARED:
                mine, other = _said(member, name), _said(first, name)
                if mine == other:
                    continue
                yield Finding(
                    f"node {member.index} has {name} {_shown(mine)}, node {first.index} of the "
                    f"same group {_shown(other)}",
                    member.command.place_of(name),
                    "Use the same in one group.",
                    (first.command.place_of(name),),
                    severity=severity,
                )


def _said(server: Server, name: str) -> Any:
    option = server.command.option(name)
    if option is None:
        return None
    if not option.values:
        return not option.spelled.startswith("--no-")
    mapping = server.command.mapping(name)
    if mapping:
        return mapping
    number = whole(option.value)
    return option.value if number is None else number


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
