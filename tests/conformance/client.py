"""The questions: one function a check, each told by its name.

Enters: a :class:`Server`. Leaves: nothing, or an AssertionError. Touches: sends requests; the
server is as good as before afterwards. Only the standard library is used.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
SECONDS = 120.0
JSON = "application/json"
STREAM = "text/event-stream; charset=utf-8"

CHECKS: list[Callable[[Server], None]] = []


def check(function: Callable[[Server], None]) -> Callable[[Server], None]:
    """Register a check."""
    CHECKS.append(function)
    return function


@dataclass(frozen=True)
class Reply:
    """One whole answer."""

    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The JSON events of a stream, which must be well-formed and end with ``[DONE]``."""
        assert (self.status, self.kind) == (200, STREAM), self
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == "", "a stream ends with an empty line"
        assert all(block.startswith("data: ") for block in blocks), blocks
        assert blocks.pop() == "data: [DONE]"
        return [json.loads(block[6:]) for block in blocks]


class Server:
    """A server to ask; its model and length are asked of itself."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url, self.host, self.port = url, parts.hostname or "", parts.port or 80
        self.model, self.longest = "", 0

    def meet(self) -> Server:
        """Learn the model's name and its longest context, in tokens."""
        card = self.ask("GET", "/v1/models").json["data"][0]
        self.model, self.longest = card["id"], card["max_model_len"]
        return self

    def connect(self, seconds: float = SECONDS) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection(self.host, self.port, timeout=seconds)

    def send(self, path: str, seconds: float = SECONDS, **fields: Any) -> http.client.HTTPResponse:
        """The head of an answer; the caller reads on, and closes."""
        connection = self.connect(seconds)
        connection.request("POST", path, json.dumps({"model": self.model, **fields}), _JSON)
        return connection.getresponse()

    def ask(
        self, method: str, path: str, body: Any = None, seconds: float = SECONDS, **headers: str
    ) -> Reply:
        """One request; raises OSError when there is nobody."""
        connection = self.connect(seconds)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**_JSON, **headers})
            answer = connection.getresponse()
            return Reply(answer.status, answer.getheader("content-type", ""), answer.read())
        finally:
            connection.close()

    def post(self, path: str, **fields: Any) -> Reply:
        """One completion, of the server's model unless the fields say otherwise."""
        return self.ask("POST", path, {"model": self.model, **fields})

    def metrics(self) -> dict[str, float]:
        """Counters and gauges: ``name{label}`` -> value, summed over everything else."""
        found: dict[str, float] = {}
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            sample = re.fullmatch(r"(vllm:\w+)(?:\{(.*)\})? (\S+)", line)
            if not sample:
                continue
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample[2] or ""))
            part = labels.get("source") or labels.get("finished_reason") or ""
            key = f"{sample[1]}{{{part}}}" if part else sample[1]
            found[key] = found.get(key, 0.0) + float(sample[3])
        return found


_JSON = {"Content-Type": JSON}


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def same(found: object, expected: object) -> None:
    """Both, when they differ."""
    assert found == expected, f"found {found!r}, expected {expected!r}"


# Small endpoints


@check
def health_has_no_body(server: Server) -> None:
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        same(server.ask(method, path), Reply(200, "", b""))


@check
def version_is_told(server: Server) -> None:
    reply = server.ask("GET", "/version")
    same((reply.status, reply.kind, reply.json), (200, JSON, {"version": "0.32.0"}))


@check
def models_are_listed(server: Server) -> None:
    listed = server.ask("GET", "/v1/models").json
    same(listed["object"], "list")
    card = listed["data"][0]
    same((card["object"], card["owned_by"], card["parent"]), ("model", "vllm", None))
    assert {"id", "created", "root", "max_model_len", "permission"} <= set(card)


@check
def unknown_paths_and_methods(server: Server) -> None:
    for method, path, status, text in (
        ("GET", "/nowhere", 404, "Not Found"),
        ("GET", "/healthcheck", 404, "Not Found"),
        ("GET", COMPLETIONS, 405, "Method Not Allowed"),
        ("POST", "/health", 405, "Method Not Allowed"),
    ):
        reply = server.ask(method, path)
        same((reply.status, reply.kind, reply.json), (status, JSON, {"detail": text}))


@check
def tokens_are_counted(server: Server) -> None:
    found = server.post("/tokenize", prompt="one two three").json
    same(set(found), {"count", "max_model_len", "tokens", "token_strs"})
    same((found["count"], found["max_model_len"]), (len(found["tokens"]), server.longest))


