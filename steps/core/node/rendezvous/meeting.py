"""The nodes find one another, before there is a run; together they get the plan.

Enters: how this node was started. Leaves: the plan, and this node's end of the rendezvous.
Touches: name look-ups; opens the control port, or connects to it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from steps.core import VERSION
from steps.core.case.case import Case
from steps.core.errors import CaseError, DeadlineError, Exit, InfraError, UsageError
from steps.core.node import identify
from steps.core.node.noderun import SAY_EVERY, SELDOM, NodeRun, RunEnded, StepFailed
from steps.core.node.rendezvous.inbox import Inbox
from steps.core.node.rendezvous.link import Link
from steps.core.node.rendezvous.messages import End, Hello, Look, Told
from steps.core.node.start import Start
from steps.core.plan.cluster import Cluster
from steps.core.plan.plan import LEADER, Plan, from_json, to_json
from steps.core.plan.resolver import resolve
from steps.core.record.events import EventLog
from steps.core.record.records import Cause
from steps.core.record.rundir import write_json
from steps.core.record.verdict import CLASSES
from steps.core.vllm import installed

if TYPE_CHECKING:
    from steps.core.node.rendezvous.leader import Leader, Member

#: Grace for telling the others when this node quits before the run starts.
TELL_SECONDS = 1.0
#: A clock that is further off makes times of different nodes hard to compare.
SKEW_SECONDS = 2.0


class Meeting:
    """One node's way to the others.

    Attributes:
        leader: the rendezvous itself, on the leader.
        link: this node's connection to it, on a worker.
        began: when the node came to the meeting, by both clocks; None: the plan was given to it.
    """

    def __init__(self, start: Start, events: EventLog, inbox: Inbox) -> None:
        self.start = start
        self.events = events
        self.inbox = inbox
        self.leader: Leader | None = None
        self.link: Link | None = None
        self.began: tuple[float, float] | None = None
        self._deadline = 0.0
        self._said = time.monotonic()
        self._last: Cause | None = None

    def plan(self) -> Plan:
        """The plan: the starter's, else the one the leader makes when all nodes are there.

        Raises:
            RunEnded: interrupted.
            MultinodeError: the nodes did not meet, or have no plan in common.
        """
        start = self.start
        if start.plan is not None:
            self._prepare(start.plan)
            return start.plan
        if start.case is None or start.cluster is None:
            raise UsageError("this node has neither a plan nor a case", "Give --plan or --case.")
        return self._join(start.case, start.cluster)

    def close(self) -> None:
        """Hear and say no more."""
        if self.link:
            self.link.close()
        if self.leader:
            self.leader.close()

    # With a plan from the starter

    def _prepare(self, plan: Plan) -> None:
        """Make this node's end of the rendezvous; :func:`meet` opens it."""
        address, port = plan.nodes[LEADER].address, plan.cluster.control_port
        hello = Hello(plan=plan.fingerprint(), harness=VERSION)
        if self.start.index == LEADER:
            self.leader = self._leader(address, port, len(plan.nodes), hello)
        else:
            own = plan.nodes[self.start.index].address
            self.link = self._link((address, port), own, hello)

    # With a case

    def _join(self, case: Case, cluster: Cluster) -> Plan:
        start = self.start
        self.events.phase = "join"
        self.began = (time.time(), time.monotonic())
        self._deadline = time.monotonic() + start.join_seconds()

        def again(what: str) -> None:
            self._wait(f"the address of {what}")

        address = identify.look_up(cluster.nodes[LEADER].address, again)
        names = [node.address for node in cluster.nodes]
        peer = next((name for i, name in enumerate(names) if i != start.index), "")
        own = identify.look_up_own(names[start.index], peer, again)
        identity = identify.identify(cluster, start.index, own)
        hello = identify.hello(identity, case, cluster, start.options)
        port = cluster.control_port
        if start.index == LEADER:
            self.leader = leader = self._leader(own, port, len(cluster.nodes), hello)
            open_port(leader)
            return self._assemble(leader, case, cluster, hello)
        self.link = link = self._link((address, port), own, hello)
        link.start()
        return self._ask_for_plan(link, address)

    def _assemble(self, leader: Leader, case: Case, cluster: Cluster, hello: Hello) -> Plan:
        """Leader: wait for everybody, make the plan of what they told."""
        size = len(cluster.nodes)
        names = [f"{node.index} ({node.address})" for node in cluster.nodes]
        while len(leader.joined()) < size - 1:
            here = leader.joined()
            missing = f"node {', '.join(names[i] for i in range(1, size) if i not in here)}"
            if leader.state.missing != missing:
                leader.tell(missing=missing)
            self._wait(missing)
        hellos = {LEADER: hello, **{m.node: m.hello for m in leader.members.values()}}
        facts = {f"node {index}": told.facts for index, told in hellos.items()}
        for text in installed.sentences(facts):
            self.events.emit("warning", text=text)
        try:
            plan = resolve(case, identify.assemble(cluster, hellos), self.start.options)
        except CaseError as error:
            cause = Cause("config", "config", str(error), phase="join", at=time.time())
            leader.tell(ended=End(cause))
            raise
        leader.plan(to_json(plan))
        return plan

    def _ask_for_plan(self, link: Link, leader: str) -> Plan:
        """Worker: join, and take the leader's plan."""
        inbox = self.inbox
        while not (link.joined.is_set() and inbox.state.planned):
            if inbox.refused:
                twice = "already here" in inbox.refused
                raise UsageError(
                    f"the leader refused this node: {inbox.refused}",
                    "Was it started twice? Every machine has a --node-index of its own."
                    if twice
                    else "Use the same case, options and version of the harness on every node.",
                )
            ended = inbox.state.ended
            if ended is not None:
                cause = ended.cause
                error = InfraError(f"the leader ended the run: {cause.reason if cause else ''}")
                error.exit_code = CLASSES[cause.verdict] if cause else Exit.INFRA
                raise error
            if inbox.leaderless:
                raise InfraError(
                    f"the leader at {leader} is gone: {inbox.leaderless}",
                    "Look at what it said, then start it and this node again.",
                )
            told = inbox.state.missing
            others = f", which waits for {told}" if told else " and its plan"
            self._wait(f"the leader at {leader}{others}")
        return from_json(link.plan())

    def _wait(self, what: str) -> None:
        """Wait a moment, before there is a run to wait in.

        Raises:
            RunEnded: interrupted.
            InfraError: a node that is waited for will not come.
            DeadlineError: the budget to join is used up.
        """
        if self.inbox.early.wait(0.2):
            raise RunEnded
        if self.inbox.hopeless:
            raise InfraError(self.inbox.hopeless, "Look at the log of that node.")
        now = time.monotonic()
        if now > self._deadline:
            raise DeadlineError(
                f"waiting for {what} took longer than the phase join may",
                "Is it started there, and is the control port open between the nodes? "
                "--timeout join=SECONDS waits longer.",
            )
        if now - self._said > SAY_EVERY:
            self._said = now
            self.events.emit("waiting", missing=what)

    def give_up(self, cause: Cause) -> None:
        """Tell the others why this node leaves without a record."""
        self._last = replace(
            cause, node=self.start.index, process="node", phase=self.events.phase, at=time.time()
        )
        if self.leader:
            if self.leader.state.ended is None:
                self.leader.tell(ended=End(self._last))
            self.leader.wait(self.leader.all_done, TELL_SECONDS)
        elif self.link and self.link.joined.is_set():
            self.link.report()

    # The two ends

    def _leader(self, address: str, port: int, size: int, hello: Hello) -> Leader:
        from steps.core.node.rendezvous.leader import Leader  # here: asyncio, for leaders only

        ours = identify.comparable(hello)

        def refuse(node: int, theirs: Hello) -> str:
            why = identify.differs(ours, identify.comparable(theirs))
            if why:
                self._warn(f"node {node} was refused: {why}")
            return why

        def on_stranger(peer: str, theirs: Mapping[str, str]) -> None:
            # Most often a node with another case.
            why = identify.differs(ours, theirs) or "it has another run token"
            self._warn(f"a node at {peer} was refused: {why}")

        return Leader(
            address,
            port,
            self.start.token,
            size,
            refuse=refuse,
            fingerprints=ours,
            on_stranger=on_stranger,
            on_cause=self.inbox.on_cause,
            on_join=self._on_join,
            on_record=self._on_record,
            on_starved=self._on_starved,
        )

    def _link(self, leader: tuple[str, int], own: str, hello: Hello) -> Link:
        return Link(
            *leader,
            self.start.token,
            self.start.index,
            own,
            hello,
            look=self._look,
            on_state=self.inbox.on_state,
            on_lost=self.inbox.on_lost,
            on_refused=self.inbox.on_refused,
            on_starved=lambda: self._on_starved(LEADER),
        )

    def _look(self) -> Look:
        if self.inbox.run is not None:
            return self.inbox.run.look()
        told = (Told(self._last, time.monotonic()),) if self._last else ()
        return Look("join", causes=told)

    def _warn(self, text: str) -> None:
        self.events.emit("warning", text=text)

    def _on_starved(self, node: int) -> None:
        self._warn(
            f"the program of node {node} lives but gets no core: this machine has more to "
            "do than its cores can carry, so its times are not to be trusted"
        )

    def _on_join(self, member: Member) -> None:
        self.events.emit("joined", member=member.node, address=member.address)
        if abs(member.skew) > SKEW_SECONDS:
            self._warn(
                f"the clock of node {member.node} is {abs(member.skew):.1f} s "
                f"{'ahead' if member.skew > 0 else 'behind'}; run chrony or ntpd there"
            )

    def _on_record(self, node: int, record: Any) -> None:
        """A worker's record, kept beside our own where its own directory is elsewhere."""
        place = self.start.run_dir.node(node).make()
        if record and not place.record.exists():
            with contextlib.suppress(OSError, TypeError, RecursionError):
                write_json(place.record, record)


