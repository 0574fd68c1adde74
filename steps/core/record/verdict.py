"""The verdict: computed from all records and from what the backend saw.

Enters: a plan, the nodes' records, causes the backend or runner noticed.
Leaves: a :class:`Verdict`. Touches nothing. A missing record is never a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from steps.core.errors import Exit
from steps.core.plan.plan import LEADER, Plan
from steps.core.record import composed
from steps.core.record.records import BenchResult, Cause, Check, Record, to_dict

SCHEMA = 1

#: Class of verdict -> exit code.
CLASSES: dict[str, Exit] = {
    "pass": Exit.PASS,
    "config": Exit.USAGE,
    "infra": Exit.INFRA,
    "startup": Exit.PRODUCT,
    "hang": Exit.DEADLINE,
    "crash": Exit.PRODUCT,
    "functional": Exit.PRODUCT,
    "accuracy": Exit.PRODUCT,
    "performance": Exit.PRODUCT,
    "no-verdict": Exit.INFRA,
    "interrupted": Exit.INTERRUPTED,
}
#: The product under test is at fault; the rest says nothing about it.
PRODUCT_FAULTS = ("startup", "crash", "functional", "accuracy", "performance", "hang")

#: Two ends so close in time may be seen in either order.
TIE_SECONDS = 0.25
#: So long may the end of who is blamed come after the end of who blames: vLLM's server outlives
#: its engine by seconds, its peers need not.
BLAME_SECONDS = 4.0
_HARD = ("exit", "lost", "runner", "interrupt", "config", "internal", "preflight", "install")


@dataclass(frozen=True)
class Verdict:
    """What a run says, and why."""

    run: str
    case: str
    verdict: str
    cause: Cause | None
    phases: tuple[Mapping[str, Any], ...]
    benchmarks: tuple[BenchResult, ...]
    checks: tuple[Check, ...]
    seconds: float
    started: float
    rehearsed: bool
    consequences: tuple[Cause, ...] = ()
    missing: tuple[int, ...] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this verdict."""
        return int(CLASSES[self.verdict])

    def to_dict(self) -> dict[str, Any]:
        """As ``verdict.json`` has it."""
        cause = None
        if self.cause is not None:
            cause = asdict(self.cause)
        return {
            "schema": SCHEMA,
            "run": self.run,
            "case": self.case,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "cause": cause,
            "phases": list(self.phases),
            "benchmarks": [asdict(result) for result in self.benchmarks],
            "checks": [asdict(check) for check in self.checks],
            "consequences": [asdict(entry) for entry in self.consequences],
            "missing_records": list(self.missing),
            "seconds": round(self.seconds, 3),
            "started": self.started,
            "rehearsed": self.rehearsed,
        }


def first_cause(causes: Iterable[Cause]) -> Cause | None:
    """The cause of which the others are consequences.

    A death, a lost node or an interrupt is stronger evidence than what a
    client or a probe noticed, which is always late. Among deaths the earliest
    wins; of two within a tie, the one that a signal killed, then the one whose
    log does not blame somebody else, then the one that exited with an error.
    ``at`` must be by one clock for all causes.
    """
    found = list(causes)
    if not found:
        return None
    hard = [cause for cause in found if cause.kind in _HARD]
    pool = hard or found
    # A log that blames somebody else is believed, if somebody else ended soon enough.
    first = min(cause.at for cause in pool)
    own = [c for c in pool if not c.consequence and c.at <= first + BLAME_SECONDS]
    pool = own or pool
    earliest = min(cause.at for cause in pool)
    tied = [cause for cause in pool if cause.at <= earliest + TIE_SECONDS]
    return min(tied, key=_tie_rank)


def _tie_rank(cause: Cause) -> tuple[int, int, float]:
    kinds = {"config": 0, "interrupt": 0, "lost": 1, "runner": 1}
    weight = kinds.get(cause.kind, 2)
    if cause.kind == "exit":
        weight = 2 if cause.signal else 3
        if not cause.signal and cause.exit_code == 0:
            weight = 4
    return (int(cause.consequence), weight, cause.at)