# Answers


@check
def a_completion(server: Server) -> None:
    reply = server.post(COMPLETIONS, prompt=[5, 6, 7], max_tokens=4, ignore_eos=True)
    same((reply.status, reply.kind), (200, JSON))
    found = reply.json
    same((found["object"], found["model"]), ("text_completion", server.model))
    same(_usage(found), (3, 4, 7))
    (choice,) = found["choices"]
    same((choice["index"], choice["finish_reason"], choice["stop_reason"]), (0, "length", None))
    assert isinstance(choice["text"], str), choice
    same(found["kv_transfer_params"], None)


@check
def a_chat_completion(server: Server) -> None:
    found = server.post(CHAT, messages=QUESTION, max_tokens=4, ignore_eos=True).json
    same(found["object"], "chat.completion")
    (choice,) = found["choices"]
    same((choice["message"]["role"], choice["finish_reason"]), ("assistant", "length"))
    assert isinstance(choice["message"]["content"], str), choice
    prompt, output, both = _usage(found)
    same((output, both), (4, prompt + 4))


@check
def without_a_model_it_is_the_one_served(server: Server) -> None:
    reply = server.ask("POST", COMPLETIONS, {"prompt": [5], "max_tokens": 1})
    same((reply.status, reply.json["model"]), (200, server.model))


@check
def the_request_id_names_the_answer(server: Server) -> None:
    for path, prefix, fields in (
        (COMPLETIONS, "cmpl-", {"prompt": [5]}),
        (CHAT, "chatcmpl-", {"messages": QUESTION}),
    ):
        body = {"model": server.model, "max_tokens": 1, **fields}
        reply = server.ask("POST", path, body, **{"X-Request-ID": "of-mine"})
        same(reply.json["id"], f"{prefix}of-mine")


@check
def fields_it_does_not_know_are_passed_over(server: Server) -> None:
    """Such as vllm-router adds, and a handoff asked of an engine that hands nothing over."""
    more = {
        "separate_reasoning": True,
        "stream_reasoning": True,
        "no_stop_trim": False,
        "return_hidden_states": False,
        "min_tokens": 1,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
    }
    reply = server.post(COMPLETIONS, prompt=[5], max_tokens=2, **more)
    same((reply.status, reply.json["kv_transfer_params"]), (200, None))


@check
def log_probabilities(server: Server) -> None:
    reply = server.post(COMPLETIONS, prompt=[5], max_tokens=3, ignore_eos=True, logprobs=1)
    found = reply.json["choices"][0]["logprobs"]
    same(set(found), {"text_offset", "token_logprobs", "tokens", "top_logprobs"})
    same({len(value) for value in found.values()}, {3})


# Streams


