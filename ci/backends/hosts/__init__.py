"""hosts: every node of a case on a machine of its own, over SSH, from one place.

Enters: a request, the hosts of the case, ``--hosts``, or a hosts file. Leaves:
every node's files in the run directory, and causes that only the runner saw.
Touches: on each host one directory that carries the run id, and what runs
from it; both are gone at the end.

Each host gets the harness as a stream over one SSH channel, and a keeper
(``steps.core.node.keeper``) that starts the node program, outlives a broken connection and
ends with its lease. The nodes meet as those started by hand do; the leader
makes the plan from what they tell.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from ci.backends import Request
from ci.backends.hosts import inventory as hosts_file
from ci.backends.hosts.cargo import Cargo
from ci.backends.hosts.client import Client
from ci.backends.hosts.harvest import Harvest
from ci.backends.hosts.inventory import Inventory
from ci.backends.hosts.session import Session
from steps.core import settings
from steps.core.errors import InfraError, MultinodeError
from steps.core.node import contract
from steps.core.node.products.carry import carry
from steps.core.plan.cluster import Cluster, ClusterNode
from steps.core.plan.plan import LEADER, from_json
from steps.core.record.records import Cause, record_from
from steps.core.record.rundir import read_json

_Part = TypeVar("_Part", Session, Harvest)
#: Once every host one can reach has ended, how long one waits for the others.
LAST_WAIT = 0.5
#: A host from which nothing has come for so long, though each beat is answered, is then cut off.
QUIET = 2.5
SKEW = 1.0
#: Beyond the plan's own budgets for stopping and collecting.
PATIENCE = 30.0


def run(request: Request) -> tuple[Cause, ...]:
    """Carry the case out on its hosts."""
    inventory = hosts_file.of_run(request.case, request.wishes.hosts)
    with Client() as client:
        crew = Crew(request, inventory, client)
        try:
            crew.stage()
            if request.interrupted.is_set():
                return (_interrupted(),)
            observed = crew.follow()
            crew.fetch()
            return tuple(cause for cause in observed if not _has_record(request, cause))
        finally:
            crew.leave()


def cluster_of(request: Request, inventory: Inventory) -> Cluster:
    """The machines as the nodes start from them; each adds what it knows of itself."""
    rehearsal = request.wishes.rehearsal
    here = f"{base_of(request, inventory)}/bundle/rehearsal"
    paths = {"PATH": (f"{here}/bin",), "PYTHONPATH": (f"{here}/lib",)}
    return Cluster(
        name="rehearsal" if rehearsal else "hosts",
        backend="hosts",
        nodes=tuple(
            ClusterNode(i, host.address, host.interface) for i, host in enumerate(inventory.hosts)
        ),
        control_port=settings.read().control_port,
        paths=paths if rehearsal else {},
        rehearsal=rehearsal,
    )


def base_of(request: Request, inventory: Inventory) -> str:
    """The run's directory on every host."""
    return f"{inventory.directory.rstrip('/')}/multinode-{request.run}"


