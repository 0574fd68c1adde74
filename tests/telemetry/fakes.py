"""Endpoints that tell vLLM's counters, and tracks as they leave them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BOUNDS = ("0.3", "0.5", "0.8", "1.0", "1.5", "2.0", "2.5", "5.0", "10.0", "15.0", "20.0", "30.0")
TIMES = (
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
    "e2e_request_latency_seconds",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "iteration_tokens_total",
)


def page(turn: int, ranks: int = 1, **gauges: float) -> str:
    """What an engine prints at its ``turn``-th look, about as long as vLLM's own."""
    lines = []
    counters = {"prompt_tokens": 900, "generation_tokens": 100, "prefix_cache_queries": 900}
    counters |= {"prefix_cache_hits": 300, "num_preemptions": 1, "spec_decode_num_drafts": 50}
    shown = {"num_requests_running": 4.0, "num_requests_waiting": 2.0, "kv_cache_usage_perc": 0.25}
    for name, value in {**shown, **gauges}.items():
        lines.append(f"# HELP vllm:{name} a gauge\n# TYPE vllm:{name} gauge")
        lines += [f'vllm:{name}{{engine="{r}",model_name="m"}} {value}' for r in range(ranks)]
    for name, value in counters.items():
        lines.append(f"# HELP vllm:{name}_total a counter\n# TYPE vllm:{name}_total counter")
        lines += [
            f'vllm:{name}_total{{engine="{r}",model_name="m"}} {float(value * turn * (r + 1))}'
            for r in range(ranks)
        ]
    lines += [
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="{r}",model_name="m",'
        f'position="{at}"}} {50.0 * turn * (r + 1) / (at + 1)}'
        for r in range(ranks)
        for at in (0, 1)
    ]
    for name in TIMES:
        lines.append(f"# HELP vllm:{name} a histogram\n# TYPE vllm:{name} histogram")
        for rank in range(ranks):
            labels = f'engine="{rank}",model_name="m"'
            for at, bound in enumerate((*BOUNDS, "+Inf")):
                count = 10 * turn * min(at, 2) / 2
                lines.append(f'vllm:{name}_bucket{{{labels},le="{bound}"}} {count}')
            lines.append(f"vllm:{name}_count{{{labels}}} {10.0 * turn}")
            lines.append(f"vllm:{name}_sum{{{labels}}} {5.0 * turn}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def endpoint(answer: Callable[[int], str], key: str = "") -> Iterator[str]:
    """A server whose ``n``-th answer is ``answer(n)``; its URL."""
    turns = iter(range(1, 1 << 30))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            refused = key and self.headers["Authorization"] != f"Bearer {key}"
            content = b"" if refused else answer(next(turns)).encode()
            self.send_response(401 if refused else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