@check
def a_chat_stream(server: Server) -> None:
    asked = {"max_tokens": 5, "ignore_eos": True, "stream": True}
    events = server.post(CHAT, messages=QUESTION, **asked).events()
    same({event["object"] for event in events}, {"chat.completion.chunk"})
    same(len({event["id"] for event in events}), 1)
    same(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
    _pieces([event["choices"][0] for event in events[1:]], 5)
    assert all(set(event["choices"][0]["delta"]) == {"content"} for event in events[1:]), events
    assert not any("usage" in event for event in events), events


@check
def a_completion_stream(server: Server) -> None:
    asked = {"max_tokens": 5, "ignore_eos": True, "stream": True}
    events = server.post(COMPLETIONS, prompt=[5], **asked).events()
    same({event["object"] for event in events}, {"text_completion"})
    choices = [event["choices"][0] for event in events]
    _pieces(choices, 5)
    wanted = {"index", "text", "logprobs", "finish_reason", "stop_reason"}
    assert all(wanted <= set(choice) for choice in choices), choices
    assert not any("usage" in event for event in events), events


@check
def usage_is_the_last_event_when_asked_for(server: Server) -> None:
    for path, fields in ((COMPLETIONS, {"prompt": [5, 6]}), (CHAT, {"messages": QUESTION})):
        asked = {"max_tokens": 3, "ignore_eos": True, "stream": True}
        options = {"include_usage": True}
        *events, last = server.post(path, **fields, **asked, stream_options=options).events()
        same(last["choices"], [])
        same(set(last["usage"]), {"prompt_tokens", "total_tokens", "completion_tokens"})
        same(last["usage"]["completion_tokens"], 3)
        assert not any(event.get("usage") for event in events), events


@check
def usage_in_every_event_when_asked_for(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = {"max_tokens": 3, "ignore_eos": True, "stream": True, "stream_options": options}
    events = server.post(COMPLETIONS, prompt=[5, 6], **asked).events()
    counts = [event["usage"]["completion_tokens"] for event in events]
    same((counts, counts[-1]), (sorted(counts), 3))


# Refusals


def _refusals(server: Server) -> Iterator[tuple[str, Any, int, str, str | None, str]]:
    """Path, body, and what the error says: status, type, param, a pattern of its message."""
    asks = {"model": server.model}
    long = [5] * (server.longest + 9)
    plain, shape = "BadRequestError", "Bad Request"
    yield COMPLETIONS, b"{nonsense", 400, shape, "body.1", r"1 validation error:\n.*json_invalid"
    yield COMPLETIONS, b"[1]", 400, shape, "body", "model_attributes_type"
    yield (
        COMPLETIONS,
        {"model": "nope", "prompt": "x"},
        404,
        "NotFoundError",
        "model",
        r"The model `nope` does not exist\. Valid aliases: ",
    )
    for nothing in ({}, {"prompt": ""}):
        yield (
            COMPLETIONS,
            {**asks, **nothing},
            400,
            plain,
            "prompt",
            "Either prompt or prompt_embeds must be provided and non-empty",
        )
    yield CHAT, asks, 400, shape, "body.messages", "'missing'.*Field required"
    yield CHAT, {**asks, "messages": "x"}, 400, shape, "body.messages", "'list_type'"
    yield CHAT, {**asks, "messages": []}, 400, plain, None, "empty conversation"
    for stream in (False, True):
        yield (
            COMPLETIONS,
            {**asks, "prompt": long, "stream": stream},
            400,
            plain,
            "input_tokens",
            f"maximum context length is {server.longest} tokens. However, your prompt contains "
            f"{len(long)} input tokens",
        )
    words = {"messages": [{"role": "user", "content": "word " * server.longest}]}
    yield (
        CHAT,
        {**asks, **words, "stream": True},
        400,
        plain,
        "input_tokens",
        f"your prompt contains at least {server.longest + 1} input tokens",
    )
    yield (
        COMPLETIONS,
        {**asks, "prompt": [5] * server.longest},
        400,
        plain,
        "max_tokens",
        "must be at least 1, got 0",
    )
    big = 8 * server.longest
    yield (
        CHAT,
        {**asks, "messages": QUESTION, "max_tokens": big},
        400,
        plain,
        "max_tokens",
        f"max_tokens={big} cannot be greater than max_model_len={server.longest}",
    )
    for count in (0, -1):
        body = {**asks, "prompt": "x", "max_tokens": count}
        yield COMPLETIONS, body, 400, plain, "max_tokens", f"must be at least 1, got {count}"
    body = {**asks, "prompt": "x", "max_tokens": "many"}
    yield COMPLETIONS, body, 400, shape, "body.max_tokens", "'int_parsing'"
    body = {**asks, "prompt": "x", "temperature": -1}
    yield COMPLETIONS, body, 400, plain, "temperature", "must be non-negative, got -1"
    body = {**asks, "prompt": "x", "stream_options": {"include_usage": True}}
    yield COMPLETIONS, body, 400, plain, "stream_options", "only be defined when `stream=True`"


@check
def wrong_requests_are_refused_before_any_event(server: Server) -> None:
    for path, body, status, kind, param, message in _refusals(server):
        reply = server.ask("POST", path, body)
        same((reply.status, reply.kind), (status, JSON))
        error = reply.json["error"]
        same(set(error), {"message", "type", "param", "code"})
        same((error["type"], error["param"], error["code"]), (kind, param, status))
        assert re.search(message, error["message"], re.S), f"{error['message']!r}: {message}"


@check
def an_answer_ends_where_the_context_ends(server: Server) -> None:
    """``max_tokens`` is cut to what the prompt leaves, silently."""
    prompt = [5] * (server.longest - 2)
    found = server.post(COMPLETIONS, prompt=prompt, max_tokens=9, ignore_eos=True)
    same((found.status, _usage(found.json)), (200, (len(prompt), 2, server.longest)))
    same(found.json["choices"][0]["finish_reason"], "length")


# Metrics

NAMES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "external_prefix_cache_queries_total",
    "external_prefix_cache_hits_total",
    "prompt_tokens_by_source_total{local_compute}",
    "prompt_tokens_by_source_total{local_cache_hit}",
    "prompt_tokens_by_source_total{external_kv_transfer}",
    "request_success_total{stop}",
    "request_success_total{length}",
    "request_success_total{abort}",
    "request_success_total{error}",
    "time_to_first_token_seconds_count",
    "time_to_first_token_seconds_sum",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_count",
    "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_sum",
    "request_prefill_time_seconds_bucket",
    "request_decode_time_seconds_count",
    "request_inference_time_seconds_sum",
    "request_time_per_output_token_seconds_sum",
    "request_prompt_tokens_sum",
    "request_generation_tokens_sum",
    "iteration_tokens_total_sum",
)


@check
def metrics_have_their_names_and_labels(server: Server) -> None:
    reply = server.ask("GET", "/metrics")
    same((reply.status, reply.kind), (200, "text/plain; version=1.0.0; charset=utf-8"))
    found = server.metrics()
    same([name for name in NAMES if f"vllm:{name}" not in found], [])
    text = reply.body.decode()
    for name in ("num_requests_running", "prompt_tokens_total", "request_success_total"):
        lines = [line for line in text.splitlines() if line.startswith(f"vllm:{name}{{")]
        assert all('engine="0",' in line for line in lines), lines
        assert all(f'model_name="{server.model}"' in line for line in lines), lines


@check
def metrics_count_what_was_served(server: Server) -> None:
    def grown() -> dict[str, float]:
        now = server.metrics()
        return {name: now[f"vllm:{name}"] - before[f"vllm:{name}"] for name in wanted}

    wanted = {
        "prompt_tokens_total": 6.0,
        "generation_tokens_total": 8.0,
        "request_success_total{length}": 2.0,
        "time_to_first_token_seconds_count": 2.0,
        "inter_token_latency_seconds_count": 6.0,
        "e2e_request_latency_seconds_count": 2.0,
    }
    before = server.metrics()
    for _ in range(2):
        server.post(COMPLETIONS, prompt=[8, 9, 10], max_tokens=4, ignore_eos=True)
    # An engine tells its counters a moment after the answer.
    assert wait_for(lambda: grown() == wanted), f"found {grown()}, expected {wanted}"


@dataclass
class Load:
    """Requests that ran at once: what their clients measured, and the metrics meanwhile."""

    ttft: list[float]
    e2e: list[float]
    tokens: list[int]
    seen: list[dict[str, float]]
    grown: dict[str, float]

    def most(self, name: str) -> float:
        """The highest value of a gauge."""
        return max(look[f"vllm:{name}"] for look in self.seen)

    def total(self, name: str) -> float:
        """How much a counter grew."""
        return self.grown[f"vllm:{name}"]


def load(server: Server, requests: int, tokens: int) -> Load:
    """Streamed completions, all at once, and metrics until the last has been counted."""
    found = Load([], [], [], [], {})

    def one() -> None:
        began = time.monotonic()
        asked = {"max_tokens": tokens, "ignore_eos": True, "stream": True}
        options = {"include_usage": True}
        answer = server.send(COMPLETIONS, prompt=[5] * 8, stream_options=options, **asked)
        answer.readline()
        found.ttft.append(time.monotonic() - began)
        lines = [line for line in answer.read().decode().splitlines() if '"usage":{' in line]
        found.e2e.append(time.monotonic() - began)
        found.tokens.append(json.loads(lines[-1][6:])["usage"]["completion_tokens"])

    def over() -> bool:
        found.seen.append(server.metrics())
        now = found.seen[-1]
        found.grown = {name: now[name] - before.get(name, 0.0) for name in now}
        done = found.grown["vllm:e2e_request_latency_seconds_count"] == requests
        return done and now["vllm:num_requests_running"] == 0

    before = server.metrics()
    threads = [threading.Thread(target=one) for _ in range(requests)]
    for thread in threads:
        thread.start()
    assert wait_for(over, SECONDS), f"not all ended: {found}"
    for thread in threads:
        thread.join()
    return found


@check
def metrics_under_load_agree_with_what_clients_measure(server: Server) -> None:
    """Twelve requests at an engine that takes eight."""
    found, count = load(server, 12, 250), 12
    same((found.most("num_requests_running"), found.tokens), (8.0, [250] * count))
    assert found.most("num_requests_waiting") >= 1, "four have to wait"
    assert 0 < found.most("kv_cache_usage_perc") <= 1
    same(found.seen[-1]["vllm:kv_cache_usage_perc"], 0.0)
    same(found.total("request_prompt_tokens_sum"), 8.0 * count)
    same(found.total("request_generation_tokens_sum"), 250.0 * count)
    same(found.total("iteration_tokens_total_sum"), 258.0 * count)
    for stage in ("queue", "prefill", "decode", "inference"):
        same((stage, found.total(f"request_{stage}_time_seconds_count")), (stage, float(count)))
    queue, prefill, decode, inference = (
        found.total(f"request_{stage}_time_seconds_sum")
        for stage in ("queue", "prefill", "decode", "inference")
    )
    ttft = found.total("time_to_first_token_seconds_sum")
    e2e = found.total("e2e_request_latency_seconds_sum")
    # A client's clock begins before the engine's and ends after it; 0.5 s each is a busy machine.
    for whose, theirs, own in (("first", found.ttft, ttft), ("last", found.e2e, e2e)):
        assert -0.1 * count <= sum(theirs) - own <= 0.5 * count, (whose, theirs, own)
    assert abs(queue + prefill - ttft) <= 0.5 * count, (queue, prefill, ttft)
    assert abs(prefill + decode - inference) <= 0.1 * count, (prefill, decode, inference)
    assert abs(queue + inference - e2e) <= 0.5 * count, (queue, inference, e2e)
    assert queue >= 2 * decode / count, "four waited until one of eight had decoded"
    pace = found.total("request_time_per_output_token_seconds_sum")
    assert abs(pace - decode / 249) <= 0.01 * count, (pace, decode)


@check
def a_client_that_leaves_ends_its_request_uncounted(server: Server) -> None:
    def finished() -> float:
        now = server.metrics()
        return sum(now[name] for name in now if name.startswith("vllm:request_success_total{"))

    before = finished()
    asked = {"max_tokens": server.longest, "ignore_eos": True, "stream": True}
    answer = server.send(COMPLETIONS, prompt=[5], **asked)
    assert answer.readline().startswith(b"data: ")
    answer.close()
    assert wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 0), "it goes on"
    same(finished(), before)


