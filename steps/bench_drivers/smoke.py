"""smoke: a small streaming client that needs nothing installed.

Enters: a benchmark and an endpoint. Leaves: a measurement, and one line a
request in ``requests.jsonl``. Touches: HTTP requests to the endpoint.

Sends N chat completions at the benchmark's concurrency and request rate. It
speaks HTTP itself, on one event loop: a thread a request would falsify the
times of a large load. A request that cannot be understood is a failed one, one
that hangs ends the load (``stuck``).
Latencies as AISBench defines them: TTFT from sending to the first token, E2EL
to the last, TPOT = (E2EL - TTFT) / (output tokens - 1), ITL between chunks;
throughput is output tokens over the wall time of the whole load.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from steps.bench_drivers import Job, Measurement, Sample, generation, stuck, write_requests
from steps.bench_drivers.progress import Counts, Watch
from steps.bench_drivers.stream import BadAnswer, Chunked, Events, chunk, clean, is_done
from steps.core.case.numbers import dumps
from steps.core.node.http import unverified
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.plan.plan import BenchmarkPlan
from steps.core.record.records import Check

_STATUS = re.compile(r"[1-9][0-9]{2}\Z", re.ASCII)
_WORDS = (
    "count", "apples", "train", "river", "seven", "market", "window", "garden", "letter", "stone",
    "ticket", "candle", "bridge", "school", "winter", "orange",
)  # fmt: skip


def problems(run: NodeRun, entry: BenchmarkPlan) -> Iterable[str]:
    """None: it needs nothing but the endpoint."""
    return ()


def measure(run: NodeRun, job: Job) -> Measurement:
    """Send the load and measure it; gives up when the run ends or nothing moves."""
    entry = job.entry.benchmark
    box: list[list[Sample] | BaseException] = []
    loop = asyncio.new_event_loop()
    load = _Load(job)
    watch = Watch(run, entry.name)
    limit = stuck.limit(run.plan)

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            box.append(loop.run_until_complete(load.send()))
        except BaseException as error:
            box.append(error)
        finally:
            loop.close()
            run.ended.stir()

    thread = threading.Thread(target=work, name="smoke", daemon=True)
    thread.start()
    seen = 0

    def done() -> bool:
        nonlocal seen
        if load.moved != seen:
            seen = load.moved
            run.progress()
        return bool(box)

    def tell() -> None:
        if watch.due():
            watch.tell(load.counts(limit))
            _hold(run, load, watch, limit)

    try:
        run.until(
            done,
            lambda: f"{entry.name}: {load.finished} of {load.total} requests answered",
            logs=False,
            blame=lambda: (run.me, "proxy" if job.endpoint.kind == "proxy" else "server"),
            tell=tell,
        )
    finally:
        if not box:
            with contextlib.suppress(RuntimeError):  # it ends just now
                loop.call_soon_threadsafe(load.cancel)
        thread.join(2)
        ordered = sorted(load.samples, key=lambda sample: sample.index)
        write_requests(job.directory / "requests.jsonl", ordered)
    took = time.monotonic() - load.began
    result = box[0]
    if isinstance(result, BaseException):
        return Measurement(error=f"the smoke client failed: {type(result).__name__}: {result}")
    return summarise(result, took, entry.max_out_len, load.exact)


def _hold(run: NodeRun, load: _Load, watch: Watch, limit: float) -> None:
    """Raises StepFailed when a request is stuck."""
    now = time.monotonic()
    sign, all_silent = load.signs.stuck(now, limit)
    at_work = all_silent and watch.still is not None and watch.still < limit
    if sign is None or at_work:
        return
    had = f"its {sign.texts}. piece of text" if sign.texts else "it was sent, without any text"
    reason = (
        f"{load.entry.name}: {stuck.called(sign.index)} of {load.total:,} is stuck: nothing for "
        f"{now - sign.at:.0f} s since {had}, while {load.finished:,} have been answered"
    )
    raise StepFailed(stuck.cause(run, reason, first=not sign.texts))


def summarise(
    samples: Sequence[Sample], seconds: float, max_tokens: int, exact: bool
) -> Measurement:
    """Metrics and evidence from samples, a pure function.

    Args:
        exact: every answer must have ``max_tokens`` tokens (``ignore_eos``).
    """
    if not samples:
        return Measurement(error="no request was sent", fault="infra")
    good = [s for s in samples if not s.error]
    failed = [s for s in samples if s.error]
    empty = [s for s in good if not s.text.strip()]
    told = [s for s in good if s.text.strip()]
    uncounted = [s for s in told if s.output_tokens == 0]
    short = [s for s in told if exact and s.output_tokens not in (0, max_tokens)]
    whole = [s for s in told if s.output_tokens and (not exact or s.output_tokens == max_tokens)]
    requests = {
        "asked": len(samples),
        "sent": len(samples),
        "ok": len(whole),
        "failed": len(failed),
        "empty": len(empty),
        "truncated": len(short),
        **({"uncounted": len(uncounted)} if uncounted else {}),
    }
    checks = (
        _count("requests failed", failed, lambda s: s.error),
        _count("answers empty", empty, lambda s: "no text"),
        _count("answers without token counts", uncounted, lambda s: "no usage at its end"),
        _count("answers truncated", short, lambda s: f"{s.output_tokens} of {max_tokens} tokens"),
    )
    metrics: dict[str, float] = {"success_ratio": len(whole) / len(samples)}
    if good and seconds > 0:
        metrics["duration_ms"] = 1000 * seconds
        metrics["output_throughput"] = sum(s.output_tokens for s in good) / seconds
        metrics["input_throughput"] = sum(s.input_tokens for s in good) / seconds
        tokens = sum(s.output_tokens + s.input_tokens for s in good)
        metrics["total_throughput"] = tokens / seconds
        metrics["request_throughput"] = len(good) / seconds
        series = {
            "e2el": [s.e2el for s in good],
            "ttft": [s.ttft for s in good],
            "tpot": [s.tpot for s in good if s.tpot is not None],
            "itl": [gap for s in good for gap in s.itl],
        }
        for name, values in series.items():
            metrics.update(statistics_of(name, [1000 * value for value in values]))
    return Measurement({k: round(v, 4) for k, v in metrics.items()}, requests, checks)


def statistics_of(name: str, values: Sequence[float]) -> dict[str, float]:
    """mean, min, max, median and percentiles (linear interpolation, as NumPy's) of a series."""
    if not values:
        return {}
    ordered = sorted(values)

    def percentile(share: float) -> float:
        at = share * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (at - low)

    found = {
        "mean": sum(ordered) / len(ordered),
        "min": ordered[0],
        "max": ordered[-1],
        "median": percentile(0.5),
        "p75": percentile(0.75),
        "p90": percentile(0.9),
        "p95": percentile(0.95),
        "p99": percentile(0.99),
    }
    return {f"{name}_{stat}_ms": value for stat, value in found.items()}


def _count(name: str, samples: Sequence[Sample], say: Any) -> Check:
    if not samples:
        return Check(name, "pass", "0")
    return Check(name, "fail", f"{len(samples)}, the first: {say(samples[0])}")


class _Load:
    """The load of one measurement, on an event loop of its own."""

    def __init__(self, job: Job) -> None:
        entry = job.entry.benchmark
        self.entry = entry
        self.total = entry.num_prompts or 32
        self.finished = 0
        self.began = time.monotonic()
        self._generation = generation(entry)
        self.exact = bool(self._generation["ignore_eos"])
        self._endpoint = job.endpoint
        #: Events of all streams; every request that was begun; signs of life of those in flight.
        self.moved = 0
        self.samples: list[Sample] = []
        self.signs = stuck.Signs()
        self._previous: dict[int, float] = {}
        self._mark = f"{job.prompts}." if job.prompts else ""
        self._random = random.Random(f"{self._mark}{entry.name}/{self.total}")
        self._tasks: list[asyncio.Task[Sample]] = []
        parts = urlsplit(job.endpoint.url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._tls = unverified() if parts.scheme == "https" else None
        more = {"Accept": "text/event-stream", **job.endpoint.access.headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in more.items())

    async def send(self) -> list[Sample]:
        """Send everything; requests that are not over in time become errors."""
        room = asyncio.Semaphore(self.entry.batch_size)
        for number in range(self.entry.num_warmups or 0):
            await self._one(-1 - number, room, time.monotonic())
        self.samples.clear()
        self.began = began = time.monotonic()
        for index in range(self.total):
            task = asyncio.ensure_future(self._one(index, room, began))
            self._tasks.append(task)
            if self.entry.request_rate > 0:
                await asyncio.sleep(self._random.expovariate(self.entry.request_rate))
        return list(await asyncio.gather(*self._tasks))

    def counts(self, limit: float) -> Counts:
        """How far it is; ``limit`` is that of silence."""
        over = [sample for sample in self.samples if sample.e2el and not sample.error]
        flying = self.signs.flying()
        texts = sum(1 + len(sample.itl) for sample in over)
        tokens = sum(sample.output_tokens for sample in over)
        came = sum(sign.texts for sign in flying) * (tokens / texts if texts else 1.0)
        firsts = [sample.ttft for sample in list(self.samples) if sample.ttft]
        paces = [sample.tpot for sample in over if sample.tpot is not None]
        most, sent = self.entry.max_out_len, len(self.samples)
        # Every answer is as long as asked: its tokens tell more than its end does.
        whole, work = self.total, float(self.finished)
        if self.exact:
            whole, work = self.total * most, self.finished * most + min(came, len(flying) * most)
        return Counts(
            self.total,
            self.finished,
            len(flying),
            self.finished - len(over),
            tokens + came,
            sum(firsts) / len(firsts) if firsts else None,
            sum(paces) / len(paces) if paces else None,
            work,
            whole,
            settled=self.finished >= self.entry.batch_size or (self.exact and sent >= self.total),
            quiet=self.signs.quiet(time.monotonic(), limit),
        )

    def cancel(self) -> None:
        """Give every request up."""
        for task in asyncio.all_tasks():
            task.cancel()

    async def _one(self, index: int, room: asyncio.Semaphore, began: float) -> Sample:
        sample = Sample(index)
        async with room:
            started = time.monotonic()
            sample.begun = round(started - began, 6)
            self.samples.append(sample)
            self.signs.begin(index, started)
            try:
                await self._ask(sample, started)
            except asyncio.CancelledError:
                sample.error = "in flight when the load was given up"
                raise
            except BadAnswer as error:
                sample.error = clean(str(error))
            except Exception as error:
                sample.error = clean(f"{type(error).__name__}: {error}")
            finally:
                self.signs.end(index)
                sample.e2el = sample.e2el or time.monotonic() - started
            self.finished += index >= 0
        return sample

    def _body(self, index: int) -> bytes:
        words = " ".join(self._random.choice(_WORDS) for _ in range(24))
        left, right = self._random.randint(1, 99), self._random.randint(1, 99)
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": [
                {
                    "role": "user",
                    "content": f"[{self._mark}{index}] {words}. What is {left} + {right}?",
                }
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self.entry.max_out_len,
            **self._generation,
        }
        return dumps(body).encode()

    async def _ask(self, sample: Sample, started: float) -> None:
        body = self._body(sample.index)
        reader, writer = await asyncio.open_connection(
            self._host, self._port, ssl=self._tls, limit=1 << 20
        )
        try:
            host = f"[{self._host}]" if ":" in self._host else self._host
            writer.write(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{self._port}\r\n"
                f"Content-Type: application/json\r\n{self._headers}"
                "Accept-Encoding: identity\r\n"
                f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await writer.drain()
            status, headers = await _head(reader)
            if status != 200:
                raw = await reader.read(2000)
                raise BadAnswer(
                    f"HTTP {status}: {' '.join(raw.decode('utf-8', 'replace').split())[:300]}"
                )
            await self._stream(sample, started, _body(reader, headers))
        finally:
            writer.close()

    async def _stream(self, sample: Sample, started: float, body: AsyncIterator[bytes]) -> None:
        events = Events()
        async for data in body:
            if self._take(sample, started, events.feed(data)):
                return
        if not self._take(sample, started, events.end()):
            raise BadAnswer("the stream ended without [DONE]")

    def _take(self, sample: Sample, started: float, payloads: Iterable[bytes]) -> bool:
        """Take events into the sample; whether the last of them has come."""
        for payload in payloads:
            now = time.monotonic() - started
            if is_done(payload):
                sample.e2el = now
                return True
            said = chunk(payload)
            self.moved += 1
            sample.input_tokens = said.prompt or sample.input_tokens
            sample.output_tokens = said.output or sample.output_tokens
            sample.finish = said.finish or sample.finish
            if said.text:
                if not sample.text:
                    sample.ttft = now
                else:
                    sample.itl.append(now - self._previous[sample.index])
                self._previous[sample.index] = now
                self.signs.text(sample.index, started + now)
                sample.text += said.text
        return False


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer; interim answers (1xx) are passed over."""
    while True:
        raw = await reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        words = lines[0].split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/") or not _STATUS.match(words[1]):
            raise BadAnswer(f"not HTTP: {lines[0][:80]!r}")
        if words[1][0] != "1":
            break
    headers = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (line.partition(":") for line in lines[1:])
        if name
    }
    return int(words[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body as it comes, without its transfer coding."""
    coding = headers.get("content-encoding", "identity")
    if coding != "identity":
        raise BadAnswer(f"the answer is coded as {coding[:40]!r}, which was not asked for")
    chunked = Chunked() if "chunked" in headers.get("transfer-encoding", "") else None
    while data := await reader.read(1 << 16):
        yield chunked.feed(data) if chunked else data
