"""`vllm-router` in its prefill/decode mode, stood in for where there is none.

Each request goes to a prefiller for one token, then with its `kv_transfer_params` to a decoder.

Held to vllm-router 0.1.17 by tests/rehearsal/test_rehearsal_router.py. Of a client's headers only
the request id has an effect; the key it sends to engines is OPENAI_API_KEY's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rehearsal.base import console
from rehearsal.base.client import Call, Unanswered
from rehearsal.base.settings import Settings, read
from rehearsal.base.web import Connection, Request
from rehearsal.base.wire import Message

POLICIES = [
    "random",
    "round_robin",
    "cache_aware",
    "kv_aware",
    "power_of_two",
    "consistent_hash",
    "sticky_least_loaded",
]
CHOICES = {
    **dict.fromkeys(("policy", "prefill-policy", "decode-policy"), POLICIES),
    "log-level": ["debug", "info", "warning", "error", "critical"],
    "kv-connector": ["nixl", "mooncake", "moriio"],
}
FLAGS = """enable-program-scheduling mini-lb vllm-pd-disaggregation enable-igw service-discovery
disable-retries disable-circuit-breaker"""
WHOLE = """port worker-startup-timeout-secs worker-startup-check-interval balance-abs-threshold
eviction-interval-secs max-tree-size max-payload-size intra-node-data-parallel-size
service-discovery-port prometheus-port request-timeout-secs retry-max-retries
retry-initial-backoff-ms retry-max-backoff-ms cb-failure-threshold cb-success-threshold
cb-timeout-duration-secs cb-window-duration-secs health-failure-threshold health-success-threshold
health-check-timeout-secs health-check-interval-secs max-concurrent-requests queue-size
queue-timeout-secs rate-limit-tokens-per-second kv-event-block-size
kv-aware-session-affinity-ttl-secs"""
BROKEN = """router-temperature kv-penalty-host kv-penalty-external kv-penalty-disk cache-threshold
balance-rel-threshold retry-backoff-multiplier retry-jitter-factor"""
TEXT = """host kv-event-model program-scheduling-config-json wasm-middleware wasm-middleware-sha256
api-key log-dir service-discovery-namespace vllm-discovery-address health-check-endpoint
prometheus-host"""
LISTS = (
    "worker-urls selector prefill-selector decode-selector request-id-headers cors-allowed-origins"
)
AGAIN = "decode kv-event-source kv-event-replay-source pd-kv-events wasm-middleware-route"
DEFAULTS = {
    "host": "127.0.0.1",
    "port": 30000,
    "prometheus_host": "127.0.0.1",
    "prometheus_port": 29000,
    "worker_startup_timeout_secs": 600,
    "worker_startup_check_interval": 30,
    "kv_connector": "nixl",
    "health_check_endpoint": "/health",
    "health_check_timeout_secs": 5,
}
#: What a prefiller is asked for, beside the request itself.
PREFILL = {
    "max_tokens": 1,
    "min_tokens": 1,
    "stream": False,
    "kv_transfer_params": {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    },
}
#: What a body of these must have.
NEEDED = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}
ONLY_POST = "Only POST requests are supported for transparent proxy"


def parser() -> argparse.ArgumentParser:
    """Every option of the real one, strictly; of most it goes no further."""
    made = argparse.ArgumentParser("vllm-router")
    for name in FLAGS.split():
        made.add_argument(f"--{name}", action="store_true")
    for names, kind in ((WHOLE, int), (BROKEN, float), (TEXT, str), (" ".join(CHOICES), str)):
        for name in names.split():
            made.add_argument(f"--{name}", type=kind, choices=CHOICES.get(name))
    for name in LISTS.split():
        made.add_argument(f"--{name}", nargs="*")
    for name in AGAIN.split():
        made.add_argument(f"--{name}", action="append", default=[])
    made.add_argument("--prefill", nargs="+", action="append", default=[])
    made.set_defaults(**DEFAULTS)
    return made


def check(given: argparse.Namespace) -> None:
    """Raises ValueError: what the real one refuses, or the stand-in does not do."""
    if not given.vllm_pd_disaggregation or given.kv_connector != "nixl":
        raise ValueError("the stand-in only plays --vllm-pd-disaggregation, --kv-connector nixl")
    for side in ("prefill", "decode"):
        if not getattr(given, side):
            raise ValueError(f"PD disaggregation mode requires --{side}")
    for url in (*(words[0] for words in given.prefill), *given.decode):
        if not re.match("(https?|grpc)://", url):
            raise ValueError(
                f"Configuration validation failed: Invalid value for field 'worker_url': {url} - "
                "URL must start with http://, https://, or grpc://"
            )


@dataclass(frozen=True)
class Worker:
    """An engine behind a URL; `rank` is empty where the URL has one engine."""

    url: str
    rank: str = ""

    @property
    def place(self) -> str:
        """Host and port."""
        return self.url.partition("://")[2]


class Refusal(Exception):
    """A request that is answered with a text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Router:
    """The running stand-in."""

    def __init__(self, given: argparse.Namespace, settings: Settings) -> None:
        self.given, self.settings = given, settings
        self.prefill = [words[0].rstrip("/") for words in given.prefill]
        self.decode = [url.rstrip("/") for url in given.decode]
        self.turns: dict[str, Iterator[Worker]] = {}
        self.counts: dict[str, int] = {}
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Wait for the workers, serve until SIGTERM; the exit code."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, over.set)
        starting = asyncio.ensure_future(self._start())
        ending = asyncio.ensure_future(over.wait())
        await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if starting.done() and not starting.cancelled() and (error := starting.exception()):
            console.plain(f"{type(error).__name__}: {error}")
            return 1
        await over.wait()
        return 0

    async def _start(self) -> None:
        urls = list(dict.fromkeys((*self.prefill, *self.decode)))
        loop, interval = asyncio.get_running_loop(), self.given.worker_startup_check_interval
        began = loop.time()
        console.info("router.rs:1021", f"Waiting for {len(urls)} unique hosts to become healthy")
        while missing := [url for url in urls if not await self._healthy(url)]:
            taken, seconds = loop.time() - began, self.given.worker_startup_timeout_secs
            if taken > seconds:
                raise RuntimeError(
                    f"Timeout {seconds}s waiting for hosts {json.dumps(missing)} to become healthy."
                )
            # The real one always sleeps that long; nobody's patience is tried here.
            await asyncio.sleep(min(interval, 0.05 + taken / 20))
        for side, places in (("prefill", self.prefill), ("decode", self.decode)):
            found = [worker for url in places for worker in await self._engines(url)]
            self.turns[side] = itertools.cycle(found)
        given = self.given
        await self._listen(given.prometheus_host, given.prometheus_port, self._count)
        await self._listen(given.host, given.port, self.handle)
        console.info("server.rs:1192", f"Router ready | workers: {json.dumps(urls)}")

    async def _listen(
        self, host: str, port: int, handle: Callable[[Request, Connection], None]
    ) -> None:
        def client() -> Connection:
            return Connection(handle, self._access, self.connections)

        place = self.settings.bind_address(host)
        try:
            await asyncio.get_running_loop().create_server(client, place, port)
        except OSError as error:
            raise RuntimeError(f"{error.strerror} (os error {error.errno})") from None

    async def _healthy(self, url: str) -> bool:
        with contextlib.suppress(Unanswered, asyncio.TimeoutError):
            return await asyncio.wait_for(
                self._status(url + self.given.health_check_endpoint),
                self.given.health_check_timeout_secs,
            )
        return False

    async def _status(self, url: str) -> bool:
        async with Call("GET", url) as answer:
            return answer.status == 200

    async def _engines(self, url: str) -> list[Worker]:
        """A URL's engines, as its metrics count them."""
        text = b""
        with contextlib.suppress(Unanswered):
            async with Call("GET", f"{url}/metrics") as answer:
                text = await answer.body()
        ranks = sorted(
            set(re.findall(r'[{,]engine="(\d+)"', text.decode(errors="replace"))), key=int
        )
        console.info("dp_utils.rs:62", f"Worker {url} reports {len(ranks)} engine(s)")
        return [Worker(url, rank) for rank in ranks] if len(ranks) > 1 else [Worker(url)]

    # Requests

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request."""
        try:
            if request.method == "GET" and request.path == "/health":
                text_reply(connection, 200, "All servers healthy")
                return
            if request.method == "GET" and request.path == "/v1/models":
                self._work(self._models(connection), connection)
                return
            self._work(self._serve(request, body_of(request), connection), connection)
        except Refusal as refusal:
            text_reply(connection, refusal.code, str(refusal))

    def _work(self, work: Any, connection: Connection) -> None:
        task = asyncio.ensure_future(self._guard(work, connection))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

        def gone() -> None:
            """Engines are told by their connections' end."""
            task.cancel()

        connection.on_gone = gone

    async def _guard(self, work: Any, connection: Connection) -> None:
        try:
            await work
        except Refusal as refusal:
            text_reply(connection, refusal.code, str(refusal))
        except Exception as error:
            console.plain(console.trace(error))
            connection.cut()

    async def _models(self, connection: Connection) -> None:
        url = self.prefill[0]
        try:
            async with Call("GET", f"{url}/v1/models") as answer:
                connection.reply(answer.status, await answer.body(), answer.kind)
        except Unanswered as error:
            raise Refusal(500, f"{url}: {error}") from None

    async def _serve(self, request: Request, body: Message, connection: Connection) -> None:
        prefiller, decoder = next(self.turns["prefill"]), next(self.turns["decode"])
        self.counts[request.path] = self.counts.get(request.path, 0) + 1
        name = f"___prefill_addr_{prefiller.place}___decode_addr_{decoder.place}_{uuid.uuid4().hex}"
        try:
            first = {**body, **PREFILL}
            first.pop("stream_options", None)
            if "max_completion_tokens" in body:
                first["max_completion_tokens"] = 1
            async with self._call(prefiller, request.path, first, name, "Prefill") as answer:
                data = await answer.body()
                if answer.status >= 500:
                    phrase = data.decode(errors="replace")
                    raise Unanswered(
                        f"Prefill server {prefiller.url}{request.path} returned {answer.status}: "
                        f"{phrase}"
                    )
                if answer.status >= 400:
                    connection.reply(answer.status, data, answer.kind)
                    return
            params = _params(data)
            second = {**body, "kv_transfer_params": params} if params else body
            async with self._call(decoder, request.path, second, name, "Decode") as answer:
                await pass_on(answer, connection)
        except Unanswered as error:
            text = f"Network error: {error}"
            console.error(
                "vllm_pd_router.rs:3075",
                f"Transparent proxy request failed: prefill={prefiller.url}, "
                f"decode={decoder.url}, error={text}",
            )
            raise Refusal(500, f"Transparent proxy request failed: {text}") from None

    @contextlib.asynccontextmanager
    async def _call(self, worker: Worker, path: str, body: Message, name: str, side: str) -> Any:
        rank = {"x_data_parallel_rank": worker.rank} if worker.rank else {}
        headers = {
            "content_type": "application/json",
            "authorization": f"Bearer {self.settings.key}",
            "x_request_id": name,
        }
        url = worker.url + path
        call = Call("POST", url, json.dumps(body).encode(), **headers, **rank)
        try:
            answer = await call.__aenter__()
        except Unanswered as error:
            raise Unanswered(f"{side} request failed to {url}: {error}") from None
        try:
            yield answer
        finally:
            await call.__aexit__()

    def _count(self, request: Request, connection: Connection) -> None:
        name = "vllm_router_pd_requests_total"
        rows = [f'{name}{{route="{path}"}} {count}' for path, count in self.counts.items()]
        text = "\n".join([f"# TYPE {name} counter", *rows, ""])
        connection.reply(200, text.encode(), "text/plain")

    def _access(self, request: Request, status: int) -> None:
        """The real one logs none."""


