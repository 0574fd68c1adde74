"""A run that is over, as its directory tells it: read once, for all who look at it.

Enters: a run directory with a plan and records, what only the backend saw.
Leaves: a :class:`Finished` with its verdict. Touches: reads those files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from steps.core.errors import InfraError, UsageError
from steps.core.plan.plan import Plan, from_json
from steps.core.record import devicetime, records, telemetry
from steps.core.record.events import RUNNER, read_events
from steps.core.record.records import Cause, Record
from steps.core.record.rundir import RunDir, read_bounded, read_json
from steps.core.record.verdict import Verdict, compute
from steps.core.redaction import here

#: Phases of a backend in which pods hold their devices though nothing runs yet.
HOLDING = ("pull", "start")


@dataclass(frozen=True)
class Finished:
    """Everything that is known of a run that is over.

    Attributes:
        records: each node's; None for one that left none, a torn one or one of another run.
        held: seconds in which a backend held the devices before the node programs ran, by phase.
    """

    run_dir: RunDir
    plan: Plan
    records: Mapping[int, Record | None]
    verdict: Verdict
    held: Mapping[str, float]

    @cached_property
    def spent(self) -> devicetime.Spent:
        """What it spent."""
        return devicetime.spent(self.plan, self.verdict, self.records, self.held)

    @cached_property
    def engines(self) -> list[telemetry.Engine]:
        """Every engine that was sampled."""
        return telemetry.engines_of(self.plan, self.tracks)

    @cached_property
    def tracks(self) -> dict[int, dict[str, telemetry.Track]]:
        """What was sampled, by node and source."""
        return telemetry.of_run(self.run_dir, self.plan)

    @property
    def measured(self) -> telemetry.Span:
        """From the start of the first benchmark to the end of the last."""
        spans = [(b.started, b.started + b.seconds) for b in self.verdict.benchmarks if b.started]
        return min((a for a, _ in spans), default=0.0), max((b for _, b in spans), default=0.0)


def read(run_dir: RunDir, observed: Sequence[Cause] = ()) -> Finished:
    """The run of a directory without its secrets, its verdict computed from what is there.

    Args:
        observed: causes that only the backend saw; absent: as they were kept.

    Raises:
        InfraError: the directory has no plan, so nothing can be said.
    """
    plan, known = plan_of(run_dir), here()
    known.study(plan)
    found = _records(run_dir, plan)
    verdict = compute(plan, found, observed or _observed(run_dir))
    plan, found, verdict = known.value((plan, found, verdict))
    return Finished(run_dir, plan, found, verdict, _held(run_dir))


def plan_of(run_dir: RunDir) -> Plan:
    """The plan of a run directory.

    Raises:
        UsageError: it is the directory of no run.
        InfraError: its plan cannot be read, or is none of this version.
    """
    try:
        return from_json(read_bounded(run_dir.plan).decode())
    except OSError as error:
        kind = UsageError if isinstance(error, FileNotFoundError) else InfraError
        raise kind(f"{run_dir.plan}: {error.strerror}", "Name the directory of a run.") from None
    except ValueError as error:
        raise InfraError(f"{run_dir.plan}: {error}") from None


def _records(run_dir: RunDir, plan: Plan) -> dict[int, Record | None]:
    found: dict[int, Record | None] = {}
    images = read_json(run_dir.images)
    for node in plan.nodes:
        record = records.record_from(read_json(run_dir.node(node.index).record))
        if record is not None and (record.run != plan.run or record.node != node.index):
            record = None
        digest = images.get(str(node.index)) if isinstance(images, dict) else None
        if record is not None and isinstance(digest, str):
            record = replace(record, versions={**record.versions, "image-digest": digest})
        found[node.index] = record
    return found


def _observed(run_dir: RunDir) -> tuple[Cause, ...]:
    data = read_json(run_dir.observed)
    entries = data if isinstance(data, list) else []
    found: list[Cause] = []
    for entry in entries:
        with contextlib.suppress(ValueError):  # what is no cause explains nothing
            cause = records.cause_from(entry)
            found += [cause] if cause else []
    return tuple(found)


def _held(run_dir: RunDir) -> dict[str, float]:
    return {
        event.phase: seconds
        for event in read_events(run_dir.events)
        if event.node == RUNNER and event.what == "phase-end" and event.phase in HOLDING
        if isinstance(seconds := event.fields.get("seconds"), (int, float))
    }
