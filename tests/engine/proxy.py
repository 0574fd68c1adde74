"""A proxy script with the options of upstream's ``load_balance_proxy_server_example.py``."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.engine import listed, option, words
from tests.engine.web import Handler, Server, post

HANDED = {"do_remote_decode": True, "do_remote_prefill": False}


class Proxy(Handler):
    """First a prefiller, then a decoder with what the prefiller handed over."""

    prefillers: itertools.cycle[str]
    decoders: itertools.cycle[str]

    def do_GET(self) -> None:
        """The proxy's own health; nothing else is passed on."""
        ok = self.path == "/healthcheck"
        self.plain(200 if ok else 404, {"status": "ok"} if ok else {"detail": "Not Found"})

    def do_POST(self) -> None:
        """One completion through both sides."""
        if not self.path.startswith("/v1/"):
            self.plain(404, {"detail": "Not Found"})
            return
        body = self.body()
        try:
            first = {**body, "max_tokens": 1, "stream": False, "kv_transfer_params": HANDED}
            first.pop("stream_options", None)
            key = str(os.environ.get("OPENAI_API_KEY"))
            handed = json.loads(post(next(self.prefillers) + self.path, first, key).read())
            if "forgets" not in words():
                body["kv_transfer_params"] = handed["kv_transfer_params"]
            answer = post(next(self.decoders) + self.path, body, key)
        except (OSError, ValueError, KeyError) as error:
            self.plain(500, {"detail": f"{type(error).__name__}: {error}"})
            return
        if answer.headers.get("transfer-encoding") != "chunked":
            self.plain(answer.status, answer.read().decode())
            return
        self.begin()
        while data := answer.read1():
            self.chunk(data)
        self.chunk(b"")


def main(argv: Sequence[str]) -> int:
    """The command line."""
    sides = {
        f"{side}s": itertools.cycle(
            f"http://{host}:{port}"
            for host, port in zip(
                listed(argv, f"--{side}-hosts"), listed(argv, f"--{side}-ports"), strict=True
            )
        )
        for side in ("prefiller", "decoder")
    }
    place = option(argv, "--host"), int(option(argv, "--port"))
    server = Server(place, type("Bound", (Proxy,), sides))
    print(f"INFO: Uvicorn running on http://{place[0]}:{place[1]}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
