"""Looking at servers from outside: is it ready, does it answer.

Enters: a probe. Leaves: whether it succeeded, and in words why not. Touches:
one short connection.
"""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from steps.core.plan.plan import Probe

TIMEOUT = 5.0


@dataclass(frozen=True)
class Answer:
    """A probe's outcome; ``status`` is the HTTP status, 0 without one."""

    ok: bool
    detail: str
    status: int = 0


def look(probe: Probe, timeout: float = TIMEOUT) -> Answer:
    """Probe once. HTTP must be answered with 200; anything else is not ready."""
    parts = urlsplit(probe.url)
    host, port = parts.hostname or "", parts.port or 80
    try:
        if probe.kind == "tcp":
            with socket.create_connection((host, port), timeout):
                return Answer(True, "accepts connections")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(host, port, timeout=timeout)
        try:
            connection.request("GET", parts.path or "/", headers={"Connection": "close"})
            status = connection.getresponse().status
        finally:
            connection.close()
        return Answer(status == 200, f"HTTP {status}", status)
    except TimeoutError:
        return Answer(False, f"no answer within {timeout:g} s")
    except ConnectionRefusedError:
        return Answer(False, "connection refused")
    except (OSError, http.client.HTTPException) as error:
        return Answer(False, f"{type(error).__name__}: {error}".rstrip(": "))