def compute(
    plan: Plan, records: Mapping[int, Record | None], observed: Sequence[Cause] = ()
) -> Verdict:
    """The verdict of a run.

    Args:
        records: node index -> its record, or None when it left none.
        observed: causes that only the backend or the runner saw.
    """
    present = {index: record for index, record in records.items() if record is not None}
    missing = tuple(node.index for node in plan.nodes if node.index not in present)
    if composed.is_composed(present):
        present = composed.judged(plan, present)
    leader = present.get(LEADER)
    cause, rest = _cause(leader, present, observed)
    benchmarks = leader.benchmarks if leader else ()
    checks = leader.checks if leader else ()
    if composed.is_composed(present):
        cause = composed.dated(cause, leader) if cause else None
        failed = _benchmarks(plan, benchmarks)
        failed = failed if failed and failed.verdict != "no-verdict" else None
        needed, named = composed.left_out(plan, present)
        cause = cause or _missing(plan, missing) or failed or needed
        checks = (*checks, *named)
    if cause is None:
        cause = (
            _missing(plan, missing)
            or _silent(plan, present)
            or _answers(checks)
            or _benchmarks(plan, benchmarks)
            or _failed(checks)
        )
    if cause is not None and cause.kind == "benchmark" and leader is not None and cause.at:
        cause = replace(cause, seconds=round(cause.at - leader.started, 3))
    if cause is None and leader is not None and leader.outcome != "pass":
        cause = Cause(
            "internal", "no-verdict", f"the leader ended as '{leader.outcome}' without a cause", 0
        )
    started = min((record.started for record in present.values()), default=0.0)
    ended = max((record.ended for record in present.values()), default=started)
    return Verdict(
        run=plan.run,
        case=plan.case_name,
        verdict=_class_of(cause),
        cause=cause,
        phases=tuple(
            {"node": index, **to_dict(phase)}
            for index, record in sorted(present.items())
            for phase in record.phases
        ),
        benchmarks=_complete(plan, benchmarks),
        checks=checks,
        seconds=ended - started,
        started=started,
        rehearsed=plan.rehearsed,
        consequences=rest,
        missing=missing,
    )


def _class_of(cause: Cause | None) -> str:
    """The class of verdict a cause makes; one that we do not know proves nothing."""
    if cause is None:
        return "pass"
    known = cause.verdict in CLASSES and cause.verdict != "pass"
    return cause.verdict if known else "no-verdict"


def _silent(plan: Plan, present: Mapping[int, Record]) -> Cause | None:
    """A record that knows nothing of a process its node should have run proves nothing."""
    for node in plan.nodes:
        ran = {process.name for process in present[node.index].processes}
        absent = [process.name for process in node.processes if process.name not in ran]
        if absent:
            return Cause(
                "lost",
                "no-verdict",
                f"node {node.index}'s record does not mention {', '.join(absent)}",
                node=node.index,
                role=node.role,
                process=absent[0],
                hint="Its node program did not start what the plan says; look at its events.",
            )
    return None


def _cause(
    leader: Record | None, present: Mapping[int, Record], observed: Sequence[Cause]
) -> tuple[Cause | None, tuple[Cause, ...]]:
    """The run's first cause: what the leader told everybody, unless the backend knows better."""
    # Steps that ran alone were told nothing: what every record knows counts alike.
    told = leader.cause if leader and not leader.steps else None
    others = [c for record in present.values() for c in record.causes]
    if told is not None and not any(_explains(seen, told) for seen in observed):
        first: Cause | None = told
    elif told is not None:
        first = first_cause([seen for seen in observed if _explains(seen, told)])
    else:
        loose = [record.cause for record in present.values() if record.cause]
        known = [c for c in loose if not any(_explains(seen, c) for seen in observed)]
        first = first_cause([*observed, *known])
    rest = [c for c in [*others, *observed] if first is None or not _same(c, first)]
    unique: list[Cause] = []
    for entry in sorted(rest, key=lambda c: c.at):
        if not any(_same(entry, kept) for kept in unique):
            unique.append(entry)
    return first, tuple(unique)


