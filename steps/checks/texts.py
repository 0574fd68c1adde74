"""Checks of text: ``chat_completion``, ``completion`` and ``messages``.

Enters: a run whose fleet is ready. Leaves: a check for each prompt. Touches: HTTP requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from steps.checks.asking import (
    NO_TOKENIZER,
    Impossible,
    Text,
    absent,
    build,
    post,
    said,
    trouble,
)
from steps.core.case.content import Exchange, Expected
from steps.core.case.numbers import loads
from steps.core.node import http
from steps.core.node.noderun import NodeRun
from steps.core.plan.plan import LEADER, Plan
from steps.core.record.records import Check
from steps.core.vllm import commandline

#: What a request of ``/v1/messages`` takes from the case; tokens, where it says nothing.
_OF_MESSAGES = ("max_tokens", "tools", "stream")
_MESSAGE_TOKENS = 100
_EVENTS = ("message_start", "content_block_delta", "message_stop")


def chat_completion(run: NodeRun) -> Iterator[Check]:
    """One request a prompt, one at a time; the answer has text, and the tokens that are wanted."""
    for name, exchange in _named(run, "chat_completion"):
        try:
            text = build(run, exchange.prompt)
        except Impossible as error:
            yield said(name, "fail", exchange.prompt.text, "tokens counted", error)
            continue
        expected, skipped = exchange.expected, ""
        if run.plan.rehearsed and expected.prompt_tokens and text.tokens is None:
            skipped = NO_TOKENIZER
        body = {**_chat(run, text.text), **exchange.args}
        if expected.completion_tokens:
            body |= dict.fromkeys(("max_tokens", "min_tokens"), expected.completion_tokens)
        reply = post(run, run.plan.endpoint.access.at("/v1/chat/completions"), body)
        yield judge(name, text, expected, reply, longest(run.plan, expected), skipped)
        if skipped:
            yield Check(f"{name} prompt_tokens", "skipped", skipped, phase="checks")


def judge(
    name: str, text: Text, expected: Expected, reply: http.Reply, most: int, skipped: str = ""
) -> Check:
    """Whether an answer is what the case expects, a pure function.

    Args:
        most: tokens that prompt and answer may have together; 0: nobody says.
        skipped: why the tokens of the prompt are not judged.
    """
    prompt = None if skipped else expected.prompt_tokens or text.tokens
    wanted = {"prompt_tokens": prompt, "completion_tokens": expected.completion_tokens}
    wanted = {key: value for key, value in wanted.items() if value}
    expects = ", ".join(["text", *(f"{key} {value}" for key, value in wanted.items())])
    wrong = trouble(reply)
    answer, usage = ("", {}) if wrong else _answer(reply.text)
    if not wrong and not answer:
        wrong = f"no text: {reply.text[:200]}"
    odd = [
        f"{key} {usage.get(key, 'not told')}"
        for key, value in wanted.items()
        if usage.get(key) != value
    ]
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    together = sum(count for count in counts if isinstance(count, int))
    if (expected.counts_tokens or text.tokens) and 0 < most < together:
        odd.append(f"{together} tokens, more than max_model_len {most}")
    found = wrong or ", ".join(odd) or f"{answer[:80]!r}, {_counts(usage)}"
    return said(name, "fail" if wrong or odd else "pass", text.text, expects, found)


def completion(run: NodeRun) -> Iterator[Check]:
    """All prompts in one request, or in one each where they have arguments of their own."""
    exchanges = run.plan.content.exchanges
    same = all(exchange.args == exchanges[0].args for exchange in exchanges)
    groups = [exchanges] if same else [(exchange,) for exchange in exchanges]
    for number, group in enumerate(groups):
        name = f"completion {number + 1}" if len(groups) > 1 else "completion"
        try:
            texts = [build(run, exchange.prompt).text for exchange in group]
        except Impossible as error:
            yield said(name, "fail", group[0].prompt.text, "tokens counted", error)
            continue
        prompt: Any = texts if len(texts) > 1 else texts[0]
        body = {"model": run.plan.endpoint.model, "prompt": prompt, **group[0].args}
        reply = post(run, run.plan.endpoint.access.at("/v1/completions"), body)
        wrong = trouble(reply)
        found = [] if wrong else _choices(reply.text)
        empty = [at for at in range(len(texts)) if at >= len(found) or not found[at].strip()]
        if not wrong and empty:
            wrong = f"no text for prompt {empty[0] + 1}: {reply.text[:200]}"
        yield said(name, "fail" if wrong else "pass", prompt, f"{len(texts)} texts", wrong or found)


def messages(run: NodeRun) -> Iterator[Check]:
    """Anthropic's form: a message, or with ``stream`` the events of one."""
    for name, exchange in _named(run, "messages"):
        try:
            text = build(run, exchange.prompt).text
        except Impossible as error:
            yield said(name, "fail", exchange.prompt.text, "tokens counted", error)
            continue
        taken = {key: exchange.args[key] for key in _OF_MESSAGES if key in exchange.args}
        body = {"max_tokens": _MESSAGE_TOKENS, **_chat(run, text), **taken}
        reply = post(run, run.plan.endpoint.access.at("/v1/messages"), body)
        missing = absent(run, reply, "/v1/messages")
        if missing:
            yield Check(name, "skipped", missing, phase="checks")
            continue
        wrong = trouble(reply) or (
            _stream(reply.text) if taken.get("stream") else _message(reply.text, taken)
        )
        expects = "events of a message" if taken.get("stream") else "a message with text"
        yield said(name, "fail" if wrong else "pass", text, expects, wrong or reply.text[:200])


