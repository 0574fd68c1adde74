"""`disagg_epd_proxy.py`, stood in for: encoders for what is no text, then servers for the answer.

Each picture or sound goes to an encoder, all text removed; when all of them are done, the request
as it came goes to a prefiller if there are any, and to a decoder. It serves chat completions, the
list of models and its health, which is that of all servers.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from typing import Any

from rehearsal.base import console
from rehearsal.base.client import Call, Unanswered
from rehearsal.base.settings import Settings, read
from rehearsal.base.web import Connection, Request
from rehearsal.base.wire import Message
from rehearsal.handoff.router import Refusal, Router, body_of, pass_on, text_reply

PICTURES = ("image_url", "audio_url", "input_audio")
CHAT = "/v1/chat/completions"
_NONE = ("disable", "none", "")


def parser() -> argparse.ArgumentParser:
    """The options of the real one."""
    made = argparse.ArgumentParser("disagg_epd_proxy.py")
    made.add_argument("--host", default="0.0.0.0")
    made.add_argument("--port", type=int, default=8000)
    for side in ("encode", "prefill", "decode"):
        made.add_argument(f"--{side}-servers-urls", required=True)
    made.add_argument("--encoder-dispatch-mode", choices=["single", "fanout"], default="single")
    return made


class Encoders(Router):
    """The running stand-in."""

    def __init__(self, given: argparse.Namespace, settings: Settings) -> None:
        given.prefill, given.decode = [], []
        super().__init__(given, settings)
        self.sides = {
            side: [self._own(url) for url in text.split(",") if url.strip().lower() not in _NONE]
            for side, text in (
                ("encode", given.encode_servers_urls),
                ("prefill", given.prefill_servers_urls),
                ("decode", given.decode_servers_urls),
            )
        }
        self.next = {side: itertools.cycle(urls) for side, urls in self.sides.items()}

    def _own(self, url: str) -> str:
        """Localhost is this very node, although all nodes here share one loopback."""
        scheme, _, rest = url.strip().rstrip("/").partition("://")
        host, _, port = rest.rpartition(":")
        return f"{scheme}://{self.settings.peer_address(host)}:{port}"

    async def _start(self) -> None:
        host = self.given.host
        here = "0.0.0.0" if self.settings.peer_address(host) == self.settings.address else host
        await self._listen(here, self.given.port, self.handle)
        console.info("proxy", f"Proxy listening on {host}:{self.given.port}")

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request."""
        try:
            if (request.method, request.path) == ("GET", "/health"):
                self._work(self._health(connection), connection)
            elif (request.method, request.path) == ("GET", "/v1/models"):
                self._work(self._ask("decode", "GET", "/v1/models", connection), connection)
            elif (request.method, request.path) == ("POST", CHAT):
                self._work(self._answer(body_of(request), connection), connection)
            else:
                raise Refusal(404, '{"detail":"Not Found"}')
        except Refusal as refusal:
            text_reply(connection, refusal.code, str(refusal))

    async def _health(self, connection: Connection) -> None:
        told = {"proxy": "healthy"}
        for side, urls in self.sides.items():
            fine = all([await self._is_healthy(url) for url in urls])
            told[f"{side}_cluster"] = ("healthy" if fine else "unhealthy") if urls else "empty"
        connection.reply(503 if "unhealthy" in told.values() else 200, told)

    async def _is_healthy(self, url: str) -> bool:
        try:
            return await self._status(f"{url}/health")
        except Unanswered:
            return False

    async def _answer(self, body: Message, connection: Connection) -> None:
        items = list(_items(body))
        if items and self.given.encoder_dispatch_mode == "single":
            items = [[item for parts in items for item in parts]]
        await asyncio.gather(*(self._first("encode", _only(body, item)) for item in items))
        if self.sides["prefill"]:
            await self._first("prefill", body)
        await self._ask("decode", "POST", CHAT, connection, body)

    async def _first(self, side: str, body: Message) -> None:
        """What a server does before another one answers."""
        url = next(self.next[side])
        sent = {**body, "max_tokens": 1, "stream": False}
        sent.pop("stream_options", None)
        try:
            async with self._post(url, sent) as answer:
                data = await answer.body()
        except Unanswered as error:
            raise Refusal(502, f"{side} server {url}: {error}") from None
        if answer.status != 200:
            raise Refusal(answer.status, data.decode(errors="replace"))

    async def _ask(
        self, side: str, method: str, path: str, connection: Connection, body: Any = None
    ) -> None:
        url = next(self.next[side])
        call = Call(method, url + path) if body is None else self._post(url, body)
        try:
            async with call as answer:
                await pass_on(answer, connection)
        except Unanswered as error:
            raise Refusal(502, f"{side} server {url}: {error}") from None

    def _post(self, url: str, body: Message) -> Call:
        headers = {"content_type": "application/json"}
        headers["authorization"] = f"Bearer {self.settings.key}"
        return Call("POST", url + CHAT, json.dumps(body).encode(), **headers)


def _items(body: Message) -> list[list[Any]]:
    """Each part of a message that is no text."""
    messages = body.get("messages")
    parts = [
        part
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    ]
    return [[part] for part in parts if isinstance(part, dict) and part.get("type") in PICTURES]


def _only(body: Message, parts: list[Any]) -> Message:
    return {**body, "messages": [{"role": "user", "content": parts}]}


def main() -> int:
    """Entry of `rehearsal/bin/rehearsal-encoders`."""
    settings = read("proxy")
    given = parser().parse_args()
    console.plain("The rehearsal's own stand-in for disagg_epd_proxy.py.")
    return asyncio.run(Encoders(given, settings).run())
