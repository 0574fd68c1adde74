"""What a fleet of hundreds of nodes costs its leader, through a whole run's protocol.

    python benchmarks/rendezvous_load.py --nodes 512 --seconds 20

The leader's end of the rendezvous, wired as in the node program, runs in a process of its own and
is measured from outside. The nodes are connections of one client process, each with 8 processes:
they join, take the plan, pass preflight, hear the word to start, load, hold, beat as ``Link`` does,
hear of the end and hand over a record of 200 kB each. Limits: 25 % of a core while they hold,
150 MB, the end known within 2 s, all records in within 10 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.connection
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TOKEN = "0123456789abcdef"
ADDRESS, PORT = "127.83.1.1", 28999
HELLO = {"plan": "f" * 64, "harness": "0.1.0"}
PROCESSES, RECORD_BYTES = 8, 200_000
PATIENCE = 60.0


def lead(pipe: multiprocessing.connection.Connection, size: int, place: str) -> None:
    """The leader's process: says when each stage is reached, and takes words in between."""
    from steps.core.node.rendezvous.inbox import Inbox
    from steps.core.node.rendezvous.meeting import Meeting, open_port
    from steps.core.node.rendezvous.messages import End, Hello
    from steps.core.node.start import Start
    from steps.core.record.events import EventLog
    from steps.core.record.rundir import RunDir

    run_dir = RunDir(Path(place))
    events = EventLog(run_dir.node(0).make().events, "run-1", 0)
    meeting = Meeting(Start(0, TOKEN, run_dir), events, Inbox())
    leader = meeting.leader = meeting._leader(ADDRESS, PORT, size, Hello(**HELLO))
    open_port(leader)
    pipe.send("listening")
    members = leader.members
    joined = leader.wait(lambda: len(members) == size - 1, PATIENCE)
    leader.plan(plan_of(size))
    pipe.send(joined)
    pipe.send(leader.wait(lambda: all("preflight" in m.passed for m in members.values()), PATIENCE))
    leader.tell(phase="load", go=True)
    pipe.send(leader.wait(lambda: all("load" in m.passed for m in members.values()), PATIENCE))
    leader.tell(phase="bench", serving=True)
    pipe.recv()
    began = time.monotonic()
    leader.roll_call()
    rolled = time.monotonic()
    leader.tell(phase="stop", ended=End())
    every = leader.wait(leader.all_done, PATIENCE)
    kept = sum(run_dir.node(index).record.stat().st_size > RECORD_BYTES for index in range(1, size))
    lost = sum(member.lost for member in members.values())
    pipe.send((began, rolled, time.monotonic(), every, kept, lost))
    pipe.recv()
    meeting.close()


def plan_of(size: int) -> str:
    """A plan as long as one of so many nodes is: 1.5 kB a process."""
    process = {"argv": ["vllm", "serve", *("--an-option", "a value") * 40], "env": {"A": "b" * 300}}
    rows = [
        {
            **process,
            "name": f"server-{number}",
            "api": f"http://10.0.{index % 250}.1:{8000 + number}",
        }
        for index in range(size)
        for number in range(PROCESSES)
    ]
    return json.dumps(rows, indent=2)


