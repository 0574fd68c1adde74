"""One HTTP request to a server, its answer read while it is still being written."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

_LIMIT = 1 << 20


class Unanswered(Exception):
    """The server cannot be reached, or broke off; the text says how."""


class Call:
    """A request; used with `async with`, leaving it drops the connection.

    Attributes:
        status, kind: of the answer: HTTP status, content type.
    """

    def __init__(self, method: str, url: str, body: bytes = b"", **headers: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        lines = [f"{method} {parts.path or '/'} HTTP/1.1", f"host: {parts.netloc}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"content-length: {len(body)}", "connection: close"]
        self._request = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body
        self.status, self.kind = 0, ""
        self._headers: Mapping[str, str] = {}

    async def __aenter__(self) -> Call:
        try:
            reader, self._writer = await asyncio.open_connection(self.host, self.port, limit=_LIMIT)
        except OSError as error:
            text = os.strerror(error.errno) if error.errno else str(error)
            raise Unanswered(text) from None
        self._reader = reader
        try:
            self._writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            self.status = int(head[0].split(" ")[1])
        except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
            self._writer.close()
            raise Unanswered("connection closed before message completed") from None
        except BaseException:
            self._writer.close()
            raise
        rows = (line.partition(":") for line in head[1:] if line)
        self._headers = {name.strip().lower(): value.strip() for name, _, value in rows}
        self.kind = self._headers.get("content-type", "")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Unanswered when it breaks off."""
        try:
            if self._headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int((await self._reader.readline()).split(b";")[0], 16):
                    yield await self._reader.readexactly(size)
                    await self._reader.readexactly(2)
            else:
                yield await self._reader.readexactly(int(self._headers["content-length"]))
        except (OSError, EOFError, ValueError, KeyError):
            raise Unanswered("error decoding response body") from None

    async def body(self) -> bytes:
        """The whole of it."""
        return b"".join([piece async for piece in self.pieces()])