class Crew:
    """All hosts of a run."""

    def __init__(self, request: Request, inventory: Inventory, client: Client) -> None:
        self.request = request
        self.changed = threading.Condition()
        token = settings.read().token or secrets.token_hex(16)
        base = base_of(request, inventory)
        asked = request.wishes
        products, entries = carry(asked.products, rehearsed=asked.rehearsal is not None)
        cluster = replace(cluster_of(request, inventory), products=products)
        cargo = Cargo(request, cluster, entries)
        self.sessions = [
            Session(request, i, host, client, base, token, cargo, self._wake)
            for i, host in enumerate(inventory.hosts)
        ]
        self._harvests = [Harvest(session) for session in self.sessions]
        request.on_interrupt.append(self._interrupt)

    def stage(self) -> None:
        """Put the run onto every host; start it only if it is on all, and nobody said stop.

        Raises:
            InfraError: with what is wrong with each host.
        """
        began = time.monotonic()
        problems = [
            problem for problem in _all(Session.stage, self.sessions) if problem is not None
        ]
        if self.request.interrupted.is_set():
            # What is still on its way to a host must not delay the cleaning.
            _all(Session.close, self.sessions)
            return
        if problems:
            raise InfraError(
                "; ".join(problem.message for problem in problems),
                " ".join(dict.fromkeys(p.hint for p in problems if p.hint))
                or "Nothing was started.",
            )
        for session in self.sessions:
            session.go()
        handshake = max(session.remote.handshake for session in self.sessions)
        self.request.events.emit(
            "note",
            text=f"{len(self.sessions)} hosts have the run after "
            f"{time.monotonic() - began:.1f} s, {handshake:.1f} s of it SSH handshakes",
            handshake=round(handshake, 3),
            seconds=round(time.monotonic() - began, 3),
        )
        self._compare()

    def _compare(self) -> None:
        """What differs between hosts and may explain trouble later."""
        for session in self.sessions:
            if abs(session.skew) > SKEW:
                self.request.events.emit(
                    "warning",
                    text=f"{session.host}: its clock is {abs(session.skew):.1f} s "
                    f"{'ahead of' if session.skew > 0 else 'behind'} this machine's; "
                    "times of its events are off by that. Run chrony or ntpd there.",
                )
        versions: dict[str, list[str]] = {}
        for session in self.sessions:
            versions.setdefault(session.version, []).append(str(session.host))
        if len(versions) > 1:
            text = "; ".join(f"{v} on {', '.join(names)}" for v, names in versions.items())
            self.request.events.emit("warning", text=f"Python differs between hosts: {text}")

    def follow(self) -> list[Cause]:
        """Until every node program has ended or is out of reach."""
        began, last_end = time.time(), 0.0
        observed: list[Cause] = []
        for session in self.sessions:
            session.attend()
        if self.request.interrupted.is_set():
            self._say(contract.STOP)
        while True:
            with self.changed:
                self.changed.wait(0.2)
            for session in self.sessions:
                if session.over and not session.judged:
                    session.judged, last_end = True, time.monotonic()
                    cause = session.death(began)
                    if cause is not None:
                        observed.append(cause)
                        self.request.events.emit("cause", text=str(cause), verdict=cause.verdict)
                        self._tell(session, cause)
            live = [session for session in self.sessions if not session.over]
            if not live:
                return observed
            quiet = time.monotonic() - last_end if last_end else 0.0
            for session in live:
                if session.silent > session.host.lease:
                    session.give_up(f"for {session.silent:.0f} s")
                elif last_end and quiet > LAST_WAIT and all(s.silent > QUIET for s in live):
                    session.give_up("when the run had ended everywhere else")
                elif last_end and quiet > self._patience():
                    session.give_up(f"though the others ended {quiet:.0f} s ago", reached=True)

    def _patience(self) -> float:
        """How long the last nodes may take to stop and collect, in seconds."""
        with contextlib.suppress(OSError, ValueError):
            budgets = from_json(self.request.run_dir.plan.read_text(encoding="utf-8")).budgets
            return budgets["stop"].seconds + budgets["collect"].seconds + PATIENCE
        return 2 * PATIENCE

    def fetch(self) -> None:
        """Bring every node's files here, the leader's last."""
        for problem in _all(Harvest.fetch, self._harvests):
            if problem is not None:
                self.request.events.emit("warning", text=problem.message)

    def leave(self) -> None:
        """End and remove what is ours on every host; says what could not be removed."""
        for session in self.sessions:
            session.detach()
        for session in self.sessions:
            session.join()
        for problem in _all(Harvest.clean, self._harvests):
            if problem is not None:
                self.request.events.emit("warning", text=problem.message)
        for session in self.sessions:
            session.close()

    def _tell(self, dead: Session, cause: Cause) -> None:
        """Tell the leader, or everybody when it was the leader, so that nobody waits."""
        word = str(contract.Lost.of(cause))
        for session in self.sessions:
            if not session.over and LEADER in (dead.index, session.index):
                session.say(word)

    def _interrupt(self, count: int) -> None:
        for session in self.sessions if count == 1 else ():
            session.interrupt()
        self._say(contract.STOP)

    def _say(self, word: str) -> None:
        for session in self.sessions:
            session.say(word)

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()


def _all(work: Callable[[_Part], None], parts: Sequence[_Part]) -> list[MultinodeError | None]:
    """Do something on all hosts at once; what went wrong on each."""

    def attempt(part: _Part) -> MultinodeError | None:
        try:
            work(part)
        except MultinodeError as error:
            return error
        return None

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(attempt, parts))


def _interrupted() -> Cause:
    return Cause(
        "interrupt",
        "interrupted",
        "the runner was interrupted before anything was started",
        at=time.time(),
        phase="start",
    )


def _has_record(request: Request, cause: Cause) -> bool:
    """Whether a node that seemed to have left no record left one with the leader."""
    if cause.node is None or cause.process != "node":
        return False
    return record_from(read_json(request.run_dir.node(cause.node).record)) is not None
