"""Rendezvous: the nodes of a run tell one another how it goes.

Enters: beats, causes and records of the nodes. Leaves: the run's state, told
to everybody at once. Touches: one TCP port on the leader, one connection a
worker.

The leader serves HTTP on the plan's control port; every request carries the
run's token. A worker posts a beat; the leader holds the answer until the
state changes or a second has passed, so an end is known to all at once and a
beat is due each second. Four seconds without a beat are a lost node; so are
two after its connection broke. One slow answer is neither, and time in which
the leader itself did not run does not count; nor does time, half a minute at
most, in which a silent program on the same machine waited for a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http.client
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steps.core.case.numbers import dumps, loads
from steps.core.system import proc

BEAT = 1.0
LOST_AFTER = 4.0
GONE_AFTER = 2.0
#: Seconds of silence that waiting for a core can excuse.
STARVED_MOST = 26.0
TICK = 0.2
#: Seconds a connection may take to its first request with the right token.
SILENT = 10.0
MAX_HEADER = 16 << 10
MAX_BODY = 4 << 20
ROLL_WAIT = LOST_AFTER + 0.6


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
    seen: int = -1
    broken: float = 0.0
    lost: bool = False
    done: bool = False
    reported: int = 0
    progress: Mapping[str, int] = field(default_factory=dict)
    causes: list[dict[str, Any]] = field(default_factory=list)
    hello: Mapping[str, Any] = field(default_factory=dict)
    skew: float = 0.0


class Leader:
    """The leader's side: a ledger of members and the state they are told.

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
        refuse: Callable[[int, Mapping[str, Any]], str] = lambda node, hello: "",
        on_cause: Callable[[dict[str, Any]], None] = lambda cause: None,
        on_join: Callable[[Member], None] = lambda member: None,
        on_record: Callable[[int, Any], None] = lambda node, record: None,
        fingerprints: Mapping[str, str] | None = None,
        on_stranger: Callable[[str, Mapping[str, Any]], None] = lambda address, hello: None,
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
        self.members: dict[int, Member] = {}
        self.plan = ""
        self.state: dict[str, Any] = {
            "seq": 0,
            "roll": 0,
            "phase": "join",
            "ended": None,
            "where": proc.here(),
        }
        self._changed = threading.Condition()
        self._hurried = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.held: dict[_Connection, float] = {}
        self._server: asyncio.Server | None = None
        self._thread: threading.Thread | None = None
        self._writers: set[asyncio.Transport] = set()

    # Called by the node program

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken or the address is not ours.
        """
        ready: list[BaseException | None] = []
        started = threading.Event()

        def run() -> None:
            loop = asyncio.new_event_loop()
            self._loop = loop

            async def listen() -> None:
                self._server = await loop.create_server(
                    lambda: _Connection(self), self.address, self.port, backlog=1024
                )

            try:
                loop.run_until_complete(listen())
                ready.append(None)
            except OSError as error:
                ready.append(error)
                loop.close()
                return
            finally:
                started.set()
            # No task: one that a thread leaves behind is complained of when the program ends.
            loop.call_later(TICK, self._tick, time.monotonic())
            loop.run_forever()
            if self._server:
                self._server.close()
            for transport in list(self._writers):
                transport.abort()
            loop.run_until_complete(asyncio.sleep(0))  # the connections hear of their end
            loop.close()

        self._thread = threading.Thread(target=run, name="rendezvous", daemon=True)
        self._thread.start()
        started.wait()
        if ready[0] is not None:
            raise ready[0]

    def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._loop and self._thread and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)

    def tell(self, **changes: Any) -> None:
        """Change the state; everybody hears of it at once."""
        with self._changed:
            self.state = {**self.state, **changes, "seq": self.state["seq"] + 1}
        self._release()

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

    def roll_call(self, seconds: float = ROLL_WAIT) -> list[dict[str, Any]]:
        """Ask every worker for what it knows; wait for answers or losses.

        Returns:
            every cause reported so far, with ``mono``, the leader's clock.
        """
        roll = self.state["roll"] + 1
        self.tell(roll=roll)

        def answered() -> bool:
            return all(m.roll >= roll or m.lost or m.done for m in self.members.values())

        self.wait(answered, seconds)
        with self._changed:
            return [cause for member in self.members.values() for cause in member.causes]

    def give_up(self, node: int) -> None:
        """Somebody saw this worker's program end: nobody waits for its answer any more."""
        with self._changed:
            if node in self.members:
                self.members[node].lost = True
                self._changed.notify_all()

    def all_done(self) -> bool:
        """Whether every worker has ended or is lost."""
        return all(member.done or member.lost for member in self.members.values())

    # Called on the loop's thread

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any], bool]:
        """Status, answer and whether to hold it, for one request."""
        if path == "/v1/state":
            return 200, dict(self.state), False
        if path == "/v1/plan":
            return 200, {"plan": self.plan}, False
        node = body.get("node")
        if not isinstance(node, int) or isinstance(node, bool) or not 0 < node < self.size:
            return 400, {"error": f"node: found {node!r}, expected 1 to {self.size - 1}"}, False
        now = time.monotonic()
        member = self.members.get(node)
        process = str(body.get("process", ""))
        if member is None or member.process != process:
            hello = body.get("hello") or {}
            taken = self._taken(member, now)
            if taken:
                return 409, {"error": taken}, False
            refusal = self._refuse(node, hello)
            if refusal:
                return 403, {"error": refusal}, False
            member = Member(node, str(body.get("address", "")), now, now, process, hello=hello)
            member.where = str(body.get("where", ""))
            member.skew = float(body.get("clock") or time.time()) - time.time()
            with self._changed:
                self.members[node] = member
                self._changed.notify_all()
            self._on_join(member)
        member.last = now
        member.broken = 0.0
        member.phase = str(body.get("phase", ""))
        # A set that only grows: a beat that comes late takes nothing back.
        told = [name for name in body.get("passed", ()) if isinstance(name, str)]
        if not member.passed.issuperset(told):
            with self._changed:
                member.passed = member.passed.union(told)
                self._changed.notify_all()
        if isinstance(body.get("progress"), dict):
            member.progress = body["progress"]
        fresh = [c for c in body.get("causes", []) if isinstance(c, dict)][member.reported :]
        member.reported += len(fresh)
        for cause in fresh:
            entry = {**cause, "mono": now - float(cause.pop("age", 0.0))}
            member.causes.append(entry)
            self._on_cause(entry)
        if path == "/v1/done":
            self._on_record(node, body.get("record"))
            member.done = True
        member.seen = int(body.get("seq", -1))
        roll = int(body.get("roll", 0))
        if roll > member.roll or fresh or member.done:
            member.roll = max(roll, member.roll)
            with self._changed:
                self._changed.notify_all()
        hold = path == "/v1/beat" and member.seen == self.state["seq"]
        return 200, dict(self.state), hold

    def _taken(self, member: Member | None, now: float) -> str:
        """Why another process may not be this node; one that went before the run began may."""
        if member is None:
            return ""
        here = f"node {member.node} is already here, from {member.address}"
        gone = member.lost or member.broken or now - member.last > LOST_AFTER
        if self.state["phase"] != "join":
            return f"{here}, and the run has begun" if gone else here
        return "" if gone else here

    def broke(self, node: int) -> None:
        """A worker's beat connection ended without an answer taken."""
        member = self.members.get(node)
        if member and not member.done:
            member.broken = time.monotonic()

    def allowed(self, authorization: str) -> bool:
        """Whether a request carries the run's token."""
        return hmac.compare_digest(authorization.encode(), b"Bearer " + self._token)

    def stranger(self, address: str, body: bytes) -> dict[str, Any]:
        """The answer to a request without the token; what it says of itself is told once."""
        try:
            data = loads(body)
            hello = data["hello"] if isinstance(data["hello"], dict) else {}
        except (ValueError, KeyError, TypeError):
            hello = {}
        said = {key: str(hello.get(key, ""))[:80] for key in self.fingerprints}
        mark = (address, dumps(said))
        if any(said.values()) and mark not in self._strangers and len(self._strangers) < 64:
            self._strangers.add(mark)
            self._on_stranger(address, said)
        return {"error": "wrong or missing token", "fingerprints": self.fingerprints}

    def _release(self) -> None:
        def release() -> None:
            for connection in list(self.held):
                connection.let_go()

        if self._loop and self._loop.is_running():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(release)

    def _tick(self, before: float) -> None:
        now = time.monotonic()
        missed = now - before - TICK
        # All that are due at once: one wake-up costs less than one a worker.
        for connection, since in list(self.held.items()):
            if now - since > BEAT - TICK:
                connection.let_go()
        for member in list(self.members.values()):
            if missed > TICK:
                member.last += missed
                member.broken += missed if member.broken else 0.0
            if not (member.done or member.lost):
                self._judge(member, now)
        if self._loop is not None:
            self._loop.call_later(TICK, self._tick, now)

    def _judge(self, member: Member, now: float) -> None:
        """Whether a member is lost; time in which it waited for a core does not count."""
        silent = now - member.last
        if silent < 2 * BEAT and not member.broken:
            member.waited = 0.0
            return
        if member.watch is None:
            member.watch = proc.Watch(member.where, self.state["where"])
        member.waited += member.watch.waited(now)
        excused = min(member.waited, STARVED_MOST)
        gone = member.broken and now - member.broken - excused > GONE_AFTER
        if silent - excused > LOST_AFTER or gone:
            self._lose(member, silent)
        elif silent > LOST_AFTER and not member.starved:
            member.starved = True
            self._on_starved(member.node)

    def _lose(self, member: Member, silent: float) -> None:
        member.lost = True
        how = "its connection broke and it did not come back" if member.broken else "no heartbeat"
        cause = {
            "kind": "lost",
            "verdict": "infra",
            "reason": f"node {member.node} is lost: {how} for {silent:.1f} s",
            "node": member.node,
            "role": "worker",
            "process": "node",
            "phase": member.phase,
            "mono": member.last,
        }
        with self._changed:
            member.causes.append(cause)
            self._changed.notify_all()
        self._on_cause(cause)


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection; answers one request at a time."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._buffer = b""
        self._node = 0
        self._spoke = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if len(self._leader._writers) > 4 * self._leader.size + 64:
            transport.abort()
            return
        self._transport = transport
        self._leader._writers.add(transport)
        # Who never says anything that counts shall not keep a place that a worker needs.
        asyncio.get_running_loop().call_later(SILENT, self._drop_if_silent)

    def _drop_if_silent(self) -> None:
        if not self._spoke and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport:
            self._leader._writers.discard(self._transport)
        self._leader.held.pop(self, None)
        if self._node:
            self._leader.broke(self._node)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > MAX_HEADER + MAX_BODY:
            self._reply(413, {"error": "too large"}, close=True)
            return
        self._next()

    def _next(self) -> None:
        if self in self._leader.held or self._transport is None or self._transport.is_closing():
            return
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            if len(self._buffer) > MAX_HEADER:
                self._reply(431, {"error": "headers too large"}, close=True)
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BODY:
            self._reply(413, {"error": "too large"}, close=True)
            return
        if not self._leader.allowed(headers.get("authorization", "")):
            if int(length) <= MAX_HEADER and len(rest) < int(length):
                return
            peer = self._transport.get_extra_info("peername") or ("?",)
            body = rest[: int(length)] if int(length) <= MAX_HEADER else b""
            self._reply(401, self._leader.stranger(str(peer[0]), body), close=True)
            return
        self._spoke = True
        if len(rest) < int(length):
            return
        body, self._buffer = rest[: int(length)], rest[int(length) :]
        words = lines[0].split(" ")
        path = words[1] if len(words) > 1 else ""
        if path not in ("/v1/beat", "/v1/done", "/v1/state", "/v1/plan"):
            self._reply(404, {"error": "no such path"})
            return
        try:
            data = loads(body) if body else {}
            if not isinstance(data, dict):
                raise ValueError
        except (ValueError, RecursionError):
            self._reply(400, {"error": "the body is no JSON object"}, close=True)
            return
        try:
            status, answer, hold = self._leader.answer(path, data)
        except (TypeError, ValueError, AttributeError) as error:
            self._reply(400, {"error": f"{type(error).__name__}: {error}"}, close=True)
            return
        if status == 200 and path == "/v1/beat" and data.get("main"):
            self._node = data["node"]
        if path == "/v1/done":
            self._node = 0
        if not hold:
            self._reply(status, answer)
            return
        self._leader.held[self] = time.monotonic()
        if self._leader.state["seq"] != answer["seq"]:
            self.let_go()  # it changed between the look and the hold

    def let_go(self) -> None:
        """Answer a held beat: the state changed, or a beat has passed."""
        self._leader.held.pop(self, None)
        self._reply(200, dict(self._leader.state))

    def _reply(self, status: int, answer: dict[str, Any], close: bool = False) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body = dumps(answer).encode()
        reason = http.client.responses.get(status, "")
        ending = "Connection: close\r\n" if close else ""
        head = (
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n{ending}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        if close:
            self._transport.close()
        elif self._buffer:
            asyncio.get_running_loop().call_soon(self._next)


class Refused(Exception):
    """The leader does not want this node; the text says why."""


class Clock:
    """How long this program did not run when it should have: stopped, or on a busy machine."""

    def __init__(
        self, stop: threading.Event, on_tick: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._stop = stop
        self._on_tick = on_tick
        self._late = 0.0
        self._due = time.monotonic() + TICK

    def run(self) -> None:
        """Tick until told to stop."""
        while not self._stop.wait(TICK):
            # First the sum: who reads in between counts a tick twice rather than not at all.
            self._late = self.late()
            self._due = time.monotonic() + TICK
            self._on_tick(TICK)

    def late(self) -> float:
        """Seconds it was late since it was made, the present tick too."""
        overdue = time.monotonic() - self._due
        return self._late + (overdue if overdue > TICK else 0.0)


class Link:
    """A worker's side: beats in a thread, tells what changed.

    Args:
        hello: what the leader compares before it lets the node in.
        look: called before each beat; gives ``phase``, ``passed``, ``progress`` and
            ``causes``, each cause with ``mono``, this node's monotonic clock.
        on_state: called with each new state.
        on_lost: called once when the leader does not answer any more.
        on_refused: called once when the leader refuses the node.
        on_starved: called once when the leader is silent because it gets no core.
    """

    def __init__(
        self,
        address: str,
        port: int,
        token: str,
        node: int,
        own_address: str,
        hello: Mapping[str, Any],
        *,
        look: Callable[[], dict[str, Any]],
        on_state: Callable[[dict[str, Any]], None],
        on_lost: Callable[[str], None],
        on_refused: Callable[[str], None],
        on_starved: Callable[[], None] = lambda: None,
    ) -> None:
        self._target = (address, port)
        #: Two programs of one host may say the same of themselves, and be two all the same.
        self._process = secrets.token_hex(8)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.node = node
        self._own = own_address
        self._hello = dict(hello)
        self._look = look
        self._on_state = on_state
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._on_starved = on_starved
        self._where = proc.here()
        self._leader: proc.Watch | None = None
        self._heard = time.monotonic()
        self._waited = 0.0
        self.state: dict[str, Any] = {"seq": -1, "roll": 0}
        self.joined = threading.Event()
        self._stop = threading.Event()
        self._hurried = threading.Event()
        self._clock = Clock(self._stop, self._look_at_leader)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat."""
        threading.Thread(target=self._clock.run, name="clock", daemon=True).start()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Beat no more."""
        self._stop.set()

    def hurry(self) -> None:
        """Let :meth:`done` try once more, and no longer."""
        self._hurried.set()

    def report(self) -> None:
        """Tell the leader what ``look`` knows now, without waiting for the next beat."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, Refused):
            # A sequence of -2 is never the present one, so the answer is not held.
            self._post(self._connect(2.0), "/v1/beat", self._body(main=False, seq=-2))

    def done(self, record: Any, seconds: float = 10.0) -> bool:
        """Hand the node's record over; false when the leader did not take it."""
        deadline = time.monotonic() + seconds
        self._stop.set()
        while time.monotonic() < deadline:
            last = self._hurried.is_set()
            try:
                body = {**self._body(main=False, seq=-2), "record": record}
                self._post(self._connect(min(1.0 if last else 5.0, seconds)), "/v1/done", body)
                return True
            except Refused:
                return False
            except (OSError, http.client.HTTPException, ValueError):
                if last:
                    return False
                self._hurried.wait(TICK)
        return False

    def plan(self) -> str:
        """The leader's plan as JSON; empty until it has one.

        Raises:
            OSError, ValueError, Refused: the leader does not answer, or not so.
        """
        answer = self._post(self._connect(LOST_AFTER), "/v1/plan", {})
        return str(answer["plan"])

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._target, timeout=timeout)

    def _body(self, *, main: bool, seq: int) -> dict[str, Any]:
        roll = self.state["roll"]
        seen = self._look()
        now = time.monotonic()
        aged = [
            {**{k: v for k, v in cause.items() if k != "mono"}, "age": now - cause["mono"]}
            for cause in seen["causes"]
        ]
        return {
            "node": self.node,
            "address": self._own,
            "hello": self._hello,
            "process": self._process,
            "where": self._where,
            "phase": seen["phase"],
            "passed": list(seen.get("passed", ())),
            "progress": seen["progress"],
            "seq": seq,
            "roll": roll,
            "main": main,
            "clock": time.time(),
            "causes": aged,
        }

    def _post(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]
    ) -> dict[str, Any]:
        connection.request("POST", path, dumps(body), self._headers)
        response = connection.getresponse()
        answer = loads(response.read() or b"{}")
        if response.status in (401, 403, 409):
            raise Refused(self._why(answer, response.status))
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {answer.get('error', '')}")
        return dict(answer)

    def _why(self, answer: Mapping[str, Any], status: int) -> str:
        """Why the leader does not want us: what differs, when it says it."""
        theirs = answer.get("fingerprints") or {}
        for key in theirs:
            if key in self._hello and self._hello[key] != theirs[key]:
                ours = str(self._hello[key])[:24]
                return f"its {key} is {str(theirs[key])[:24]}, this node's is {ours}"
        return str(answer.get("error", status))

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        late = self._clock.late()
        refused_since = 0.0
        starved = False
        while not self._stop.is_set():
            try:
                if connection is None:
                    connection = self._connect(LOST_AFTER)
                    connection.connect()
                    if connection.sock is not None:
                        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                state = self._post(
                    connection, "/v1/beat", self._body(main=True, seq=self.state["seq"])
                )
                self._heard, late, refused_since = time.monotonic(), self._clock.late(), 0.0
                self.joined.set()
                if state["seq"] != self.state["seq"]:
                    self.state = state
                    self._on_state(state)
            except Refused as error:
                if not self._stop.is_set():
                    self._on_refused(str(error))
                return
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                if connection is not None:
                    connection.close()
                connection = None
                now = time.monotonic()
                if isinstance(error, ConnectionError):
                    refused_since = refused_since or now
                else:
                    refused_since = 0.0
                dead = refused_since and now - refused_since > GONE_AFTER
                # While this program itself got no time, the leader's answer may have come.
                silent = now - self._heard - (self._clock.late() - late)
                excused = min(self._waited, STARVED_MOST)
                if self.joined.is_set() and (silent - excused > LOST_AFTER or dead):
                    if not self._stop.is_set():
                        self._on_lost(f"{type(error).__name__}: {error}")
                    return
                if excused and silent > LOST_AFTER and not starved:
                    starved = True
                    self._on_starved()
                self._stop.wait(TICK if self.joined.is_set() else TICK / 4)
        if connection is not None:
            connection.close()

    def _look_at_leader(self, seconds: float) -> None:
        """At each tick of our own clock: does the leader, silent on this machine, get a core?"""
        now = time.monotonic()
        # Before the first answer nobody knows where the leader is.
        if not self.joined.is_set() or now - self._heard < 2 * BEAT:
            self._waited = 0.0
            return
        if self._leader is None:
            self._leader = proc.Watch(str(self.state.get("where", "")), self._where)
        # Ticks that came late are counted by the clock already.
        self._waited += min(self._leader.waited(now), seconds)