def _explains(seen: Cause, told: Cause) -> bool:
    """A node the leader lost, or a runner's interrupt, is explained by who saw it happen.

    A pod that the cluster saw die is also the cause of what other nodes said later: a container
    is never killed by a peer's failure. Clusters tell the time in whole seconds.
    """
    if seen.kind == "interrupt":
        return told.kind in ("interrupt", "runner")
    if seen.kind != "lost":
        return False
    if seen.node == told.node:
        return told.kind in ("lost", "runner", "interrupt")
    return seen.process == "pod" and seen.at <= told.at


def _same(one: Cause, other: Cause) -> bool:
    return (one.node, one.process, one.kind) == (other.node, other.process, other.kind)


def _missing(plan: Plan, missing: Sequence[int]) -> Cause | None:
    if not missing:
        return None
    names = ", ".join(f"node {index}" for index in missing)
    return Cause(
        "lost",
        "no-verdict",
        f"{names} left no record",
        node=missing[0],
        role=plan.nodes[missing[0]].role if missing[0] < len(plan.nodes) else "",
        hint="Without a record of every node nothing is proven; look at that node's logs.",
    )


def _benchmarks(plan: Plan, results: Sequence[BenchResult]) -> Cause | None:
    done = _counting(results)
    for entry in plan.benchmarks:
        name = entry.benchmark.name
        result = done.get(name)
        if result is None:
            return Cause(
                "benchmark",
                "no-verdict",
                f"benchmark '{name}' left no result",
                node=LEADER,
                process=name,
                phase="bench",
            )
        if result.status not in ("pass", "skipped"):
            return Cause(
                "benchmark",
                result.fault or "functional",
                f"benchmark '{name}': {result.reason}",
                node=LEADER,
                role="leader",
                process=name,
                phase="bench",
                at=result.started + result.seconds,
            )
    return None


def _counting(results: Sequence[BenchResult]) -> dict[str, BenchResult]:
    """The measurement of each benchmark that counts: the first that failed, else the last."""
    found: dict[str, BenchResult] = {}
    for result in results:
        known = found.get(result.name)
        if known is None or known.status != "fail":
            found[result.name] = result
    for name, result in found.items():
        every = [r for r in results if r.name == name]
        if len(every) > 1:
            told = ", ".join(f"{r.directory} {r.status}" for r in every)
            note = f"measured {len(every)} times ({told}); this is {result.directory}"
            found[name] = replace(result, note="; ".join(filter(None, (note, result.note))))
    return found


def _answers(checks: Sequence[Check]) -> Cause | None:
    """The answers of the fleet, which came before its benchmarks."""
    if "completion" not in {check.name for check in checks}:
        reason = "no completion was ever answered"
        return Cause("completion", "no-verdict", reason, node=LEADER, phase="probe")
    return _failed([check for check in checks if check.phase == "checks"])


def _failed(checks: Sequence[Check]) -> Cause | None:
    for check in checks:
        if check.status == "fail":
            return Cause(
                "check" if check.phase == "checks" else "proof",
                check.fault,
                f"check '{check.name}': {check.detail}",
                node=LEADER,
                role="leader",
                phase=check.phase,
            )
    return None


def _complete(plan: Plan, results: Sequence[BenchResult]) -> tuple[BenchResult, ...]:
    """Results in the plan's order; what was never measured is shown as skipped."""
    done = _counting(results)
    return tuple(
        done.get(entry.benchmark.name)
        or BenchResult(
            entry.benchmark.name,
            entry.driver,
            entry.benchmark.case_type,
            "skipped",
            "was not run: the run ended before",
        )
        for entry in plan.benchmarks
    )