class Node:
    """One simulated node, from joining to its record."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.beats = 0
        self.knew = 0.0
        self.state: dict[str, Any] = {
            "seq": -1,
            "roll": 0,
            "ended": None,
            "go": False,
            "planned": False,
        }
        self.passed: list[str] = []
        self._rounds = 0

    async def live(self) -> None:
        """Beat until the end is known, then hand the record over."""
        await asyncio.sleep(self.index / 512)
        reader, writer = await asyncio.open_connection(ADDRESS, PORT)
        hello = HELLO
        while not self.state["ended"]:
            self.beats += 1
            self.state = await self._say(reader, writer, "/v1/beat", hello=hello, main=True)
            hello = {}
            if self.state["planned"] and "preflight" not in self.passed:
                mine = await asyncio.open_connection(ADDRESS, PORT)
                await self._say(*mine, "/v1/plan")
                mine[1].close()
            self._go_on()
        self.knew = time.monotonic()
        beating = asyncio.create_task(self._beat_on(reader, writer))
        mine = await asyncio.open_connection(ADDRESS, PORT)
        lines = ["x" * 90] * (RECORD_BYTES // 92)
        record = {
            "schema": 1,
            "run": "run-1",
            "node": self.index,
            "outcome": "pass",
            "lines": lines,
        }
        await self._say(*mine, "/v1/done", hello=HELLO, record=record)
        beating.cancel()
        writer.close()
        mine[1].close()

    async def _beat_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self.state = await self._say(reader, writer, "/v1/beat", hello={}, main=True)

    def _go_on(self) -> None:
        """Pass preflight when the plan has come, and load two beats after the word to start."""
        self._rounds += 1
        if "preflight" not in self.passed and self.state["planned"]:
            self.passed, self._rounds = ["preflight"], 0
        elif self.state["go"] and "load" not in self.passed and self._rounds > 1:
            self.passed = ["load", "preflight"]

    async def _say(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, **more: Any
    ) -> dict[str, Any]:
        progress = {f"server-{n}": 100_000 + 37 * self.beats for n in range(PROCESSES)}
        said = {
            "node": self.index,
            "process": f"{self.index:016x}",
            "address": f"127.83.2.{self.index % 250}",
            "phase": "hold",
            "passed": self.passed,
            "progress": progress,
            "seq": self.state["seq"],
            "roll": self.state["roll"],
            **more,
        }
        body = json.dumps(said).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {ADDRESS}:{PORT}\r\nAccept-Encoding: identity\r\n"
            f"Content-Length: {len(body)}\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found: dict[str, Any] = json.loads(await reader.readexactly(length))
        return found


async def simulate(
    pipe: multiprocessing.connection.Connection, leader: psutil.Process, size: int, seconds: float
) -> dict[str, Any]:
    """A whole run; what it cost."""
    nodes = [Node(index) for index in range(1, size)]
    tasks = [asyncio.create_task(node.live()) for node in nodes]
    stages, began = [], time.monotonic()
    for _ in ("joined", "preflight", "load"):
        assert await asyncio.to_thread(pipe.recv)
        stages.append(round(time.monotonic() - began, 2))
    await asyncio.sleep(2)
    before, began = leader.cpu_times(), time.monotonic()
    beats = sum(node.beats for node in nodes)
    await asyncio.sleep(seconds)
    after, took = leader.cpu_times(), time.monotonic() - began
    beats = sum(node.beats for node in nodes) - beats
    pipe.send("end")
    await asyncio.gather(*tasks)
    told, rolled, over, every, kept, lost = await asyncio.to_thread(pipe.recv)
    busy = after.user + after.system - before.user - before.system
    peak = next(
        int(line.split()[1])
        for line in Path(f"/proc/{leader.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return {
        "nodes": size,
        "joined_preflight_load_seconds": stages,
        "beats_per_second": round(beats / took, 1),
        "leader_cpu_percent": round(100 * busy / took, 1),
        "leader_peak_mb": round(peak / 1e3, 1),
        "roll_call_seconds": round(rolled - told, 3),
        "end_known_seconds": round(max(node.knew for node in nodes) - told, 3),
        "records_in_seconds": round(over - rolled, 3),
        "records_kept": f"{kept} of {size - 1}" if every else f"{kept} of {size - 1}: not all came",
        "falsely_lost": lost,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="rendezvous-load-") as place:
        process = context.Process(target=lead, args=(theirs, arguments.nodes, place), daemon=True)
        process.start()
        try:
            ours.recv()
            leader = psutil.Process(process.pid)
            found = asyncio.run(simulate(ours, leader, arguments.nodes, arguments.seconds))
            print(json.dumps(found, indent=1))
            ours.send("quit")
            process.join(10)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
