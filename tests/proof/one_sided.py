"""A proxy that looks healthy and sends every request to the first of the backends it was given.

    one_sided.py HOST PORT URL...

Enters: HTTP requests. Leaves: the backend's answers, byte for byte. Touches: its port.
"""

from __future__ import annotations

import http.client
import http.server
import sys
from urllib.parse import urlsplit

HOST, PORT, BACKEND = sys.argv[1], int(sys.argv[2]), urlsplit(sys.argv[3])


class Forward(http.server.BaseHTTPRequestHandler):
    """One request, passed on."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        backend = http.client.HTTPConnection(BACKEND.hostname or "", BACKEND.port, timeout=60)
        backend.request(self.command, self.path, body, {"content-type": "application/json"})
        answer = backend.getresponse()
        self.send_response(answer.status)
        self.send_header("content-type", answer.getheader("content-type", "text/plain"))
        self.end_headers()
        while piece := answer.read1(65536):
            self.wfile.write(piece)
        backend.close()

    do_GET = do_POST = _pass_on

    def log_message(self, *_: object) -> None:
        """Say nothing."""


http.server.ThreadingHTTPServer((HOST, PORT), Forward).serve_forever()
