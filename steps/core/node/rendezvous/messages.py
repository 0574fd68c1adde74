"""What the nodes of a run say to one another, as frozen values.

Enters and leaves: values, which ``dataclasses.asdict`` writes and
``steps.core.case.values.decode`` reads. Touches nothing.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steps.core.record.records import Cause

#: Where a worker asks the leader.
BEAT, DONE, STATE, PLAN = "/v1/beat", "/v1/done", "/v1/state", "/v1/plan"


def packed(plan: str) -> str:
    """A plan on its way: hundreds of nodes ask for it at once, and it is as long as they are many.

    512 nodes of 8 processes: 6 MB, of which 0.2 MB travel to each.
    """
    return base64.b64encode(zlib.compress(plan.encode())).decode()


def unpacked(text: str) -> str:
    """The plan.

    Raises:
        ValueError: this is none.
    """
    try:
        return zlib.decompress(base64.b64decode(text)).decode()
    except zlib.error as error:
        raise ValueError(f"no plan: {error}") from None


@dataclass(frozen=True)
class Hello:
    """What a node says of itself when it joins.

    Attributes:
        case, cluster, harness, options, plan: fingerprints, the same on every node.
        facts: what its machine is like.
    """

    case: str = ""
    cluster: str = ""
    harness: str = ""
    options: str = ""
    plan: str = ""
    address: str = ""
    interface: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """A cause, and its moment on the monotonic clock of the program that holds it."""

    cause: Cause
    mono: float


@dataclass(frozen=True)
class Aged:
    """A cause on its way to another machine: how many seconds ago it happened."""

    cause: Cause
    age: float = 0.0


@dataclass(frozen=True)
class Look:
    """How far a node is.

    Attributes:
        passed: names of the phases it has passed; they only grow.
        progress: bytes in the log of each of its processes.
        load: what its engines do, added up (``steps.core.vllm.metrics.LOAD``).
    """

    phase: str
    passed: tuple[str, ...] = ()
    progress: Mapping[str, int] = field(default_factory=dict)
    causes: tuple[Told, ...] = ()
    load: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Beat:
    """One heartbeat of a worker, or with ``record`` its last word.

    Attributes:
        process: a word of the program's own; two programs of one host may be alike in all else.
        where: the process, as another program of the same machine finds it.
        seq: number of the state that the worker has; -2: do not hold the answer.
        roll: number of the last roll call that it answers.
        main: its connection breaks when the worker dies.
        clock: seconds since the epoch.
    """

    node: int
    process: str = ""
    address: str = ""
    hello: Hello = field(default_factory=Hello)
    where: str = ""
    phase: str = ""
    passed: tuple[str, ...] = ()
    progress: Mapping[str, int] = field(default_factory=dict)
    load: Mapping[str, float] = field(default_factory=dict)
    causes: tuple[Aged, ...] = ()
    seq: int = -1
    roll: int = 0
    main: bool = False
    clock: float | None = None
    record: Any = None


@dataclass(frozen=True)
class End:
    """The run is over; without a cause it ended as it should."""

    cause: Cause | None = None


@dataclass(frozen=True)
class State:
    """The run's state, which the leader tells everybody.

    Attributes:
        seq: grows with each change.
        roll: number of the last roll call.
        where: the leader's process.
        missing: the nodes that the leader waits for before it makes the plan.
        planned: there is a plan.
        go: the servers may start.
        serving: all servers answered.
    """

    seq: int = 0
    roll: int = 0
    phase: str = "join"
    ended: End | None = None
    where: str = ""
    missing: str = ""
    planned: bool = False
    go: bool = False
    serving: bool = False
