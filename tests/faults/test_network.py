"""Faults of the network between two nodes in network namespaces of their own.

Each node program runs by hand in a namespace; the cable between the two is ours.
Needs root, iproute2 and /dev/net/tun; skipped with the reason where one is missing.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steps.core.plan import clusters
from steps.core.plan.cluster import Cluster, ClusterNode, Rehearsal
from steps.core.system.guard import marked
from tests.faults.rehearse import ROOT, environment

NODES = (0, 1)
CASE = "Qwen3-235B-A22B.yaml"
#: Seconds after a cut until both sides have named the cause; 4 of them are silence.
SOON = 6.5


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _missing() -> str:
    """Why there can be no such network here; empty when there can."""
    if not shutil.which("ip"):
        return "ip is not installed (Debian: apt-get install iproute2)"
    wire = Wire()
    try:
        wire.up()
    except OSError as error:
        return f"no network namespaces here: {error}"
    finally:
        wire.down()
    return ""


#: Run in a namespace: makes its network device and hands it to the test over a socket.
_PLUG = """
import fcntl, os, socket, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x0002 | 0x1000))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [tap])
"""


class Wire:
    """Two namespaces with a network device each, and the cable between them: a thread.

    Not netem, which many kernels lack. Frames to each node are lost or late as the test says.
    """

    def __init__(self) -> None:
        mark = secrets.token_hex(2)
        self.spaces = [f"mn{mark}n{index}" for index in NODES]
        self.addresses = [f"10.213.{int(mark[:2], 16)}.{index + 1}" for index in NODES]
        self.lost = dict.fromkeys(NODES, False)
        self.delay = dict.fromkeys(NODES, 0.0)
        self._taps: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def up(self) -> None:
        """Make it."""
        for index, space in enumerate(self.spaces):
            _run("ip", "netns", "add", space)
            self._taps.append(self._plug(space))
            self._in(space, "ip", "address", "add", f"{self.addresses[index]}/24", "dev", "eth0")
            self._in(space, "ip", "link", "set", "lo", "up")
            self._in(space, "ip", "link", "set", "eth0", "up")
        self._thread.start()

    def down(self) -> None:
        """Take it away."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        for tap in self._taps:
            os.close(tap)
        for space in self.spaces:
            with contextlib.suppress(OSError):
                _run("ip", "netns", "del", space)

    def lose(self, *towards: int) -> None:
        """Nothing reaches these nodes any more; nobody is told."""
        for index in towards:
            self.lost[index] = True

    def _plug(self, space: str) -> int:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = subprocess.run(
                ["ip", "netns", "exec", space, sys.executable, "-c", _PLUG, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise OSError(done.stderr.strip().splitlines()[-1])
            _, (tap,), _, _ = socket.recv_fds(ours, 1, 1)
        os.set_blocking(tap, False)
        return tap

    def _carry(self) -> None:
        """The cable."""
        waiting: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not self._over.is_set():
            rest = waiting[0][0] - time.monotonic() if waiting else 0.1
            ready, _, _ = select.select(self._taps, [], [], min(max(rest, 0.0), 0.1))
            for tap in ready:
                target = 1 - self._taps.index(tap)
                with contextlib.suppress(OSError):
                    frame = os.read(tap, 4096)
                    if not self.lost[target]:
                        count += 1
                        due = time.monotonic() + self.delay[target]
                        heapq.heappush(waiting, (due, count, target, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, target, frame = heapq.heappop(waiting)
                with contextlib.suppress(OSError):
                    os.write(self._taps[target], frame)

    def _in(self, space: str, *words: str) -> None:
        _run("ip", "netns", "exec", space, *words)


class Fleet:
    """Two node programs, each in its namespace."""

    def __init__(self, wire: Wire, tmp_path: Path, load: float) -> None:
        self.wire = wire
        self.paths = [tmp_path / f"run-{index}" for index in NODES]
        cluster = Cluster(
            "network",
            "hosts",
            tuple(ClusterNode(i, wire.addresses[i], "eth0") for i in NODES),
            paths={
                "PATH": (str(clusters.STAND_INS / "bin"),),
                "PYTHONPATH": (str(clusters.STAND_INS / "lib"),),
            },
            python=sys.executable,
            rehearsal=Rehearsal(load),
        )
        (tmp_path / "cluster.json").write_text(json.dumps(cluster.to_dict()))
        self.logs = [tmp_path / f"output-{index}.txt" for index in NODES]
        self.popen = [self._start(index, tmp_path) for index in NODES]

    def _start(self, index: int, tmp_path: Path) -> subprocess.Popen[bytes]:
        argv = ["ip", "netns", "exec", self.wire.spaces[index], sys.executable, "-m", "steps.node"]
        argv += ["--case", CASE, "--cluster", str(tmp_path / "cluster.json")]
        argv += ["--node-index", str(index), "--run-dir", str(self.paths[index])]
        env = {**environment(tmp_path), "MULTINODE_TOKEN": "network"}
        with self.logs[index].open("wb") as out:
            return subprocess.Popen(
                argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def until(self, done: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait for something."""
        deadline = time.monotonic() + seconds
        while not done():
            said = "\n".join(log.read_text()[-2000:] for log in self.logs)
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{said}"
            time.sleep(0.05)

    def loading(self) -> None:
        """Wait until both nodes have started their servers."""
        logs = [self.paths[i] / f"node-{i}" / "server.log" for i in NODES]
        self.until(lambda: all(log.exists() for log in logs), "both servers", 40)

    def told(self, index: int, what: str) -> list[dict[str, Any]]:
        """A node's own events of one kind."""
        path = self.paths[index] / f"node-{index}" / "events.jsonl"
        rows = [json.loads(line) for line in path.read_text().split("\n") if line.endswith("}")]
        return [row for row in rows if row["what"] == what]

    def ended(self, seconds: float) -> list[int]:
        """The exit codes of both programs."""
        self.until(lambda: all(p.poll() is not None for p in self.popen), "the end", seconds)
        return [popen.returncode for popen in self.popen]

    def kill(self) -> None:
        """Leave nothing."""
        for index, popen in enumerate(self.popen):
            with contextlib.suppress(OSError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
            for pid in marked(f"{self.paths[index].resolve()}:{index}"):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def wire() -> Iterator[Wire]:
    why = _missing()
    if why:
        pytest.skip(why)
    made = Wire()
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def start(wire: Wire, tmp_path: Path) -> Iterator[Callable[[float], Fleet]]:
    """Starts the two nodes; they end with the test."""
    started: list[Fleet] = []

    def begin(load: float) -> Fleet:
        started.append(Fleet(wire, tmp_path, load))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


CUTS = {
    "partition": (0, 1),
    "nothing reaches the leader": (0,),
    "nothing reaches the worker": (1,),
}


@pytest.mark.parametrize("cut", CUTS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.timing
def test_both_sides_of_a_cut_name_the_other(
    start: Callable[[float], Fleet], wire: Wire, cut: str
) -> None:
    nodes = start(25)
    nodes.loading()
    began = time.time()
    wire.lose(*CUTS[cut])
    for index in NODES:
        nodes.until(lambda index=index: bool(nodes.told(index, "cause")), f"node {index}", 12)
    assert nodes.ended(60) == [3, 3]
    for index in NODES:
        cause = nodes.told(index, "cause")[0]
        assert cause["time"] - began < SOON, (index, cause)
        assert cause["verdict"] == "infra", cause
        record = json.loads((nodes.paths[index] / f"node-{index}" / "record.json").read_text())
        assert record["cause"]["kind"] == "lost", record["cause"]
        assert record["cause"]["node"] == 1 - index, record["cause"]
        assert not list(marked(f"{nodes.paths[index].resolve()}:{index}"))


@pytest.mark.timing
def test_a_link_with_two_seconds_of_delay_ends_nothing(
    start: Callable[[float], Fleet], wire: Wire
) -> None:
    nodes = start(12)
    nodes.loading()
    wire.delay[0] = 2.0
    time.sleep(9)
    assert [nodes.told(index, "cause") for index in NODES] == [[], []]
    wire.delay[0] = 0.0
    assert nodes.ended(80) == [0, 0], nodes.logs[0].read_text()[-3000:]
