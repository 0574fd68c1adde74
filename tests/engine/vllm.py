"""``vllm serve MODEL ...`` and ``vllm --version``."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.engine import listed, option, words
from tests.engine.web import Handler, Server

VERSION = "0.32.0"
#: How long an API server outlives an engine core that has died.
DYING = 0.5
#: What needs no key, as vLLM's main branch has it; releases up to 0.32 guard /v1 only.
PUBLIC = ("/health", "/ping", "/load", "/version", "/metrics")


class Engine:
    """Everything a server knows."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv, self.knobs = argv, words()
        self.name = option(argv, "--served-model-name") or argv[1]
        alone = bool(option(argv, "--data-parallel-rank"))  # one server a rank, balanced outside
        self.size = 1 if alone else int(option(argv, "--data-parallel-size", "1"))
        self.local = int(option(argv, "--data-parallel-size-local", str(self.size)))
        self.turn, self.asked = itertools.count(), itertools.count(1)
        self.requests: collections.Counter[int] = collections.Counter()
        self.tokens: collections.Counter[str] = collections.Counter()
        self.drafts = self.made = self.running = 0
        self.lock = threading.Lock()
        self.seen: set[str] = set()
        self.stuck = False

    def number(self, name: str, default: float = 0.0) -> float:
        """A word's number."""
        return float(self.knobs.get(name) or default)

    def moment(self, when: str) -> None:
        """Crash or hang, if this is the moment."""
        if self.knobs.get("crash") == when:
            code = int(self.number("code", 1))
            print(f"ERROR EngineCore failed: RuntimeError: told to end at {when}", flush=True)
            if code < 0:
                os.kill(os.getpid(), -code)
            os._exit(code)
        if self.knobs.get("hang") == when:
            self.stuck = True
        while self.stuck:
            time.sleep(0.1)

    def load(self) -> None:
        """Come up as the words say."""
        self.moment("start")
        pool = os.environ.get("MOONCAKE_CONFIG_PATH")
        if pool:
            told = json.loads(Path(pool).read_text())["master_server_address"]
            host, _, port = told.rpartition(":")
            socket.create_connection((host, int(port)), 5).close()
        kind = self.knobs.get("stray")
        if kind:
            code = f"import time; time.sleep(600)  # stray of {os.environ['HOME']}"
            env = {} if kind == "bare" else None
            aside = kind != "plain"
            subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=aside)
        if "litter" in self.knobs:
            litter()
            if self.knobs["litter"] == "alone":
                os.kill(os.getppid(), signal.SIGKILL)
        for number in range(int(self.number("log_mb") * 10_000)):
            print(f"INFO loading shard {number:>8} {'.' * 74}")
        if "dashes" in self.knobs:
            print("ERROR " + "-" * int(1000 * self.number("dashes")), flush=True)
        print(f"INFO loading {self.argv[1]}", flush=True)
        if "environment" in self.knobs:
            Path(self.knobs["environment"]).write_text(json.dumps(dict(os.environ)))
        if "says" in self.knobs:
            sys.stdout.buffer.write(Path(self.knobs["says"]).read_bytes())
        self.moment("load")
        time.sleep(self.number("load", 0.1))

    def meet(self) -> None:
        """The ranks of one group find one another; who loses another ends too."""
        address = option(self.argv, "--data-parallel-address", "127.0.0.1")
        place = address, int(option(self.argv, "--data-parallel-rpc-port", "29550"))
        if "--headless" in self.argv:
            until = time.monotonic() + 60
            while True:
                try:
                    self.watch(socket.create_connection(place, 5))
                    return
                except OSError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)
        if self.local < self.size:
            with socket.create_server(place) as door:
                for _ in range((self.size - self.local) // self.local):
                    self.watch(door.accept()[0])

    def watch(self, peer: socket.socket) -> None:
        """End when the other one does."""
        peer.settimeout(None)

        def wait() -> None:
            with contextlib.suppress(OSError):
                peer.recv(1)
            time.sleep(DYING)
            print("ERROR EngineDeadError: a rank of the group is gone", flush=True)
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()

    def count(self, prompt: str, remote: bool) -> None:
        """What /metrics tells of one request."""
        self.requests[next(self.turn) % self.size] += 1
        self.tokens["external_kv_transfer" if remote else "local_compute"] += len(prompt.split())

    def metrics(self) -> str:
        """Counters by vLLM's names."""
        lines = [
            f'vllm:request_success_total{{engine="{n}",finished_reason="length"}} '
            f"{self.requests[n]}.0"
            for n in range(self.size)
        ]
        lines += [
            f'vllm:prompt_tokens_by_source_total{{engine="0",source="{name}"}} {count}.0'
            for name, count in self.tokens.items()
        ]
        count = sum(self.requests.values()) * self.number("preempts")
        lines.append(f'vllm:num_preemptions_total{{engine="0"}} {count}')
        lines.append('vllm:kv_cache_usage_perc{engine="0"} 0.25')
        lines.append(f'vllm:num_requests_running{{engine="0"}} {self.running}.0')
        lines.append('vllm:num_requests_waiting{engine="0"} 0.0')
        lines.append(f'vllm:generation_tokens_total{{engine="0"}} {self.made}.0')
        if "--speculative-config" in self.argv and "blind" not in self.knobs:
            name, rate = "vllm:spec_decode_num", self.number("accepts", 1.0)
            lines.append(f'{name}_drafts_total{{engine="0"}} {self.drafts}.0')
            lines += [
                f'{name}_accepted_tokens_per_pos_total{{engine="0",position="{at}"}} '
                f"{self.drafts * rate / (at + 1)}"
                for at in range(2)
            ]
        return "\n".join(lines) + "\n"

    def answer(self, prompt: str, tokens: int) -> list[str]:
        """The words of an answer: a sum is added up."""
        found = re.findall(r"(\d+) ([+-]) (\d+)", prompt)
        if not found:
            return ["" if "mute" in self.knobs else "word "] * tokens
        left, sign, right = found[-1]
        result = int(left) + int(f"{sign}{right}") + ("wrong" in self.knobs)
        return ["answer: ", f"{result} ", *["."] * tokens][: max(tokens, 2)]


def litter() -> None:
    """What no artifact store takes, in the working directory."""
    Path("trace 12:30 <a>?").mkdir()
    Path("trace 12:30 <a>?", "rank*0|1.json").write_text("{}")
    Path("trace 12_30 _a__").write_text("its name is taken")
    os.mkfifo("pipe")
    socket.socket(socket.AF_UNIX).bind("ipc:0")
    Path("endless").symlink_to("/dev/zero")


class Api(Handler):
    """vLLM's API."""

    engine: Engine

    def let_in(self) -> bool:
        """Without the prefix of --root-path, and with a key where one is wanted."""
        argv = self.engine.argv
        root = option(argv, "--root-path")
        if root and self.path.startswith(f"{root}/"):
            self.path = self.path.removeprefix(root)
        keys = [
            key for key in listed(argv, "--api-key") or [os.environ.get("VLLM_API_KEY", "")] if key
        ]
        given = self.headers.get("authorization", "").removeprefix("Bearer ")
        if not keys or self.path in PUBLIC or given in keys:
            return True
        self.plain(401, {"error": "Unauthorized"})
        return False

    def do_GET(self) -> None:
        """Health, models, metrics."""
        if self.engine.stuck:
            time.sleep(600)
        if not self.let_in():
            return
        if self.path == "/health":
            self.plain(200)
        elif self.path == "/v1/models":
            self.plain(200, {"object": "list", "data": [{"id": self.engine.name}]})
        elif self.path == "/metrics":
            self.plain(200, self.engine.metrics(), "text/plain; version=0.0.4")
        else:
            self.plain(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        """Completions, and the prefix cache."""
        body, engine = self.body(), self.engine
        if not self.let_in():
            return
        if self.path == "/reset_prefix_cache":
            engine.seen.clear()
            self.plain(200)
            return
        if self.path == "/tokenize" and "blind" not in engine.knobs:
            text = body["messages"][0]["content"] + " template" if "messages" in body else ""
            self.plain(200, {"count": len((text or body["prompt"]).split())})
            return
        if self.path not in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
            self.plain(404, {"detail": "Not Found"})
            return
        number = next(engine.asked)
        engine.moment(f"request:{number}")
        first, _, last = engine.knobs.get("fail", "1-0").partition("-")
        if body.get("model") != engine.name:
            message = f"The model `{body.get('model')}` does not exist."
            self.plain(404, {"error": {"message": message, "code": 404}})
        elif int(first) <= number <= int(last):
            self.plain(500, {"error": {"message": "told to fail", "code": 500}})
        elif self.path == "/v1/messages":
            self.message(body)
        else:
            with engine.lock:
                engine.running += 1
            try:
                self.complete(body, "messages" in body, number == engine.number("stick"))
            finally:
                with engine.lock:
                    engine.running -= 1

    def message(self, body: dict[str, Any]) -> None:
        """One of Anthropic's messages."""
        text = "" if "mute" in self.engine.knobs else "word " * body["max_tokens"]
        if not body.get("stream"):
            block = {"type": "text", "text": text}
            self.plain(200, {"type": "message", "role": "assistant", "content": [block]})
            return
        self.begin()
        for kind in ("message_start", *["content_block_delta"] * bool(text), "message_stop"):
            self.chunk(f"event: {kind}\ndata: {{}}\n\n".encode())
        self.chunk(b"")

    def complete(self, body: dict[str, Any], chat: bool, sticks: bool) -> None:
        """One completion, streamed or whole."""
        engine = self.engine
        given = body["messages"][-1]["content"] if chat else body["prompt"]
        if chat and isinstance(given, list):  # with pictures
            assert all(
                part.get("image_url", {"url": "data:"})["url"][:5] == "data:" for part in given
            )
            given = " ".join(part.get("text", "") for part in given)
        prompts = given if isinstance(given, list) else [given]
        prompt = str(prompts[0])
        wanted = body.get("kv_transfer_params") or {}
        tokens = int(body.get("max_tokens") or 16)
        warm = engine.number("warm", 1) if prompt in engine.seen else 1
        engine.seen.add(prompt)
        time.sleep(engine.number("ttft") * warm)
        engine.count(prompt, bool(wanted.get("do_remote_prefill")))
        tokens -= "short" in engine.knobs and "min_tokens" in body
        pieces = engine.answer(prompt, tokens)
        engine.drafts += tokens
        count = len(prompt.split()) + chat
        usage = {
            "prompt_tokens": count,
            "completion_tokens": tokens,
            "total_tokens": count + tokens,
        }
        common = {"id": "cmpl-1", "model": engine.name}
        if not body.get("stream"):
            text = "".join(pieces)
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choices = [
                {"index": at, "finish_reason": "length", **said} for at in range(len(prompts))
            ]
            handed = {"do_remote_prefill": True, "remote_engine_id": str(os.getpid())}
            params = handed if wanted.get("do_remote_decode") else None
            self.plain(
                200, {**common, "choices": choices, "usage": usage, "kv_transfer_params": params}
            )
            return
        self.begin()
        for index, piece in enumerate(pieces):
            time.sleep(engine.number("itl") if index else 0)
            while sticks and index == 2:
                time.sleep(0.5)
            engine.made += 1
            last = "length" if index == len(pieces) - 1 else None
            said = {"delta": {"content": piece}} if chat else {"text": piece}
            self.event({**common, "choices": [{"index": 0, "finish_reason": last, **said}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            self.event({**common, "choices": [], "usage": usage})
        self.event("[DONE]")
        self.chunk(b"")


def main(argv: Sequence[str]) -> int:
    """The command line."""
    if "--version" in argv:
        print(VERSION)
        return 0
    if argv[0] != "serve":
        print(f"vllm: error: invalid choice: {argv[0]!r}", file=sys.stderr)
        return 2
    engine = Engine(argv)
    engine.load()
    engine.meet()
    if "--headless" in argv:
        threading.Event().wait()
    place = option(argv, "--host", "0.0.0.0"), int(option(argv, "--port", "8000"))
    server = Server(place, type("Bound", (Api,), {"engine": engine}))
    certificate = option(argv, "--ssl-certfile")
    if certificate:
        server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.tls.load_cert_chain(certificate, option(argv, "--ssl-keyfile") or None)
    scheme = "https" if certificate else "http"
    print(f"INFO non-default args: {{'api_key': {listed(argv, '--api-key')}}}", flush=True)
    print(f"INFO Starting vLLM API server on {scheme}://{place[0]}:{place[1]}", flush=True)
    server.serve_forever()
    return 0
