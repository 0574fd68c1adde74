"""The OpenAI-like endpoints of the stand-in server.

Enters: HTTP requests, and messages of engines about the requests they were given. Leaves: answers,
and what is counted.
It knows engines only as links in `engines`; which there are, and whether they live, is the front's
business.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

from rehearsal.base import console
from rehearsal.base.settings import Settings
from rehearsal.base.web import PHRASES, Connection, Request
from rehearsal.base.wire import Link, Message
from rehearsal.engine.cli import ServeArgs
from rehearsal.engine.metrics import EngineMetrics, render
from rehearsal.engine.prompts import (
    Refusal,
    check_images,
    check_sampling,
    misshaped,
    out_of_range,
    problem,
    prompt_of,
)
from rehearsal.engine.text import answer, count_tokens

STATS_SECONDS = 10.0
VERSION = "0.32.0"
#: vLLM has these only with VLLM_SERVER_DEV_MODE=1, and answers 200 whatever came of it.
RESETS = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Generation:
    """One completion on its way."""

    def __init__(
        self, chat: bool, body: Message, prompt: Any, request_id: str, connection: Connection
    ) -> None:
        self.chat, self.connection, self.request_id = chat, connection, request_id
        self.streams = bool(body.get("stream"))
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        self.wants_usage = bool(options.get("include_usage"))
        self.wants_counts = self.wants_usage and bool(options.get("continuous_usage_stats"))
        self.wants_logprobs = body.get("logprobs") not in (None, False)
        self.prompt_tokens = count_tokens(prompt)
        self.others: list[list[str]] = []
        self.off = 0
        self.model = str(body.get("model"))
        self.created = int(time.time())
        self.pieces: list[str] = []
        self.reason = "stop"
        self.sent = 0
        self.source = "local_compute"
        self.kv: Message | None = None
        self.link: Link | None = None
        self.rank = 0
        self.started = self.first = self.last = time.monotonic()
        self.queued = self.prefilled = 0.0
        kind = ("chat.completion" if chat else "text_completion") + (
            ".chunk" if chat and self.streams else ""
        )
        self.base = {
            "id": ("chatcmpl-" if chat else "cmpl-") + request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }
        self.head = json.dumps(self.base, separators=(",", ":"))[:-1]

    def usage(self) -> Message:
        """Token counts, as an event of a stream has them."""
        output = self.sent + sum(map(len, self.others))
        return {
            "prompt_tokens": self.prompt_tokens + self.off,
            "total_tokens": self.prompt_tokens + output + 2 * self.off,
            "completion_tokens": output + self.off,
        }

    def begin(self) -> None:
        """Open the stream."""
        self.connection.stream()
        if self.chat:
            self._event(
                '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
            )

    def piece(self, text: str, last: bool) -> None:
        """One token of the stream."""
        reason = f'"{self.reason}"' if last else "null"
        logprobs = json.dumps(self._logprobs([text])) if self.wants_logprobs else "null"
        place = (
            f'"delta":{{"content":{json.dumps(text)}}}'
            if self.chat
            else f'"stop_reason":null,"text":{json.dumps(text)}'
        )
        self._event(f'{place},"logprobs":{logprobs},"finish_reason":{reason}')

    def _event(self, choice: str) -> None:
        counts = ""
        if self.wants_counts:
            counts = f',"usage":{json.dumps(self.usage(), separators=(",", ":"))}'
        self.connection.chunk(
            f'data: {self.head},"choices":[{{"index":0,{choice}}}]{counts}}}\n\n'.encode()
        )

    def _logprobs(self, pieces: list[str]) -> Message:
        if self.chat:
            return {
                "content": [
                    {
                        "token": piece,
                        "logprob": -0.1,
                        "bytes": list(piece.encode()),
                        "top_logprobs": [],
                    }
                    for piece in pieces
                ]
            }
        offsets = [sum(map(len, pieces[:n])) for n in range(len(pieces))]
        return {
            "text_offset": offsets,
            "token_logprobs": [-0.1] * len(pieces),
            "tokens": pieces,
            "top_logprobs": [{piece: -0.1} for piece in pieces],
        }

    def finish(self) -> None:
        """Complete the answer."""
        if self.streams:
            if self.wants_usage:
                tail = json.dumps(self.usage(), separators=(",", ":"))
                self.connection.chunk(
                    f'data: {self.head},"choices":[],"usage":{tail}}}\n\n'.encode()
                )
            self.connection.chunk(b"data: [DONE]\n\n")
            self.connection.end()
            return
        text = "".join(self.pieces)
        logprobs = self._logprobs(self.pieces) if self.wants_logprobs else None
        place = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {
            "index": 0,
            **place,
            "logprobs": logprobs,
            "finish_reason": self.reason,
            "stop_reason": None,
        }
        self.connection.reply(
            200,
            {
                **self.base,
                "choices": [
                    choice,
                    *(
                        {**choice, "index": at, "text": "".join(pieces)}
                        for at, pieces in enumerate(self.others, 1)
                    ),
                ],
                "usage": {
                    **self.usage(),
                    "prompt_tokens_details": None,
                    "completion_tokens_details": None,
                },
                "kv_transfer_params": self.kv,
            },
        )

    def broken(self, code: int, message: str) -> None:
        """End with an error, in the stream if it has begun."""
        body = problem(code, message, "InternalServerError")
        if self.streams and self.sent:
            self.connection.chunk(b"data: " + json.dumps(body).encode() + b"\n\n")
            self.connection.chunk(b"data: [DONE]\n\n")
            self.connection.end()
            return
        self.connection.reply(code, body)


class MessageGeneration(Generation):
    """One of Anthropic's messages on its way."""

    def _tell(self, kind: str, value: Message) -> None:
        text = json.dumps({"type": kind, **value}, separators=(",", ":"))
        self.connection.chunk(f"event: {kind}\ndata: {text}\n\n".encode())

    def _message(self, blocks: list[Message], reason: str | None) -> Message:
        counts = self.usage()
        return {
            "id": f"msg_{self.request_id}",
            "type": "message",
            "role": "assistant",
            "content": blocks,
            "model": self.model,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "output_tokens": counts["completion_tokens"],
            },
        }

    def begin(self) -> None:
        """Open the stream."""
        self.connection.stream()
        self._tell("message_start", {"message": self._message([], None)})
        block = {"type": "text", "text": ""}
        self._tell("content_block_start", {"index": 0, "content_block": block})

    def piece(self, text: str, last: bool) -> None:
        """One token of the stream."""
        delta = {"type": "text_delta", "text": text}
        self._tell("content_block_delta", {"index": 0, "delta": delta})

    def finish(self) -> None:
        """Complete the answer."""
        reason = "max_tokens" if self.reason == "length" else "end_turn"
        if not self.streams:
            block = {"type": "text", "text": "".join(self.pieces)}
            self.connection.reply(200, self._message([block], reason))
            return
        self._tell("content_block_stop", {"index": 0})
        usage = self._message([], reason)["usage"]
        self._tell("message_delta", {"delta": {"stop_reason": reason}, "usage": usage})
        self._tell("message_stop", {})
        self.connection.end()


