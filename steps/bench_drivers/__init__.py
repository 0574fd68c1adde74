"""Benchmark drivers: how load is made and what it measured.

Enters: a :class:`Job`. Leaves: a :class:`Measurement`. A driver judges
nothing but whether its numbers can be believed; gates are held elsewhere.

A new driver is one file with ``measure(run, job) -> Measurement`` and one line
in ``DRIVERS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steps.core.noderun import NodeRun
from steps.core.plan import BenchmarkPlan, Endpoint
from steps.core.records import Check

DRIVERS = {
    "smoke": "steps.bench_drivers.smoke",
    "aisbench": "steps.bench_drivers.aisbench",
}


@dataclass(frozen=True)
class Job:
    """One measurement to make; ``directory`` is the driver's own."""

    entry: BenchmarkPlan
    endpoint: Endpoint
    directory: Path


@dataclass(frozen=True)
class Measurement:
    """What a driver measured.

    Attributes:
        metrics: by the names in ``steps.core.gates.METRICS``; milliseconds, tokens/s, %.
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


def driver(name: str) -> Callable[[NodeRun, Job], Measurement]:
    """The ``measure`` function of a driver; imported when it is asked for."""
    measure: Callable[[NodeRun, Job], Measurement] = importlib.import_module(DRIVERS[name]).measure
    return measure
