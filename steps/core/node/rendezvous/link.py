"""A worker's side of the rendezvous: it beats, and hears the run's state.

Enters: how far this node is. Leaves: the leader's state, its plan, or that it is lost. Touches:
one connection to the leader, a thread that beats and one that watches the clock.
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from steps.core.case.numbers import dumps, loads
from steps.core.case.values import decode
from steps.core.node.rendezvous import pace
from steps.core.node.rendezvous.messages import (
    BEAT,
    DONE,
    PLAN,
    Aged,
    Beat,
    Hello,
    Look,
    State,
    unpacked,
)
from steps.core.system import proc


class Refused(Exception):
    """The leader does not want this node; the text says why."""


def _said(beat: Beat) -> dict[str, Any]:
    """A beat as it is written; ``asdict`` alone would copy a record, and take most of its time."""
    causes = [asdict(cause) for cause in beat.causes]
    return {**vars(beat), "hello": asdict(beat.hello), "causes": causes}


class Link:
    """A worker's side: beats in a thread, tells what changed.

    Args:
        hello: what the leader compares before it lets the node in.
        look: called before each beat; its causes count by this node's monotonic clock.
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
        hello: Hello,
        *,
        look: Callable[[], Look],
        on_state: Callable[[State], None],
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
        self._hello = hello
        self._look = look
        self._on_state = on_state
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._on_starved = on_starved
        self._where = proc.here()
        self._leader: proc.Watch | None = None
        self._heard = time.monotonic()
        self._waited = 0.0
        self.state = State(seq=-1)
        self.joined = threading.Event()
        self._lost = False
        self._stop = threading.Event()
        self._hurried = threading.Event()
        self._clock = pace.Clock(self._stop, self._look_at_leader)
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
            self._post(self._connect(2.0), BEAT, self._beat(seq=-2))

    def done(self, record: Any, seconds: float = 10.0) -> bool:
        """Hand the node's record over; false when the leader did not take it."""
        try:
            return self._done(record, seconds)
        finally:
            self._stop.set()  # not before: who is silent, though its record waits, is lost

    def _done(self, record: Any, seconds: float) -> bool:
        began, refused_since = time.monotonic(), 0.0
        while (now := time.monotonic()) < began + seconds:
            # One that is lost, or was never there, gets a last chance.
            last = self._hurried.is_set() or self._lost or not self.joined.is_set()
            try:
                beat = self._beat(seq=-2, record=record)
                self._post(self._connect(min(1.0 if last else 5.0, seconds)), DONE, beat)
                return True
            except Refused:
                return False
            except (OSError, http.client.HTTPException, ValueError) as error:
                closed = isinstance(error, ConnectionError)
                refused_since = (refused_since or now) if closed else 0.0
                if last or (closed and now - refused_since > pace.GONE_AFTER):
                    return False
                self._hurried.wait(pace.AGAIN)
        return False

    def plan(self) -> str:
        """The leader's plan as JSON; empty until it has one.

        Raises:
            OSError, ValueError, Refused: the leader does not answer, or not so.
        """
        answer = self._post(self._connect(pace.LOST_AFTER), PLAN)
        return unpacked(str(answer["plan"]))

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._target, timeout=timeout)

    def _beat(
        self, *, seq: int, main: bool = False, record: Any = None, known: bool = False
    ) -> Beat:
        """What is said; to a leader that knows this node no more of itself than is new."""
        # First the roll: what is looked at after it answers it.
        roll = self.state.roll
        seen = self._look()
        now = time.monotonic()
        return Beat(
            node=self.node,
            process=self._process,
            address=self._own,
            hello=Hello() if known else self._hello,
            where=self._where,
            phase=seen.phase,
            passed=seen.passed,
            progress=seen.progress,
            load=seen.load,
            causes=tuple(Aged(told.cause, now - told.mono) for told in seen.causes),
            seq=seq,
            roll=roll,
            main=main,
            clock=time.time(),
            record=record,
        )

    def _post(
        self, connection: http.client.HTTPConnection, path: str, beat: Beat | None = None
    ) -> dict[str, Any]:
        body = dumps(_said(beat)) if beat else "{}"
        connection.request("POST", path, body, self._headers)
        response = connection.getresponse()
        answer = loads(response.read() or b"{}")
        if response.status in (400, 401, 403, 409):
            raise Refused(self._why(answer, response.status))
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {answer.get('error', '')}")
        return dict(answer)

    def _why(self, answer: Mapping[str, Any], status: int) -> str:
        """Why the leader does not want us: what differs, when it says it."""
        theirs = answer.get("fingerprints") or {}
        for key in theirs:
            ours = getattr(self._hello, key, "")
            if ours and ours != theirs[key]:
                return f"its {key} is {str(theirs[key])[:24]}, this node's is {ours[:24]}"
        return str(answer.get("error", status))

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        late = self._clock.late()
        refused_since = 0.0
        starved = False
        while not self._stop.is_set():
            try:
                known = connection is not None and self.joined.is_set()
                if connection is None:
                    connection = self._connect(pace.LOST_AFTER)
                    connection.connect()
                    if connection.sock is not None:
                        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                beat = self._beat(seq=self.state.seq, main=True, known=known)
                answer = self._post(connection, BEAT, beat)
                # Most answers tell nothing new.
                news = decode(State, answer) if answer.get("seq") != self.state.seq else None
                self._heard, late, refused_since = time.monotonic(), self._clock.late(), 0.0
                self.joined.set()
                if news is not None:
                    self.state = news
                    self._on_state(news)
            except Refused as error:
                if not self._stop.is_set():
                    self._on_refused(str(error))
                return
            except (OSError, http.client.HTTPException, ValueError) as error:
                if connection is not None:
                    connection.close()
                connection = None
                now = time.monotonic()
                if isinstance(error, ConnectionError):
                    refused_since = refused_since or now
                else:
                    refused_since = 0.0
                dead = refused_since and now - refused_since > pace.GONE_AFTER
                # While this program itself got no time, the leader's answer may have come.
                silent = now - self._heard - (self._clock.late() - late)
                excused = min(self._waited, pace.STARVED_MOST)
                if self.joined.is_set() and (silent - excused > pace.LOST_AFTER or dead):
                    self._lost = True
                    if not self._stop.is_set():
                        self._on_lost(f"{type(error).__name__}: {error}")
                    return
                if excused and silent > pace.LOST_AFTER and not starved:
                    starved = True
                    self._on_starved()
                self._stop.wait(pace.AGAIN if self.joined.is_set() else pace.AGAIN / 4)
        if connection is not None:
            connection.close()

    def _look_at_leader(self, seconds: float) -> None:
        """At each tick of our own clock: does the leader, silent on this machine, get a core?"""
        now = time.monotonic()
        # Before the first answer nobody knows where the leader is.
        if not self.joined.is_set() or now - self._heard < 2 * pace.BEAT:
            self._waited = 0.0
            return
        if self._leader is None:
            self._leader = proc.Watch(self.state.where, self._where)
        # Ticks that came late are counted by the clock already.
        self._waited += min(self._leader.waited(now), seconds)
