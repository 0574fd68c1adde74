"""Every fault does what the fault language promises."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import pytest
from standins import Yard

STREAM = {"prompt": "x", "max_tokens": 10, "ignore_eos": True, "stream": True}


@pytest.mark.parametrize("when", ["start", "load", "ready", "ready+0.1", "+0.1"])
def test_crash_at_every_moment(yard: Yard, when: str) -> None:
    server = yard.start(faults=f"crash=5@0.server:{when}", REHEARSAL_LOAD_SECONDS="0.2")
    assert server.exit_code() == 5
    assert "Traceback" in server.log
    assert f"RuntimeError: injected fault crash=5@0.server:{when}" in server.log
    assert ("Application startup complete." in server.log) == when.startswith("ready")


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("exit0", 0, ""),
        ("kill9", -9, ""),
        ("oom", -9, "RuntimeError: NPU out of memory. Tried to allocate"),
    ],
)
def test_sudden_ends(yard: Yard, what: str, code: int, text: str) -> None:
    server = yard.start(faults=f"{what}@0:ready")
    assert server.exit_code() == code
    assert text in server.log


def test_faults_of_others_do_nothing(yard: Yard) -> None:
    server = yard.start(faults="crash@1; crash@0.server-1; crash@*.pool; crash@0:request2").ready()
    assert server.complete(max_tokens=1)[0] == 200
    with pytest.raises((OSError, HTTPException)):
        server.complete(max_tokens=1)
    assert server.exit_code() == 1


def test_crash_on_a_headless_node_at_a_request(yard: Yard) -> None:
    leader, worker = yard.address(), yard.address()
    both = [
        "-dp",
        "2",
        "--data-parallel-size-local",
        "1",
        "--data-parallel-address",
        leader,
        "--data-parallel-rpc-port",
        str(yard.port(leader)),
    ]
    api = yard.start(*both, address=leader, faults="crash@1:request")
    headless = yard.start(
        *both,
        "--headless",
        "--data-parallel-start-rank",
        "1",
        address=worker,
        node=1,
        faults="crash@1:request",
    )
    api.ready()
    for _ in range(2):
        try:
            api.complete(max_tokens=50)
        except (OSError, HTTPException):
            break
    assert headless.exit_code() == 1
    assert api.exit_code() == 1


def test_hang_answers_nothing_but_dies_of_a_signal(yard: Yard) -> None:
    server = yard.start(faults="hang@0:request").ready()
    with pytest.raises(TimeoutError):
        server.call("POST", "/v1/completions", STREAM, timeout=0.3)
    with pytest.raises(TimeoutError):
        server.call("GET", "/health", timeout=0.3)
    server.process.terminate()
    assert server.exit_code() == -signal.SIGTERM


def test_stop(yard: Yard) -> None:
    server = yard.start(faults="stop@0:load").says("Initializing")
    for _ in range(200):
        state = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "T":
            break
        time.sleep(0.02)
    assert state == "T"


def test_http503(yard: Yard) -> None:
    server = yard.start(faults="http503@0").says("Application startup complete")
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            assert server.call("GET", "/health") == (503, b"")
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    assert server.complete()[0] == 503


def test_silent_requests_but_healthy(yard: Yard) -> None:
    server = yard.start(faults="silent@0:bench").ready()
    assert server.complete(max_tokens=1)[0] == 200
    with socket.create_connection((server.address, server.port)) as sock:
        body = json.dumps(STREAM).encode()
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    assert server.call("GET", "/health")[0] == 200


def test_garbage(yard: Yard) -> None:
    server = yard.start(faults="garbage@0").ready()
    status, data = server.call("POST", "/v1/completions", {"prompt": "x"})
    assert status == 200
    with pytest.raises(ValueError):
        json.loads(data)
    with pytest.raises(HTTPException):
        server.call("POST", "/v1/completions", STREAM)


def test_empty(yard: Yard) -> None:
    server = yard.start(faults="empty@0").ready()
    answer = server.complete()[1]
    assert answer["choices"][0]["text"] == ""
    assert answer["usage"]["completion_tokens"] == 0
    data = server.call("POST", "/v1/completions", STREAM)[1]
    assert data.endswith(b"data: [DONE]\n\n")
    assert data.count(b'"text":""') == 1


def test_midstream(yard: Yard) -> None:
    server = yard.start(faults="midstream@0").ready()
    lines = [
        line
        for line in server.call("POST", "/v1/completions", STREAM)[1].decode().split("\n\n")
        if line
    ]
    assert 0 < sum('"text"' in line for line in lines) < 10
    assert json.loads(lines[-2][6:])["error"]["code"] == 500
    assert server.complete()[0] == 500


def test_truncate(yard: Yard) -> None:
    server = yard.start(faults="truncate@0").ready()
    answer = server.complete(max_tokens=10, ignore_eos=True)[1]
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.timing
def test_slow(yard: Yard) -> None:
    server = yard.start(faults="slow=50@0:bench").ready()
    begun = time.monotonic()
    server.complete(max_tokens=11, ignore_eos=True)
    middle = time.monotonic()
    server.complete(max_tokens=11, ignore_eos=True)
    assert time.monotonic() - middle >= 50 * 0.012
    assert middle - begun < time.monotonic() - middle


@pytest.mark.parametrize("node", [0, 1])
def test_refuse_handoff(yard: Yard, node: int) -> None:
    def config(role: str) -> list[str]:
        return [
            "--kv-transfer-config",
            json.dumps({"kv_connector": "MooncakeConnectorV1", "kv_role": role, "kv_port": 30000}),
        ]

    faults = f"refuse-handoff@{node}:request"
    prefiller = yard.start(*config("kv_producer"), faults=faults)
    decoder = yard.start(*config("kv_consumer"), node=1, faults=faults).ready()
    params = prefiller.ready().complete(
        max_tokens=1, kv_transfer_params={"do_remote_decode": True}
    )[1]["kv_transfer_params"]
    status, answer = decoder.complete(kv_transfer_params=params)
    assert status == 500
    assert "injected fault refuse-handoff" in answer["error"]["message"]


@pytest.mark.parametrize("when", ["start", "ready"])
def test_fork_away_lives_on(yard: Yard, when: str) -> None:
    server = yard.start(faults=f"fork-away@0:{when}")
    assert server.exit_code() == 0
    server.says("Application startup complete")
    for _ in range(200):
        try:
            assert server.complete(max_tokens=3)[0] == 200
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    os.killpg(server.process.pid, signal.SIGTERM)
    server.says("Application shutdown complete")


@pytest.mark.parametrize("when", ["start", "term"])
def test_ignore_term(yard: Yard, when: str, gone: Callable[[int], None]) -> None:
    server = yard.start(faults=f"ignore-term@0:{when}").ready()
    os.killpg(server.process.pid, signal.SIGTERM)
    time.sleep(0.8)
    assert server.complete(max_tokens=3)[0] == 200


def test_crash_while_ending(yard: Yard) -> None:
    server = yard.start(faults="crash=9@0:term").ready()
    server.process.terminate()
    assert server.exit_code() == 9


def test_nonsense_is_refused_at_once(yard: Yard) -> None:
    server = yard.start(faults="explode@0")
    assert server.exit_code() == 2
    assert "REHEARSAL_FAULTS" in server.log
    assert "no fault 'explode'" in server.log
