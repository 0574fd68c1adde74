"""JSON messages, one a line, over a stream socket: between a server and its engines, between nodes,
between a decoder and a prefiller.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
LIMIT = 32 * 1024 * 1024
"""Bytes of a message without an end after which the peer is taken for somebody else."""


class Link(asyncio.Protocol):
    """One connection. `on_message` gets each message, `on_close` is called once when the other side
    is gone.
    """

    def __init__(
        self,
        on_message: Callable[[Link, Message], None],
        on_close: Callable[[Link], None] = lambda link: None,
    ) -> None:
        self.on_message, self.on_close = on_message, on_close
        self.transport: asyncio.Transport | None = None
        self.tail = b""
        self.facts: Message = {}
        self.said_bye = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio tells that the connection stands."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio brings bytes."""
        lines = (self.tail + data).split(b"\n")
        self.tail = lines.pop()
        if len(self.tail) > LIMIT:
            self.close()
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                self.close()
                return
            if not isinstance(message, dict):
                self.close()
                return
            if message.get("t") == "bye":
                self.said_bye = True
            self.on_message(self, message)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio tells that the connection is gone."""
        self.transport = None
        self.on_close(self)

    def send(self, message: Message) -> None:
        """Send, or drop the message when the other side is gone."""
        if self.transport and not self.transport.is_closing():
            self.transport.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close after what is queued has been sent."""
        if self.transport:
            self.transport.close()
