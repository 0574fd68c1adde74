"""HTTP/1.1 and websockets on asyncio streams, as little as an API server needs.

Enters: bytes from clients. Leaves: :class:`Request` values to one handler, and its answers.
    Touches one listening
socket and its connections.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .errors import ApiError, too_large

BODY_LIMIT = 3 * 1024 * 1024
_WEBSOCKET_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Cut(Exception):
    """The connection is to be closed without another byte."""


@dataclass
class Request:
    """One request and the means to answer it, once."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    path: str = ""
    query: dict[str, list[str]] = field(default_factory=dict)
    answered: bool = False
    cut_after: int | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        self.path = unquote(parts.path)
        self.query = parse_qs(parts.query, keep_blank_values=True)

    def arg(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        return self.arg(name).lower() in ("1", "true", "t")

    async def answer(
        self, code: int, body: dict[str, Any] | str | bytes, headers: dict[str, str] | None = None
    ) -> None:
        """Send one whole answer."""
        if isinstance(body, dict):
            kind, data = (
                "application/json",
                json.dumps(body, separators=(",", ":")).encode() + b"\n",
            )
        else:
            kind, data = (
                "text/plain; charset=utf-8",
                body.encode() if isinstance(body, str) else body,
            )
        self._head(
            code, {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}
        )
        await self._send(data)

    async def start_stream(self, kind: str = "application/json") -> None:
        self._head(200, {"Content-Type": kind, "Transfer-Encoding": "chunked"})
        await self.writer.drain()

    async def send(self, data: bytes) -> None:
        if data:
            await self._send(b"%x\r\n" % len(data) + data + b"\r\n")

    async def end_stream(self) -> None:
        await self._send(b"0\r\n\r\n")

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self.answered = True
        try:
            phrase = HTTPStatus(code).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/1.1 {code} {phrase}", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode())

    async def _send(self, data: bytes) -> None:
        if self.cut_after is not None:
            if len(data) >= self.cut_after:
                self.writer.write(data[: self.cut_after])
                await self.writer.drain()
                raise Cut
            self.cut_after -= len(data)
        self.writer.write(data)
        await self.writer.drain()

    def accept_websocket(self, protocol: str) -> WebSocket:
        key = self.headers.get("sec-websocket-key", "") + _WEBSOCKET_KEY
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}
        if protocol:
            headers["Sec-WebSocket-Protocol"] = protocol
        self._head(101, headers)
        return WebSocket(self.reader, self.writer)


class WebSocket:
    """The server's side of a websocket; pings are answered while receiving."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes, opcode: int = 2) -> None:
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
        self.writer.write(head + data)
        await self.writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        """The next message as (opcode, data); opcode 8 is the end."""
        whole, first = b"", 0
        while True:
            try:
                b0, b1 = await self.reader.readexactly(2)
                size = b1 & 0x7F
                if size == 126:
                    (size,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
                mask = await self.reader.readexactly(4) if b1 & 0x80 else b""
                data = await self.reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                return 8, b""
            if mask and size:
                repeated = (mask * (size // 4 + 1))[:size]
                data = (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(
                    size, "big"
                )
            opcode = b0 & 0x0F
            if opcode == 9:
                await self.send(data, 10)
                continue
            if opcode == 10:
                continue
            first = first or opcode
            whole += data
            if b0 & 0x80:
                return first, whole

    async def close(self, code: int = 1000) -> None:
        with contextlib.suppress(ConnectionError):
            await self.send(struct.pack("!H", code), 8)


Handler = Callable[[Request], Awaitable[None]]


class Server:
    """One listening socket. ``open`` and ``close`` may be repeated: the port stays the same."""

    def __init__(
        self, handler: Handler, host: str, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.handler, self.host, self.port, self.tls = handler, host, port, tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, self.host, self.port, ssl=self.tls, limit=256 * 1024, backlog=512
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            # What was accepted in this moment gets its task first: asyncio would forget it, open.
            for listening in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            for _ in range(5):
                await asyncio.sleep(0)
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (
            Cut,
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ssl.SSLError,
        ):
            pass
        except asyncio.CancelledError:
            pass  # the server closes: ending the task quietly is what cutting the connection means
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        request = Request(method, target, headers, b"", reader, writer)
        if "100-continue" in headers.get("expect", ""):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            request.body = await self._body(reader, headers)
            await self.handler(request)
        except ApiError as refusal:
            if request.answered:
                raise Cut from None
            await request.answer(refusal.code, refusal.body, refusal.headers)
            if refusal.code == 413:
                raise Cut from None
        return headers.get("connection", "").lower() != "close" and headers.get("upgrade", "") == ""

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            whole = b""
            while size := int((await reader.readline()).split(b";")[0], 16):
                whole += await reader.readexactly(size)
                await reader.readline()
                if len(whole) > BODY_LIMIT:
                    raise too_large()
            await reader.readline()
            return whole
        size = int(headers.get("content-length", "0"))
        if size > BODY_LIMIT:
            left = size
            while left > 0 and (part := await reader.read(min(left, 65536))):
                left -= len(part)
            raise too_large()
        return await reader.readexactly(size)
