"""A `vllm serve` of the tests' own, which the product does not know, for runs without --rehearse.

Enters: the words of a command; ``ENGINE_ODD`` names what is odd about the second streamed answer,
``ENGINE_SLOW`` is the seconds a prompt takes that was not seen before, ``ENGINE_RESET`` says how
``/reset_prefix_cache`` behaves: ``works``, ``refuses``, ``lies``; absent, it does not exist.
Leaves: answers, and a line in its log a request. Touches: its port.
"""

from __future__ import annotations

import gzip
import http.server
import json
import os
import sys
import threading
import time
from typing import Any

ODD = os.environ.get("ENGINE_ODD", "")
SLOW = float(os.environ.get("ENGINE_SLOW", "0"))
RESET = os.environ.get("ENGINE_RESET", "")
CACHING = "--no-enable-prefix-caching" not in sys.argv
METRICS = """\
vllm:request_success_total{engine="0",finished_reason="length"} 99
vllm:prefix_cache_queries_total{engine="0"} %d
vllm:prefix_cache_hits_total{engine="0"} %d
"""
LOOKED_UP = [0, 0]
SEEN: set[str] = set()
STREAMED = [0]
LOCK = threading.Lock()


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(**fields: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def usage(count: Any) -> dict[str, Any]:
    """The chunk that counts."""
    return {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": count}}


def odd(kind: str, parts: list[bytes]) -> list[bytes]:
    """A good stream's events, one thing odd about them."""
    text, counts, done = parts[:-2], parts[-2], parts[-1]
    good = [*text, counts]
    crlf = [part.replace(b"\n", b"\r\n") for part in parts]
    bare = [part.replace(b"data: ", b"data:") for part in parts]
    named = [b"event: message\nid: 7\nretry: 3\n" + part for part in text]
    table: dict[str, list[bytes]] = {
        "list content": [event(delta(content=[{"type": "text", "text": "t "}])), counts, done],
        "number content": [event(delta(content=5)), counts, done],
        "true content": [event(delta(content=True)), counts, done],
        "null data": [b"data: null\n\n", *parts],
        "text data": [b'data: "x"\n\n', *parts],
        "no json": [b"data: {nonsense\n\n", *parts],
        "deep": [b"data: " + b"[" * 100000 + b"\n\n", *parts],
        "null choice": [event({"choices": [None]}), *parts],
        "choices": [event({"choices": 7}), *parts],
        "list usage": [*text, event({"choices": [], "usage": [8]}), done],
        "text usage": [*text, event(usage("8")), done],
        "true usage": [*text, event(usage(True)), done],
        "nan usage": [*text, event(usage(float("nan"))), done],
        "huge usage": [*text, event(usage(10**400)), done],
        "no usage": [*text, done],
        "no text": [event(delta(content="")), counts, done],
        "error": [event({"error": {"message": "bad \ud83d token"}}), *parts],
        "no done": good,
        "huge line": [event({"choices": [], "x": "a" * 20_000_000}), *parts],
        "markup": [b"<html>busy</html>\n", *parts],
        "null error": [part.replace(b"{", b'{"error": null, ', 1) for part in good] + [done],
        "two lines": [b'data: {"choices":\ndata: [{"delta":{"content":"t "}}]}\n\n', counts, done],
        "bom": [b"\xef\xbb\xbf", *parts],
        "crlf": crlf,
        "bare": bare,
        "comments": [b": keep-alive\n\n", *text, b":\n\n", counts, done],
        "fields": [*named, counts, done],
        "done at the end": [*good, b"data: [DONE]"],
        "bytes": [b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n', counts, done],
    }
    return table.get(kind, parts)


class Engine(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The access log, as an engine has it."""
        print(f'INFO: {self.client_address[0]} - "{self.requestline}"', flush=True)

    def plain(self, code: int, body: bytes, kind: str = "application/json") -> None:
        """A whole answer."""
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Health, models, counters."""
        if self.path == "/metrics":
            return self.plain(200, (METRICS % tuple(LOOKED_UP)).encode(), "text/plain")
        known = self.path in ("/health", "/v1/models")
        return self.plain(200 if known else 404, b'{"data": []}')

    def do_POST(self) -> None:
        """Completions, and the reset of the prefix cache."""
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.startswith("/reset_prefix_cache"):
            if RESET == "works":
                SEEN.clear()
            success = b"false" if RESET == "refuses" else b"true"
            return self.plain(200 if RESET else 404, b'{"success": %s}' % success)
        if not self.path.startswith("/v1"):
            return self.plain(404, b"{}")
        body = json.loads(raw)
        prompt = json.dumps(body["messages"])
        LOOKED_UP[0] += 30
        if CACHING and prompt in SEEN:
            LOOKED_UP[1] += 30
        elif body.get("stream"):
            time.sleep(SLOW)
        SEEN.add(prompt)
        count = int(body.get("max_tokens") or 8)
        if not body.get("stream"):
            message = {"message": {"content": "5"}, "finish_reason": "stop"}
            return self.plain(200, json.dumps({"choices": [message]}).encode())
        with LOCK:
            STREAMED[0] += 1
            kind = ODD if STREAMED[0] == 2 else ""
        parts = [event(delta(content="t "))] * count
        self.stream(kind, odd(kind, [*parts, event(usage(count)), b"data: [DONE]\n\n"]))
        return None

    def stream(self, kind: str, parts: list[bytes]) -> None:
        """The streamed answer, in the transfer coding that ``kind`` asks for."""
        self.close_connection = True
        if kind == "interim":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind == "no http":
            self.wfile.write(b"\x16\x03\x01 nonsense\r\n\r\n")
            return
        if kind == "http 1.0":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(parts))
            return
        self.send_response(200)
        self.send_header("content-type", "text/html" if kind == "type" else "text/event-stream")
        if kind == "gzip":
            self.send_header("content-encoding", "gzip")
            parts = [gzip.compress(b"".join(parts))]
        self.send_header("transfer-encoding", "Chunked" if kind == "capital" else "chunked")
        self.end_headers()
        more = b"; name=value" if kind == "extension" else b""
        if kind == "bytewise":
            parts = [bytes([byte]) for byte in b"".join(parts)]
        for number, part in enumerate(parts):
            if kind == "hang" and number == 3:
                time.sleep(600)
            self.wfile.write(b"%x%s\r\n%s\r\n" % (len(part), more, part))
        if kind == "chunk size":
            self.wfile.write(b"zz\r\n")
        elif kind == "cut":
            return
        else:
            self.wfile.write(b"0\r\n%s\r\n" % (b"X-Trailer: 1\r\n" if kind == "trailer" else b""))


class Server(http.server.ThreadingHTTPServer):
    """The server; room for every connection of a load."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: object) -> None:  # type: ignore[override]
        """A client that went away is no news."""


def main(argv: list[str]) -> None:
    """Serve until killed."""
    if "--version" in argv:
        print("0.11.0")
        return
    host, port = argv[argv.index("--host") + 1], int(argv[argv.index("--port") + 1])
    print(f"INFO Starting vLLM API server on http://{host}:{port}", flush=True)
    Server((host, port), Engine).serve_forever()


if __name__ == "__main__":
    main(sys.argv)
