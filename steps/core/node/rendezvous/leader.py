"""The leader's side of the rendezvous: a ledger of workers, and the state that they are told.

Enters: beats, causes and records of the workers. Leaves: the run's state, told to everybody at
once. Touches: through its listener, one TCP port.

Every request carries the run's token. A worker posts a beat; the leader holds the answer until
the state changes or a second has passed, so all know of an end at once and a beat is due each
second. Four seconds without a beat are a lost node; so are two after its connection broke. One
slow answer is neither, and time in which the leader itself did not run does not count; nor does
time, half a minute at most, in which a silent program on the same machine waited for a core.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from steps.core.case.numbers import dumps, loads
from steps.core.case.values import decode
from steps.core.node.rendezvous import pace
from steps.core.node.rendezvous.listener import Answer, Listener, refusal
from steps.core.node.rendezvous.messages import (
    BEAT,
    DONE,
    PLAN,
    STATE,
    Beat,
    Hello,
    State,
    Told,
    packed,
)
from steps.core.record.records import Cause
from steps.core.system import proc

#: So many strangers are told of; more would be somebody who wants to fill the log.
STRANGERS = 8
#: Records that wait for their file at once; each may take a megabyte.
WAITING = 16


@dataclass
class Member:
    """What the leader knows of a worker."""

    node: int
    address: str
    joined: float
    last: float
    process: str = ""
    where: str = ""
    watch: proc.Watch | None = None
    waited: float = 0.0
    starved: bool = False
    phase: str = ""
    passed: frozenset[str] = frozenset()
    roll: int = 0
    broken: float = 0.0
    lost: bool = False
    handed: bool = False
    done: bool = False
    reported: int = 0
    progress: Mapping[str, int] = field(default_factory=dict)
    load: Mapping[str, float] = field(default_factory=dict)
    causes: list[Told] = field(default_factory=list)
    hello: Hello = field(default_factory=Hello)
    skew: float = 0.0


class Leader:
    """The leader's side: a ledger of members and the state they are told.

    Attributes:
        on_change: called when a member joins, or has passed another phase.

    Args:
        refuse: asked with each joining node's hello; a sentence refuses it.
        on_cause: called when a member reports a cause or is lost.
        on_join: called with each new member.
        on_record: called with a node's record as it ends.
        fingerprints: what a stranger, who has not the token, is told to compare itself with.
        on_stranger: called with the address and the fingerprints of a stranger, once for each.
        on_starved: called once for each member that is silent because it gets no core.
    """

    def __init__(
        self,
        address: str,
        port: int,
        token: str,
        size: int,
        *,
        refuse: Callable[[int, Hello], str] = lambda node, hello: "",
        on_cause: Callable[[Told], None] = lambda cause: None,
        on_join: Callable[[Member], None] = lambda member: None,
        on_record: Callable[[int, Any], None] = lambda node, record: None,
        fingerprints: Mapping[str, str] | None = None,
        on_stranger: Callable[[str, Mapping[str, str]], None] = lambda address, hello: None,
        on_starved: Callable[[int], None] = lambda node: None,
    ) -> None:
        self.fingerprints = dict(fingerprints or {})
        self._on_stranger = on_stranger
        self._strangers: set[tuple[str, str]] = set()
        self.address = address
        self.port = port
        self._token = token.encode()
        self.size = size
        self._refuse = refuse
        self._on_cause = on_cause
        self._on_join = on_join
        self._on_record = on_record
        self._on_starved = on_starved
        self.on_change: Callable[[], None] = lambda: None
        self.members: dict[int, Member] = {}
        self._plan = dumps({"plan": packed("")})
        self.state = State(where=proc.here())
        self.text = dumps(asdict(self.state))
        self._changed = threading.Condition()
        self._hurried = False
        self.listener = Listener(self)
        self._records = ThreadPoolExecutor(1, "records")
        self._waiting: list[Member] = []

    # Called by the node program

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken or the address is not ours.
        """
        self.listener.start()

    def close(self) -> None:
        """Stop listening and drop every connection."""
        self.listener.close()
        self._records.shutdown()

    def tell(self, **changes: Any) -> None:
        """Change the state; everybody hears of it at once."""
        with self._changed:
            self.state = replace(self.state, **changes, seq=self.state.seq + 1)
            self.text = dumps(asdict(self.state))
        self.listener.release()

    def plan(self, plan: str) -> None:
        """Have the plan that everybody may ask for, and say so."""
        self._plan = dumps({"plan": packed(plan)})
        self.tell(planned=True)

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Wait for something about the members; false when it is not so in the end.

        It ends after ``seconds``, or at once when somebody is in a :meth:`hurry`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._hurried or until(), seconds)
            return until()

    def hurry(self) -> None:
        """End every wait, those under way too: nobody wants to wait any more."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def joined(self) -> list[int]:
        """Indices of the workers that joined."""
        with self._changed:
            return sorted(self.members)

    def roll_call(self, seconds: float = pace.ROLL_WAIT) -> list[Told]:
        """Ask every worker for what it knows; wait for answers or losses.

        Returns:
            every cause reported so far, by the leader's clock.
        """
        roll = self.state.roll + 1
        self.tell(roll=roll)

        def answered() -> bool:
            return all(m.roll >= roll or m.lost or m.done for m in self.members.values())

        self.wait(answered, seconds)
        return self.reported()

    def reported(self) -> list[Told]:
        """Every cause the workers told so far."""
        with self._changed:
            return [told for member in self.members.values() for told in member.causes]

    def give_up(self, node: int) -> None:
        """Wait no more for the answer of a worker whose program somebody saw end."""
        with self._changed:
            if node in self.members:
                self.members[node].lost = True
                self._changed.notify_all()

    def all_done(self) -> bool:
        """Whether every worker has ended or is lost."""
        return all(member.done or member.lost for member in self.members.values())

    # Called on the listener's thread

    def answer(self, path: str, body: bytes) -> Answer:
        """The answer to one request; an odd one of a peer is refused, and harms nobody."""
        if path == STATE:
            return Answer(200, self.text)
        if path == PLAN:
            return Answer(200, self._plan)
        try:
            beat = decode(Beat, loads(body))
        except ValueError as error:
            return refusal(400, str(error))
        if not 0 < beat.node < self.size:
            return refusal(400, f"node: found {beat.node!r}, expected 1 to {self.size - 1}")
        now = time.monotonic()
        member = self.members.get(beat.node)
        if member is None or member.process != beat.process:
            taken = self._taken(member, now)
            if taken:
                return refusal(409, taken)
            why = self._refuse(beat.node, beat.hello)
            if why:
                return refusal(403, why)
            member = self._admit(beat, now)
        fresh = self._note(member, beat, now)
        if path == DONE and not member.handed:
            # Its file is written elsewhere: hundreds come at once, and others wait for an answer.
            member.handed = True
            self._waiting.append(member)
            if len(self._waiting) > WAITING:
                self._keep(member, beat.record)
            else:
                self._records.submit(self._keep, member, beat.record)
        if beat.roll > member.roll or fresh:
            with self._changed:
                member.roll = max(beat.roll, member.roll)
                self._changed.notify_all()
        node = beat.node if beat.main else None
        hold = path == BEAT and beat.seq == self.state.seq
        return Answer(200, self.text, hold, 0 if path == DONE else node)

    def _keep(self, member: Member, record: Any) -> None:
        try:
            self._on_record(member.node, record)
        except RecursionError:  # how deep is too deep depends on the Python
            pass
        except Exception as error:
            self.listener.complain(error, "a record")
        finally:
            self._waiting.remove(member)
            with self._changed:
                member.done = True
                self._changed.notify_all()

    def _admit(self, beat: Beat, now: float) -> Member:
        member = Member(
            beat.node, beat.address, now, now, beat.process, beat.where, hello=beat.hello
        )
        member.skew = beat.clock - time.time() if beat.clock else 0.0
        with self._changed:
            self.members[beat.node] = member
            self._changed.notify_all()
        self._on_join(member)
        self.on_change()
        return member

    def _note(self, member: Member, beat: Beat, now: float) -> bool:
        """Note what a beat says; whether it tells of a new cause."""
        member.last = now
        member.broken = 0.0
        member.phase = beat.phase
        # A set that only grows: a beat that comes late takes nothing back.
        if not member.passed.issuperset(beat.passed):
            with self._changed:
                member.passed = member.passed.union(beat.passed)
                self._changed.notify_all()
            self.on_change()
        member.progress = beat.progress or member.progress
        member.load = beat.load
        fresh = beat.causes[member.reported :]
        member.reported += len(fresh)
        for aged in fresh:
            told = Told(aged.cause, now - aged.age)
            member.causes.append(told)
            self._on_cause(told)
        return bool(fresh)

    def _taken(self, member: Member | None, now: float) -> str:
        """Why another process may not be this node; one that went before the run began may."""
        if member is None:
            return ""
        here = f"node {member.node} is already here, from {member.address}"
        gone = member.lost or member.broken or now - member.last > pace.LOST_AFTER
        if self.state.phase != "join":
            return f"{here}, and the run has begun" if gone else here
        return "" if gone else here

    def broke(self, node: int) -> None:
        """A worker's beat connection ended without an answer taken."""
        member = self.members.get(node)
        if member and not member.handed:
            member.broken = time.monotonic()

    def allowed(self, authorization: str) -> bool:
        """Whether a request carries the run's token."""
        return hmac.compare_digest(authorization.encode(), b"Bearer " + self._token)

    def stranger(self, address: str, body: bytes) -> Answer:
        """The answer to a request without the token; what a few of them say is told, once."""
        try:
            data = loads(body)
            hello = data["hello"] if isinstance(data["hello"], dict) else {}
        except (ValueError, KeyError, TypeError):
            hello = {}
        known = {key: hello.get(key) for key in self.fingerprints}
        said = {key: word[:80] if isinstance(word, str) else "" for key, word in known.items()}
        mark = (address, dumps(said))
        if any(said.values()) and mark not in self._strangers and len(self._strangers) < STRANGERS:
            self._strangers.add(mark)
            self._on_stranger(address, said)
        error = {"error": "wrong or missing token", "fingerprints": self.fingerprints}
        return Answer(401, dumps(error))

    def tick(self, missed: float) -> None:
        """Look for workers that are silent; time in which we did not run is nobody's fault."""
        now = time.monotonic()
        for member in list(self.members.values()):
            if missed > pace.TICK:
                member.last += missed
                member.broken += missed if member.broken else 0.0
            if not (member.handed or member.lost):
                self._judge(member, now)

    def _judge(self, member: Member, now: float) -> None:
        """Whether a member is lost; time in which it waited for a core does not count."""
        silent = now - member.last
        if silent < 2 * pace.BEAT and not member.broken:
            member.waited = 0.0
            return
        if member.watch is None:
            member.watch = proc.Watch(member.where, self.state.where)
        member.waited += member.watch.waited(now)
        excused = min(member.waited, pace.STARVED_MOST)
        gone = member.broken and now - member.broken - excused > pace.GONE_AFTER
        if silent - excused > pace.LOST_AFTER or gone:
            self._lose(member, silent)
        elif silent > pace.LOST_AFTER and not member.starved:
            member.starved = True
            self._on_starved(member.node)

    def _lose(self, member: Member, silent: float) -> None:
        member.lost = True
        how = "its connection broke and it did not come back" if member.broken else "no heartbeat"
        cause = Cause(
            "lost",
            "infra",
            f"node {member.node} is lost: {how} for {silent:.1f} s",
            node=member.node,
            role="worker",
            process="node",
            phase=member.phase,
        )
        told = Told(cause, member.last)
        with self._changed:
            member.causes.append(told)
            self._changed.notify_all()
        self._on_cause(told)
