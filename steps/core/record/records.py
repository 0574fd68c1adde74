"""What a node leaves behind: causes, results, checks, artifacts, its record.

Enters: JSON, or what the steps found. Leaves: frozen values and their JSON.
Touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from steps.core.case.gates import GateResult
from steps.core.case.numbers import Refused, is_time
from steps.core.case.values import decode, salvage

SCHEMA = 1


@dataclass(frozen=True)
class Cause:
    """Why a run ended before it passed.

    Attributes:
        kind: ``exit``, ``lost``, ``deadline``, ``stall``, ``health``, ``completion``,
            ``benchmark``, ``check``, ``proof``, ``preflight``, ``install``, ``interrupt``,
            ``config``, ``runner`` or ``internal``.
        verdict: the class of verdict it makes.
        seconds: into the run.
        at: seconds since the epoch, by the clock of the node that saw it.
        evidence: the first error lines of the log.
        consequence: the log itself says that something else died first.
    """

    kind: str
    verdict: str
    reason: str
    node: int | None = None
    role: str = ""
    process: str = ""
    phase: str = ""
    seconds: float = 0.0
    at: float = 0.0
    exit_code: int | None = None
    signal: str = ""
    evidence: tuple[str, ...] = ()
    log: str = ""
    signature: str = ""
    hint: str = ""
    consequence: bool = False

    def __str__(self) -> str:
        where = "" if self.node is None else f"node {self.node}"
        if self.role:
            where += f" ({self.role})"
        text = f"{where} {self.process}".strip()
        head = f"{text}: {self.reason}" if text else self.reason
        return f"{head} [{self.phase}, {self.seconds:.1f} s into the run]" if self.phase else head


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; ``status`` is pass, fail or skipped (with the reason).

    Attributes:
        fault: class of verdict when it fails.
        phase: in which a failed one is found, and becomes the cause of the run's end.
    """

    name: str
    status: str
    detail: str = ""
    fault: str = "functional"
    phase: str = "proof"


@dataclass(frozen=True)
class Point:
    """One load of a benchmark that was measured at several.

    Attributes:
        load: what it changes in the benchmark.
        wrong: why its numbers do not count; empty: they do.
        held: whether the limits of a search held; None: there are none.
        missed: those that did not, with what was found.
    """

    load: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    wrong: str = ""
    held: bool | None = None
    missed: str = ""
    directory: str = ""

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
            for name, value in self.load.items()
        )


@dataclass(frozen=True)
class BenchResult:
    """One benchmark's outcome.

    Attributes:
        status: ``pass``, ``fail``, ``skipped`` or ``error``.
        fault: class of verdict when it fails: functional, performance, accuracy or infra.
        metrics: by the names in ``steps.core.case.gates.METRICS``.
        requests: counts: ``asked sent ok failed empty truncated``.
        runs: metrics of each repetition, those that confirmed a miss among them.
        note: how repetitions spread, and what a score's confidence says; for people.
    """

    name: str
    driver: str
    case_type: str
    status: str
    reason: str = ""
    fault: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()
    checks: tuple[Check, ...] = ()
    runs: tuple[Mapping[str, float], ...] = ()
    seconds: float = 0.0
    started: float = 0.0
    directory: str = ""
    baseline: float | None = None
    threshold: float | None = None
    scaled: str = ""
    note: str = ""
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class PhaseRecord:
    """One phase of one node; ``outcome`` is done, failed or cut."""

    name: str
    started: float
    seconds: float
    outcome: str = "done"


@dataclass(frozen=True)
class ProcessRecord:
    """One process; ``exit`` is None while it lives."""

    name: str
    pid: int
    pgid: int
    argv: tuple[str, ...]
    log: str
    started: float
    exit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class StepRecord:
    """One go at a step that was run alone; ``outcome`` is begun, held, done, failed or lost."""

    name: str
    started: float
    seconds: float = 0.0
    outcome: str = "begun"
    cause: Cause | None = None


@dataclass(frozen=True)
class Artifact:
    """A file of the node's directory."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """A node's account of itself: of its end, or step by step where steps run alone."""

    run: str
    node: int
    role: str
    side: str
    address: str
    host: str
    started: float
    ended: float
    outcome: str
    phases: tuple[PhaseRecord, ...] = ()
    processes: tuple[ProcessRecord, ...] = ()
    cause: Cause | None = None
    causes: tuple[Cause, ...] = ()
    benchmarks: tuple[BenchResult, ...] = ()
    checks: tuple[Check, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    plan: str = ""
    steps: tuple[StepRecord, ...] = ()
    schema: int = SCHEMA


def fleet_versions(records: Mapping[int, Record | None]) -> dict[str, str]:
    """The fleet's versions; where nodes differ, each of them with its nodes."""
    told = {index: record.versions for index, record in sorted(records.items()) if record}
    found = {}
    for name in dict.fromkeys(name for versions in told.values() for name in versions):
        nodes: dict[str, list[str]] = {}
        for index, versions in told.items():
            nodes.setdefault(versions.get(name, "none"), []).append(str(index))
        each = [f"{value} (node {' '.join(who)})" for value, who in nodes.items()]
        found[name] = ", ".join(each) if len(each) > 1 else next(iter(nodes))
    return found


_UNKNOWN = {"kind": "internal", "verdict": "no-verdict", "reason": "a cause without a reason"}


def to_dict(value: Any) -> dict[str, Any]:
    """Any of these values as plain JSON values."""
    return asdict(value)


def cause_from(data: Any) -> Cause | None:
    """A cause from JSON; None when there is none.

    What has lost its kind, class, reason or times on the way is still a cause.

    Raises:
        Refused: it is no object at all.
    """
    if data is None:
        return None
    found = salvage(Cause, data, _UNKNOWN)
    at, seconds = (at if is_time(at) else 0.0 for at in (found.at, found.seconds))
    return replace(found, at=at, seconds=seconds)


def bench_from(data: Any) -> BenchResult:
    """A benchmark's result from JSON.

    Raises:
        Refused: a metric, a count or a time in it is no number, or a field is odd.
    """
    found = decode(BenchResult, data)
    if not (is_time(found.seconds) and is_time(found.started)):
        raise Refused("seconds: found no number of seconds that a calendar knows")
    return found


def record_from(data: Any) -> Record | None:
    """A record from JSON; None when it is no record of this schema."""
    try:
        if data["schema"] != SCHEMA:
            return None
        causes = [cause for cause in map(cause_from, data["causes"]) if cause]
        cause = cause_from(data["cause"])
        benchmarks = tuple(bench_from(entry) for entry in data["benchmarks"])
        steps = tuple(
            replace(decode(StepRecord, {**entry, "cause": None}), cause=cause_from(entry["cause"]))
            for entry in data.get("steps", ())
        )
        apart = {"causes": (), "cause": None, "benchmarks": (), "steps": ()}
        found = decode(Record, {**data, **apart})
        times = [found.started, found.ended]
        times += [at for phase in found.phases for at in (phase.started, phase.seconds)]
        times += [at for step in steps for at in (step.started, step.seconds)]
        times += [process.started for process in found.processes]
        times += [process.exit["at"] for process in found.processes if process.exit]
    except (KeyError, TypeError, ValueError):
        return None
    whole = replace(found, causes=tuple(causes), cause=cause, benchmarks=benchmarks, steps=steps)
    return whole if all(map(is_time, times)) else None
