"""The real ``vllm serve`` with the tiny model, as a program of the conformance checks.

Enters: a directory. Leaves: a :class:`Program`. Touches: looks into the cache.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ci.tools import environments
from tests.conformance.life import Program
from tests.real import models

ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
}


def tiny(folder: Path) -> Program:
    """The random model on a free port of an address of its own."""
    found, model = environments.installed("vllm-cpu"), models.installed("tiny-random-llama")
    assert found and model, "build them first: python -m tests.real"
    address = "127.78.2.1"
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    options = f"--served-model-name tiny --host {address} --port {port} --max-model-len 512 "
    options += "--max-num-seqs 8 --enforce-eager --dtype float32"
    argv = (str(found.bin / "vllm"), "serve", str(model.path), *options.split())
    return Program(argv, ENV, f"http://{address}:{port}", folder / "server.log", 600)
