"""The KV handoff: a prefiller holds the blocks of finished prompts, a decoder fetches them over a
real connection.

The prefiller listens where MooncakeConnectorV1 does (`kv_port` + rank x devices of a rank, one port
a device; Nixl: its side channel port + rank). What a prefiller was told of the decoders' width must
fit; what a decoder was told of the prefillers' is overridden by what they announce, and nobody
reads the other side's `dp_size`.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from rehearsal.base.wire import Link, Message
from rehearsal.handoff.kvconfig import KvConfig

HOLD_SECONDS = 480.0
"""After this time a prefiller drops blocks that nobody fetched, as Nixl does."""
FETCH_SECONDS = 10.0


class HandoffError(Exception):
    """The handoff does not fit; the text says why."""


@dataclass(frozen=True)
class Peer:
    """One side of a handoff as its own command describes it."""

    engine_id: str
    model: str
    tp: int
    config: KvConfig

    def describe(self) -> Message:
        """For the other side."""
        return {
            "engine_id": self.engine_id,
            "model": self.model,
            "tp": self.tp,
            "role": self.config.role,
            "connector": self.config.connector,
        }


def misfit(prefiller: Message, decoder: Message, decode_tp: int | None = None) -> str | None:
    """Why two sides do not fit, where the prefiller was told to expect `decode_tp`; pure."""
    if prefiller["model"] != decoder["model"]:
        return f"the prefiller serves {prefiller['model']!r}, the decoder {decoder['model']!r}"
    if prefiller["connector"] != decoder["connector"]:
        return f"the prefiller uses {prefiller['connector']}, the decoder {decoder['connector']}"
    if prefiller["role"] == "kv_consumer":
        return "the remote engine is a kv_consumer, it produces no KV"
    if decoder["role"] == "kv_producer":
        return "the fetching engine is a kv_producer, it consumes no KV"
    if decode_tp not in (None, decoder["tp"]):
        return (
            f"the prefiller's kv_connector_extra_config says decode tp_size {decode_tp}, but the "
            f"decode engine runs with tp_size {decoder['tp']}"
        )
    return None


class Prefiller:
    """Holds blocks and gives them out once."""

    def __init__(self, me: Peer, host: str, ports: range) -> None:
        self.me, self.host, self.ports = me, host, ports
        self.held: OrderedDict[int, tuple[int, int, float]] = OrderedDict()
        self.next_block = 1
        self.refuses = False
        self.servers: list[asyncio.AbstractServer] = []

    async def listen(self) -> None:
        """Bind every port of this rank. Raises OSError."""
        loop = asyncio.get_running_loop()
        for port in self.ports:
            self.servers.append(
                await loop.create_server(lambda: Link(self._answer), self.host, port)
            )

    def hold(self, tokens: int, block_size: int) -> Message:
        """Keep the blocks of a prefilled prompt; the `kv_transfer_params` of the answer."""
        now = time.monotonic()
        while self.held and next(iter(self.held.values()))[2] < now - HOLD_SECONDS:
            self.held.popitem(last=False)
        count = -(-tokens // block_size)
        first, self.next_block = self.next_block, self.next_block + count
        self.held[first] = (count, tokens, now)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self.me.engine_id,
            "remote_block_ids": list(range(first, first + count)),
            "remote_host": self.host,
            "remote_port": self.ports[0],
            "tp_size": self.me.tp,
        }

    def _answer(self, link: Link, message: Message) -> None:
        why = self._refuse(message)
        if why:
            link.send({"t": "refused", "why": why})
        else:
            _, tokens, _ = self.held.pop(message["blocks"][0])
            link.send({"t": "blocks", "tokens": tokens, "prefiller": self.me.describe()})

    def _refuse(self, message: Message) -> str | None:
        blocks: Any = message.get("blocks")
        decoder: Any = message.get("decoder")
        if self.refuses:
            return "injected fault refuse-handoff"
        if (
            message.get("t") != "fetch"
            or not isinstance(blocks, list)
            or not isinstance(decoder, dict)
        ):
            return "not a fetch of blocks"
        if message.get("engine_id") != self.me.engine_id:
            return (
                f"remote_engine_id {message.get('engine_id')!r} is not this engine, which is "
                f"{self.me.engine_id!r}"
            )
        first = blocks[0] if blocks and isinstance(blocks[0], int) else -1
        if first not in self.held:
            return (
                f"blocks {_short(blocks)} are not held here (unknown, fetched before, or "
                f"dropped after {HOLD_SECONDS:g} s)"
            )
        if blocks != list(range(first, first + self.held[first][0])):
            return (
                f"blocks {_short(blocks)} are not the {self.held[first][0]} blocks of that prompt"
            )
        return misfit(self.me.describe(), decoder, self.me.config.decode_tp)


def _short(blocks: list[Any]) -> str:
    return str(blocks) if len(blocks) < 8 else f"[{blocks[0]}, ... {blocks[-1]}]"


async def fetch(me: Peer, params: Message, tokens: int, block_size: int) -> None:
    """Fetch the blocks of a prompt of `tokens` tokens as `params` (kv_transfer_params) say. Raises
    HandoffError.
    """
    missing = [
        name
        for name in ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
        if params.get(name) in (None, "")
    ]
    if missing:
        raise HandoffError(f"kv_transfer_params without {', '.join(missing)}")
    blocks = params["remote_block_ids"]
    if not isinstance(blocks, list) or len(blocks) != -(-tokens // block_size):
        raise HandoffError(
            f"{len(blocks) if isinstance(blocks, list) else blocks!r} remote blocks do not fit a "
            f"prompt of {tokens} tokens in blocks of {block_size}"
        )
    answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def settle(message: Message) -> None:
        if not answer.done():
            answer.set_result(message)

    link = Link(
        lambda _, message: settle(message),
        lambda _: settle({"t": "refused", "why": "the connection closed without an answer"}),
    )
    place = f"{params['remote_host']}:{params['remote_port']}"
    try:
        await asyncio.wait_for(
            asyncio.get_running_loop().create_connection(
                lambda: link, params["remote_host"], int(params["remote_port"])
            ),
            FETCH_SECONDS,
        )
        link.send(
            {
                "t": "fetch",
                "engine_id": params["remote_engine_id"],
                "blocks": blocks,
                "decoder": me.describe(),
            }
        )
        message = await asyncio.wait_for(answer, FETCH_SECONDS)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        raise HandoffError(f"no KV from {place}: {error or 'timed out'}") from None
    finally:
        link.close()
    if message.get("t") != "blocks":
        raise HandoffError(f"{place} refused the KV: {message.get('why')}")
    if message.get("tokens") != tokens:
        raise HandoffError(
            f"{place} holds KV of {message.get('tokens')} tokens, the prompt has {tokens}"
        )
    why = misfit(message["prefiller"], me.describe())
    if why:
        raise HandoffError(f"KV from {place} does not fit: {why}")
