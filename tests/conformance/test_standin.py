"""The stand-in does what vLLM does, as far as these checks ask."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.client import CHECKS, Server
from tests.conformance.life import LIVES, Program, running

STAND_IN = Path(__file__).parents[2] / "rehearsal" / "bin" / "vllm"


def program(folder: Path, **env: str) -> Program:
    """A stand-in on a free port of an address that the other tests do not use."""
    address = "127.78.1.1"
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    argv = (sys.executable, str(STAND_IN), "serve", "M", "--served-model-name", "tiny",
            "--max-model-len", "512", "--max-num-seqs", "8", "--port", str(port))  # fmt: skip
    stand_in = {
        "REHEARSAL_ADDRESS": address,
        "REHEARSAL_LOAD_SECONDS": "0.2",
        "REHEARSAL_TTFT_MS": "2",
        "REHEARSAL_FAULTS": "",
    }
    url = f"http://{address}:{port}"
    return Program(argv, {**stand_in, **env}, url, folder / "server.log", 30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = program(tmp_path_factory.mktemp("conformance"), REHEARSAL_TPOT_MS="1")
    with running(made) as run:
        yield run.ready()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_answers(server: Server, check: Callable[[Server], None]) -> None:
    check(server)


@pytest.mark.parametrize("check", LIVES, ids=lambda check: check.__name__)
def test_begin_and_end(tmp_path: Path, check: Callable[[Program], None]) -> None:
    check(program(tmp_path, REHEARSAL_TPOT_MS="20"))
