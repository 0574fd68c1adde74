"""The rehearsal's own proxy, and the real vllm-router beside it wherever it is built: the same
tests, so that the one plays the other.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from standins import ROOT, Standin, Yard
from test_rehearsal_handoff import PROMPT, config

from ci.tools import environments

BUILT = environments.installed("vllm-router")
REAL = pytest.param(
    "real", marks=pytest.mark.skipif(BUILT is None, reason="vllm-router: not built")
)
STAND_IN = str(ROOT / "rehearsal" / "bin" / "rehearsal-router")
Start = Callable[..., Standin]
pytestmark = pytest.mark.timeout(90)


def command(which: str) -> list[str]:
    """The words that start one of the two."""
    if which == "stand-in":
        return [sys.executable, STAND_IN]
    assert BUILT is not None
    return [str(BUILT.bin / "python"), str(BUILT.bin / "vllm-router")]


@pytest.fixture(params=["stand-in", REAL])
def which(request: pytest.FixtureRequest) -> str:
    """Which of the two plays."""
    return str(request.param)


@pytest.fixture
def start(yard: Yard, which: str) -> Start:
    """Starts the proxy in front of servers."""

    def begin(prefillers: list[Standin], decoders: list[Standin], *words: str) -> Standin:
        argv = ["--vllm-pd-disaggregation", "--policy", "round_robin"]
        for flag, side in (("--prefill", prefillers), ("--decode", decoders)):
            argv += [word for one in side for word in (flag, f"http://{one.address}:{one.port}")]
        argv += ["--worker-startup-check-interval", "1", "--kv-connector", "nixl", *words]
        python, program = command(which)
        return yard.start(*argv, program=program, python=python, OPENAI_API_KEY="")

    return begin


def side(yard: Yard, role: str, port: int, *words: str, faults: str = "", **env: str) -> Standin:
    more = {"prefill_tp": 1, "decode_tp": 1, "engine_id": str(port)}
    return yard.start(*config(f"kv_{role}", port=port, **more), *words, faults=faults, **env)


def fleet(yard: Yard, start: Start) -> tuple[Standin, Standin, Standin]:
    prefiller, decoder = side(yard, "producer", 30000), side(yard, "consumer", 30100)
    return prefiller, decoder, start([prefiller], [decoder]).ready()


def moved(decoder: Standin) -> float:
    source = "external_kv_transfer"
    return decoder.metric("vllm:prompt_tokens_by_source_total", source=source)


def ask(proxy: Standin, **more: Any) -> tuple[int, bytes]:
    body = {"model": "M", "prompt": PROMPT, "max_tokens": 5, **more}
    return proxy.call("POST", "/v1/completions", body, **{"Content-Type": "application/json"})


def test_it_hands_over_and_answers_with_the_decoders_words(yard: Yard, start: Start) -> None:
    prefiller, decoder, proxy = fleet(yard, start)
    status, data = ask(proxy, ignore_eos=True)
    assert (status, json.loads(data)["usage"]["completion_tokens"]) == (200, 5)
    assert moved(decoder) > 0
    assert prefiller.metric("vllm:generation_tokens_total") == 1
    chat = {"model": "M", "messages": [{"role": "user", "content": PROMPT}]}
    more = {"max_completion_tokens": 4, "ignore_eos": True}
    typed = {"Content-Type": "application/json"}
    status, answer = proxy.post("/v1/chat/completions", {**chat, **more}, **typed)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 4)
    assert prefiller.metric("vllm:generation_tokens_total") == 2


def test_a_stream_comes_piece_by_piece(yard: Yard, start: Start) -> None:
    prefiller = side(yard, "producer", 30000)
    decoder = side(yard, "consumer", 30100, REHEARSAL_TPOT_MS="150")
    proxy = start([prefiller], [decoder]).ready()
    connection = proxy.connect()
    body = {"model": "M", "prompt": PROMPT, "max_tokens": 8, "ignore_eos": True, "stream": True}
    options = {"include_usage": True}
    text = json.dumps({**body, "stream_options": options})
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", text, headers)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("content-type", "")[:17]) == (200, "text/event-stream")
    times, lines = [], []
    while line := answer.readline():
        if line.strip():
            times.append(time.monotonic())
            lines.append(line)
    assert lines[-1] == b"data: [DONE]\n"
    assert json.loads(lines[-2][6:])["usage"]["completion_tokens"] == 8
    assert times[-1] - times[0] > 0.5


def test_of_the_clients_headers_none_reaches_an_engine(yard: Yard, start: Start) -> None:
    """A key that the client sends does not open an engine: the real one does not pass it on."""
    prefiller = side(yard, "producer", 30000, "--api-key", "k")
    decoder = side(yard, "consumer", 30100)
    proxy = start([prefiller], [decoder]).ready()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer k", "X-Odd": "1"}
    body = {"model": "M", "prompt": "x", "max_tokens": 2}
    status, data = proxy.call("POST", "/v1/completions", body, **headers)
    assert (status, json.loads(data)) == (401, {"error": "Unauthorized"})
    headers["X-data-parallel-rank"] = "7"
    assert proxy.call("GET", "/health", None, **headers)[0] == 200


def test_a_wrong_model_is_refused_in_the_engines_words(yard: Yard, start: Start) -> None:
    _, decoder, proxy = fleet(yard, start)
    status, data = ask(proxy, model="nobody")
    assert (status, json.loads(data)["error"]["type"]) == (404, "NotFoundError")
    assert moved(decoder) == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status", "words"),
    [
        ("GET", "/metrics", None, "", 405, "Only POST requests"),
        ("GET", "/v1/completions", None, "", 405, ""),
        ("POST", "/reset_prefix_cache", None, "", 400, "Request body must be a JSON object"),
        ("POST", "/v1/completions", b"{bad", "application/json", 400, "Failed to parse"),
        ("POST", "/v1/completions", b'{"prompt": "x"}', "text/plain", 415, "Content-Type"),
        ("POST", "/v1/completions", b'{"model": "M"}', "application/json", 422, "`prompt`"),
        ("POST", "/v1/chat/completions", b'{"model": "M"}', "application/json", 422, "`messages`"),
        ("GET", "/health", None, "", 200, "All servers healthy"),
    ],
)
def test_what_it_refuses(
    yard: Yard,
    start: Start,
    method: str,
    path: str,
    body: bytes | None,
    kind: str,
    status: int,
    words: str,
) -> None:
    _, _, proxy = fleet(yard, start)
    headers = {"Content-Type": kind} if kind else {}
    found, data = proxy.call(method, path, body, **headers)
    assert (found, words in data.decode()) == (status, True), data
    assert json.loads(proxy.call("GET", "/v1/models")[1])["data"][0]["id"] == "M"


def test_a_dead_decoder_is_named(yard: Yard, start: Start) -> None:
    _, decoder, proxy = fleet(yard, start)
    decoder.process.kill()
    decoder.process.wait()
    status, data = ask(proxy)
    place = f"http://{decoder.address}:{decoder.port}/v1/completions"
    words = f"Transparent proxy request failed: Network error: Decode request failed to {place}"
    assert (status, data.decode().startswith(words)) == (500, True), data
    assert "Connection refused" in data.decode()
    proxy.says("Transparent proxy request failed")


def test_a_failing_prefiller_is_named(yard: Yard, start: Start) -> None:
    prefiller = side(yard, "producer", 30000, faults="refuse-handoff@0:ready")
    decoder = side(yard, "consumer", 30100)
    proxy = start([prefiller], [decoder]).ready()
    status, data = ask(proxy)
    assert status == 500, data


def test_a_client_that_goes_takes_its_request_along(yard: Yard, start: Start) -> None:
    prefiller = side(yard, "producer", 30000)
    decoder = side(yard, "consumer", 30100, REHEARSAL_TPOT_MS="100")
    proxy = start([prefiller], [decoder]).ready()
    body = {"model": "M", "prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "stream": True}
    connection = proxy.connect()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    answer.readline()
    assert decoder.metric("vllm:num_requests_running") == 1
    answer.close()
    connection.close()
    deadline = time.monotonic() + 5
    while decoder.metric("vllm:num_requests_running"):
        assert time.monotonic() < deadline, "the decoder goes on for nobody"
        time.sleep(0.05)
    assert ask(proxy)[0] == 200


def test_engines_take_turns(yard: Yard, start: Start) -> None:
    prefillers = [side(yard, "producer", 30000), side(yard, "producer", 30010)]
    decoders = [side(yard, "consumer", 30100), side(yard, "consumer", 30110)]
    proxy = start(prefillers, decoders).ready()
    for _ in range(6):
        assert ask(proxy)[0] == 200
    for one in (*prefillers, *decoders):
        assert one.metric("vllm:request_success_total") == 3


def test_ranks_behind_one_server_take_turns(yard: Yard, start: Start) -> None:
    prefiller = side(yard, "producer", 30000)
    sizes = {"prefill": {"dp_size": 1, "tp_size": 1}, "decode": {"dp_size": 2, "tp_size": 1}}
    both = {"prefill_tp": 1, "kv_connector_extra_config": sizes}
    prefiller = yard.start(*config("kv_producer", engine_id="1", **both))
    decoder = yard.start("-dp", "2", *config("kv_consumer", port=30100, engine_id="2", **both))
    proxy = start([prefiller], [decoder]).ready()
    for _ in range(4):
        assert ask(proxy)[0] == 200
    for rank in "01":
        assert decoder.metric("vllm:request_success_total", engine=rank) == 2


def test_it_listens_only_once_all_are_healthy_and_gives_up_in_time(
    yard: Yard, start: Start
) -> None:
    prefiller = side(yard, "producer", 30000)
    slow = side(yard, "consumer", 30100, REHEARSAL_LOAD_SECONDS="600")
    proxy = start([prefiller], [slow], "--worker-startup-timeout-secs", "2")
    assert proxy.exit_code() == 1
    place = f"http://{slow.address}:{slow.port}"
    assert re.search(rf'Timeout 2s waiting for hosts \["{place}"\] to become healthy', proxy.log)


def test_sigterm_ends_it_well(yard: Yard, start: Start) -> None:
    *_, proxy = fleet(yard, start)
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.exit_code() == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["--port", "x"], 2, "argument --port: invalid int value: 'x'"),
        (["--policy", "best"], 2, "argument --policy: invalid choice: 'best'"),
        (["--vllm-pd-disaggregation"], 1, "PD disaggregation mode requires --prefill"),
        (
            ["--vllm-pd-disaggregation", "--prefill", "http://a"],
            1,
            "PD disaggregation mode requires --decode",
        ),
        (
            ["--vllm-pd-disaggregation", "--prefill", "a:1", "--decode", "http://a"],
            1,
            "Invalid value for field 'worker_url': a:1 - URL must start with http://",
        ),
    ],
)
def test_a_wrong_command(which: str, words: list[str], code: int, said: str) -> None:
    argv = [*command(which), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr


@pytest.mark.skipif(BUILT is None, reason="vllm-router: not built")
def test_it_knows_every_option_of_the_real_one() -> None:
    def options(which: str) -> set[str]:
        argv = [*command(which), "--help"]
        text = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
        return set(re.findall(r"(?m)^  (--[\w-]+)", text))

    assert options("stand-in") == options("real")
