"""JSON lines both ways over a command on a host.

Enters: a channel. Leaves: messages, and what a shell printed before them when none
come. Touches: nothing but the channel.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from typing import Any

from ci.backends.hosts.inventory import Host
from ci.backends.hosts.ssh import NOISE, Channel, command_of, failure, parted
from steps.core.case.numbers import dumps, loads
from steps.core.errors import InfraError


class Wire:
    """JSON lines both ways over a channel.

    Attributes:
        heard: when the last byte came, though its line may not be whole: a link may be slow.
    """

    def __init__(self, host: Host, channel: Channel) -> None:
        self._host = host
        self.channel = channel
        self.heard = time.monotonic()
        self._begun = False
        self._buffer = b""
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Send one line, and bytes after it.

        Raises:
            OSError: the connection is broken.
        """
        with self._sending:
            try:
                self.channel.send(dumps(message).encode() + b"\n" + payload)
            except ValueError:  # closed meanwhile
                raise ConnectionError("the connection is closed") from None

    def lines(self, seconds: float) -> list[dict[str, Any]] | None:
        """Lines that came within ``seconds``; None when the other side has ended."""
        self.channel.seconds = seconds
        try:
            data = self.channel.read(1 << 17)
        except TimeoutError:
            return []
        except (OSError, ValueError):
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        self._buffer += data
        if not self._begun:
            noise, mark, rest = parted(self._buffer)
            self._begun, self._buffer = bool(mark), rest if mark else noise[-NOISE:]
            if not mark:
                return []
        *whole, self._buffer = self._buffer.split(b"\n")
        found = []
        for line in whole:
            with contextlib.suppress(ValueError):
                message = loads(line)
                if isinstance(message, dict):
                    found.append(message)
        return found

    def one(self, seconds: float) -> dict[str, Any]:
        """The next line.

        Raises:
            InfraError: none came, with what the host said instead.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.lines(min(1.0, seconds))
            if found is None:
                code, errors = self.channel.code(), self.channel.errors()
                noise = b"" if self._begun else self._buffer
                raise failure(self._host, code, errors, noise)
            if found:
                return found[0]
        said = "" if self._begun else self._buffer.decode("utf-8", "replace").strip()[-200:]
        raise InfraError(
            f"{self._host}: {self._host.python if self._begun else 'its shell'} said nothing of "
            f"use for {seconds:.0f} s{': ' if said else ''}{said}",
            f"Does `{command_of(self._host)} {shlex.quote(self._host.python)} --version` answer?",
        )
