"""What the unexpected end of a process means, from how it ended and what its log says.

Enters: an exit, a log. Leaves: class, reason, hint. Touches: reads the log.
"""

from __future__ import annotations

from dataclasses import dataclass

from steps.core.node.supervisor import ExitStatus, Running
from steps.core.plan.plan import Process
from steps.core.record import evidence
from steps.core.vllm.logs import dead_ranks


@dataclass(frozen=True)
class Meaning:
    """What an exit means; ``lines`` is the evidence of the log."""

    verdict: str
    reason: str
    hint: str
    lines: tuple[str, ...] = ()
    signature: str = ""
    consequence: bool = False


def of_exit(running: Running, status: ExitStatus, serving: bool, place: str) -> Meaning:
    """What an unexpected exit means.

    Args:
        serving: all servers had answered already.
        place: the node's directory, as a hint names it.
    """
    found = evidence.of_log(running.log)
    verdict = "crash" if serving else "startup"
    signature = found.signature
    if signature and signature.verdict in ("infra", "config") and not serving:
        verdict = signature.verdict
    reason = f"{status}: {signature.explanation}" if signature else str(status)
    hint = signature.hint if signature else f"Read {place}{running.process.log}."
    if status.oom:
        hint = "Look at the memory limit of the node or pod, and at what else runs there."
    return Meaning(
        verdict,
        reason,
        hint,
        found.lines,
        signature.id if signature else "",
        not status.signal and blames_another(running.process, found),
    )


def blames_another(process: Process, found: evidence.Evidence) -> bool:
    """Whether a log says that somebody else died first: a peer, or another node's rank.

    An API server that loses a rank of its group names it; only its own ranks are its own fault.
    """
    if found.signature is not None and found.signature.consequence:
        return True
    if process.rank is None:
        return False
    own = range(process.rank, process.rank + process.ranks)
    ranks = [rank for line in found.lines for rank in dead_ranks(line)]
    return bool(ranks) and not any(rank in own for rank in ranks)
