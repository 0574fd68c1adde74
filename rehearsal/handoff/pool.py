"""What the KV pool stand-ins share: a service that binds its ports, says so, answers metrics and
obeys the fault language.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from rehearsal.base import console
from rehearsal.base.faults import Injector
from rehearsal.base.settings import Settings
from rehearsal.base.web import Connection, Request


class Pool:
    """One pool service. `ports` are (address, port) that accept connections; `metrics` one that
    answers HTTP.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        ports: list[tuple[str, int]],
        metrics: tuple[str, int] | None,
    ) -> None:
        self.settings, self.name, self.ports, self.metrics = settings, name, ports, metrics
        self.broken = False
        self.injector = Injector(
            settings.faults, settings.node_index, settings.process, self._behave
        )

    def run(self) -> NoReturn:
        """Until told to end; exits 1 when a port is taken."""
        self.injector.fire("start")
        try:
            code = asyncio.run(self._live())
        except (OSError, OverflowError) as error:
            print(f"{self.name}: Failed to bind: {error}", file=sys.stderr)
            code = 1
        os._exit(code)

    def _behave(self, what: str, arg: float | None) -> None:
        self.broken = self.broken or what == "http503"

    async def _live(self) -> int:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def watch_signals() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._told_to_end, ended)

        self.injector.run_in(loop, watch_signals)
        await asyncio.sleep(self.settings.load_seconds / 20)
        self.injector.fire("load")
        for host, port in self.ports:
            await self._listen(asyncio.Protocol, host, port)
        if self.metrics:
            everyone: set[Connection] = set()
            await self._listen(
                lambda: Connection(self._answer, lambda request, status: None, everyone),
                *self.metrics,
            )
        places = ", ".join(
            f"{self.settings.bind_address(host)}:{port}"
            for host, port in [*self.ports, *([self.metrics] if self.metrics else [])]
        )
        console.plain(f"{self.name} started, listening on {places}")
        self.injector.fire("ready")
        return await ended

    async def _listen(self, factory: Callable[[], asyncio.Protocol], host: str, port: int) -> None:
        address = self.settings.bind_address(host)
        if not self.settings.owns(address):
            raise OSError(99, f"Cannot assign requested address {address}:{port}")
        await asyncio.get_running_loop().create_server(factory, address, port)

    def _answer(self, request: Request, connection: Connection) -> None:
        if self.broken:
            connection.reply(503, b"", "text/plain")
            return
        text = (
            b"# TYPE master_active_clients gauge\nmaster_active_clients 0\n# TYPE "
            b"master_key_count gauge\nmaster_key_count 0\n"
        )
        connection.reply(
            200, b"OK" if request.path == "/health" else text, "text/plain; version=0.0.4"
        )

    def _told_to_end(self, ended: asyncio.Future[int]) -> None:
        self.injector.fire("term")
        if not self.injector.ignores_term and not ended.done():
            asyncio.get_running_loop().call_later(self.settings.stop_seconds, _settle, ended)


def _settle(ended: asyncio.Future[int]) -> None:
    if not ended.done():
        ended.set_result(0)