@check
def several_prompts_of_one_request_get_a_choice_each(server: Server) -> None:
    asked = {"max_tokens": 3, "ignore_eos": True, "temperature": 0}
    found = server.post(COMPLETIONS, prompt=["one", "two three"], **asked).json
    same([choice["index"] for choice in found["choices"]], [0, 1])
    same(found["usage"]["completion_tokens"], 6)


@check
def more_least_than_most_tokens_are_refused(server: Server) -> None:
    found = server.post(CHAT, messages=QUESTION, max_tokens=5, min_tokens=7)
    same(found.status, 400)
    words = "min_tokens must be less than or equal to max_tokens=5, got 7."
    assert words in found.json["error"]["message"], found


@check
def a_chat_has_as_many_tokens_as_are_counted_before(server: Server) -> None:
    counted = server.post("/tokenize", messages=QUESTION)
    same(counted.status, 200)
    found = server.post(CHAT, messages=QUESTION, max_tokens=1).json
    same(found["usage"]["prompt_tokens"], counted.json["count"])
    plain = server.post("/tokenize", prompt="test").json["count"]
    assert (
        server.post("/tokenize", messages=[{"role": "user", "content": "test"}]).json["count"]
        >= plain
    ), "a template takes no tokens away"


@check
def a_message_is_answered_in_anthropics_form(server: Server) -> None:
    found = server.post("/v1/messages", messages=QUESTION, max_tokens=5)
    same(found.status, 200)
    same([found.json["type"], found.json["role"]], ["message", "assistant"])
    same([block["type"] for block in found.json["content"]], ["text"])
    assert found.json["usage"]["output_tokens"] <= 5, found
    stream = server.post("/v1/messages", messages=QUESTION, max_tokens=5, stream=True)
    events = re.findall(r"^event: (\w+)$", stream.body.decode(), re.MULTILINE)
    same([events[0], events[-1]], ["message_start", "message_stop"])
    assert "content_block_delta" in events, stream
    assert server.post("/v1/messages", messages=QUESTION).status in (400, 422), "no max_tokens"


def _usage(found: Any) -> tuple[int, int, int]:
    """Prompt, output and all tokens."""
    usage = found["usage"]
    assert usage["prompt_tokens_details"] is None, usage
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def _pieces(choices: list[Any], tokens: int) -> None:
    """At most one event a token (a slow reader gets several in one), the last with the reason."""
    assert 1 <= len(choices) <= tokens, choices
    same([choice["finish_reason"] for choice in choices[:-1]], [None] * (len(choices) - 1))
    same(choices[-1]["finish_reason"], "length")
