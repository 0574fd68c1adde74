"""The checks of content that a case asks for (``test_content``).

Enters: a :class:`NodeRun` on the leader whose fleet has answered. Leaves: checks, each with what
was asked, expected and found. Touches: HTTP requests to the endpoint and the engines.

They are made between the first completion and the benchmarks; those that look at the benchmarks,
behind them. A failed one ends the run only where the case says so (``checks: {stop: true}``): the
benchmarks are still worth their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from steps.checks.drafts import spec_decode_acceptance
from steps.checks.pictures import image
from steps.checks.processes import check_rank0_process_count
from steps.checks.texts import chat_completion, completion, messages
from steps.checks.times import benchmark_comparisons
from steps.core.case.asked import BEHIND
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.record.records import Check


@dataclass(frozen=True)
class Kind:
    """A check of content by its name in ``test_content``, and what makes it."""

    name: str
    make: Callable[[NodeRun], Iterator[Check]]


_ALL = (
    Kind("completion", completion),
    Kind("chat_completion", chat_completion),
    Kind("image", image),
    Kind("messages", messages),
    Kind("check_rank0_process_count", check_rank0_process_count),
    Kind("spec_decode_acceptance", spec_decode_acceptance),
    Kind("benchmark_comparisons", benchmark_comparisons),
)
KINDS = {kind.name: kind for kind in _ALL}


def before(run: NodeRun) -> None:
    """Make every check that the benchmarks have no part in.

    Raises:
        StepFailed: one failed, and the case says that this ends the run.
    """
    for name in run.plan.content.before:
        failed = _make(run, KINDS[name])
        if failed and run.plan.content.stop:
            raise StepFailed(
                run.cause_of(
                    "check",
                    failed.fault,
                    f"check '{failed.name}': {failed.detail}",
                    hint="The case says checks: {stop: true}; else the benchmarks would have run.",
                )
            )


def behind(run: NodeRun) -> None:
    """Make every check that looks at the benchmarks, once they were made."""
    for name in run.plan.content.kinds:
        if name in BEHIND:
            _make(run, KINDS[name])


def _make(run: NodeRun, kind: Kind) -> Check | None:
    """Make a check; the first that failed."""
    failed = None
    for each in kind.make(run):
        check = replace(each, name=f"content {each.name}")
        run.events.emit("check", name=check.name, status=check.status, detail=check.detail)
        run.checks.append(check)
        failed = failed or (check if check.status == "fail" else None)
    return failed
