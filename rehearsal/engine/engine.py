"""An engine: the child process of one data-parallel rank, like vLLM's EngineCore_DPn.

Enters: an `EngineSpec` and a socket to the parent. It joins its group, loads, then gives tokens at
the set pace
to requests that reach it from its parent or, when the front end is on another node, over the
group's connection.
Never returns. Like the real one it outlives a parent that was killed, but not for ever
(`orphan_seconds`).

Messages up: hello, loading, ready, up, arrived, pre, step, error, bye. Messages down: init, go,
submit, abort, fault, bye.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import traceback
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rehearsal.base import console
from rehearsal.base.settings import Settings
from rehearsal.base.wire import Link, Message
from rehearsal.engine.cli import ServeArgs
from rehearsal.engine.kvcache import Blocks
from rehearsal.handoff.handoff import HandoffError, Peer, Prefiller, fetch

SHARDS = 4
LATE_TICKS = 20
"""An engine that is this many ticks behind gives up catching up."""


@dataclass(frozen=True)
class EngineSpec:
    """What one engine is to be. `hub` is the address and port of a front end elsewhere, None when
    the parent is it.
    """

    args: ServeArgs
    settings: Settings
    rank: int
    local_index: int
    hub: tuple[str, int] | None
    behaviours: tuple[tuple[str, float | None], ...]

    @property
    def name(self) -> str:
        """As in the log and in `Failed core proc(s)`."""
        return f"EngineCore_DP{self.rank}"


@dataclass
class _Running:
    """A request that gives tokens: `tokens` are in the cache, `message` would begin it anew."""

    message: Message
    tokens: int
    left: int
    gap: float
    due: float
    begun: float


def run(spec: EngineSpec, sock: socket.socket) -> NoReturn:
    """The life of an engine process."""
    console.speak_as(spec.name)
    code = 1
    try:
        code = asyncio.run(Engine(spec).live(sock))
    except Exception as error:  # the log must hold it, as the real engine's does
        console.error("core.py:936", f"EngineCore failed to start.\n{console.trace(error)}")
        console.plain(f"Process {spec.name}:\n{traceback.format_exc()}")
    os._exit(code)


class Engine:
    """State of one engine."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec, self.args, self.settings = spec, spec.args, spec.settings
        self.slow = 1.0
        self.silent = False
        self.ignores_term = False
        self.refuses = False
        self.waiting: deque[tuple[Link, Message]] = deque()
        self.running: dict[tuple[Link, int], _Running] = {}
        self.admitted: set[tuple[Link, int]] = set()
        self.blocks = Blocks(spec.args.block_size, spec.args.num_blocks, spec.args.max_model_len)
        self.preemptions = 0
        self.fetching: set[asyncio.Future[None]] = set()
        self.ticking = False
        self.tick_at = 0.0
        self.me: Peer | None = None
        self.group: Link | None = None
        self.prefiller: Prefiller | None = None
        self.down: dict[str, asyncio.Event] = {}
        for what, arg in spec.behaviours:
            self._behave(what, arg)

    async def live(self, sock: socket.socket) -> int:
        """Start, serve, end; the exit code."""
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self.loop.create_future()
        self.down = {name: asyncio.Event() for name in ("init", "go")}
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._told_to_end)
        _, parent = await self.loop.create_connection(
            lambda: Link(self._on_message, self._on_parent_lost), sock=sock
        )
        self.parent = parent
        self._check_devices()
        self._check_connector()
        work = asyncio.ensure_future(self._come_up())
        waited: set[asyncio.Future[Any]] = {work, self.ended}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        code = await self.ended
        work.cancel()
        if code == 0:
            for link in {self.group or self.parent, self.parent}:
                link.send({"t": "bye"})
        return code

    async def _come_up(self) -> None:
        self.group = group = await self._join()
        await self.down["init"].wait()
        await self._load()
        await self._open_handoff()
        group.send({"t": "ready", "rank": self.spec.rank})
        await self.down["go"].wait()
        self.parent.send({"t": "up", "rank": self.spec.rank})

    def _check_devices(self) -> None:
        ids, need = self.settings.device_ids, self.args.world_size
        first = self.spec.local_index * need
        if ids is None:
            return
        if self.settings.devices is not None:
            absent = [n for n in ids if not n.isdecimal() or int(n) >= self.settings.devices]
            if absent:
                raise RuntimeError(
                    f"Set visible device failed: invalid device {','.join(absent)}; this node has "
                    f"devices 0 to {self.settings.devices - 1}. Error code 107001"
                )
        if first + need > len(ids):
            args = self.args
            raise AssertionError(
                f"DP adjusted local rank {max(first, len(ids))} is out of bounds. (tensor "
                f"{args.tp} x pipeline {args.pp} x prefill context {args.pcp} "
                f"x local data parallel {args.dp_local} = {need * args.dp_local} devices are "
                f"needed, {len(ids)} are visible)"
            )

    def _check_connector(self) -> None:
        kv = self.args.kv
        if kv is None:
            return
        if kv.unknown:
            raise ValueError(f"Unsupported connector type: {kv.unknown[0]}")
        engine_id = f"{kv.engine_id or uuid.uuid4()}_dp{self.spec.rank}"
        self.me = Peer(engine_id, self.args.model, self.args.tp, kv)

    async def _join(self) -> Link:
        hello = {"t": "hello", "rank": self.spec.rank, **fingerprint(self.args)}
        if self.spec.hub is None:
            self.parent.send(hello)
            return self.parent
        host, port = self.spec.hub
        deadline = self.loop.time() + self.settings.join_seconds
        while True:
            try:
                _, link = await self.loop.create_connection(
                    lambda: Link(self._on_message, self._on_hub_lost), host, port
                )
                break
            except OSError:
                if self.loop.time() > deadline:
                    raise RuntimeError(
                        "Did not receive response from front-end process within 5 minutes "
                        f"(tcp://{host}:{port}, rehearsal: {self.settings.join_seconds:g} s)"
                    ) from None
                await asyncio.sleep(0.1)
        link.send(hello)
        self.loop.call_at(deadline, self._join_overdue)
        return link

    def _join_overdue(self) -> None:
        if not self.down["init"].is_set():
            self._die(
                "RuntimeError: Did not receive response from front-end process within 5 minutes "
                f"(rehearsal: {self.settings.join_seconds:g} s)"
            )

    async def _load(self) -> None:
        console.info(
            "core.py:96",
            f"Initializing a V1 LLM engine with config: model={self.args.model!r}, "
            f"max_seq_len={self.args.max_model_len}, "
            f"tensor_parallel_size={self.args.tp}, data_parallel_size={self.args.dp_size}",
        )
        for shard in range(SHARDS):
            if shard == SHARDS // 2:
                self.parent.send({"t": "loading"})
            await asyncio.sleep(self.settings.load_seconds * self.slow / SHARDS)
            if self.spec.local_index == 0:
                done = shard + 1
                console.plain(
                    f"Loading safetensors checkpoint shards: {100 * done // SHARDS:3d}% Completed "
                    f"| {done}/{SHARDS} [00:00<00:00, 1.00it/s]"
                )
        console.info(
            "default_loader.py:268",
            f"Loading weights took {self.settings.load_seconds * self.slow:.2f} seconds",
        )
        room = self.blocks.total * self.blocks.size
        console.info("kv_cache_utils.py:1087", f"GPU KV cache size: {room:,} tokens")

    async def _open_handoff(self) -> None:
        kv = self.args.kv
        if not (self.me and kv and kv.hands_off and kv.role != "kv_consumer"):
            return
        if kv.connector == "NixlConnector":
            base = self.settings.nixl_port + self.spec.rank
            ports = range(base, base + 1)
        else:
            base = (14579 if kv.port is None else kv.port) + self.spec.rank * self.args.world_size
            ports = range(base, base + self.args.world_size)
        self.prefiller = Prefiller(self.me, self.settings.own_address, ports)
        self.prefiller.refuses = self.refuses
        try:
            await self.prefiller.listen()
        except OSError as error:
            raise OSError(
                error.errno,
                f"KV handoff port: {error.strerror} (addr='tcp://{self.settings.own_address}:{ports[0]}-{ports[-1]}')",
            ) from None
        console.info(
            "mooncake_connector.py:301",
            f"KV handoff of engine {self.me.engine_id} listens on "
            f"{self.settings.own_address}:{ports[0]}",
        )

    def _on_message(self, link: Link, message: Message) -> None:
        kind = message.get("t")
        if kind == "submit":
            self.parent.send({"t": "arrived"})
            self.waiting.append((link, {**message, "at": self.loop.time()}))
            self._admit()
            self._tell(link, [])
        elif kind == "abort":
            self._drop((link, message["id"]))
        elif kind in self.down:
            self.down[kind].set()
        elif kind == "fault":
            self._behave(message["what"], message["arg"])
        elif kind == "bye" and link is self.parent and not self.ended.done():
            self.ended.set_result(0)
        elif kind == "failed":
            self._die(f"RuntimeError: {message['why']}")

    def _behave(self, what: str, arg: float | None) -> None:
        if what == "slow":
            self.slow = arg or 10.0
        elif what == "refuse-handoff":
            self.refuses = True
            if self.prefiller:
                self.prefiller.refuses = True
        elif what == "silent":
            self.silent = True
            self.running.clear()
        elif what == "ignore-term":
            self.ignores_term = True

    def _admit(self) -> None:
        while self.waiting and len(self.admitted) < self.args.max_num_seqs:
            link, message = self.waiting[0]
            key = (link, message["id"])
            if not self.blocks.take(key, message["prompt"] + message.get("done", 0)):
                break
            self.waiting.popleft()
            self.admitted.add(key)
            if message.get("kv"):
                task = asyncio.ensure_future(self._prefill_with_handoff(link, message))
                self.fetching.add(task)
                task.add_done_callback(self.fetching.discard)
            else:
                self._start(link, message, self.settings.ttft * self.slow)

    def _start(self, link: Link, message: Message, delay: float) -> None:
        key = (link, message["id"])
        if key not in self.admitted or self.silent:
            return
        now, done = self.loop.time(), message.get("done", 0)
        self.running[key] = _Running(
            message,
            message["prompt"] + done,
            message["out"] - done,
            self.settings.tpot * self.slow,
            now + delay,
            now,
        )
        if not self.ticking:
            self.ticking = True
            self.tick_at = self.loop.time() + delay
            self.loop.call_at(self.tick_at, self._tick)

    async def _prefill_with_handoff(self, link: Link, message: Message) -> None:
        kv, key = message["kv"], (link, message["id"])
        config = self.args.kv
        given: dict[str, Any] = {"t": "pre", "id": message["id"], "source": "local_compute"}
        delay = self.settings.ttft * self.slow
        try:
            if self.me is None or config is None or not config.hands_off:
                console.warning(
                    "scheduler.py:1290",
                    "Got KVTransferParams, but no KVConnector found that hands off. Disabling "
                    "KVTransfer for this request.",
                )
            elif kv.get("do_remote_prefill"):
                if config.role == "kv_producer":
                    raise HandoffError(
                        "do_remote_prefill at an engine whose kv_role is kv_producer"
                    )
                if self.refuses:
                    raise HandoffError("injected fault refuse-handoff")
                await fetch(self.me, kv, message["prompt"], self.args.block_size)
                given["source"] = "external_kv_transfer"
                delay = self.settings.tpot * self.slow
            elif kv.get("do_remote_decode"):
                if config.role == "kv_consumer":
                    raise HandoffError("do_remote_decode at an engine whose kv_role is kv_consumer")
                assert self.prefiller is not None
                given["kv"] = self.prefiller.hold(message["prompt"], self.args.block_size)
        except HandoffError as error:
            console.error(
                "mooncake_connector.py:512",
                f"KV transfer failed for request {message.get('rid')}: {error}",
            )
            link.send({"t": "error", "id": message["id"], "why": f"KV transfer failed: {error}"})
            self._drop(key)
            return
        link.send(given)
        self._start(link, message, delay)

    def _drop(self, key: tuple[Link, int]) -> None:
        self.running.pop(key, None)
        self.blocks.give(key)
        if key in self.admitted:
            self.admitted.discard(key)
        else:
            self.waiting = deque(item for item in self.waiting if (item[0], item[1]["id"]) != key)
        self._admit()
        self._tell(key[0], [])

    def _tick(self) -> None:
        now = self.loop.time()
        steps: dict[Link, list[int]] = {}
        firsts: dict[Link, list[list[float]]] = {}
        finished = []
        nearest = float("inf")
        for key, request in list(self.running.items()):
            if key not in self.running:
                continue  # another one needed its blocks
            if request.due <= now + 0.0002:
                if not self._grow(key, request):
                    continue
                request.due = (
                    request.due + request.gap
                    if now - request.due < LATE_TICKS * request.gap
                    else now + request.gap
                )
                if request.left == request.message["out"]:
                    waited = request.begun - request.message["at"]
                    first = [request.message["id"], waited, now - request.begun]
                    firsts.setdefault(key[0], []).append(first)
                request.left -= 1
                steps.setdefault(key[0], []).append(request.message["id"])
                if request.left <= 0:
                    finished.append(key)
                    continue
            nearest = min(nearest, request.due)
        for key in finished:
            del self.running[key]
            self.blocks.give(key)
            self.admitted.discard(key)
        if finished:
            self._admit()
            nearest = min([nearest, *(request.due for request in self.running.values())])
        for link, ids in steps.items():
            self._tell(link, ids, firsts.get(link, []))
        if self.running:
            # At most one round each millisecond: tokens that fall close together share a step.
            self.loop.call_at(max(nearest, now + 0.001), self._tick)
        else:
            self.ticking = False

    def _grow(self, key: tuple[Link, int], request: _Running) -> bool:
        """Make room for one more token; the youngest requests give theirs and begin anew."""
        request.tokens += 1
        while not self.blocks.take(key, request.tokens):
            victim, loser = next(reversed(self.running.items()))
            del self.running[victim]
            self.admitted.discard(victim)
            self.blocks.give(victim)
            self.preemptions += 1
            done = loser.message["out"] - loser.left
            again = {**loser.message, "done": done, "kv": None}
            self.waiting.appendleft((victim[0], again))
            if victim == key:
                return False
        return True

    def _tell(self, link: Link, ids: list[int], firsts: Sequence[list[float]] = ()) -> None:
        """Who got a token, how long those of a first one waited; how full the engine is."""
        if self.silent:
            return
        running = len(self.running)
        figures = {
            "running": running,
            "waiting": len(self.waiting) + len(self.admitted) - running,
            "usage": round(self.blocks.usage, 6),
            "preempted": self.preemptions,
        }
        link.send({"t": "step", "ids": ids, "firsts": list(firsts), **figures})

    def _told_to_end(self) -> None:
        # The parent, signalled with the whole group, says when; alone, an engine ends by itself.
        self.loop.call_later(0.5 + self.settings.stop_seconds, self._end_unless_told)

    def _end_unless_told(self) -> None:
        if not self.ignores_term:
            self._end(0)

    def _on_parent_lost(self, link: Link) -> None:
        if link.said_bye:
            self._end(0)
            return
        console.warning("core.py:1010", "the parent process is gone")
        self.loop.call_later(self.settings.orphan_seconds, self._end, 1)

    def _on_hub_lost(self, link: Link) -> None:
        if link.said_bye:
            console.warning(
                "core.py:1033", "the front end of this data-parallel group has shut down"
            )
            self.loop.call_later(self.settings.orphan_seconds, self._end, 1)
        else:
            self._die(
                "ConnectionError: [Gloo] Connection closed by peer: the front end of this "
                "data-parallel group is gone"
            )

    def _die(self, reason: str) -> None:
        if self.ended.done():
            return
        console.error(
            "core.py:945",
            "EngineCore encountered a fatal error.\nTraceback (most recent call last):\n"
            f'  File "vllm/v1/engine/core.py", line 940, in run_engine_core\n{reason}',
        )
        self._end(1)

    def _end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)


def fingerprint(args: ServeArgs) -> Message:
    """What all engines of a group must have in common."""
    return {
        "size": args.dp_size,
        "model": args.model,
        "tp": args.tp,
        "pp": args.pp,
        "pcp": args.pcp,
        "mode": args.mode if not args.headless else None,
        "eplb": bool(args.raw.get("enable_eplb")),
        "ep": bool(args.raw.get("enable_expert_parallel")),
    }