def open_port(leader: Leader) -> None:
    """Listen for the workers.

    Raises:
        InfraError: the control port cannot be opened.
    """
    try:
        leader.start()
    except OSError as error:
        # What the system says, without what asyncio wraps around it.
        said = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise InfraError(
            f"the control port {leader.port} on {leader.address} cannot be opened: {said}",
            f"Is another run going on, or was node {LEADER} started twice? "
            "MULTINODE_CONTROL_PORT, the same on all nodes, chooses another port.",
        ) from None


def meet(run: NodeRun) -> None:
    """Open the rendezvous of a plan that the starter made, and wait until everybody is there.

    Raises:
        StepFailed: the control port cannot be opened, or somebody does not come.
    """
    nodes = run.plan.nodes
    if run.leader:
        leader = run.leader
        try:
            open_port(leader)
        except InfraError as error:
            raise StepFailed(
                run.cause_of("preflight", "infra", error.message, hint=error.hint)
            ) from None

        def missing() -> list[int]:
            return sorted(set(range(1, len(nodes))) - set(leader.joined()))

        run.until(
            lambda: not missing(),
            lambda: "node " + ", ".join(f"{i} ({nodes[i].address})" for i in missing()),
            every=SELDOM,
            blame=lambda: (nodes[missing()[0]], "node"),
        )
    elif run.link:
        run.link.start()
        run.until(
            run.link.joined.is_set,
            lambda: f"the leader at {nodes[LEADER].address}:{run.plan.cluster.control_port}",
            every=SELDOM,
            blame=lambda: (nodes[LEADER], "node"),
        )
