"""Looking at a node's engines and devices once a second, while a run loads and measures.

Enters: sources, a file. Leaves: ``telemetry.jsonl.gz`` (its form: ``steps.core.record.telemetry``).
Touches: one kept connection an engine; reads /proc; asks npu-smi or nvidia-smi now and then.

Each source has a thread of its own: one that is slow, dead or hangs leaves a gap, and delays
neither the others, nor the run, nor its end. The file is bounded: each time that half of what is
left of its room is used, looks become half as frequent.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from steps.core.case.numbers import dumps
from steps.core.node import http
from steps.core.node.noderun import Ending, NodeRun
from steps.core.plan.cluster import url_host
from steps.core.plan.plan import Access, NodePlan
from steps.core.record import telemetry
from steps.core.record.rundir import appending
from steps.core.vllm import metrics

EVERY, FLUSH_EVERY = 1.0, 5.0
#: How often is looked before the fleet serves: a machine that only loads tells little.
SELDOM = 5.0
#: Seconds an endpoint may take, and bytes of its answer.
PATIENCE, MOST_ANSWER = 5.0, 4 << 20
#: Bytes of a node's file.
ROOM = 8 << 20
#: A call of a device's tool takes a good part of a second of a core.
TOOL_EVERY, TOOL_PATIENCE = 10.0, 20.0
#: Seconds in which a last look may still be answered, and a disk may take what is left.
_LAST_LOOK, _END_WAIT = 0.2, 1.0
_CHIP = re.compile(
    r"^\|\s*(\d+)(?:\s+\d+)?\s*\|\s*[0-9A-Fa-f]{4}:[0-9A-Fa-f:.]+\s*\|\s*(\d+)\s+.*?"
    r"(\d+)\s*/\s*(\d+)\s*\|$"
)
#: Keys of a source, and the value of each as it is written.
Found = tuple[Sequence[str], Sequence[str]]


def _nothing() -> None:
    """What has nothing to be stopped."""


@dataclass
class Source:
    """Whatever is looked at.

    Attributes:
        ask: what it tells now; None where it does not answer.
        stop: ends a question that is still open.
    """

    name: str
    ask: Callable[[], Found | None]
    every: float = EVERY
    stop: Callable[[], None] = _nothing
    _said: Found = ((), ())
    _told: Sequence[tuple[int, str]] = ()

    def look(self) -> list[object]:
        """Lines to write: new keys, then what has changed; nothing when it did not answer."""
        found = self.ask()
        if found is None:
            return []
        (keys, words), (known, said) = found, self._said
        lines: list[object] = []
        if keys is not known and tuple(keys) != tuple(known):
            said = [""] * len(keys)
            lines.append({"s": self.name, "keys": list(keys)})
            shown = ((place, key.split("|")[0]) for place, key in enumerate(keys))
            self._told = [(place, short) for place, short in shown if short in metrics.LOAD]
        pairs: list[float] = []
        for place, (word, before) in enumerate(zip(words, said, strict=True)):
            if word != before:
                with contextlib.suppress(ValueError, IndexError):
                    value = float(word.split()[0])
                    if math.isfinite(value) and abs(value) < 1e18:
                        pairs += [place, int(value) if value.is_integer() else round(value, 6)]
        self._said = found
        return [*lines, pairs]

    def load(self) -> Iterator[tuple[str, float]]:
        """What it told last of :data:`metrics.LOAD`; of a change of keys just now perhaps less."""
        words = self._said[1]
        for place, short in self._told:
            with contextlib.suppress(ValueError, IndexError):
                value = float(words[place].split()[0])
                if math.isfinite(value):
                    yield short, value


class Sampler:
    """Samples into a file until it is closed.

    Args:
        head: what the first line says besides.
        seldom: until :meth:`quicken`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        path: Path,
        head: dict[str, object],
        room: int = ROOM,
        seldom: bool = False,
    ) -> None:
        self._sources = sources
        self._began = time.monotonic()
        self._path, self._room = path, room
        self._head = {"schema": telemetry.SCHEMA, **head, "started": round(time.time(), 3)}
        self._box: SimpleQueue[tuple[str, float, list[object]]] = SimpleQueue()
        self._over, self._closed = Ending(), threading.Event()
        self._seldom = seldom
        self._slower = 1
        self._looked = threading.Semaphore(0)
        self._followers = [
            threading.Thread(target=self._follow, args=(source, offset), daemon=True)
            for number, source in enumerate(sources)
            for offset in [0.8 * number / len(sources)]
        ]
        self._writer = threading.Thread(target=self._write, name="telemetry", daemon=True)

    def start(self, patience: float = 0.0) -> None:
        """Begin; the first look of each source has that many seconds to be answered."""
        until = time.monotonic() + patience
        self._writer.start()
        for thread in self._followers:
            thread.start()
        for _ in self._followers:
            self._looked.acquire(timeout=max(until - time.monotonic(), 0))

    def load(self) -> dict[str, float]:
        """What the engines do at present, added up."""
        found: dict[str, float] = {}
        for source in self._sources:
            for short, value in source.load():
                found[short] = found.get(short, 0.0) + value
        return found

    def quicken(self) -> None:
        """Look now, and from now on each second: the fleet serves."""
        if self._seldom:
            self._seldom = False
            self._over.stir()

    def close(self) -> None:
        """Look once more, and write; waits for no slow source, and for no disk that hangs."""
        until = time.monotonic() + _LAST_LOOK
        self._over.set()
        for thread in self._followers:
            thread.join(max(until - time.monotonic(), 0))
        self._closed.set()
        for source in self._sources:
            source.stop()
        self._writer.join(_END_WAIT)

    def _follow(self, source: Source, offset: float) -> None:
        """Look each second; what takes longer leaves out the seconds it took."""
        due, last = 0.0, False
        while not last:
            turn, wait = self._over.turn, self._began + due - time.monotonic()
            last = self._over.rest(turn, max(wait, 0))
            if last and source.every > EVERY:
                return
            asked = time.monotonic() - self._began
            if lines := source.look():
                self._box.put((source.name, asked, lines))
            self._looked.release()
            every = max(source.every * self._slower, SELDOM if self._seldom else 0.0)
            turns = math.floor((time.monotonic() - self._began - offset) / every) + 1
            due = every * turns + offset

    def _write(self) -> None:
        packer = zlib.compressobj(6, wbits=31)
        lines, written, flushed, last = [dumps(self._head)], 0, -math.inf, False
        with contextlib.suppress(OSError), appending(self._path) as out:
            while True:
                raw = packer.compress("".join(f"{line}\n" for line in lines).encode())
                if last or written > self._room:
                    out.write(raw + packer.flush(zlib.Z_FINISH))
                    self._over.set()
                    return
                now = time.monotonic() - self._began
                if now - flushed >= FLUSH_EVERY * self._slower:
                    raw += packer.flush(zlib.Z_SYNC_FLUSH)  # a beginning that can be read
                    flushed = now
                out.write(raw)
                written += len(raw)
                while self._room > written > self._room * (1 - 0.5 / self._slower):
                    self._slower *= 2
                last = self._closed.wait(SELDOM if self._seldom else EVERY * self._slower)
                lines = list(self._drained())

    def _drained(self) -> Iterator[str]:
        """What has come, a line a moment."""
        entries = []
        with contextlib.suppress(Empty):
            while True:
                entries.append(self._box.get_nowait())
        for name, moment, lines in sorted(entries, key=lambda entry: entry[1]):
            for line in lines:
                told = (
                    line if isinstance(line, dict) else {"t": round(moment, 2), "v": {name: line}}
                )
                yield dumps(told)


