"""A small HTTP server, and a client that can pass a stream on."""

from __future__ import annotations

import http.client
import http.server
import json
import ssl
from typing import Any
from urllib.parse import urlsplit


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers JSON, text and chunked streams."""

    protocol_version = "HTTP/1.1"

    def log_message(self, text: str, *items: Any) -> None:
        """As uvicorn writes it."""
        print("INFO:", f"{self.client_address[0]} - {text % items}", flush=True)

    def body(self) -> dict[str, Any]:
        """The request's JSON."""
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        return json.loads(raw or b"{}")  # type: ignore[no-any-return]

    def plain(self, code: int, value: Any = None, kind: str = "application/json") -> None:
        """One whole answer."""
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def begin(self) -> None:
        """The head of a stream of events."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        """A piece of the stream; an empty one ends it."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, value: Any) -> None:
        """One event."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.chunk(f"data: {text}\n\n".encode())


class Server(http.server.ThreadingHTTPServer):
    """Many requests at once; https with a certificate."""

    daemon_threads = True
    request_queue_size = 128
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the request's own thread, so that no slow handshake holds up others."""
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or speaks no TLS, is no news."""


def post(url: str, body: Any, key: str = "") -> http.client.HTTPResponse:
    """Send JSON; the answer is still to be read. Certificates are looked at, as programs do."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=60)
    headers = {"content-type": "application/json"}
    headers |= {"authorization": f"Bearer {key}"} if key else {}
    connection.request("POST", parts.path, json.dumps(body), headers)
    return connection.getresponse()
