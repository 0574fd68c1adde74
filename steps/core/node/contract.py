"""What a backend and a node program owe each other.

Enters: a node's place, how it was told, or how it ended. Leaves: the command line of a node
program, the words of its standard input, and the cause that its end is. Touches nothing.

A backend starts ``python -m steps.node`` once on each node, with what :class:`Start` makes:

- **options**: ``--plan FILE``, or ``--case`` with ``--cluster`` and ``--run-id`` where the nodes
  must make the plan themselves; ``--run-dir``, ``--node-index``, ``--token-file``, ``--bound``
  and ``--output events``.
- **standard input** stays open: the run ends when it closes. A line is a word: ``stop``, or
  ``lost I HOW`` when the program of node I ended without a record.
- **standard output** has one :class:`steps.core.record.events.Event` a line, as JSON.
- **the exit code** is an :class:`steps.core.errors.Exit`; the leader's is the verdict's.
- **files**: ``node-I/`` in the run directory; a program without ``record.json`` there is lost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from steps.core.plan.plan import LEADER
from steps.core.record.records import Cause

STOP = "stop"
_LOST = "lost"
_PROGRAM = "the node program "


@dataclass(frozen=True)
class Start:
    """How one node program is started.

    Attributes:
        plan: the plan's file; empty: the program makes the plan of ``case`` and ``cluster``.
        token_file: empty: whoever starts it adds one.
        more: options that shape the plan, such as ``--bench``.
    """

    index: int
    run_dir: str
    token_file: str = ""
    plan: str = ""
    case: str = ""
    cluster: str = ""
    run: str = ""
    more: Sequence[str] = ()

    def argv(self, python: str) -> list[str]:
        """The command line."""
        options = {
            "--plan": self.plan,
            "--case": self.case,
            "--cluster": self.cluster,
            "--node-index": str(self.index),
            "--run-dir": self.run_dir,
            "--run-id": self.run,
            "--token-file": self.token_file,
        }
        given = [part for name, value in options.items() if value for part in (name, value)]
        return [python, "-m", "steps.node", *given, "--bound", "--output", "events", *self.more]


@dataclass(frozen=True)
class Lost:
    """The word that a node program ended and left no record."""

    node: int
    how: str

    @staticmethod
    def of(cause: Cause) -> Lost:
        """The word for a cause of :func:`lost`."""
        reason = cause.reason.removeprefix(_PROGRAM).replace("\n", " ")
        return Lost(LEADER if cause.node is None else cause.node, reason)

    def __str__(self) -> str:
        return f"{_LOST} {self.node} {self.how}"


def heard(line: str) -> str | Lost | None:
    """What a line of standard input says: :data:`STOP`, a :class:`Lost`, or nothing known."""
    word, _, rest = line.strip().partition(" ")
    if word == STOP:
        return STOP
    number, _, how = rest.partition(" ")
    return Lost(int(number), how) if word == _LOST and number.isdecimal() else None


def ended(code: int) -> str:
    """How a node program without a record ended, as a sentence; below 0 is a signal."""
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    return f"{_PROGRAM}{how} and left no record"


def lost(
    node: int | None,
    reason: str,
    began: float,
    *,
    log: str = "node.log",
    process: str = "node",
    at: float = 0.0,
    **more: object,
) -> Cause:
    """The cause that the end of a node's program is, which only the backend saw.

    Args:
        node: None: no single node's.
        log: the file in the node's directory where one should look.
        at: when it was seen; absent: now.
    """
    at = at or time.time()
    none = node is None
    return Cause(
        "lost",
        "infra",
        reason,
        node=node,
        role="" if none else "leader" if node == LEADER else "worker",
        process="" if none else process,
        seconds=round(max(at - began, 0.0), 3),
        at=at,
        log="" if none else f"node-{node}/{log}",
        **more,  # type: ignore[arg-type]
    )


def interrupted(began: float, at: float) -> Cause:
    """The cause that a runner's interrupt is."""
    return Cause(
        "interrupt",
        "interrupted",
        "the runner was interrupted",
        seconds=round(max(at - began, 0.0), 3),
        at=at,
        hint="What was collected is in the run directory.",
    )