def longest(plan: Plan, expected: Expected) -> int:
    """Tokens a request may have: as the case says, else as node 0's first server does."""
    servers = [p for p in plan.nodes[LEADER].processes if p.kind == "server"]
    told = commandline.read(servers[0].argv).number("--max-model-len", 0) if servers else 0
    return expected.max_model_len or told


def _named(run: NodeRun, name: str) -> Iterator[tuple[str, Exchange]]:
    exchanges = run.plan.content.exchanges
    for number, exchange in enumerate(exchanges):
        yield f"{name} {number + 1}" if len(exchanges) > 1 else name, exchange


def _chat(run: NodeRun, text: str) -> dict[str, Any]:
    return {"model": run.plan.endpoint.model, "messages": [{"role": "user", "content": text}]}


def answer_of(raw: str) -> str:
    """The text of a chat completion; empty where it is none."""
    return _answer(raw)[0]


def _answer(raw: str) -> tuple[str, dict[str, Any]]:
    """Text and usage of a chat completion; empty where it is none."""
    try:
        data = loads(raw)
        message = data["choices"][0]["message"]
        usage = data.get("usage")
        texts = (message.get(key) for key in ("content", "reasoning", "reasoning_content"))
        answer = next((text for text in texts if isinstance(text, str) and text.strip()), "")
        return answer, usage if isinstance(usage, dict) else {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "", {}


def _counts(usage: Mapping[str, Any]) -> str:
    keys = ("prompt_tokens", "completion_tokens")
    return ", ".join(f"{key} {usage.get(key, 'not told')}" for key in keys)


def _choices(raw: str) -> list[str]:
    try:
        return [str(choice.get("text") or "") for choice in loads(raw)["choices"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _message(raw: str, taken: Mapping[str, Any]) -> str:
    """What is wrong with a message; empty when it is one."""
    try:
        data = loads(raw)
        kinds = (data["type"], data["role"])
        blocks = list(data["content"])
        text = any(block["type"] == "text" and block["text"].strip() for block in blocks)
        tool = any(block["type"] == "tool_use" for block in blocks)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"no message: {raw[:200]}"
    if kinds != ("message", "assistant"):
        return f"type and role are {', '.join(map(str, kinds))}"
    return "" if text or (tool and "tools" in taken) else f"no text: {raw[:200]}"


def _stream(raw: str) -> str:
    """What is wrong with the events of a message; empty when all are there."""
    events = {line[6:].strip() for line in raw.splitlines() if line.startswith("event:")}
    missing = [name for name in _EVENTS if name not in events]
    return f"no event {', '.join(missing)}: {raw[:200]}" if missing else ""
