"""The benchmark drivers that ``--bench`` offers, and what a plan must know of each.

Enters: nothing. Leaves: ``DRIVERS``, and the load that a driver sends of a benchmark.
Touches nothing: what measures is in the driver's own module, see ``steps.bench_drivers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from steps.core.case import gates
from steps.core.case.case import RANDOM, Benchmark
from steps.core.errors import UsageError
from steps.core.plan.cluster import AIS_BENCH, Tool
from steps.core.plan.plan import Budget

#: A load that only proves something works is no larger than this.
SMALL_PROMPTS, SMALL_TOKENS, SMALL_CONCURRENCY, SMALL_SECONDS = 32, 64, 16, 4.0
#: A request rate is asked for that long, where load is not small.
SECONDS = 30.0
#: Of several loads the largest that is small.
SMALL_LOADS = {"batch_size": 64, "request_rate": 64.0, "max_out_len": SMALL_TOKENS}


@dataclass(frozen=True)
class Driver:
    """One choice of ``--bench``.

    Attributes:
        module: what measures, a :class:`steps.bench_drivers.Implementation`; empty: nothing does.
        rehearses: it can measure stand-ins.
        rehearsal_budget: of the benchmarks of a rehearsal, where the usual one is too short.
        always_small: it sends a small load to a real engine too.
        ungated: why its numbers are held against no gate; empty: they are.
        other_prompts: it heeds ``Job.prompts``.
        tool: the program it runs on the leader, where a runner can build that.
        verifies: it looks at the certificate of a server.
        own_data: the ``dataset_conf`` of benchmarks whose numbers count, though it is ungated.
    """

    name: str
    module: str = ""
    rehearses: bool = True
    rehearsal_budget: Budget | None = None
    always_small: bool = False
    ungated: str = ""
    other_prompts: bool = False
    tool: Tool | None = None
    verifies: bool = False
    own_data: str = ""

    def load(self, entry: Benchmark, rehearsed: bool) -> tuple[Benchmark, str]:
        """The benchmark with the load this driver sends, and what is smaller than the case says."""
        return _scaled(entry) if self.small(rehearsed) else (entry, "")

    def small(self, rehearsed: bool) -> bool:
        """Whether the load only proves that something works."""
        return self.always_small or bool(rehearsed and self.module)

    def skips_gates(self, entry: Benchmark, rehearsed: bool) -> str:
        """Why the baseline gates are not judged; empty when they are."""
        if rehearsed and self.module:
            return "rehearsed"
        own = self.own_data and entry.dataset_conf == self.own_data
        return ("" if own else self.ungated) or entry.no_gate_reason

    def judges(self, rehearsed: bool) -> tuple[str, ...]:
        """Metrics whose gates are judged where the others are skipped: stand-ins draft as told."""
        return gates.REHEARSED if rehearsed else gates.ALWAYS


_ALL = (
    Driver(
        "smoke",
        "steps.bench_drivers.smoke",
        always_small=True,
        ungated="the smoke driver does not run the case's load",
        other_prompts=True,
    ),
    Driver(
        "aisbench",
        "steps.bench_drivers.aisbench",
        # It imports for half a minute, silently, before it begins; more on a busy machine.
        rehearsal_budget=Budget(900, 300),
        tool=AIS_BENCH,
        verifies=True,
    ),
    Driver(
        "vllm-bench",
        "steps.bench_drivers.vllm_bench",
        rehearses=False,
        ungated="vllm-bench sends random prompts, not the case's",
        other_prompts=True,
        own_data=RANDOM,
    ),
    Driver("none", ungated="benchmarks were switched off (--bench none)"),
)
DRIVERS = {driver.name: driver for driver in _ALL}
DEFAULT, REHEARSED_DEFAULT = DRIVERS["aisbench"], DRIVERS["smoke"]
OFF = DRIVERS["none"]


def chosen(name: str, rehearsed: bool) -> Driver:
    """The driver a command line means; without a name the usual one.

    Raises:
        UsageError: there is none of that name, or it cannot measure stand-ins.
    """
    driver = DRIVERS.get(name) if name else (REHEARSED_DEFAULT if rehearsed else DEFAULT)
    if driver is None:
        raise UsageError(f"--bench: found {name!r}, expected one of {', '.join(DRIVERS)}")
    if rehearsed and not driver.rehearses:
        able = ", ".join(each.name for each in _ALL if each.rehearses)
        raise UsageError(f"--bench {name} cannot measure stand-ins", f"In a rehearsal use {able}.")
    return driver


def _scaled(entry: Benchmark) -> tuple[Benchmark, str]:
    """The benchmark made small enough for a smoke run, and what was changed."""
    prompts = min(entry.num_prompts or SMALL_PROMPTS, SMALL_PROMPTS)
    tokens = min(entry.max_out_len, SMALL_TOKENS)
    width = min(entry.batch_size, SMALL_CONCURRENCY)
    rate = entry.request_rate
    if rate and prompts / rate > SMALL_SECONDS:
        rate = prompts / SMALL_SECONDS
    sweep, find = _small_points(entry), entry.find
    if find:
        find = replace(find, high=max(min(find.high, SMALL_LOADS[find.knob]), 1.01 * find.low))
    small = replace(
        entry,
        num_prompts=prompts,
        max_out_len=tokens,
        batch_size=width,
        request_rate=rate,
        sweep=sweep,
        find=find,
    )
    changes = [
        f"{name} {after:g} for {'all' if before is None else format(before, 'g')}"
        for name, before, after in (
            ("num_prompts", entry.num_prompts, prompts),
            ("max_out_len", entry.max_out_len, tokens),
            ("batch_size", entry.batch_size, width),
            ("request_rate", entry.request_rate, rate),
            ("points", len(entry.sweep), len(sweep)),
            ("loads to", entry.find and entry.find.high, find and find.high),
        )
        if before != after
    ]
    return small, ", ".join(changes)


def _small_points(entry: Benchmark) -> tuple[Mapping[str, Any], ...]:
    """The points of a sweep with small loads, none twice."""
    found: list[Mapping[str, Any]] = []
    for point in entry.sweep:
        small = {
            name: min(value, SMALL_LOADS[name]) if name in SMALL_LOADS else value
            for name, value in point.items()
        }
        found += [] if small in found else [small]
    return tuple(found)
