"""The fault language and the injector that carries faults out.

Grammar: faults joined by `;`, each `WHAT[=ARG]@NODE[.PROCESS][:WHEN]`; docs/rehearsal.md explains
it.
`parse_faults` is pure and refuses nonsense with a ValueError that says what is allowed. `Injector`
fires
the faults of one process at its moments; it may end, stop or freeze the process.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

PROCESS_FAULTS = ("crash", "exit0", "kill9", "oom", "hang", "stop", "fork-away", "ignore-term")
"""Faults that befall a process; the injector does them itself."""

BEHAVIOURS = (
    "http503",
    "slow",
    "silent",
    "garbage",
    "empty",
    "midstream",
    "truncate",
    "refuse-handoff",
    "miscount",
    "low-acceptance",
    "busy",
)
"""Faults that change how a process answers from then on; the process does them."""

_SHAPE = re.compile(
    r"(?P<what>[a-z0-9-]+)(?:=(?P<arg>[^@]*))?@(?P<node>\*|\d+)(?:\.(?P<process>[\w-]+))?(?::(?P<when>\S+))?"
)
_MOMENT = re.compile(r"(?P<moment>start|load|term|ready|request|bench)?(?P<rest>.*)")


@dataclass(frozen=True)
class Fault:
    """One fault. `moment` is start, load, ready, request, bench or term; `after` seconds follow
    start or ready; `count` is the number of the completion for request, of the benchmark for bench.
    `node` and `process` None mean all.
    """

    what: str
    arg: float | None
    node: int | None
    process: str | None
    moment: str = "start"
    after: float = 0.0
    count: int = 0

    def concerns(self, node: int, process: str) -> bool:
        """Whether the fault is meant for this process of this node."""
        if self.node is not None and self.node != node:
            return False
        return process.startswith("server") if self.process is None else self.process == process

    def __str__(self) -> str:
        arg = "" if self.arg is None else f"={self.arg:g}"
        place = "*" if self.node is None else str(self.node)
        process = f".{self.process}" if self.process else ""
        after = f"+{self.after:g}" if self.after else ""
        moment = "" if after and self.moment == "start" else f"{self.moment}{self.count or ''}"
        return f"{self.what}{arg}@{place}{process}:{moment}{after}"


def parse_faults(text: str) -> tuple[Fault, ...]:
    """All faults of a text. Raises ValueError that names the part, and what is allowed."""
    return tuple(_parse_fault(part.strip()) for part in text.split(";") if part.strip())


def _parse_fault(part: str) -> Fault:
    shape = _SHAPE.fullmatch(part)
    if not shape:
        raise ValueError(
            f"{part!r} is not WHAT[=ARG]@NODE[.PROCESS][:WHEN], such as 'crash@1:ready' or "
            "'slow=5@*'; NODE is an index or *"
        )
    what = shape["what"]
    if what not in PROCESS_FAULTS + BEHAVIOURS:
        raise ValueError(
            f"{part!r}: no fault {what!r}; there are {' '.join(PROCESS_FAULTS + BEHAVIOURS)}"
        )
    if (what == "busy") != (shape["process"] == "npu-smi") and what in BEHAVIOURS:
        raise ValueError(
            f"{part!r}: busy is a fault of npu-smi and its only change of answers: 'busy@1.npu-smi'"
        )
    moment, after, count = _parse_when(part, shape["when"])
    return Fault(
        what=what,
        arg=_parse_arg(part, what, shape["arg"]),
        node=None if shape["node"] == "*" else int(shape["node"]),
        process=shape["process"],
        moment=moment,
        after=after,
        count=count,
    )


def _parse_arg(part: str, what: str, arg: str | None) -> float | None:
    if what == "slow":
        text = "10" if arg is None else arg
        if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
            raise ValueError(
                f"{part!r}: slow takes how many times slower, a number over 0, not {arg!r}"
            )
        return float(text)
    if what == "crash":
        text = "1" if arg is None else arg
        if not text.isdecimal() or not 1 <= int(text) <= 255:
            raise ValueError(f"{part!r}: crash takes an exit code from 1 to 255, not {arg!r}")
        return float(text)
    if arg is not None:
        raise ValueError(f"{part!r}: {what} takes no argument; only crash=CODE and slow=FACTOR do")
    return None


def _parse_when(part: str, when: str | None) -> tuple[str, float, int]:
    if when is None:
        return "start", 0.0, 0
    allowed = (
        f"{part!r}: WHEN is start, load, ready, ready+S, +S, request, requestN, bench, benchN or "
        "term, "
        f"not {when!r}"
    )
    shape = _MOMENT.fullmatch(when)
    moment, rest = (shape["moment"], shape["rest"]) if shape else (None, when)
    if rest and moment in (None, "ready"):
        if not re.fullmatch(r"\+\d+(\.\d+)?", rest):
            raise ValueError(allowed)
        return moment or "start", float(rest[1:]), 0
    if moment in ("request", "bench") and (not rest or (rest.isdecimal() and int(rest) > 0)):
        return moment, 0.0, int(rest or 1)
    if moment is None or rest:
        raise ValueError(allowed)
    return moment, 0.0, 0


class Injector:
    """Fires the faults of one process, each once.

    `behave(what, arg)` is told of faults that change answers; `abandon()` is called before a fault
    that
    ends the process in good order for its children (crash, exit0), so that it can end them too.
    """

    def __init__(
        self,
        faults: Iterable[Fault],
        node: int,
        process: str,
        behave: Callable[[str, float | None], None] = lambda what, arg: None,
        abandon: Callable[[], None] = lambda: None,
        stage: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.pending = [fault for fault in faults if fault.concerns(node, process)]
        self.behave, self.abandon, self.stage = behave, abandon, stage
        self.started = time.monotonic()
        self.ignores_term = False
        self.loop: Any = None
        self.watch_signals: Callable[[], None] = lambda: None

    def fire(self, moment: str, count: int = 0) -> None:
        """Carry out every fault that is due at this moment; may not return."""
        for fault in [f for f in self.pending if f.moment == moment and f.count == count]:
            if not fault.after:
                self._act(fault)
            elif self.loop:
                self.pending.remove(fault)
                since = time.monotonic() - self.started if moment == "start" else 0.0
                self.loop.call_later(max(0.0, fault.after - since), self._act, fault)

    def arrived(self, count: int) -> None:
        """The `count`-th completion came: its moment, and that of the benchmark that is on.

        Where nobody says which one is on, the first completion is a probe and the rest is the
        first benchmark's.
        """
        self.fire("request", count)
        if any(fault.moment == "bench" for fault in self.pending):
            told = self.stage()
            for number in range(1, 1 + (int(count > 1) if told is None else told)):
                self.fire("bench", number)

    def run_in(self, loop: Any, watch_signals: Callable[[], None]) -> None:
        """Take the event loop that times `+S` faults, and start those. `watch_signals` installs the
        loop's signal handlers: now, and again in a process that forked away.
        """
        self.loop, self.watch_signals = loop, watch_signals
        watch_signals()
        self.fire("start")

    def _act(self, fault: Fault) -> None:
        if fault in self.pending:
            self.pending.remove(fault)
        if fault.what in BEHAVIOURS:
            self.behave(fault.what, fault.arg)
            return
        getattr(self, "_" + fault.what.replace("-", "_"))(fault)

    def _crash(self, fault: Fault) -> None:
        try:
            raise RuntimeError(f"injected fault {fault}")
        except RuntimeError:
            sys.excepthook(*sys.exc_info())
        self.abandon()
        _leave(int(fault.arg or 1))

    def _exit0(self, fault: Fault) -> None:
        self.abandon()
        _leave(0)

    def _kill9(self, fault: Fault) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _oom(self, fault: Fault) -> None:
        print(
            "RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.96 GiB total "
            "capacity; 58.72 GiB already "
            "allocated; 1.06 GiB free; 59.10 GiB reserved in total by PyTorch) [ERROR] rtMalloc: "
            "allocations failed, code 207001",
            file=sys.stderr,
            flush=True,
        )
        os.kill(os.getpid(), signal.SIGKILL)

    def _hang(self, fault: Fault) -> None:
        # The engines of a headless node answer others than their parent: they must fall silent too.
        self.behave("silent", None)
        # A hung process still dies of a signal; ignore-term is a fault of its own.
        handler = signal.SIG_IGN if self.ignores_term else signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handler)
        while True:
            time.sleep(3600)

    def _stop(self, fault: Fault) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _fork_away(self, fault: Fault) -> None:
        if os.fork():
            os._exit(0)
        if self.loop and self.loop.is_running():
            import asyncio

            # asyncio remembers the process that runs the loop; this child goes on running it.
            asyncio._set_running_loop(self.loop)
            self.watch_signals()

    def _ignore_term(self, fault: Fault) -> None:
        self.ignores_term = True
        self.behave(fault.what, fault.arg)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
