"""The check ``image``: one question about pictures.

Enters: a run whose fleet is ready. Leaves: a check. Touches: reads pictures; one HTTP request.
"""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from steps.bench_drivers import hub, practice
from steps.checks.asking import NO_ANSWER, Impossible, post, said
from steps.checks.texts import answer_of
from steps.core import settings
from steps.core.case.content import Expected
from steps.core.node import http
from steps.core.node.noderun import NodeRun
from steps.core.record.records import Check

#: What upstream asks for where the case does not.
DEFAULTS = {"max_tokens": 8192, "top_k": 64, "top_p": 0.95, "stream": False}
QUESTION = "Describe this image."
#: The data set of upstream's picture, and what the picture is called in a data set.
DATA_SET, PICTURE = "vllm-ascend/mm_request", "test_mm2.jpg"
_NAMED = re.compile(r"\{IMAGE_(\d+)\}")


def image(run: NodeRun) -> Iterator[Check]:
    """Ask about the pictures, and look at the answer as the case says."""
    asked = run.plan.content.image
    try:
        messages = _messages(run)
    except Impossible as error:
        yield Check("image", "fail", str(error), fault="infra", phase="checks")
        return
    body = {"model": run.plan.endpoint.model, "messages": messages, **DEFAULTS, **asked.args}
    reply = post(run, run.plan.endpoint.access.at("/v1/chat/completions"), body)
    yield judge(asked.question or "pictures", asked.expected, reply, run.plan.rehearsed)
    if run.plan.rehearsed and _of_text(asked.expected):
        yield Check("image text", "skipped", NO_ANSWER, phase="checks")


def judge(question: str, expected: Expected, reply: http.Reply, rehearsed: bool) -> Check:
    """Whether an answer is what the case expects, a pure function.

    Args:
        rehearsed: what the answer says is not judged.
    """
    wanted = expected.status_code or 200
    text = answer_of(reply.text) if reply.status == 200 else ""
    wrong = []
    if reply.status != wanted:
        wrong.append(reply.error or f"HTTP {reply.status}: {' '.join(reply.text.split())[:300]}")
    elif reply.status == 200:
        wrong += ["no text"] if expected.assert_not_empty and not text else []
        wrong += [] if rehearsed else _wrong(text, expected)
    found = "; ".join(wrong) or text[:200] or f"HTTP {reply.status}"
    expects = "; ".join([f"HTTP {wanted}", *_of_text(expected)])
    return said("image", "fail" if wrong else "pass", question, expects, found)


def _of_text(expected: Expected) -> list[str]:
    """What is expected of the text of an answer, in words."""
    found = [f"it contains {word!r}" for word in expected.content_contains]
    found += [f"at least {expected.min_length} characters"] if expected.min_length else []
    return found + ([f"at most {expected.max_length}"] if expected.max_length is not None else [])


def _wrong(text: str, expected: Expected) -> Iterator[str]:
    for word in expected.content_contains:
        if word not in text:
            yield f"it does not contain {word!r}: {text[:200]}"
    most = len(text) if expected.max_length is None else expected.max_length
    if not (expected.min_length or 0) <= len(text) <= most:
        yield f"it has {len(text)} characters"


def _messages(run: NodeRun) -> list[Any]:
    """The conversation, its pictures in place.

    Raises:
        Impossible: a picture is not here.
    """
    asked = run.plan.content.image
    inherited = settings.inherited()
    names = asked.images or (inherited.get("MM_IMAGE_PATH") or DATA_SET,)
    if not asked.messages:
        parts: list[Any] = [{"type": "text", "text": asked.question or QUESTION}]
        urls = [_loaded(run, name) for name in names]
        parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [{"role": "user", "content": parts}]
    turn = iter(names)

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        if not isinstance(value, Mapping):
            return value
        if value.get("type") != "image_url":
            return {key: filled(inner) for key, inner in value.items()}
        given = value.get("image_url")
        url = given.get("url", "") if isinstance(given, Mapping) else given or ""
        return {**value, "image_url": {"url": _loaded(run, _chosen(str(url), names, turn))}}

    return [filled(message) for message in asked.messages]


def _chosen(url: str, names: tuple[str, ...], turn: Iterator[str]) -> str:
    """The picture that stands for a URL of the case: the next, the named one, or itself."""
    named = _NAMED.fullmatch(url.strip())
    if named and int(named[1]) >= len(names):
        raise Impossible(f"{url}: there are {len(names)} pictures")
    if named:
        return names[int(named[1])]
    if url.strip():
        return url
    try:
        return next(turn)
    except StopIteration:
        raise Impossible(f"there are more empty image_urls than the {len(names)} images") from None


def _loaded(run: NodeRun, name: str) -> str:
    """A picture as a URL that an engine can read."""
    if name.startswith(("http://", "https://", "data:")):
        return name
    path = unquote(urlsplit(name).path) if name.startswith("file://") else name
    bases = [Path(run.plan.case_file).resolve().parent, Path.cwd()]
    try:
        found = hub.Hub.of(settings.read()).find(hub.DATASET, path, bases)
        found = found / PICTURE if found.is_dir() else found
        data = found.read_bytes()
    except (hub.NotHere, OSError) as error:
        if not run.plan.rehearsed:
            raise Impossible(f"the picture {name} cannot be read: {error}") from None
        found, data = Path(PICTURE), practice.picture()
    kind = mimetypes.guess_type(found.name)[0] or "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
