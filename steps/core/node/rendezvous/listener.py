"""The leader's HTTP end: one port, and one connection a worker.

Enters: requests of anybody who reaches the port. Leaves: what the ledger answers; answers to
beats may be held until the state changes. Touches: a TCP port, a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from steps.core import door
from steps.core.case.numbers import dumps
from steps.core.node.rendezvous import pace
from steps.core.node.rendezvous.messages import BEAT, DONE, PLAN, STATE

#: Seconds a connection may take to its first request with the right token.
SILENT = 10.0
MAX_HEADER = 16 << 10
MAX_BODY = 4 << 20


@dataclass(frozen=True)
class Answer:
    """An answer to one request.

    Attributes:
        text: its JSON.
        hold: wait with it until the state changes.
        node: the worker whose life hangs on this connection; 0: nobody's; None: as before.
    """

    status: int
    text: str
    hold: bool = False
    node: int | None = None


def refusal(status: int, why: str) -> Answer:
    """An answer that says no, and never at length."""
    return Answer(status, dumps({"error": why[:300]}))


class Ledger(Protocol):
    """What answers the requests, on the listener's thread."""

    address: str
    port: int
    size: int
    text: str

    def allowed(self, authorization: str) -> bool:
        """Whether a request carries the run's token."""

    def stranger(self, address: str, body: bytes) -> Answer:
        """The answer to a request without the token."""

    def answer(self, path: str, body: bytes) -> Answer:
        """The answer to a request with it."""

    def broke(self, node: int) -> None:
        """A worker's connection ended."""

    def tick(self, missed: float) -> None:
        """A moment passed; ``missed`` seconds of it this program did not run."""


class Listener:
    """A thread with an event loop that serves the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.held: dict[_Connection, float] = {}
        self.writers: set[asyncio.Transport] = set()
        self.loop = asyncio.new_event_loop()
        self.server: asyncio.Server | None = None
        self._ready = threading.Event()
        self._complained: set[str] = set()
        self._trouble: OSError | None = None
        self.thread = threading.Thread(target=self._run, name="rendezvous", daemon=True)

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken or the address is not ours.
        """
        self.thread.start()
        self._ready.wait()
        if self._trouble is not None:
            raise self._trouble

    def close(self) -> None:
        """Stop listening and drop every connection."""
        if self.thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(5)
        elif not self._ready.is_set():
            self.loop.close()

    def release(self) -> None:
        """Answer every held beat: the state changed."""
        if self.loop.is_running():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._let_all_go)

    def _let_all_go(self) -> None:
        for connection in list(self.held):
            connection.let_go()

    def _run(self) -> None:
        loop, ledger = self.loop, self.ledger
        try:
            self.server = loop.run_until_complete(
                loop.create_server(
                    lambda: _Connection(self), ledger.address, ledger.port, backlog=1024
                )
            )
        except OSError as error:
            self._trouble = error
            loop.close()
            return
        finally:
            self._ready.set()
        loop.set_exception_handler(self._complain)
        # No task: one that a thread leaves behind is complained of when the program ends.
        loop.call_later(pace.TICK, self._tick, time.monotonic())
        loop.run_forever()
        self.server.close()
        for transport in list(self.writers):
            transport.abort()
        loop.run_until_complete(asyncio.sleep(0))  # the connections hear of their end
        loop.close()

    def _complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complain(context.get("exception"), context["message"])

    def complain(self, error: object, where: str) -> None:
        """One line for each kind of failure of ours, however often somebody brings it about."""
        kind = f"{type(error).__name__} in {where}"
        if kind not in self._complained:
            self._complained.add(kind)
            door.warn(f"the rendezvous failed at a request: {kind[:200]}: {str(error)[:200]}")

    def _tick(self, before: float) -> None:
        now = time.monotonic()
        # All that are due at once: one wake-up costs less than one a worker.
        for connection, since in list(self.held.items()):
            if now - since > pace.BEAT - pace.TICK / 2:
                connection.let_go()
        self.ledger.tick(now - before - pace.TICK)
        self.loop.call_later(pace.TICK, self._tick, now)


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection; answers one request at a time."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._ledger = listener.ledger
        self._buffer = b""
        self._node = 0
        self._spoke = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            return
        if len(self._listener.writers) > 4 * self._ledger.size + 64:
            transport.abort()
            return
        self._transport = transport
        self._listener.writers.add(transport)
        # A peer that never says anything that counts must not keep a place that a worker needs.
        self._listener.loop.call_later(SILENT, self._drop_if_silent)

    def _drop_if_silent(self) -> None:
        if not self._spoke and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport:
            self._listener.writers.discard(self._transport)
        self._listener.held.pop(self, None)
        if self._node:
            self._ledger.broke(self._node)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > MAX_HEADER + MAX_BODY:
            self._reply(refusal(413, "too large"), close=True)
            return
        self._next()

    def _next(self) -> None:
        """Answer the next request, if it is there in full."""
        if self in self._listener.held or self._transport is None or self._transport.is_closing():
            return
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            if len(self._buffer) > MAX_HEADER:
                self._reply(refusal(431, "headers too large"), close=True)
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        told = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,9}", told) or int(told) > MAX_BODY:
            self._reply(refusal(413, "too large"), close=True)
            return
        length = int(told)
        if not self._ledger.allowed(headers.get("authorization", "")):
            if length <= MAX_HEADER and len(rest) < length:
                return
            peer = self._transport.get_extra_info("peername") or ("?",)
            body = rest[:length] if length <= MAX_HEADER else b""
            self._reply(self._ledger.stranger(str(peer[0]), body), close=True)
            return
        self._spoke = True
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        self._answer([*lines[0].split(" "), ""][1], rest[:length])

    def _answer(self, path: str, body: bytes) -> None:
        if path not in (BEAT, DONE, STATE, PLAN):
            self._reply(refusal(404, "no such path"))
            return
        try:
            answer = self._ledger.answer(path, body)
        except RecursionError:  # how deep is too deep depends on the Python, and on who looks
            answer = refusal(400, "nested too deeply")
        if answer.node is not None:
            self._node = answer.node
        if not answer.hold:
            self._reply(answer, close=answer.status == 400)
            return
        self._listener.held[self] = time.monotonic()
        if self._ledger.text != answer.text:
            self.let_go()  # it changed between the look and the hold

    def let_go(self) -> None:
        """Answer a held beat: the state changed, or a beat has passed."""
        self._listener.held.pop(self, None)
        self._reply(Answer(200, self._ledger.text))

    def _reply(self, answer: Answer, close: bool = False) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body = answer.text.encode()
        reason = http.client.responses.get(answer.status, "")
        ending = "Connection: close\r\n" if close else ""
        head = (
            f"HTTP/1.1 {answer.status} {reason}\r\nContent-Type: application/json\r\n{ending}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        if close:
            self._transport.close()
        elif self._buffer:
            self._listener.loop.call_soon(self._next)
