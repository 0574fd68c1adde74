"""A record that grows step by step, and which steps of a run were not done.

Enters: a node's record so far, and the part that one more step adds. Leaves: the whole record;
the steps that a row of them left out. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from steps.core.plan.plan import LEADER, Plan
from steps.core.record.records import Cause, Check, Record, StepRecord

#: A step's outcome that counts as done; a step that holds processes is done once they run.
DONE = ("done", "held")
#: Steps a verdict can do without: what they find or fetch proves nothing of the fleet.
OPTIONAL = ("preflight", "check", "collect", "stop")
#: What no later success of the same step takes back: a process of the fleet died or hung.
_STAYS = ("exit", "health")
_PRODUCT = ("startup", "crash", "functional", "hang")

_T = TypeVar("_T")


def merged(
    before: Record | None, part: Record, first: Callable[[Iterable[Cause]], Cause | None]
) -> Record:
    """The record with one more part; a part that was there already is replaced.

    Args:
        first: which of several causes is the first one.
    """
    whole = part if before is None else _joined(before, part)
    causes = _standing(whole.steps)
    cause = first(causes)
    every = tuple(step.cause for step in whole.steps if step.cause)
    outcome = cause.verdict if cause else "pass"
    return replace(whole, cause=cause, causes=every, outcome=outcome)


def _joined(before: Record, part: Record) -> Record:
    return replace(
        before,
        started=min(before.started, part.started),
        ended=max(before.ended, part.ended),
        phases=_by(lambda p: (p.name, p.started), before.phases, part.phases),
        processes=_by(lambda p: (p.name, p.pid), before.processes, part.processes),
        benchmarks=_by(lambda b: (b.name, b.started), before.benchmarks, part.benchmarks),
        checks=_by(lambda c: c.name, before.checks, part.checks),
        artifacts=_by(lambda a: a.path, before.artifacts, part.artifacts),
        versions={**before.versions, **part.versions},
        left=tuple(dict.fromkeys([*before.left, *part.left])),
        steps=_by(lambda s: (s.name, s.started), before.steps, part.steps),
    )


def _by(key: Callable[[_T], Any], old: Iterable[_T], new: Iterable[_T]) -> tuple[_T, ...]:
    return tuple({key(entry): entry for entry in (*old, *new)}.values())


def _standing(steps: Iterable[StepRecord]) -> Iterator[Cause]:
    """The causes that count: each step's at its last go, and every death or hang of the fleet.

    What may be left out may be interrupted.
    """
    last = {step.name: step for step in steps}
    for step in last.values():
        spared = step.name in OPTIONAL and step.cause and step.cause.kind == "interrupt"
        if step.cause and not spared:
            yield step.cause
    for step in steps:
        cause = step.cause
        again = step is not last[step.name]
        if again and cause and cause.kind in _STAYS and cause.verdict in _PRODUCT:
            yield cause


def is_composed(records: Mapping[int, Record]) -> bool:
    """Whether steps made these records one by one, and no node program."""
    return any(record.steps for record in records.values())


def not_done(plan: Plan, records: Mapping[int, Record]) -> Iterator[tuple[int, str]]:
    """The steps of the plan that are not done, each with its node, in the order of a run."""
    for node in plan.nodes:
        record = records.get(node.index)
        done = {s.name for s in _last(record) if s.outcome in DONE}
        ran = {process.name for process in record.processes} if record else set()
        wanted = ["preflight"]
        if plan.installs(node):
            wanted.append("install")
        missing = [process for process in node.processes if process.name not in ran]
        kinds = {"pool": "pool", "server": "serve", "proxy": "proxy"}
        if node.index == LEADER:
            wanted += ["wait", *(["checks"] if plan.content.before else [])]
            wanted += [*(["bench"] if plan.benchmarks else []), "prove"]
        wanted.append("collect")
        lacking = dict.fromkeys(kinds[process.kind] for process in missing)
        for step in [*lacking, *(step for step in wanted if step not in done)]:
            yield node.index, step
        if any(step.outcome == "held" for step in _last(record)):
            yield node.index, "stop"


def _last(record: Record | None) -> list[StepRecord]:
    return list({s.name: s for s in record.steps}.values()) if record else []


def left_out(plan: Plan, records: Mapping[int, Record]) -> tuple[Cause | None, tuple[Check, ...]]:
    """Why steps that were left out keep the verdict from green, and those that do not."""
    other = [i for i, record in records.items() if record.plan not in ("", plan.fingerprint())]
    if other:
        text = f"node {other[0]} ran another plan than the one of this directory"
        hint = "Copy one plan to every host: invoke plan --output FILE."
        return Cause("config", "config", text, node=other[0], hint=hint), ()
    found = list(not_done(plan, records))
    checks = tuple(
        Check(f"step {step} of node {node}", "skipped", _WHY.get(step, "left out, as it may be"))
        for node, step in found
        if step in OPTIONAL
    )
    needed = [(node, step) for node, step in found if step not in OPTIONAL]
    if not needed:
        return None, checks
    node, step = needed[0]
    named = ", ".join(f"{step} of node {node}" for node, step in needed)
    reason = f"not done: {named}"
    hint = f"Do it: invoke {step}{f' --node-index {node}' if node else ''}; then invoke report."
    return Cause("internal", "no-verdict", reason, node=node, hint=hint), checks


_WHY = {"stop": "its processes are still up: what happens to them from here on is not judged"}


def judged(plan: Plan, records: Mapping[int, Record]) -> dict[int, Record]:
    """The records without deaths after the last thing that is judged.

    Nobody tells the other hosts that a step by step fleet is taken down: where the servers of one
    host end, those of another lose a peer, and die of it.
    """
    leader = records.get(LEADER)
    done = {step.name: step for step in _last(leader) if step.outcome == "done"}
    if not {"wait", "prove", *(["bench"] if plan.benchmarks else [])} <= set(done):
        return dict(records)
    over = max(done[name].started + done[name].seconds for name in ("wait", "prove"))

    def counts(cause: Cause | None) -> Cause | None:
        return None if cause and cause.kind == "exit" and cause.at > over else cause

    return {
        index: replace(record, cause=counts(record.cause), outcome="pass")
        if record.cause and not counts(record.cause)
        else record
        for index, record in records.items()
    }


def dated(cause: Cause, leader: Record | None) -> Cause:
    """A cause with the phase that the leader was in; a death after ready is a crash."""
    if leader is None or not cause.at:
        return cause
    waits = [step for step in leader.steps if step.name == "wait" and step.outcome == "done"]
    ready = any(step.started + step.seconds <= cause.at for step in waits)
    at = [
        phase.name
        for phase in leader.phases
        if phase.name != "hold" and phase.started <= cause.at <= phase.started + phase.seconds
    ]
    if cause.kind == "exit" and cause.phase == "hold":
        verdict = "crash" if ready and cause.verdict == "startup" else cause.verdict
        cause = replace(cause, verdict=verdict, phase=at[-1] if at else cause.phase)
    return cause
