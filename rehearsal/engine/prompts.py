"""What a request asks: its prompts, its pictures, and what no engine would take. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from rehearsal.base.wire import Message

MOST_IMAGES = 999
"""Pictures of a prompt, where the command does not say."""


def problem(
    code: int, message: str, kind: str = "BadRequestError", param: str | None = None
) -> Message:
    """vLLM's error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, code: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.body = code, problem(code, message, kind, param)


def misshaped(kind: str, place: str, text: str) -> Refusal:
    """What pydantic says of a body of the wrong shape, in vLLM's words."""
    message = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{text}'}}"
    return Refusal(400, message, "Bad Request", place)


def out_of_range(name: str, text: str, value: object) -> Refusal:
    """What vLLM says of a parameter that is too large or too small."""
    return Refusal(400, f"{text} (parameter={name}, value={value})", param=name)


def check_sampling(body: Message) -> None:
    """Refuse what no engine would sample with."""
    temperature = body.get("temperature")
    if isinstance(temperature, (int, float)) and temperature < 0:
        found = float(temperature)
        text = f"temperature must be non-negative, got {found}."
        raise out_of_range("temperature", text, found)
    least, most = body.get("min_tokens"), body.get("max_tokens")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        text = f"min_tokens must be less than or equal to max_tokens={most}, got {least}."
        raise Refusal(400, text)
    if body.get("stream_options") and not body.get("stream"):
        raise Refusal(
            400,
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            param="stream_options",
        )


def prompt_of(body: Message, chat: bool) -> Any:
    """The prompt: text, token ids, or a list of several texts."""
    if not chat:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if prompt and isinstance(prompt, str):
            return prompt
        if isinstance(prompt, list) and prompt:
            if all(isinstance(token, int) for token in prompt):
                return prompt
            if all(isinstance(text, str) and text for text in prompt) and not body.get("stream"):
                return prompt
            raise Refusal(400, "the stand-in streams one prompt a request", param="prompt")
        raise Refusal(
            400,
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
            param="prompt",
        )
    messages = body.get("messages")
    if messages is None:
        raise misshaped("missing", "body.messages", "Field required")
    if not isinstance(messages, list) or not all(isinstance(entry, dict) for entry in messages):
        raise misshaped("list_type", "body.messages", "Input should be a valid list")
    if not messages:
        raise Refusal(
            400,
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        )
    return "\n".join(
        f"{message.get('role', 'user')}: {_content(message.get('content'))}" for message in messages
    )


def _content(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(
            str(part.get("text", part.get("type", "")))
            for part in content
            if isinstance(part, dict)
        )
    return "" if content is None else str(content)


def check_images(body: Message, raw: Message) -> None:
    """Refuse pictures that the command does not let in, or that are none."""
    limits = raw.get("limit_mm_per_prompt")
    most = limits.get("image", MOST_IMAGES) if isinstance(limits, dict) else MOST_IMAGES
    if raw.get("language_model_only"):
        most = 0
    count = 0
    for message in body.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "image_url":
                count += 1
                if count > most:
                    text = f"At most {most} image(s) may be provided in one prompt."
                    raise Refusal(400, text)
                _check_image(part.get("image_url"), raw)


def _check_image(given: Any, raw: Message) -> None:
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str):
        raise misshaped("string_type", "body.messages", "Input should be a valid string")
    scheme, _, rest = url.partition(":")
    if scheme == "data":
        head, _, data = rest.partition(",")
        if not head.endswith("base64"):
            raise Refusal(400, "Only base64 data URLs are supported for now.")
        try:
            picture = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            picture = b""
        if not picture:
            raise Refusal(400, "Failed to load image: cannot identify image file")
    elif scheme == "file" and not raw.get("allowed_local_media_path"):
        raise Refusal(400, "Cannot load local files without `--allowed-local-media-path`.")
    elif scheme not in ("file", "http", "https"):
        raise Refusal(400, "The URL must be either a HTTP, data or file URL.")