async def pass_on(answer: Call, connection: Connection) -> None:
    """A decoder's answer; once a stream has begun, its break can only break ours."""
    if not answer.kind.startswith("text/event-stream"):
        connection.reply(answer.status, await answer.body(), answer.kind)
        return
    connection.stream()
    try:
        async for piece in answer.pieces():
            connection.chunk(piece)
    except Unanswered:
        connection.cut()
        return
    connection.end()


def body_of(request: Request) -> Message:
    """The JSON of a POST. Raises Refusal."""
    needed = NEEDED.get(request.path)
    if request.method != "POST":
        raise Refusal(405, "" if needed else ONLY_POST)
    if needed and not request.headers.get("content-type", "").startswith("application/json"):
        raise Refusal(415, "Expected request with `Content-Type: application/json`")
    try:
        body = json.loads(request.body)
    except ValueError as error:
        if needed:
            raise Refusal(400, f"Failed to parse the request body as JSON: {error}") from None
        body = None
    if needed and (not isinstance(body, dict) or needed not in body):
        text = "Failed to deserialize the JSON body into the target type"
        raise Refusal(422, f"{text}: missing field `{needed}`")
    if not isinstance(body, dict):
        raise Refusal(400, "Request body must be a JSON object")
    return body


def _params(data: bytes) -> Any:
    """What a prefiller says of the KV it holds."""
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise Unanswered(f"Prefill response is no JSON: {error}") from None
    return answer.get("kv_transfer_params") if isinstance(answer, dict) else None


def text_reply(connection: Connection, code: int, text: str) -> None:
    connection.reply(code, text.encode(), "text/plain; charset=utf-8")


def main() -> int:
    """Entry of `rehearsal/bin/rehearsal-router`."""
    settings = read("proxy")
    given = parser().parse_args()
    console.plain("The rehearsal's own stand-in for vllm-router.")
    try:
        check(given)
    except ValueError as error:
        print(f"ValueError: {error}", file=sys.stderr)
        return 1
    return asyncio.run(Router(given, settings).run())
