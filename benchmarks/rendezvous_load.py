"""What the rendezvous costs: one leader, hundreds of simulated nodes.

    python benchmarks/rendezvous_load.py --nodes 512 --seconds 20

The leader runs in a process of its own and is measured from outside; the
nodes are connections of one client process that beat as ``Link`` does, with a
body of the usual size. Printed: the leader's CPU in percent of one core while
all nodes beat, its resident memory, and the seconds from the end of the run
being told until the last node knows it. Targets: 15 %, 60 MB, 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.connection
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TOKEN = "0123456789abcdef"
ADDRESS, PORT = "127.83.1.1", 28999


def lead(pipe: multiprocessing.connection.Connection, size: int) -> None:
    """The leader's process: obeys ``end`` (tells the end, answers with the time) and ``quit``."""
    from steps.core.node.rendezvous.leader import Leader
    from steps.core.node.rendezvous.messages import End
    from steps.core.record.records import Cause

    leader = Leader(ADDRESS, PORT, TOKEN, size)
    leader.start()
    pipe.send("ready")
    while (word := pipe.recv()) != "quit":
        if word == "joined":
            pipe.send(len(leader.joined()))
        elif word == "lost":
            pipe.send(sum(member.lost for member in leader.members.values()))
        else:
            began = time.monotonic()
            leader.roll_call()
            rolled = time.monotonic()
            leader.tell(phase="stop", ended=End(Cause("exit", "crash", "a" * 200)))
            pipe.send((began, rolled))
    leader.close()


class Node:
    """One simulated node: a connection that beats until it hears of the end."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.beats = 0
        self.knew = 0.0

    async def live(self) -> None:
        """Beat until the end is known."""
        await asyncio.sleep(self.index / 512)
        reader, writer = await asyncio.open_connection(ADDRESS, PORT)
        state = {"seq": -1, "roll": 0, "ended": None}
        hello = {"plan": "f" * 64, "harness": "0.1.0"}
        while not state["ended"]:
            self.beats += 1
            progress = {"server": 100_000 + 37 * self.beats}
            body = json.dumps(
                {
                    "node": self.index,
                    "address": f"127.83.2.{self.index % 250}",
                    "hello": hello,
                    "phase": "hold",
                    "progress": progress,
                    "seq": state["seq"],
                    "roll": state["roll"],
                    "main": True,
                    "causes": [],
                }
            ).encode()
            head = (
                f"POST /v1/beat HTTP/1.1\r\nHost: {ADDRESS}:{PORT}\r\nAccept-Encoding: identity\r\n"
                f"Content-Length: {len(body)}\r\nAuthorization: Bearer {TOKEN}\r\n"
                "Content-Type: application/json\r\n\r\n"
            )
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            state = json.loads(await reader.readexactly(length))
        self.knew = time.monotonic()
        writer.close()


async def simulate(
    pipe: multiprocessing.connection.Connection, leader: psutil.Process, size: int, seconds: float
) -> dict[str, float]:
    """Join, beat, end; what it cost."""
    nodes = [Node(index) for index in range(1, size)]
    tasks = [asyncio.create_task(node.live()) for node in nodes]
    joined = 0
    while joined < size - 1:
        await asyncio.sleep(0.2)
        pipe.send("joined")
        joined = pipe.recv()
    await asyncio.sleep(2)
    before, began = leader.cpu_times(), time.monotonic()
    beats = sum(node.beats for node in nodes)
    await asyncio.sleep(seconds)
    after, took = leader.cpu_times(), time.monotonic() - began
    beats = sum(node.beats for node in nodes) - beats
    memory = leader.memory_info().rss
    pipe.send("lost")
    lost = pipe.recv()
    pipe.send("end")
    await asyncio.gather(*tasks)
    told, rolled = pipe.recv()
    last = max(node.knew for node in nodes)
    busy = after.user + after.system - before.user - before.system
    return {
        "nodes": size,
        "beats_per_second": round(beats / took, 1),
        "leader_cpu_percent": round(100 * busy / took, 1),
        "leader_rss_mb": round(memory / 1e6, 1),
        "roll_call_seconds": round(rolled - told, 3),
        "end_known_seconds": round(last - told, 3),
        "falsely_lost": lost,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=lead, args=(theirs, arguments.nodes), daemon=True)
    process.start()
    try:
        ours.recv()
        leader = psutil.Process(process.pid)
        print(json.dumps(asyncio.run(simulate(ours, leader, arguments.nodes, arguments.seconds))))
        ours.send("quit")
        process.join(10)
    finally:
        process.kill()


if __name__ == "__main__":
    main()
