"""Requests of the checks of content, and prompts of so many tokens.

Enters: a run, a body or a prompt. Leaves: the answer, or the text. Touches: one short HTTP
connection a request, inside the phase's budget.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steps.core.case.content import Prompt
from steps.core.case.numbers import loads, whole
from steps.core.node import http
from steps.core.node.noderun import NodeRun
from steps.core.plan.plan import Access, Plan
from steps.core.record.records import Check

#: Bytes of an answer that are read; no answer of a check is longer.
MOST = 1 << 24
#: No token has more letters of one kind.
LETTERS = 32
#: What a rehearsal does not judge, and why.
NO_TOKENIZER = "rehearsed: stand-ins have no tokenizer of the model"
NO_ANSWER = "rehearsed: stand-ins answer nothing of substance"


class Impossible(Exception):
    """A check cannot be made; the text says why."""


@dataclass(frozen=True)
class Text:
    """A prompt as it is sent; ``tokens`` with the chat template, None where nobody counted."""

    text: str
    tokens: int | None = None


def post(run: NodeRun, to: Access, body: Any) -> http.Reply:
    """Ask once; RunEnded and StepFailed (the phase's budget) pass through."""
    box: list[http.Reply] = []
    limit = run.plan.budgets["checks"].seconds

    def work() -> None:
        box.append(http.request("POST", to, limit, body, most=MOST))
        run.ended.stir()

    thread = threading.Thread(target=work, name="check", daemon=True)
    thread.start()
    kind = "proxy" if run.plan.endpoint.kind == "proxy" else "server"
    run.until(
        lambda: bool(box) or not thread.is_alive(),
        lambda: f"an answer from {to.url}",
        blame=lambda: (run.me, kind),
    )
    run.progress()
    return box[0] if box else http.Reply(0, "", "the harness's own request failed")


def absent(run: NodeRun, reply: http.Reply, path: str) -> str:
    """Why a proxy cannot answer a path at all; empty when it can, or there is none."""
    if run.plan.proxy is not None and reply.status in (404, 405, 501):
        return f"the proxy has no {path} (HTTP {reply.status})"
    return ""


def trouble(reply: http.Reply) -> str:
    """What is wrong with an answer that should be a 200; empty when it is one."""
    if reply.status == 200:
        return ""
    return reply.error or f"HTTP {reply.status}: {' '.join(reply.text.split())[:300]}"


def said(
    name: str,
    status: str,
    asked: object,
    expected: object,
    found: object,
    fault: str = "functional",
) -> Check:
    """A check with what was asked, expected and found."""
    asked, found = (" ".join(str(each).split()) for each in (asked, found))
    text = f"asked {shorten(asked, 80)!r}; expected {expected}; found {shorten(found, 400)}"
    return Check(name, status, text, fault, "checks")


def shorten(text: str, most: int) -> str:
    """A text in one line's length."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def build(run: NodeRun, prompt: Prompt) -> Text:
    """The text of a prompt, repeated to the tokens that the case wants.

    The seed is repeated line by line, and the rest filled with letters, as upstream does.

    Raises:
        Impossible: nobody counts tokens.
    """
    if not prompt.target_tokens:
        return Text(prompt.text)
    to, model = _tokenizer(run.plan).at("/tokenize"), run.plan.endpoint.model

    def count(**body: Any) -> int:
        reply = post(run, to, {"model": model, **body})
        try:
            if reply.status == 200:
                return whole(loads(reply.text)["count"])
        except (ValueError, KeyError, TypeError):
            pass
        why = trouble(reply) or "the answer has no count"
        raise Impossible(f"{to.url} does not count tokens: {why}")

    template = count(messages=[{"role": "user", "content": "test"}]) - count(prompt="test")
    template = max(template, 0)
    room = prompt.target_tokens - template
    most = prompt.target_tokens
    lines = _most(most, lambda n: count(prompt="\n".join([prompt.text] * n)) <= room)
    text = "\n".join([prompt.text] * max(lines, 1))
    if lines:
        most *= LETTERS
        text += "a" * _most(most, lambda n: count(prompt=text + "a" * n) <= room)
    return Text(text, count(prompt=text) + template if template else None)


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to a limit that fits; 0 when 1 does not."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _tokenizer(plan: Plan) -> Access:
    """The server that counts tokens: a prefiller, or the first; proxies cannot."""
    servers = [(node.side, server.access) for node, server in plan.servers() if server.api]
    return min(servers, key=lambda entry: entry[0] != "prefiller")[1]
