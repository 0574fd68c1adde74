"""Asking servers over HTTP: is it ready, does it answer, what does it tell.

Enters: a probe, a question or a path. Leaves: the answer, or in words why there is none.
Touches: one short connection each, but for a :class:`Line`.

Proxies, ``.netrc`` and certificates that the environment names are never asked.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from steps.core.case.numbers import dumps, loads
from steps.core.plan.plan import Access, Probe

TIMEOUT = 5.0
#: The most that is read of an engine's metrics.
METRICS = 1 << 26


@dataclass(frozen=True)
class Answer:
    """A probe's outcome; ``status`` is the HTTP status, 0 without one."""

    ok: bool
    detail: str
    status: int = 0


@dataclass(frozen=True)
class Reply:
    """An answer; ``error`` says why ``text`` is empty."""

    status: int
    text: str
    error: str


def unverified() -> ssl.SSLContext:
    """TLS with whatever certificate: what is asked is whether the plan's own server answers."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def prepare() -> None:
    """Load what asking needs: a tenth of the node program's own start, and not every step asks."""
    import requests  # noqa: F401


def request(
    method: str, to: Access, timeout: float = TIMEOUT, body: object = None, most: int = 1 << 20
) -> Reply:
    """Ask once and follow nothing; ``body`` goes as JSON, ``most`` bytes of the answer are read."""
    import requests
    import urllib3

    data = None if body is None else dumps(body).encode()
    headers = {"Connection": "close", **to.headers}
    headers |= {"Content-Type": "application/json"} if data else {}
    try:
        with requests.Session() as session:
            session.trust_env = False
            urllib3.disable_warnings()  # of certificates nobody looked at
            answer = session.request(
                method,
                to.url,
                data=data,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                stream=True,
                verify=False,
            )
            raw = bytearray()
            pieces = answer.iter_content(most) if most else iter(())
            while len(raw) < most and (piece := next(pieces, b"")):
                raw += piece
            return Reply(answer.status_code, raw[:most].decode("utf-8", "replace"), "")
    except (requests.RequestException, OSError, ValueError) as error:
        return Reply(0, "", _why(error, timeout))


class Line:
    """A connection that is kept, for one question again and again at a tenth of its cost.

    Not for several threads at once.
    """

    def __init__(self, to: Access) -> None:
        parts = urlsplit(to.url)
        host, self._path = parts.hostname or "", parts.path
        self._headers = to.headers
        self._open: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, parts.port, context=unverified())
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, parts.port)
        )

    def get(self, timeout: float, most: int) -> Reply:
        """Ask; an answer longer than ``most`` bytes, or later than ``timeout`` seconds, is none."""
        kept, until = self._open.sock is not None, time.monotonic() + timeout
        try:
            return self._get(timeout, until, most)
        except (http.client.HTTPException, OSError, ValueError) as error:
            self.close()
            if kept and not isinstance(error, TimeoutError):  # it was closed meanwhile
                return self.get(timeout, most)
            return Reply(0, "", _why(error, timeout))

    def _get(self, timeout: float, until: float, most: int) -> Reply:
        self._open.timeout = timeout
        if self._open.sock:
            self._open.sock.settimeout(timeout)
        self._open.request("GET", self._path, headers=self._headers)
        answer = self._open.getresponse()
        raw = bytearray()
        while piece := answer.read1(1 << 16):
            raw += piece
            if len(raw) > most or time.monotonic() > until:
                raise TimeoutError
        answer.close()  # read1 does not notice the end, and the next question needs it
        return Reply(answer.status, raw.decode("utf-8", "replace"), "")

    def close(self) -> None:
        """End it; the next question begins it anew."""
        with contextlib.suppress(OSError):
            self._open.close()


def _why(error: BaseException, timeout: float) -> str:
    """The first cause in words; libraries wrap it several times."""
    causes = list(_causes(error))
    if any("timeout" in type(cause).__name__.lower() for cause in causes):
        return f"no answer within {timeout:g} s"
    if isinstance(causes[-1], ConnectionRefusedError):
        return "connection refused"
    return f"{type(causes[-1]).__name__}: {causes[-1]}".rstrip(": ")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def look(probe: Probe, timeout: float = TIMEOUT) -> Answer:
    """Probe once. HTTP must be answered with 200; anything else is not ready.

    Whether somebody listens is seen first: that costs a tenth, and most servers load for long.
    """
    if probe.kind != "tcp":
        if not (listens := _connect(probe.url, timeout)).ok:
            return listens
        reply = request("GET", Access(probe.url), timeout, most=0)
        return Answer(reply.status == 200, reply.error or f"HTTP {reply.status}", reply.status)
    answers = (_connect(url, timeout) for url in (probe.url, *probe.also))
    return next(
        (answer for answer in answers if not answer.ok), Answer(True, "accepts connections")
    )


def _connect(url: str, timeout: float) -> Answer:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout):
            return Answer(True, "accepts connections")
    except OSError as error:
        return Answer(False, _why(error, timeout))


def ask(
    to: Access, model: str, question: str, tokens: int, ended: threading.Event, timeout: float
) -> Reply:
    """Ask for one chat completion, with patience that can be cut short.

    Args:
        ended: when set, the request is given up.
        timeout: seconds for the whole answer.
    """
    box: list[Reply] = []

    def work() -> None:
        box.append(_complete(to, model, question, tokens, timeout))

    thread = threading.Thread(target=work, name="completion", daemon=True)
    thread.start()
    waited = 0.0
    while thread.is_alive() and waited < timeout + 1:
        thread.join(0.02)
        waited += 0.02
        if ended.is_set():
            return Reply(0, "", "given up: the run ended")
    return box[0] if box else Reply(0, "", f"no answer within {timeout:g} s")


def _complete(to: Access, model: str, question: str, tokens: int, timeout: float) -> Reply:
    body = {"model": model, "max_tokens": tokens, "temperature": 0, "stream": False}
    chat = {**body, "messages": [{"role": "user", "content": question}]}
    reply = request("POST", to.at("/v1/chat/completions"), timeout, chat)
    if reply.status == 400 and "chat template" in reply.text:
        plain = {**body, "prompt": question}
        reply = request("POST", to.at("/v1/completions"), timeout, plain)
    return _completion(reply)


def _completion(reply: Reply) -> Reply:
    """The text of a completion."""
    raw = " ".join(reply.text.split())
    if reply.status != 200:
        return Reply(reply.status, "", reply.error or f"HTTP {reply.status}: {raw[:300]}")
    try:
        choice = loads(reply.text)["choices"][0]
        message = choice.get("message") or {}
        text = choice.get("text") or message.get("content") or message.get("reasoning_content")
        text = text or message.get("reasoning") or ""
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Reply(200, "", f"the answer is no completion: {raw[:200]}")
    # JSON can spell a lone surrogate, which no file takes.
    text = text.encode("utf-8", "replace").decode()
    return Reply(200, text, "" if text.strip() else "the answer has no text")