@contextlib.contextmanager
def sampling(run: NodeRun, seldom: bool = False) -> Iterator[Sampler]:
    """Sample this node's own engines and devices meanwhile."""
    head = {"run": run.plan.run, "node": run.me.index}
    path = run.dir.path / telemetry.NAME
    sampler = Sampler([*engines(run.me), *machine()], path, head, seldom=seldom)
    sampler.start()
    run.load = sampler.load
    try:
        yield sampler
    finally:
        sampler.close()


def engines(node: NodePlan) -> Iterator[Source]:
    """The servers of a node, its router and its pool, as far as they have metrics."""
    for process in node.processes:
        if process.kind == "server" and process.api:
            yield endpoint(process.name, process.access.at(metrics.PATH))
            continue
        for option in ("--metrics_port", "--prometheus-port"):
            if option in process.argv[:-1]:
                port = process.argv[process.argv.index(option) + 1]
                url = f"http://{url_host(node.address)}:{port}{metrics.PATH}"
                yield endpoint(process.name, Access(url), engine=False)


def endpoint(name: str, to: Access, *, engine: bool = True, patience: float = PATIENCE) -> Source:
    """A server's metrics."""
    line, reader = http.Line(to), metrics.Reader(engine)

    def ask() -> Found | None:
        reply = line.get(patience, MOST_ANSWER)
        if reply.status != 200:
            return None
        _, words = reader.read(reply.text)
        return reader.keys, words

    return Source(name, ask)


