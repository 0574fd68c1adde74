"""Benchmark drivers: how load is made and what it measured.

Enters: a :class:`Job`. Leaves: a :class:`Measurement`. A driver judges
nothing but whether its numbers can be believed; gates are held elsewhere.

Each is a module that is an :class:`Implementation`, and an entry in
``steps.core.plan.drivers``, which names the module.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

from steps.bench_drivers import caches
from steps.core.case.case import Benchmark
from steps.core.case.numbers import dumps, is_finite
from steps.core.node.noderun import NodeRun
from steps.core.plan.drivers import DRIVERS, Driver
from steps.core.plan.plan import BenchmarkPlan, Endpoint
from steps.core.record.records import Check


@dataclass(frozen=True)
class Job:
    """One measurement to make; ``directory`` is the driver's own.

    ``prompts`` other than 0 asks for prompts unlike those of any other number.
    """

    entry: BenchmarkPlan
    endpoint: Endpoint
    directory: Path
    prompts: int = 0


@dataclass(frozen=True)
class Measurement:
    """What a driver measured.

    Attributes:
        metrics: by the names in ``steps.core.case.gates.METRICS``; milliseconds, tokens/s, %.
        requests: ``asked sent ok failed empty truncated``.
        checks: evidence that the numbers mean what they say; a failed one is never green.
        error: why there are no numbers; empty when there are.
        fault: class of verdict of ``error`` or of a failed check.
        skipped: why nothing was measured, for what a driver cannot do.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    error: str = ""
    fault: str = "functional"
    skipped: str = ""


def believed(found: Measurement) -> Measurement:
    """The measurement without metrics that are no numbers, which fail a check instead."""
    odd = {name: value for name, value in found.metrics.items() if not is_finite(value)}
    if not odd:
        return found
    detail = "; ".join(f"{name} is {str(value)[:40]}" for name, value in odd.items())
    metrics = {name: value for name, value in found.metrics.items() if name not in odd}
    check = Check("metrics are numbers", "fail", detail)
    return replace(found, metrics=metrics, checks=(*found.checks, check))


@dataclass
class Sample:
    """One request, a line of ``requests.jsonl`` whichever driver sent it.

    Times in seconds from its start, ``begun`` from the load's.
    """

    index: int
    begun: float = 0.0
    ttft: float = 0.0
    e2el: float = 0.0
    itl: list[float] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    finish: str = ""
    text: str = ""
    error: str = ""

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None with fewer than two."""
        if self.output_tokens < 2:
            return None
        return (self.e2el - self.ttft) / (self.output_tokens - 1)


def write_requests(path: Path, samples: Iterable[Sample]) -> None:
    """Keep the requests of a load, a line of JSON each."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(dumps(vars(sample)) + "\n" for sample in samples)


class Implementation(Protocol):
    """The module of a driver."""

    def measure(self, run: NodeRun, job: Job) -> Measurement:
        """Send the load once and say what was seen; RunEnded and StepFailed may pass through."""

    def problems(self, run: NodeRun, entry: BenchmarkPlan) -> Iterable[str]:
        """What is known on the leader before anything starts, and will keep it from measuring."""


def implementation(driver: Driver) -> Implementation:
    """The module of a driver that measures; imported when it is asked for."""
    return cast(Implementation, importlib.import_module(driver.module))


def problems(run: NodeRun) -> Iterator[str]:
    """What is known now to keep the plan's benchmarks from being measured, on the leader."""
    for entry in run.plan.benchmarks if run.is_leader else ():
        driver = DRIVERS.get(entry.driver)
        if driver is None:
            yield f"benchmark '{entry.benchmark.name}': there is no driver {entry.driver!r} here"
        elif driver.module:
            for problem in implementation(driver).problems(run, entry):
                yield f"benchmark '{entry.benchmark.name}': {problem}"
            several = entry.benchmark.sized and not driver.other_prompts
            if several and (why := caches.unable(run.plan, run.me, run.supervisor.environment)):
                yield f"benchmark '{entry.benchmark.name}' is measured at several loads: {why}"


def generation(benchmark: Benchmark) -> dict[str, Any]:
    """What a benchmark puts into each request besides the question.

    Upstream's: temperature 0 and ``ignore_eos`` for performance, 0.6 for what is scored; thinking
    is asked for, or not spoken of.
    """
    performance = benchmark.case_type == "performance"
    found: dict[str, Any] = {
        "temperature": 0 if performance else 0.6,
        "ignore_eos": performance,
        **benchmark.sampling,
    }
    if benchmark.reasoning_effort:
        found["reasoning_effort"] = benchmark.reasoning_effort
    if benchmark.thinking:
        found["chat_template_kwargs"] = {"thinking": True}
    return found
