"""How a server begins and ends: each check starts one of its own.

Enters: a :class:`Program`. Leaves: nothing, or an AssertionError. Touches: the process group it
starts, all of which is gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tests.conformance.client import CHAT, COMPLETIONS, QUESTION, Server, load, same, wait_for

LIVES: list[Callable[[Program], None]] = []
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
#: Seconds without a byte after which a client leaves. vLLM 0.32 may kill its engine before that has
#: ended the streams; it then waits for the clients to go, which the harness's are told to.
LEAVES_AFTER = 10.0


def life(function: Callable[[Program], None]) -> Callable[[Program], None]:
    """Register a check."""
    LIVES.append(function)
    return function


@dataclass(frozen=True)
class Program:
    """A command that serves at a URL; ``ready_seconds`` is how long that may take."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    url: str
    log: Path
    ready_seconds: float


class Running:
    """A started program and everything it has started."""

    def __init__(self, program: Program) -> None:
        self.program, self.server = program, Server(program.url)
        with program.log.open("wb") as log:
            self.process = subprocess.Popen(
                program.argv,
                env={**os.environ, **program.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> Server:
        """Wait for /health; until then nobody listens, then everything answers at once."""
        server, end = self.server, time.monotonic() + self.program.ready_seconds
        while True:
            assert self.process.poll() is None, self.tail()
            assert time.monotonic() < end, f"not ready in time: {self.tail()}"
            try:
                same(server.ask("GET", "/health", seconds=5).status, 200)
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        server.meet()
        same(server.post(COMPLETIONS, prompt=[5], max_tokens=1).status, 200)
        return server

    def engines(self) -> list[psutil.Process]:
        """Its processes that compute."""
        return engines(self.process.pid)

    def group(self) -> list[int]:
        """Processes of its group that still live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                mine = os.getpgid(process.pid) == self.process.pid
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def tail(self) -> str:
        """The end of its log."""
        return self.program.log.read_text(errors="replace")[-2000:]

    def exit_code(self, seconds: float = 30.0) -> int:
        """Wait for its end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it lives on after {seconds:g} s: {self.tail()}") from None

    def close(self) -> None:
        """End everything of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(program: Program) -> Iterator[Running]:
    """A started program, ended whatever happens."""
    found = Running(program)
    try:
        yield found
    finally:
        found.close()


def engines(server: int) -> list[psutil.Process]:
    """The processes of a server that compute: the last generation of its children."""
    found = psutil.Process(server).children(recursive=True)
    parents = {process.ppid() for process in found}
    return [p for p in found if p.pid not in parents and "resource_tracker" not in _command(p)]


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@life
def a_key_opens_what_is_guarded_with_its_prefix_or_without(program: Program) -> None:
    argv = (*program.argv, "--root-path", "/llm", "--api-key", "one", "two")
    env = {**program.env, "VLLM_API_KEY": "other"}
    with running(replace(program, argv=argv, env=env)) as run:

        def told(path: str, key: str = "") -> int:
            with contextlib.suppress(OSError):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                return run.server.ask("GET", path, **headers).status
            return 0

        assert wait_for(lambda: told("/health") == 200, program.ready_seconds), run.tail()
        same([told(f"{root}/metrics") for root in ("", "/llm")], [200, 200])
        for path in ("/v1/models", "/llm/v1/models"):
            same([told(path, key) for key in ("", "one", "two", "other")], [401, 200, 200, 401])


@life
def a_dead_engine_ends_the_server_with_code_0(program: Program) -> None:
    with running(program) as run:
        server = run.ready()
        asked = {"max_tokens": server.longest, "ignore_eos": True}
        stream = server.send(CHAT, messages=QUESTION, stream=True, **asked)
        whole = server.connect()
        body = {"model": server.model, "prompt": [5], **asked}
        whole.request("POST", COMPLETIONS, json.dumps(body), {"Content-Type": "application/json"})
        for _ in range(8):
            same(stream.status, 200)
            assert stream.readline()
        for engine in run.engines():
            engine.kill()
        *_, last, done = [line for line in stream.read().decode().splitlines() if line]
        error = {"message": DEAD, "type": "InternalServerError", "param": None, "code": 500}
        same((json.loads(last.removeprefix("data: ")), done), ({"error": error}, "data: [DONE]"))
        answer = whole.getresponse()
        same((answer.status, json.loads(answer.read())), (500, {"error": error}))
        whole.close()
        same(run.exit_code(), 0)
        assert wait_for(lambda: not run.group()), f"processes are left: {run.group()}"


@life
def sigterm_ends_it_with_code_0_under_load(program: Program) -> None:
    with running(program) as run:
        server = run.ready()
        asked = {"max_tokens": server.longest, "ignore_eos": True, "stream": True}
        stream = server.send(COMPLETIONS, LEAVES_AFTER, prompt=[5], **asked)
        assert stream.readline()
        os.killpg(run.process.pid, signal.SIGTERM)
        told = _rest(stream)
        stream.close()
        same(run.exit_code(), 0)
        assert "[DONE]" not in told.splitlines()[-1:], told
        assert wait_for(lambda: not run.group()), f"processes are left: {run.group()}"


@life
def a_killed_server_drops_its_clients(program: Program) -> None:
    with running(program) as run:
        server = run.ready()
        asked = {"max_tokens": server.longest, "ignore_eos": True, "stream": True}
        stream = server.send(COMPLETIONS, prompt=[5], **asked)
        assert stream.readline()
        run.process.kill()
        assert "[DONE]" not in _rest(stream)
        same(run.exit_code(), -signal.SIGKILL)
        try:
            server.ask("GET", "/health", seconds=5)
        except ConnectionRefusedError:
            return
        raise AssertionError("somebody still answers")


@life
def a_wrong_command_is_refused_with_code_2(program: Program) -> None:
    argv = (*program.argv, "--no-such-option", "1")
    wrong = Program(argv, program.env, program.url, program.log, program.ready_seconds)
    with running(wrong) as run:
        same(run.exit_code(program.ready_seconds), 2)
        assert "error: unrecognized arguments: --no-such-option 1" in run.tail()


@life
def a_full_kv_cache_preempts_and_every_answer_is_whole(program: Program) -> None:
    """23 blocks of 32 tokens for eight requests of 158 tokens, 5 blocks each."""
    argv = (*program.argv, "--block-size", "32", "--num-gpu-blocks-override", "24")
    with running(replace(program, argv=argv)) as run:
        found = load(run.ready(), 8, 150)
        same(found.tokens, [150] * 8)
        assert found.total("num_preemptions_total") > 0, "all of them do not fit"
        assert found.most("kv_cache_usage_perc") > 0.8
        same(found.seen[-1]["vllm:kv_cache_usage_perc"], 0.0)


def _rest(stream: object) -> str:
    """What still comes of a stream that may break off."""
    lines = []
    with contextlib.suppress(OSError, EOFError, ValueError):
        while line := stream.readline():  # type: ignore[attr-defined]
            lines.append(line.decode("utf-8", "replace"))
    return "".join(lines)
