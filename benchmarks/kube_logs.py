"""Following many logs at once: the runner's CPU and memory, and whether a line is lost.

    nice python benchmarks/kube_logs.py [--pods 64] [--rate 100] [--seconds 20]

A small server plays the API's log endpoint (the double runs whole pods, of which
one machine does not hold 64): each stream says so many lines a second, as an API
server sends them, and each is broken once and resumed. The runner's side, with
the real client, follower and event parsing, is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class Logs(BaseHTTPRequestHandler):
    """Log streams: line n of a pod belongs to the time start + n / rate."""

    protocol_version = "HTTP/1.1"
    start = 0.0
    rate = 100
    lines = 0
    broken: set[str] = set()  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """One stream."""
        pod = self.path.split("/pods/")[1].split("/")[0]
        query = parse_qs(urlsplit(self.path).query)
        since = query.get("sinceTime", [""])[0]
        first = 0
        if since:
            at = time.mktime(time.strptime(since, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
            first = max(int((at - self.start) * self.rate), 0)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        number = first
        half = self.lines // 2
        while number < self.lines:
            due = min(int((time.time() - self.start) * self.rate), self.lines)
            if due <= number:
                time.sleep(0.02)
                continue
            if pod not in self.broken and due > half:
                self.broken.add(pod)
                self.close_connection = True
                return
            # An API server passes on what it has; a few lines a chunk at this rate.
            data = b"".join(self.line(pod, n) for n in range(number, due))
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            number = due
        self.wfile.write(b"0\r\n\r\n")

    def line(self, pod: str, number: int) -> bytes:
        """One line, as ``timestamps=true`` shows it."""
        at = self.start + number / self.rate
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
        stamp = f"{whole}.{int(at % 1 * 1e9):09d}Z"
        event = {"time": at, "run": "r", "node": 1, "phase": "load", "what": "progress"}
        return f"{stamp} {json.dumps({**event, 'text': f'{pod} line {number}'})}\n".encode()


def main() -> int:
    """Serve, measure the follower, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=64)
    parser.add_argument("--rate", type=int, default=100, help="lines/s of each")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.follow:
        return follow(arguments)
    Logs.rate, Logs.lines = arguments.rate, int(arguments.rate * arguments.seconds)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Logs)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="kube-logs-") as name:
        config = Path(name) / "config"
        address = f"http://127.0.0.1:{server.server_port}"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": {"server": address}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
                    "users": [{"name": "c", "user": {"token": "t"}}],
                }
            )
        )
        argv = [sys.executable, __file__, "--follow", name]
        argv += ["--pods", str(arguments.pods), "--rate", str(arguments.rate)]
        argv += ["--seconds", str(arguments.seconds)]
        Logs.start = time.time() + 4.0
        env = {**os.environ, "KUBECONFIG": str(config)}
        out = subprocess.run(argv, env=env, check=True, capture_output=True, text=True)
    server.shutdown()
    print(out.stdout.strip())
    return 0


def follow(arguments: argparse.Namespace) -> int:
    """The runner's side."""
    from k8s.api import client
    from k8s.api.follow import Follower
    from steps.core.record.events import Event

    directory = Path(arguments.follow)
    api = client.connect()
    counts = [0] * arguments.pods

    def listener(index: int):  # type: ignore[no-untyped-def]
        def line(text: str) -> None:
            if Event.from_json(text) is not None:
                counts[index] += 1

        return line

    expected = int(arguments.rate * arguments.seconds)
    followers = [
        Follower(api, "x", f"p-{i}", "node", directory / f"{i}.log", listener(i)).start()
        for i in range(arguments.pods)
    ]
    time.sleep(3.0)
    began, before = time.monotonic(), time.process_time()
    while min(counts) < expected and time.monotonic() - began < arguments.seconds * 3 + 10:
        time.sleep(0.1)
    seconds, cpu = time.monotonic() - began, time.process_time() - before
    for follower in followers:
        follower.close(0)
    wrong = 0
    for i in range(arguments.pods):
        lines = (directory / f"{i}.log").read_text().splitlines()
        numbers = [int(json.loads(line)["text"].rpartition(" ")[2]) for line in lines]
        wrong += numbers != list(range(expected))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{arguments.pods} streams of {arguments.rate} lines/s for {arguments.seconds:g} s: "
        f"{sum(counts):,} of {expected * arguments.pods:,} lines, {wrong} logs with a line lost, "
        f"repeated or out of order, though each stream broke once; peak {peak} MiB, "
        f"{cpu / seconds * 100:.0f} % of one core over {seconds:.1f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
