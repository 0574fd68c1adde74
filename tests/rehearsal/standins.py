"""Running stand-ins, and a yard that starts them on loopback addresses of their own and ends them
all.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0
_hosts = itertools.count(1)


class Standin:
    """One running stand-in."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, address: str, port: int
    ) -> None:
        self.process, self.path, self.address, self.port = process, log, address, port

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.path.read_text(errors="replace")

    def exit_code(self) -> int:
        """Wait for its end."""
        return self.process.wait(DEADLINE)

    def engines(self) -> list[int]:
        """Process ids of its local engines."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def ready(self) -> Standin:
        """Wait until it answers /health with 200."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log
            try:
                if self.call("GET", "/health", timeout=1)[0] == 200:
                    return self
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"never ready:\n{self.log}")

    def says(self, text: str) -> Standin:
        """Wait until its log holds a text."""
        end = time.monotonic() + DEADLINE
        while text not in self.log:
            assert time.monotonic() < end, f"no {text!r} in:\n{self.log}"
            time.sleep(0.02)
        return self

    def connect(self, timeout: float = DEADLINE) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection(self.address, self.port, timeout=timeout)

    def call(
        self, method: str, path: str, body: Any = None, timeout: float = DEADLINE, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body of one request."""
        connection = self.connect(timeout)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and JSON of one POST."""
        status, data = self.call("POST", path, body, **headers)
        return status, json.loads(data)

    def complete(self, prompt: str = "hello", **more: Any) -> tuple[int, Any]:
        """One completion."""
        return self.post("/v1/completions", {"prompt": prompt, **more})

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels."""
        text = self.call("GET", "/metrics")[1].decode()
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith(name + "{")
            and all(f'{key}="{value}"' in line for key, value in labels.items())
        ]
        assert found, f"no {name} {labels} in {text}"
        return sum(found)


class Yard:
    """Starts stand-ins; `close` ends every process of every one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Standin] = []

    def address(self) -> str:
        """A loopback address nobody else of this test run uses."""
        number = next(_hosts)
        return f"127.77.{1 + os.getpid() % 250}.{1 + number % 250}"

    def port(self, address: str) -> int:
        """A free port there."""
        with socket.socket() as probe:
            probe.bind((address, 0))
            port: int = probe.getsockname()[1]
            return port

    def start(
        self,
        *argv: str,
        program: str = "vllm",
        python: str = sys.executable,
        address: str | None = None,
        node: int = 0,
        faults: str = "",
        devices: int = 8,
        **env: str,
    ) -> Standin:
        """Start a stand-in; `vllm` is completed with `serve M --port`, a router with its place."""
        address = address or self.address()
        port = self.port(address)
        command = [python, str(ROOT / "rehearsal" / "bin" / program)]
        if program == "vllm":
            command += ["serve", "M", "--port", str(port)]
        if program.endswith("-router"):
            command += ["--host", address, "--port", str(port), "--prometheus-host", address]
            command += ["--prometheus-port", str(self.port(address))]
        log = self.folder / f"{len(self.all)}.log"
        environment = {
            **os.environ,
            "REHEARSAL_ADDRESS": address,
            "REHEARSAL_NODE_INDEX": str(node),
            "REHEARSAL_DEVICES": str(devices),
            "REHEARSAL_LOAD_SECONDS": "0.05",
            "REHEARSAL_TTFT_MS": "2",
            "REHEARSAL_TPOT_MS": "1",
            "REHEARSAL_JOIN_SECONDS": "10",
            "REHEARSAL_FAULTS": faults,
            **env,
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self.all.append(Standin(process, log, address, port))
        return self.all[-1]

    def close(self) -> None:
        """Kill what is left, engines without a parent too: they share its process group."""
        for standin in self.all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(standin.process.pid, signal.SIGKILL)
            standin.process.wait(DEADLINE)
