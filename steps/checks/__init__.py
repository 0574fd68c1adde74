"""checks: the checks of content that a case asks for (``test_content``).

Enters: a :class:`NodeRun` on the leader whose fleet has answered. Leaves: checks, each with what
was asked, expected and found. Touches: HTTP requests to the endpoint and the engines.

They run between the first completion and the benchmarks; those that look at the benchmarks begin
there and are judged behind them. A failed one ends the run only where the case says so
(``checks: {stop: true}``): the benchmarks are still worth their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from steps.checks.after import Later, benchmark_comparisons, spec_decode_acceptance
from steps.checks.image import image
from steps.checks.processes import check_rank0_process_count
from steps.checks.texts import chat_completion, completion, messages
from steps.core.node import alone
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.record.records import Cause, Check


@dataclass(frozen=True)
class Kind:
    """A check of content by its name in ``test_content``.

    Attributes:
        now: makes it, in the phase ``checks``.
        begin: begins it there, where the benchmarks are looked at; what it returns judges.
    """

    name: str
    now: Callable[[NodeRun], Iterator[Check]] | None = None
    begin: Callable[[NodeRun], Later] | None = None


_ALL = (
    Kind("completion", completion),
    Kind("chat_completion", chat_completion),
    Kind("image", image),
    Kind("messages", messages),
    Kind("check_rank0_process_count", check_rank0_process_count),
    Kind("spec_decode_acceptance", begin=spec_decode_acceptance),
    Kind("benchmark_comparisons", begin=benchmark_comparisons),
)
KINDS = {kind.name: kind for kind in _ALL}


def run(run: NodeRun) -> tuple[Later, ...]:
    """Make every check that the case asks for; what is returned judges behind the benchmarks.

    Raises:
        StepFailed: one failed, and the case says that this ends the run.
    """
    content = run.plan.content
    kinds = [KINDS[name] for name in content.kinds]
    for kind in kinds:
        if kind.now:
            found = _tell(run, kind.now(run))
            if content.stop and any(check.status == "fail" for check in found):
                raise StepFailed(_cause(run, found))
    return tuple(kind.begin(run) for kind in kinds if kind.begin)


def conclude(run: NodeRun, begun: Iterable[Later]) -> None:
    """Judge what was begun before the benchmarks."""
    for later in begun:
        _tell(run, later())


def _tell(run: NodeRun, checks: Iterable[Check]) -> list[Check]:
    found = []
    for each in checks:
        check = replace(each, name=f"content {each.name}")
        run.events.emit("check", name=check.name, status=check.status, detail=check.detail)
        run.checks.append(check)
        found.append(check)
    return found


def _cause(run: NodeRun, found: Sequence[Check]) -> Cause:
    failed = next(check for check in found if check.status == "fail")
    return run.cause_of(
        "check",
        failed.fault,
        f"check '{failed.name}': {failed.detail}",
        hint="The case says checks: {stop: true}; without it the benchmarks would have run.",
    )


main = alone.step("checks", __doc__, run, hold=False)
