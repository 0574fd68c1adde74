"""A small HTTP/1.1 server: keep-alive, chunked answers, hundreds of open streams without a task
each.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
PHRASES = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True)
class Request:
    """One request; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    client: str


class Connection(asyncio.Protocol):
    """One client. `handle(request, connection)` answers with `reply`, or with `stream`, `chunk`...,
    `end`.
    """

    def __init__(
        self,
        handle: Callable[[Request, Connection], None],
        log: Callable[[Request, int], None],
        everyone: set[Connection],
    ) -> None:
        self.handle, self.log, self.everyone = handle, log, everyone
        self.buffer = bytearray()
        self.request: Request | None = None
        self.on_gone: Callable[[], None] | None = None
        self.closing = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client came."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        peer = transport.get_extra_info("peername") or ("-", 0)
        self.client = f"{peer[0]}:{peer[1]}"
        self.everyone.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the client went; whoever works for it is told."""
        self.transport = None
        self.everyone.discard(self)
        gone, self.on_gone = self.on_gone, None
        if gone:
            gone()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        self.buffer += data
        self._next()

    def _next(self) -> None:
        while self.request is None and self.transport:
            try:
                request = self._parse()
            except ValueError as error:
                self.closing = True
                self.request = Request("-", "-", {}, b"", self.client)
                self.reply(
                    400,
                    {
                        "error": {
                            "message": str(error),
                            "type": "BadRequestError",
                            "param": None,
                            "code": 400,
                        }
                    },
                )
                return
            if request is None:
                return
            self.request = request
            self.handle(request, self)

    def _parse(self) -> Request | None:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self.buffer) > MAX_HEAD:
                raise ValueError("request head too large")
            return None
        lines = self.buffer[:end].decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise ValueError("Invalid HTTP request received.")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        taken = self._body(end + 4, headers)
        if taken is None:
            if (
                headers.pop("expect", "").lower() == "100-continue"
                and self.transport
                and len(self.buffer) == end + 4
            ):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        body, stop = taken
        del self.buffer[:stop]
        self.closing = headers.get("connection", "").lower() == "close" or parts[2] == "HTTP/1.0"
        return Request(parts[0].upper(), parts[1].split("?", 1)[0], headers, body, self.client)

    def _body(self, start: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > MAX_BODY:
                raise ValueError("bad content-length")
            stop = start + int(length)
            return None if len(self.buffer) < stop else (bytes(self.buffer[start:stop]), stop)
        body = b""
        while True:
            line = self.buffer.find(b"\r\n", start)
            if line < 0:
                return None
            size = int(bytes(self.buffer[start:line]).split(b";")[0], 16)
            start = line + 2
            if len(self.buffer) < start + size + 2:
                return None
            body += self.buffer[start : start + size]
            start += size + 2
            if size == 0:
                return body, start

    def reply(self, status: int, content: Any, kind: str = "application/json") -> None:
        """Answer the current request at once; bytes go out as they are, anything else as JSON."""
        body = (
            content
            if isinstance(content, bytes)
            else json.dumps(content, separators=(",", ":")).encode()
        )
        self._send(self._head(status, kind if body else "", f"content-length: {len(body)}") + body)
        self._done(status)

    def stream(self) -> None:
        """Begin a chunked answer of server-sent events."""
        self._send(
            self._head(200, "text/event-stream; charset=utf-8", "transfer-encoding: chunked")
        )

    def chunk(self, data: bytes) -> None:
        """A piece of the chunked answer."""
        self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """The chunked answer is complete."""
        self._send(b"0\r\n\r\n")
        self._done(200)

    def cut(self) -> None:
        """Drop the client in the middle of an answer."""
        self.on_gone = None
        if self.transport:
            self.transport.close()

    def _head(self, status: int, kind: str, length: str) -> bytes:
        last = "connection: close\r\n" if self.closing else ""
        typed = f"content-type: {kind}\r\n" if kind else ""
        return (
            f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\nserver: uvicorn\r\n"
            f"{typed}{length}\r\n{last}\r\n"
        ).encode()

    def _send(self, data: bytes) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.write(data)

    def _done(self, status: int) -> None:
        request, self.request, self.on_gone = self.request, None, None
        if request:
            self.log(request, status)
        if self.closing and self.transport:
            self.transport.close()
        elif self.buffer:
            asyncio.get_running_loop().call_soon(self._next)
