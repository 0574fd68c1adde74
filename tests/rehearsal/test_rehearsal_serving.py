"""One stand-in server: its endpoints, streams, limits, metrics, engines and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from standins import Standin, Yard

QUESTION = {"messages": [{"role": "user", "content": "Anna has 12 + 7 * 2 apples. How many?"}]}


def events(data: bytes) -> list[Any]:
    """The JSON events of a stream, which must end with [DONE]."""
    lines = [line for line in data.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_small_endpoints(served: Standin) -> None:
    assert served.call("GET", "/health") == (200, b"")
    assert served.call("GET", "/ping")[0] == 200
    assert json.loads(served.call("GET", "/version")[1]) == {"version": "0.32.0"}
    models = json.loads(served.call("GET", "/v1/models")[1])["data"]
    assert [(card["id"], card["max_model_len"]) for card in models] == [("M", 512), ("alias", 512)]
    assert served.post("/tokenize", {"prompt": "one two three."})[1]["count"] == 4
    assert served.call("GET", "/nowhere")[0] == 404
    assert served.call("GET", "/v1/completions")[0] == 405


def test_caches_are_reset_in_dev_mode_alone(served: Standin, yard: Yard) -> None:
    paths = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
    assert {served.call("POST", path)[0] for path in paths} == {404}
    dev = yard.start(VLLM_SERVER_DEV_MODE="1").ready()
    assert [dev.call("POST", path) for path in paths] == [(200, b"")] * 3
    assert dev.call("GET", paths[0])[0] == 405


def test_completion_has_exactly_max_tokens_under_ignore_eos(served: Standin) -> None:
    status, answer = served.complete("tell me", max_tokens=70, ignore_eos=True)
    assert status == 200
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "total_tokens": 72,
        "completion_tokens": 70,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["text"].split()) == 70
    assert (
        served.complete("tell me", max_tokens=70, ignore_eos=True)[1]["choices"][0]["text"]
        == choice["text"]
    )


def test_stops_by_itself_and_computes(served: Standin) -> None:
    answer = served.post("/v1/chat/completions", {**QUESTION, "max_tokens": 200})[1]
    message = answer["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["content"].endswith("answer: 26\n#### 26")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 30


def test_stream_carries_every_token_and_the_usage(served: Standin) -> None:
    body = {
        **QUESTION,
        "max_completion_tokens": 40,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    status, data = served.call("POST", "/v1/chat/completions", body, **{"X-Request-ID": "abc"})
    assert status == 200
    *chunks, usage = events(data)
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-abc"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(chunks) == 41
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[1:]] == [None] * 39 + [
        "length"
    ]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 40


def test_completion_stream_without_usage(served: Standin) -> None:
    chunks = events(
        served.call(
            "POST",
            "/v1/completions",
            {"prompt": [1, 2, 3], "max_tokens": 5, "stream": True, "logprobs": 1},
        )[1]
    )
    assert len(chunks) == 5
    assert all(
        "usage" not in chunk and chunk["choices"][0]["logprobs"]["tokens"] for chunk in chunks
    )
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_prompt_that_just_fits(served: Standin) -> None:
    assert (
        served.complete("word " * 500, max_tokens=12, ignore_eos=True)[1]["usage"]["total_tokens"]
        == 512
    )


def test_keeps_the_connection_and_takes_unknown_fields(served: Standin) -> None:
    connection = served.connect()
    connection.connect()
    sock = connection.sock
    for _ in range(3):
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps(
                {"prompt": "a", "max_tokens": 2, "separate_reasoning": True, "min_tokens": 1}
            ),
        )
        answer = connection.getresponse()
        assert json.loads(answer.read())["usage"]["completion_tokens"] == 2
    assert connection.sock is sock
    connection.close()


def test_chunked_request_body(served: Standin) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
    connection = served.connect()
    connection.request(
        "POST",
        "/v1/completions",
        iter([body[:5], body[5:]]),
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    )
    assert connection.getresponse().status == 200
    connection.close()


def test_metrics_count(yard: Yard) -> None:
    server = yard.start("-dp", "2").ready()
    for _ in range(4):
        assert server.complete("one two three four", max_tokens=6, ignore_eos=True)[0] == 200
    for engine in ("0", "1"):
        assert server.metric("vllm:prompt_tokens_total", engine=engine, model_name="M") == 8
        assert server.metric("vllm:generation_tokens_total", engine=engine) == 12
        assert (
            server.metric(
                "vllm:prompt_tokens_by_source_total", engine=engine, source="local_compute"
            )
            == 8
        )
        assert (
            server.metric("vllm:request_success_total", engine=engine, finished_reason="length")
            == 2
        )
        assert server.metric("vllm:time_to_first_token_seconds_count", engine=engine) == 2
        assert (
            server.metric("vllm:inter_token_latency_seconds_bucket", engine=engine, le="+Inf") == 10
        )
    assert server.metric("vllm:num_requests_running") == 0


def test_a_client_that_leaves_aborts_its_request(yard: Yard) -> None:
    server = yard.start("--max-num-seqs", "1", REHEARSAL_TPOT_MS="200").ready()
    with socket.create_connection((server.address, server.port)) as sock:
        body = b'{"prompt":"x","max_tokens":10000,"ignore_eos":true,"stream":true}'
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert b"200 OK" in sock.recv(4096)
        assert server.metric("vllm:num_requests_running") == 1
    # With one sequence at a time this one would wait half an hour for the other.
    assert server.complete("y", max_tokens=1)[0] == 200
    assert server.metric("vllm:request_success_total") == 1


def test_200_streams_at_once(yard: Yard) -> None:
    server = yard.start("-dp", "2").ready()
    body = json.dumps(
        {"prompt": "x", "max_tokens": 20, "ignore_eos": True, "stream": True}
    ).encode()
    request = (
        b"POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )

    async def one() -> int:
        reader, writer = await asyncio.open_connection(server.address, server.port)
        writer.write(request)
        data = await reader.read()
        writer.close()
        assert b"data: [DONE]" in data
        assert data.endswith(b"0\r\n\r\n")
        return data.count(b'"text"')

    async def everybody() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(200)))

    assert asyncio.run(everybody()) == [20] * 200
    assert server.metric("vllm:generation_tokens_total") == 4000


def test_port_in_use(yard: Yard) -> None:
    server = yard.start()
    server.ready()
    second = yard.start("--port", str(server.port), address=server.address)
    assert second.exit_code() == 1
    assert "OSError: [Errno 98] Address already in use" in second.log


def test_refuses_connections_until_ready(yard: Yard) -> None:
    server = yard.start(REHEARSAL_LOAD_SECONDS="0.4").says("25% Completed")
    with pytest.raises(ConnectionRefusedError):
        server.call("GET", "/health")
    server.ready()
    assert "INFO:     Application startup complete." in server.log


def test_cannot_bind_an_address_of_another_node(yard: Yard) -> None:
    other = yard.start("--host", yard.address())
    assert other.exit_code() == 1
    assert "Cannot assign requested address" in other.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_in_good_order(yard: Yard, gone: Callable[[int], None], number: int) -> None:
    server = yard.start("-dp", "2").ready()
    engines = server.engines()
    assert len(engines) == 2
    os.killpg(server.process.pid, number)
    assert server.exit_code() == 0
    for pid in engines:
        gone(pid)
    assert "ERROR" not in server.log


def test_too_many_devices(yard: Yard) -> None:
    server = yard.start("-tp", "2", "-dp", "3", devices=4)
    assert server.exit_code() == 1
    assert "EngineCore_DP2" in server.log
    assert "AssertionError: DP adjusted local rank 4 is out of bounds." in server.log
    assert (
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core "
        "proc(s): {'EngineCore_DP2': 1}" in server.log
    )


@pytest.mark.parametrize(("visible", "text"), [("0", "out of bounds"), ("3,4", "invalid device 4")])
def test_visible_devices(yard: Yard, visible: str, text: str) -> None:
    server = yard.start("-tp", "2", devices=4, ASCEND_RT_VISIBLE_DEVICES=visible)
    assert server.exit_code() == 1
    assert text in server.log


def test_death_of_an_engine_ends_the_server(yard: Yard, gone: Callable[[int], None]) -> None:
    server = yard.start("-dp", "2", REHEARSAL_TPOT_MS="50").ready()
    first, second = server.engines()
    connection = server.connect()
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps({"prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True}),
    )
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    os.kill(first, signal.SIGKILL)
    assert server.exit_code() == 1
    assert "Engine core proc EngineCore_DP0 died unexpectedly" in server.log
    assert (
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue." in server.log
    )
    assert b"EngineCore encountered an issue" in answer.read()
    gone(second)
    connection.close()


def test_engines_outlive_a_killed_parent_but_not_for_ever(
    yard: Yard, gone: Callable[[int], None]
) -> None:
    server = yard.start(REHEARSAL_ORPHAN_SECONDS="0.4").ready()
    (engine,) = server.engines()
    os.kill(server.process.pid, signal.SIGKILL)
    assert server.exit_code() == -signal.SIGKILL
    time.sleep(0.15)
    os.kill(engine, 0)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((server.address, server.port))
    gone(engine)


def test_slow_stop_waits(yard: Yard) -> None:
    server = yard.start(REHEARSAL_STOP_SECONDS="0.5").ready()
    before = time.monotonic()
    server.process.terminate()
    assert server.exit_code() == 0
    assert time.monotonic() - before >= 0.5
