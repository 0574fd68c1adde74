"""`vllm serve`, stood in for: the process that parses the command, starts engines, meets the group
and answers HTTP.

Enters: argv, the rehearsal's environment. Touches: its ports, its child processes, standard output.
Ends as vLLM ends:
0 after SIGTERM, 1 when an engine or the group fails, 2 for a command that does not parse.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

from rehearsal.base import console
from rehearsal.base.faults import Injector
from rehearsal.base.settings import Settings
from rehearsal.base.wire import Link, Message
from rehearsal.engine import cli, engine
from rehearsal.engine.api import DEAD, VERSION, Api
from rehearsal.engine.group import Group

REAP_SECONDS = 1.0


@dataclass
class Child:
    """One local engine process."""

    rank: int
    name: str
    pid: int
    sock: socket.socket
    link: Link | None = None
    up: bool = False


def bind(host: str, port: int, settings: Settings) -> socket.socket:
    """A bound socket that does not listen yet, as vLLM makes one before its engines start. Raises
    OSError.
    """
    if not settings.owns(host):
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


class Front:
    """The parent process of a stand-in server, headless or not."""

    def __init__(self, args: cli.ServeArgs, settings: Settings) -> None:
        self.args, self.settings = args, settings
        self.injector = Injector(
            settings.faults,
            settings.node_index,
            settings.process,
            self._behave,
            self._kill_children,
            settings.stage,
        )
        self.behaviours: list[tuple[str, float | None]] = []
        self.api = Api(args, self.injector.arrived, settings)
        self.children: list[Child] = []
        self.group: Group | None = None
        self.http: socket.socket | None = None
        self.servers: list[asyncio.AbstractServer] = []
        self.arrived = 0
        self.work: asyncio.Future[None] | None = None
        self.loading = self.serving = self.closing = False

    @property
    def is_hub(self) -> bool:
        """Whether the group meets here: the front end that has rank 0."""
        return not self.args.headless and self.args.dp_start == 0

    def prepare(self) -> None:
        """Everything before the event loop: first faults, the HTTP port, the engine processes."""
        self.injector.fire("start")
        if not self.args.headless:
            host = self.settings.bind_address(self.args.host)
            try:
                if self.args.access.uds:
                    self.http = socket.socket(socket.AF_UNIX)
                    self.http.bind(self.args.access.uds)
                else:
                    self.http = bind(host, self.args.port, self.settings)
            except (OSError, OverflowError) as error:
                console.plain(console.trace(error))
                sys.exit(1)
        gc.freeze()
        for index in range(self.args.dp_local):
            self._fork(index)

    def _fork(self, index: int) -> None:
        rank = self.args.dp_start + index
        hub = (
            None
            if self.is_hub
            else (self.settings.peer_address(self.args.dp_address), self.args.dp_port)
        )
        spec = engine.EngineSpec(self.args, self.settings, rank, index, hub, tuple(self.behaviours))
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            # What the parent holds must not stay open in an engine that outlives it.
            ours.close()
            for child in self.children:
                child.sock.close()
            if self.http:
                self.http.close()
            engine.run(spec, theirs)
        theirs.close()
        self.children.append(Child(rank, spec.name, pid, ours))

    async def live(self) -> int:
        """Until the end; the exit code."""
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self.loop.create_future()
        self.injector.run_in(self.loop, self._watch_signals)
        if self.is_hub:
            await self._open_group()
        for child in self.children:
            await self._connect(child)
        return await self.ended

    def _watch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._told_to_end)

    async def _connect(self, child: Child) -> None:
        link = Link(
            lambda link, message: self._on_engine(child, link, message),
            lambda link: self._on_child_gone(child),
        )
        child.link = link
        await self.loop.create_connection(lambda: link, sock=child.sock)

    async def _open_group(self) -> None:
        args = self.args
        local = range(args.dp_start, args.dp_start + args.dp_local)
        self.group = Group(
            engine.fingerprint(args),
            local,
            self.settings.join_seconds,
            fail=self._startup_failed,
            up=self._group_up,
            lost=self._engine_lost,
            left=self.api.engine_left,
        )
        self.group.open()
        if args.dp_local == args.dp_size:
            return
        host = self.settings.peer_address(args.dp_address)
        try:
            sock = bind(host, args.dp_port, self.settings)
            group = self.group
            self.servers.append(
                await self.loop.create_server(
                    lambda: Link(self._on_remote, group.on_close), sock=sock
                )
            )
        except OSError as error:
            self._startup_failed(
                f"zmq.error.ZMQError: {os.strerror(error.errno or 0)} (addr='tcp://{args.dp_address}:{args.dp_port}')"
            )
            return
        console.info(
            "utils.py:1004", f"Waiting for data parallel engines at tcp://{host}:{args.dp_port}"
        )

    def _on_remote(self, link: Link, message: Message) -> None:
        assert self.group
        rank = link.facts.get("rank")
        if message.get("t") in ("hello", "ready"):
            self.group.on_message(link, message)
        elif rank is not None and self.args.mode == "internal":
            self.api.on_engine(rank, message)

    def _on_engine(self, child: Child, link: Link, message: Message) -> None:
        kind = message.get("t")
        if kind in ("hello", "ready") and self.group:
            self.group.on_message(link, message)
        elif kind == "loading" and not self.loading:
            self.loading = True
            self.injector.fire("load")
        elif kind == "up":
            child.up = True
            if not self.group and all(one.up for one in self.children):
                self._local_up()
        elif kind == "arrived":
            if self.args.headless:
                self.arrived += 1
                self.injector.arrived(self.arrived)
        elif self.serving:
            self.api.on_engine(child.rank, message)

    def _group_up(self) -> None:
        assert self.group
        self._start_serving(
            self.group.members if self.args.mode == "internal" else self._local_links()
        )

    def _local_up(self) -> None:
        if self.args.headless:
            self.serving = True
            console.info(
                "serve.py:187",
                f"Headless engines of ranks {self.children[0].rank} to {self.children[-1].rank} "
                "are serving.",
            )
            self.injector.fire("ready")
        else:
            self._start_serving(self._local_links())

    def _local_links(self) -> dict[int, Link]:
        return {child.rank: child.link for child in self.children if child.link}

    def _start_serving(self, engines: dict[int, Link]) -> None:
        self.serving = True
        self.api.attach(engines)
        self.work = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        assert self.http
        uds = self.args.access.uds
        host, port = (uds, "") if uds else self.http.getsockname()[:2]
        try:
            tls = self.args.access.tls()
            make = self.loop.create_unix_server if uds else self.loop.create_server
            self.servers.append(
                await make(self.api.connection, sock=self.http, backlog=2048, ssl=tls)
            )
        except (OSError, ValueError, AssertionError) as error:
            console.plain(console.trace(error))
            self._finish(1)
            return
        console.info(
            "launcher.py:34",
            "Available routes are:\n"
            + "\n".join(f"Route: {path}, Methods: {method}" for method, path in self.api.routes),
        )
        scheme = "https" if tls else "http"
        console.info(
            "api_server.py:1880", f"Starting vLLM API server 0 on {scheme}://{host}:{port}"
        )
        console.plain(
            f"INFO:     Started server process [{os.getpid()}]\n"
            "INFO:     Waiting for application startup.\n"
            "INFO:     Application startup complete."
        )
        self.injector.fire("ready")

    def _behave(self, what: str, arg: float | None) -> None:
        console.warning("faults.py:1", f"injected fault {what}{'' if arg is None else f'={arg:g}'}")
        self.behaviours.append((what, arg))
        self.api.behaviours.add(what)
        for child in self.children:
            if child.link:
                child.link.send({"t": "fault", "what": what, "arg": arg})

    def _on_child_gone(self, child: Child) -> None:
        if self.closing:
            return
        code = _reap(child.pid)
        if not self.serving:
            self._startup_failed("", {child.name: code})
        else:
            self._engine_lost(child.rank)

    def _startup_failed(self, reason: str, failed: dict[str, int | None] | None = None) -> None:
        if self.closing:
            return
        if reason:
            console.error("core_client.py:512", reason)
        console.plain(
            "Traceback (most recent call last):\n"
            '  File "vllm/v1/engine/utils.py", line 1070, in wait_for_engine_startup\n'
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core "
            f"proc(s): {failed or {}}"
        )
        self._finish(1)

    def _engine_lost(self, rank: int) -> None:
        if self.closing:
            return
        if not self.serving:
            self._startup_failed("", {f"EngineCore_DP{rank}": None})
            return
        console.error(
            "core_client.py:598",
            f"Engine core proc EngineCore_DP{rank} died unexpectedly, shutting down client.",
        )
        if not self.args.headless:
            self.api.engine_dead()
            console.error(
                "async_llm.py:480",
                "AsyncLLM output_handler failed.\nvllm.v1.engine.exceptions.EngineDeadError: "
                f"{DEAD}",
            )
        # A lone API server, or a headless one, shuts down in good order (seen of vLLM 0.32).
        self._finish(0 if self.args.headless or self.args.dp_size == 1 else 1)

    def _finish(self, code: int) -> None:
        self.closing = True
        self._kill_children()
        if not self.ended.done():
            self.ended.set_result(code)

    def _kill_children(self) -> None:
        # All are held first: none may live to log how the others' death looked to it.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for child in self.children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def _told_to_end(self) -> None:
        self.injector.fire("term")
        if self.closing or self.injector.ignores_term:
            return
        self.closing = True
        self.work = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        console.plain("INFO:     Shutting down")
        for server in self.servers:
            server.close()
        await asyncio.sleep(self.settings.stop_seconds)
        for connection in list(self.api.connections):
            if connection.transport:
                connection.transport.abort() if connection.request else connection.transport.close()
        if self.group:
            for link in self.group.members.values():
                link.send({"t": "bye"})
        for child in self.children:
            if child.link:
                child.link.send({"t": "bye"})
        deadline = time.monotonic() + REAP_SECONDS
        while (
            any(child.link and child.link.transport for child in self.children)
            and time.monotonic() < deadline
        ):
            await asyncio.sleep(0.005)
        if self.group:
            for link in self.group.members.values():
                link.close()
        console.plain("INFO:     Application shutdown complete.")
        self._finish(0)


def _reap(pid: int) -> int | None:
    """The exit code of an engine that has closed its socket (negative: a signal); None if it cannot
    be told.
    """
    for _ in range(20):
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def run(args: cli.ServeArgs, settings: Settings) -> NoReturn:
    """The life of the server process."""
    console.speak_as("APIServer" if not args.headless else "HeadlessServer")
    console.info("api_server.py:1834", f"vLLM API server version {VERSION}")
    console.info(
        "utils.py:253",
        "non-default args: "
        f"{ {key: value for key, value in args.raw.items() if value is not False} }",
    )
    front = Front(args, settings)
    front.prepare()
    code = asyncio.run(front.live())
    sys.stdout.flush()
    os._exit(code)
