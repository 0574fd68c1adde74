"""Probes and completions against little servers that behave badly."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from steps.core.node import http as node_http
from steps.core.node.http import look
from steps.core.plan.plan import Access, Probe

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers each connection with fixed bytes after a pause."""
    over = threading.Event()
    listeners: list[socket.socket] = []

    def start(answer: bytes, pause: float = 0.0) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def work() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    over.wait(pause)
                    try:
                        connection.sendall(answer)
                        # A close with a request half read would reset what was answered.
                        connection.shutdown(socket.SHUT_WR)
                        connection.settimeout(1)
                        while connection.recv(65536):
                            pass
                    except OSError:
                        continue

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    over.set()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def http(status: int, body: Any = b"") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def closed() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "ok", "detail"),
    [
        (http(200), True, "HTTP 200"),
        (http(503), False, "HTTP 503"),  # not ready, whatever others say
        (http(404), False, "HTTP 404"),
        (http(302), False, "HTTP 302"),
        (b"", False, "onnect"),  # RemoteDisconnected or ConnectionResetError, as the kernel likes
        (b"SSH-2.0-OpenSSH\r\n", False, "BadStatusLine"),
        (b"\x00\xff" * 100, False, ""),
        (b"HTTP/1.1 abc\r\n\r\n", False, ""),
    ],
)
def test_only_200_is_healthy(serve: Serve, answer: bytes, ok: bool, detail: str) -> None:
    found = look(Probe("http", f"{serve(answer)}/health"), 2.0)
    assert found.ok is ok
    assert detail in found.detail
    assert found.detail


def test_a_silent_server_is_not_waited_for(serve: Serve) -> None:
    found = look(Probe("http", f"{serve(http(200), 30.0)}/health"), 0.3)
    assert (found.ok, found.detail) == (False, "no answer within 0.3 s")


def test_nobody_there() -> None:
    assert look(Probe("http", f"{closed()}/health")).detail == "connection refused"
    assert look(Probe("tcp", closed().replace("http", "tcp"))).detail == "connection refused"
    assert not look(Probe("tcp", closed().replace("http", "tcp"))).ok


def test_a_port_that_accepts_is_enough_for_tcp(serve: Serve) -> None:
    assert look(Probe("tcp", serve(b"").replace("http", "tcp"))).ok


def ask(url: str, seconds: float = 3.0, ended: threading.Event | None = None) -> node_http.Reply:
    return node_http.ask(Access(url), "m", "2 + 3?", 8, ended or threading.Event(), seconds)


def choice(**message: Any) -> dict[str, Any]:
    return {"choices": [{"message": message}]}


@pytest.mark.parametrize(
    ("answer", "text", "error"),
    [
        (http(200, choice(content="5")), "5", ""),
        (http(200, choice(content=None, reasoning_content="hm")), "hm", ""),
        (http(200, {"choices": [{"text": "5"}]}), "5", ""),
        (http(200, choice(content="")), "", "no text"),
        (http(200, choice(content="  ")), "  ", "no text"),
        (http(200, choice(content=["parts"])), "", "no completion"),
        (http(200, choice(content=5)), "", "no completion"),
        (http(200, {"choices": []}), "", "no completion"),
        (http(200, {"choices": [7]}), "", "no completion"),
        (http(200, b"<html>"), "", "no completion"),
        (http(200, b"[" * 100_000), "", "no completion"),
        (http(200, b"\xff\xfe"), "", "no completion"),
        (http(200, b"null"), "", "no completion"),
        (http(200, {"choices": [None]}), "", "no completion"),
        (http(200, {"choices": [{"message": [1]}]}), "", "no completion"),
        (http(200, choice(content=True)), "", "no completion"),
        (http(200, choice(content="5 \ud83d")), "5 ?", ""),
        (http(503, b"busy"), "", "HTTP 503: busy"),
        (http(400, b"bad"), "", "HTTP 400"),
        (b"", "", "onnect"),  # RemoteDisconnected or ConnectionResetError
        (b"garbage\r\n\r\n", "", "BadStatusLine"),
    ],
)
def test_answers(serve: Serve, answer: bytes, text: str, error: str) -> None:
    found = ask(serve(answer))
    assert found.text == text
    assert error in found.error
    assert bool(found.text.strip()) is (found.error == "")


def test_a_slow_answer_is_given_up(serve: Serve) -> None:
    assert "no answer within" in ask(serve(http(200), 30.0), 0.3).error


def test_the_end_of_the_run_cuts_it_short(serve: Serve) -> None:
    ended = threading.Event()
    threading.Timer(0.2, ended.set).start()
    assert "the run ended" in ask(serve(http(200), 30.0), 20.0, ended).error


def test_a_model_without_a_chat_template_is_asked_plainly(serve: Serve) -> None:
    url = serve(http(400, {"message": "no chat template is there"}))
    assert "HTTP 400" in ask(url).error


def test_an_answer_in_chunks_is_read_whole() -> None:
    pieces = [f"event: {number}\n" for number in range(5)]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for piece in pieces:
                    connection.sendall(f"{len(piece):x}\r\n{piece}\r\n".encode())
                    time.sleep(0.02)
                connection.sendall(b"0\r\n\r\n")

        thread = threading.Thread(target=work)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert node_http.request("GET", Access(url), 5).text == "".join(pieces)
        thread.join()
