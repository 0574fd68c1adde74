"""One chat completion, asked with patience that can be cut short.

Enters: an endpoint and a question. Leaves: a :class:`Reply`. Touches: one
HTTP request.
"""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

from steps.core.case.numbers import dumps, loads


@dataclass(frozen=True)
class Reply:
    """An answer; ``error`` says why ``text`` is empty."""

    status: int
    text: str
    error: str


def ask(
    url: str, model: str, question: str, tokens: int, ended: threading.Event, timeout: float
) -> Reply:
    """Ask once.

    Args:
        ended: when set, the request is given up.
        timeout: seconds for the whole answer.
    """
    box: list[Reply] = []

    def work() -> None:
        box.append(_request(url, model, question, tokens, timeout))

    thread = threading.Thread(target=work, name="completion", daemon=True)
    thread.start()
    waited = 0.0
    while thread.is_alive() and waited < timeout + 1:
        thread.join(0.02)
        waited += 0.02
        if ended.is_set():
            return Reply(0, "", "given up: the run ended")
    return box[0] if box else Reply(0, "", f"no answer within {timeout:g} s")


def _request(url: str, model: str, question: str, tokens: int, timeout: float) -> Reply:
    chat = {"messages": [{"role": "user", "content": question}]}
    reply = _post(url, "/v1/chat/completions", {**chat, "model": model}, tokens, timeout)
    if reply.status == 400 and "chat template" in reply.error:
        plain: dict[str, object] = {"prompt": question, "model": model}
        return _post(url, "/v1/completions", plain, tokens, timeout)
    return reply


def _post(url: str, path: str, body: dict[str, object], tokens: int, timeout: float) -> Reply:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    payload = dumps({**body, "max_tokens": tokens, "temperature": 0, "stream": False})
    try:
        connection.request("POST", path, payload, {"Content-Type": "application/json"})
        response = connection.getresponse()
        raw = response.read(1 << 20).decode("utf-8", "replace")
    except TimeoutError:
        return Reply(0, "", f"no answer within {timeout:g} s")
    except (OSError, http.client.HTTPException) as error:
        return Reply(0, "", f"{type(error).__name__}: {error}".rstrip(": "))
    finally:
        connection.close()
    if response.status != 200:
        return Reply(response.status, "", f"HTTP {response.status}: {' '.join(raw.split())[:300]}")
    try:
        choice = loads(raw)["choices"][0]
        message = choice.get("message") or {}
        text = choice.get("text") or message.get("content") or message.get("reasoning_content")
        text = text or message.get("reasoning") or ""
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Reply(200, "", f"the answer is no completion: {' '.join(raw.split())[:200]}")
    # JSON can spell a lone surrogate, which no file takes.
    text = text.encode("utf-8", "replace").decode()
    return Reply(200, text, "" if text.strip() else "the answer has no text")