def check_message(body: Message) -> None:
    """Refuse what is no request for a message."""
    if not isinstance(body.get("max_tokens"), int):
        raise misshaped("missing", "body.max_tokens", "Field required")


class Api:
    """The endpoints. `on_request(n)` is called when the n-th completion arrives."""

    def __init__(self, args: ServeArgs, on_request: Any, settings: Settings) -> None:
        self.args, self.on_request, self.settings = args, on_request, settings
        self.rates = accepted_rates(args.raw.get("speculative_config"), settings.acceptance)
        self.engines: dict[int, Link] = {}
        self.metrics: dict[int, EngineMetrics] = {}
        self.behaviours: set[str] = set()
        self.generations: dict[int, Generation] = {}
        self.connections: set[Connection] = set()
        self.held: set[Connection] = set()
        self.requests = 0
        self.serial = 0
        self.turn = 0
        self.seen = (0, 0)
        self.routes = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): lambda request, connection: connection.reply(
                200, {"version": VERSION}
            ),
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/chat/completions"): self._completions,
            ("POST", "/v1/messages"): self._completions,
        }
        for path in RESETS if settings.dev_mode else ():
            self.routes["POST", path] = lambda request, connection: connection.reply(200, b"")

    def connection(self) -> Connection:
        """A protocol for a new client."""
        return Connection(self.handle, self._access, self.connections)

    def attach(self, engines: dict[int, Link]) -> None:
        """Take the engines that requests may go to."""
        self.engines = engines
        self.metrics = {
            rank: EngineMetrics(len(self.rates), self.args.max_model_len)
            for rank in sorted(engines)
        }
        if not self.args.quiet_stats:
            asyncio.get_running_loop().call_later(STATS_SECONDS, self._stats)

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request."""
        path = self.args.access.path(request.path)
        route = self.routes.get((request.method, path))
        try:
            if route is None:
                known = [method for method, each in self.routes if each == path]
                status = 405 if known else 404
                connection.reply(status, {"detail": PHRASES[status]})
                return
            given = request.headers.get("authorization", "")
            if not self.args.access.lets_in(path, given, self.settings.api_key):
                connection.reply(401, {"error": "Unauthorized"})
                return
            route(request, connection)
        except Refusal as refusal:
            connection.reply(refusal.code, refusal.body)

    def _access(self, request: Request, status: int) -> None:
        if self.args.access_log and request.method != "-":
            console.plain(
                f'INFO:     {request.client} - "{request.method} {request.path} HTTP/1.1" '
                f"{status} {PHRASES.get(status, '')}"
            )

    def _health(self, request: Request, connection: Connection) -> None:
        connection.reply(503 if "http503" in self.behaviours else 200, b"")

    def _models(self, request: Request, connection: Connection) -> None:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": int(time.time()),
                "owned_by": "vllm",
                "root": self.args.model,
                "parent": None,
                "max_model_len": self.args.max_model_len,
                "permission": [{"object": "model_permission", "allow_sampling": True}],
            }
            for name in self.args.served_names
        ]
        connection.reply(200, {"object": "list", "data": cards})

    def _metrics(self, request: Request, connection: Connection) -> None:
        connection.reply(
            200,
            render(self.metrics, self.args.served_names[0]).encode(),
            "text/plain; version=1.0.0; charset=utf-8",
        )

    def _tokenize(self, request: Request, connection: Connection) -> None:
        body = self._body(request)
        count = count_tokens(prompt_of(body, "messages" in body))
        connection.reply(
            200,
            {
                "count": count,
                "max_model_len": self.args.max_model_len,
                "tokens": list(range(count)),
                "token_strs": None,
            },
        )

    def _body(self, request: Request) -> Message:
        try:
            body = json.loads(request.body)
        except ValueError as error:
            place = f"body.{getattr(error, 'pos', 0)}"
            raise misshaped("json_invalid", place, "JSON decode error") from None
        if not isinstance(body, dict):
            text = "Input should be a valid dictionary or object to extract fields from"
            raise misshaped("model_attributes_type", "body", text)
        name = body.get("model") or self.args.served_names[0]
        if name not in self.args.served_names:
            aliases = ", ".join(self.args.served_names)
            raise Refusal(
                404,
                f"The model `{name}` does not exist. Valid aliases: {aliases}.",
                "NotFoundError",
                "model",
            )
        return {**body, "model": name}

    def _completions(self, request: Request, connection: Connection) -> None:
        self.requests += 1
        self.on_request(self.requests)
        if "http503" in self.behaviours:
            raise Refusal(503, "Service Unavailable", "ServiceUnavailableError")
        body = self._body(request)
        chat = request.path != "/v1/completions"
        prompt = prompt_of(body, chat)
        check_images(body, self.args.raw)
        request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
        make: type[Generation] = Generation
        if request.path == "/v1/messages":
            check_message(body)
            make = MessageGeneration
        generation = make(chat, body, prompt, request_id, connection)
        check_sampling(body)
        most = self._limit(body, chat, generation.prompt_tokens)
        if body.get("n") not in (None, 1):
            raise Refusal(400, "the stand-in gives one choice a request", param="n")
        least, exact = int(body.get("min_tokens") or 0), bool(body.get("ignore_eos"))
        several = prompt if _are_texts(prompt) else [prompt]
        answers = [answer(each, most, least, exact) for each in several]
        generation.pieces, generation.reason = answers[0]
        generation.others = [pieces for pieces, _ in answers[1:]]
        generation.off = int("miscount" in self.behaviours)
        if "silent" in self.behaviours:
            self._hold(connection)
            return
        if "garbage" in self.behaviours:
            _garbage(generation)
            return
        if "empty" in self.behaviours:
            generation.pieces, generation.reason, generation.others = [], "stop", []
            if generation.streams:
                generation.begin()
                generation.piece("", True)
            generation.finish()
            return
        if "truncate" in self.behaviours:
            generation.pieces, generation.reason = (
                generation.pieces[: max(1, len(generation.pieces) // 2)],
                "stop",
            )
        self._submit(
            generation, body.get("kv_transfer_params"), request.headers.get("x-data-parallel-rank")
        )

    def _limit(self, body: Message, chat: bool, prompt_tokens: int) -> int:
        """Tokens to answer with: what was asked for, but no more than the prompt leaves."""
        longest = self.args.max_model_len
        asked = body.get("max_completion_tokens") if chat else None
        asked = body.get("max_tokens") if asked is None else asked
        if asked is not None and (not isinstance(asked, int) or isinstance(asked, bool)):
            raise misshaped(
                "int_parsing",
                "body.max_tokens",
                "Input should be a valid integer, unable to parse string as an integer",
            )
        if prompt_tokens > longest:
            # A text is given up one token too far; tokens have been counted by the client.
            told = (
                str(prompt_tokens)
                if isinstance(body.get("prompt"), list)
                else f"at least {longest + 1}"
            )
            raise out_of_range(
                "input_tokens",
                f"This model's maximum context length is {longest} tokens. However, your prompt "
                f"contains {told} input tokens, which exceeds this limit even without any output "
                "tokens. Please reduce the length of the input prompt.",
                told.split()[-1],
            )
        if asked is not None and asked > longest:
            raise out_of_range(
                "max_tokens",
                f"max_tokens={asked} cannot be greater than max_model_len={longest}. Please "
                "request fewer output tokens.",
                asked,
            )
        left = longest - prompt_tokens
        most = min(left if chat else 16, left) if asked is None else min(asked, left)
        if most < 1:
            raise out_of_range("max_tokens", f"max_tokens must be at least 1, got {most}.", most)
        return most

    def _hold(self, connection: Connection) -> None:
        self.held.add(connection)
        connection.on_gone = lambda: self.held.discard(connection)

    def _submit(self, generation: Generation, kv: Any, wanted: str | None) -> None:
        if not self.engines:
            raise Refusal(500, DEAD, "InternalServerError")
        ranks = sorted(self.engines)
        if wanted is not None and wanted.isdecimal() and int(wanted) in self.engines:
            generation.rank = int(wanted)
        else:
            generation.rank = ranks[self.turn % len(ranks)]
            self.turn += 1
        generation.link = self.engines[generation.rank]
        self.serial += 1
        serial = self.serial
        self.generations[serial] = generation
        generation.connection.on_gone = lambda: self._abort(serial)
        message = {
            "t": "submit",
            "id": serial,
            "rid": generation.request_id,
            "prompt": generation.prompt_tokens,
            "out": len(generation.pieces),
        }
        generation.link.send({**message, "kv": kv} if isinstance(kv, dict) and kv else message)

    def _abort(self, serial: int) -> None:
        generation = self.generations.pop(serial, None)
        if generation and generation.link:
            # vLLM does not count these as finished, not even as aborted.
            generation.link.send({"t": "abort", "id": serial})

    def on_engine(self, rank: int, message: Message) -> None:
        """A message of an engine about requests."""
        kind = message.get("t")
        if kind == "step":
            tokens = len(message["ids"])
            for serial, queued, prefilled in message["firsts"]:
                if serial in self.generations:
                    generation = self.generations[serial]
                    generation.queued, generation.prefilled = queued, prefilled
                    tokens += generation.prompt_tokens
            self.metrics[rank].step(message, tokens)
            now = time.monotonic()
            for serial in message["ids"]:
                if serial in self.generations:
                    self._token(serial, now)
        elif kind == "pre" and message["id"] in self.generations:
            generation = self.generations[message["id"]]
            generation.source, generation.kv = message["source"], message.get("kv")
        elif kind == "error" and message["id"] in self.generations:
            self.metrics[rank].finished["error"] += 1
            self.generations.pop(message["id"]).broken(500, message["why"])

    def _token(self, serial: int, now: float) -> None:
        generation = self.generations[serial]
        metrics = self.metrics[generation.rank]
        if generation.sent == 0:
            metrics.prompt(generation.prompt_tokens, generation.source)
            metrics.histograms["time_to_first_token_seconds"].observe(now - generation.started)
            generation.first = now
            if generation.streams:
                generation.begin()
        else:
            metrics.histograms["inter_token_latency_seconds"].observe(now - generation.last)
        text = generation.pieces[generation.sent]
        generation.sent, generation.last = generation.sent + 1, now
        metrics.counters["generation_tokens"] += 1
        last = generation.sent == len(generation.pieces)
        if "midstream" in self.behaviours and (
            last or generation.sent > len(generation.pieces) // 2
        ):
            self._abort(serial)
            metrics.finished["error"] += 1
            generation.broken(500, "injected fault midstream")
            return
        if generation.streams:
            generation.piece(text, last)
        if last:
            del self.generations[serial]
            share = 0.5 if "low-acceptance" in self.behaviours else 1.0
            metrics.drafted(generation.sent, [share * rate for rate in self.rates])
            metrics.finished[generation.reason] += 1
            decode = now - generation.first
            times = {
                "queue": generation.queued,
                "prefill": generation.prefilled,
                "decode": decode,
                "inference": generation.prefilled + decode,
                "e2e": now - generation.started,
            }
            metrics.ended(times, generation.prompt_tokens, generation.sent)
            generation.finish()

    def engine_dead(self) -> None:
        """Tell every open request that its engine is gone."""
        for rank in self.metrics:
            self.engine_left(rank)

    def engine_left(self, rank: int) -> None:
        """Tell the open requests of one engine that it is gone."""
        mine = [key for key, generation in self.generations.items() if generation.rank == rank]
        for serial in mine:
            self.generations.pop(serial).broken(500, DEAD)

    def _stats(self) -> None:
        prompt = sum(engine.counters["prompt_tokens"] for engine in self.metrics.values())
        output = sum(engine.counters["generation_tokens"] for engine in self.metrics.values())
        if (prompt, output) != self.seen or self.generations:
            for rank, engine in self.metrics.items():
                share = len(self.metrics)
                console.info(
                    "loggers.py:248",
                    f"Engine {rank:03d}: Avg prompt throughput: "
                    f"{(prompt - self.seen[0]) / share / STATS_SECONDS:.1f} tokens/s, "
                    "Avg generation throughput: "
                    f"{(output - self.seen[1]) / share / STATS_SECONDS:.1f} tokens/s, "
                    f"Running: {engine.gauges['num_requests_running']:.0f} reqs, Waiting: "
                    f"{engine.gauges['num_requests_waiting']:.0f} reqs, "
                    f"GPU KV cache usage: {100 * engine.gauges['kv_cache_usage_perc']:.1f}%, "
                    "Prefix cache hit rate: 0.0%",
                )
        self.seen = (prompt, output)
        asyncio.get_running_loop().call_later(STATS_SECONDS, self._stats)


def _are_texts(prompt: Any) -> bool:
    return isinstance(prompt, list) and isinstance(prompt[0], str)


def accepted_rates(config: Any, told: tuple[float, ...]) -> tuple[float, ...]:
    """The share of drafts that is accepted of each position; none without speculative decoding."""
    if not isinstance(config, dict):
        return ()
    count = config.get("num_speculative_tokens")
    positions = range(count if isinstance(count, int) and count > 0 else 1)
    return tuple(told[at] if at < len(told) else 0.8 * 0.75**at for at in positions)


def _garbage(generation: Generation) -> None:
    if not generation.streams:
        generation.connection.reply(200, b"<html><body>this is no JSON\xff</body></html>")
        return
    generation.begin()
    generation.connection.chunk(b'data: {"id":"broken","choices":[{"ind\n\ndata: %%%\n\n')
    generation.connection.cut()