def machine() -> Iterator[Source]:
    """This machine: its processors, memory and network, and its devices where a tool tells."""
    yield Source(telemetry.MACHINE, _machine)
    for program, arguments, parse in (
        ("npu-smi", ("info",), npus),
        (
            "nvidia-smi",
            (
                "--query-gpu=index,utilization.gpu,memory.used,memory.total",
                "--format=csv,noheader,nounits",
            ),
            gpus,
        ),
    ):
        if path := shutil.which(program):
            yield _tool(program, (path, *arguments), parse)


def _machine() -> Found:
    import psutil  # here: not every step samples

    keys = ("cpu||", "memory||", "memory_bytes||", "sent||", "received||")
    memory, net = psutil.virtual_memory(), psutil.net_io_counters()
    sent, received = (net.bytes_sent, net.bytes_recv) if net else (0, 0)
    values = (psutil.cpu_percent(), memory.percent, memory.used, sent, received)
    return keys, [str(value) for value in values]


def _tool(name: str, argv: Sequence[str], parse: Callable[[str], dict[str, str]]) -> Source:
    running: list[subprocess.Popen[str]] = []

    def ask() -> Found | None:
        if running and running[0].poll() is None:
            return None  # the last one could not even be killed
        running.clear()
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            running.append(
                subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    errors="replace",
                )
            )
            try:
                found = parse(running[0].communicate(timeout=TOOL_PATIENCE)[0])
            finally:
                running[0].kill()
            return (tuple(found), tuple(found.values())) if found else None
        return None

    def stop() -> None:
        for process in running:
            process.kill()

    return Source(name, ask, TOOL_EVERY, stop)


def npus(text: str) -> dict[str, str]:
    """Load in percent, and memory in MB, of each chip that ``npu-smi info`` shows."""
    found: dict[str, str] = {}
    for number, match in enumerate(filter(None, map(_CHIP.match, text.splitlines()))):
        found |= {f"busy|{number}|": match[2], f"used|{number}|": match[3]}
        found[f"whole|{number}|"] = match[4]
    return found


def gpus(text: str) -> dict[str, str]:
    """The same of each device that ``nvidia-smi`` lists."""
    found: dict[str, str] = {}
    for words in (line.split(", ") for line in text.splitlines()):
        if len(words) == 4 and words[0].isdecimal():
            for name, word in zip(("busy", "used", "whole"), words[1:], strict=True):
                found[f"{name}|{words[0]}|"] = word
    return found
