"""Counters under vLLM's names, written out as Prometheus text."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field


def _bounds(*texts: str) -> tuple[float, ...]:
    return tuple(float(word) for text in texts for word in text.split())


HISTOGRAMS = {
    "time_to_first_token_seconds": _bounds(
        "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640",
        "2560",
    ),
    "inter_token_latency_seconds": _bounds(
        "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"
    ),
    "e2e_request_latency_seconds": _bounds(
        "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
    ),
    "request_time_per_output_token_seconds": _bounds(
        "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"
    ),
    "iteration_tokens_total": _bounds("1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384"),
}
for _stage in ("queue", "inference", "prefill", "decode"):
    HISTOGRAMS[f"request_{_stage}_time_seconds"] = HISTOGRAMS["e2e_request_latency_seconds"]
LENGTHS = ("request_prompt_tokens", "request_generation_tokens")
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
REASONS = ("stop", "length", "abort", "error", "repetition")
COUNTERS = (
    "prompt_tokens",
    "generation_tokens",
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "external_prefix_cache_queries",
    "external_prefix_cache_hits",
)
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


@dataclass
class Histogram:
    """Counts a bucket, with sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times."""
        self.counts = self.counts or [0] * (len(self.bounds) + 1)
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class EngineMetrics:
    """What is counted for one engine."""

    def __init__(self, positions: int = 0, longest: int = 1) -> None:
        self.steps = 0
        self.accepted = [0.0] * positions
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.gauges = dict.fromkeys(GAUGES, 0.0)
        self.sources = dict.fromkeys(SOURCES, 0)
        self.finished = dict.fromkeys(REASONS, 0)
        steps = (float(digit * 10**power) for power in range(9) for digit in (1, 2, 5))
        lengths = tuple(bound for bound in steps if bound <= longest)
        bounds = {**HISTOGRAMS, **dict.fromkeys(LENGTHS, lengths)}
        self.histograms = {name: Histogram(each) for name, each in bounds.items()}

    def prompt(self, tokens: int, source: str) -> None:
        """Count the prompt of a request that has been prefilled, or fetched."""
        self.counters["prompt_tokens"] += tokens
        self.sources[source] += tokens
        self.counters["prefix_cache_queries"] += tokens
        if source == "external_kv_transfer":
            self.counters["external_prefix_cache_queries"] += tokens
            self.counters["external_prefix_cache_hits"] += tokens

    def step(self, figures: dict[str, float], tokens: int) -> None:
        """What an engine says of itself after a step that computed so many tokens."""
        self.gauges["num_requests_running"] = figures["running"]
        self.gauges["num_requests_waiting"] = figures["waiting"]
        self.gauges["kv_cache_usage_perc"] = figures["usage"]
        self.counters["num_preemptions"] = int(figures["preempted"])
        if tokens:
            self.histograms["iteration_tokens_total"].observe(tokens)

    def ended(self, times: dict[str, float], prompt: int, output: int) -> None:
        """Count a request that ended well: seconds by stage, and its tokens."""
        for stage, seconds in times.items():
            name = (
                f"request_{stage}_time_seconds"
                if stage != "e2e"
                else f"{stage}_request_latency_seconds"
            )
            self.histograms[name].observe(seconds)
        if output > 1:
            pace = times["decode"] / (output - 1)
            self.histograms["request_time_per_output_token_seconds"].observe(pace)
        for name, tokens in zip(LENGTHS, (prompt, output), strict=True):
            self.histograms[name].observe(tokens)

    def drafted(self, tokens: int, rates: list[float]) -> None:
        """Count the drafts of an answer: each step gives one token, and what was accepted.

        The first token is the prefill's. Shares are kept whole, so that rates are exact.
        """
        steps = math.ceil(max(tokens - 1, 0) / (1 + sum(rates))) if rates else 0
        self.steps += steps
        self.accepted = [old + steps * rate for old, rate in zip(self.accepted, rates, strict=True)]


def render(engines: dict[int, EngineMetrics], model: str) -> str:
    """All engines as Prometheus text; pure."""
    lines: list[str] = []

    def labels(rank: int, **more: str) -> str:
        pairs = {"engine": str(rank), "model_name": model, **more}
        return "{" + ",".join(f'{key}="{value}"' for key, value in pairs.items()) + "}"

    def head(name: str, kind: str, text: str) -> None:
        lines.append(f"# HELP vllm:{name} {text}\n# TYPE vllm:{name} {kind}")

    for name in GAUGES:
        head(name, "gauge", name.replace("_", " "))
        lines += [
            f"vllm:{name}{labels(rank)} {float(engine.gauges[name])}"
            for rank, engine in engines.items()
        ]
    for name in COUNTERS:
        head(name, "counter", name.replace("_", " "))
        lines += [
            f"vllm:{name}_total{labels(rank)} {float(engine.counters[name])}"
            for rank, engine in engines.items()
        ]
    head("prompt_tokens_by_source", "counter", "prompt tokens by where their KV came from")
    for rank, engine in engines.items():
        lines += [
            f"vllm:prompt_tokens_by_source_total{labels(rank, source=source)} {float(n)}"
            for source, n in engine.sources.items()
        ]
    head("request_success", "counter", "finished requests")
    for rank, engine in engines.items():
        lines += [
            f"vllm:request_success_total{labels(rank, finished_reason=reason)} {float(n)}"
            for reason, n in engine.finished.items()
        ]
    if any(engine.accepted for engine in engines.values()):
        _drafts(lines, engines, labels, head)
    for name in (*HISTOGRAMS, *LENGTHS):
        head(name, "histogram", name.replace("_", " "))
        for rank, engine in engines.items():
            lines += _buckets(f"vllm:{name}", engine.histograms[name], rank, labels)
    return "\n".join(lines) + "\n"


def _drafts(
    lines: list[str],
    engines: dict[int, EngineMetrics],
    labels: Callable[..., str],
    head: Callable[[str, str, str], None],
) -> None:
    for name, values in (
        ("num_drafts", [engine.steps for engine in engines.values()]),
        ("num_draft_tokens", [e.steps * len(e.accepted) for e in engines.values()]),
        ("num_accepted_tokens", [sum(engine.accepted) for engine in engines.values()]),
    ):
        head(f"spec_decode_{name}", "counter", f"speculative decoding: {name}")
        lines += [
            f"vllm:spec_decode_{name}_total{labels(rank)} {float(value)}"
            for rank, value in zip(engines, values, strict=True)
        ]
    name = "spec_decode_num_accepted_tokens_per_pos"
    head(name, "counter", "accepted tokens by position")
    for rank, engine in engines.items():
        lines += [
            f"vllm:{name}_total{labels(rank, position=str(at))} {float(count)}"
            for at, count in enumerate(engine.accepted)
        ]


def _buckets(name: str, histogram: Histogram, rank: int, labels: object) -> list[str]:
    assert callable(labels)
    counts = histogram.counts or [0] * (len(histogram.bounds) + 1)
    lines, running = [], 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), counts, strict=True):
        running += count
        lines.append(f"{name}_bucket{labels(rank, le=bound)} {float(running)}")
    return [
        *lines,
        f"{name}_count{labels(rank)} {float(running)}",
        f"{name}_sum{labels(rank)} {histogram.total}",
    ]
