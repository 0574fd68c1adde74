"""Faults in the middle of a benchmark on real engines: the right cause, soon, and nothing left."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.conformance.life import engines
from tests.real.cases import case, performance
from tests.real.fleet import FIGURES, Fleet, running

#: Long enough that a fault always finds requests: 8 answers of 1500 tokens, two at once.
LONG = performance("perf", 8, 1500)


def end(run: Fleet, began: float) -> tuple[int, str, str]:
    """Exit code, verdict, and the process that is its cause."""
    run.wait()
    cause = run.verdict["cause"]
    FIGURES.append(f"    over {time.monotonic() - began:.1f} s after the fault: {cause['reason']}")
    return run.process.returncode, run.verdict["verdict"], cause["process"]


def test_death_of_an_engine_of_the_api_server_and_a_stop(tmp_path):
    """Three fleets side by side: their servers need nothing of one another."""
    path = case(tmp_path, "smollm2", LONG, tiny=True)
    names = ("engine", "api", "stop")
    with (
        running(path, tmp_path / names[0], "--bench", "smoke") as engine,
        running(path, tmp_path / names[1], "--bench", "smoke") as api,
        running(path, tmp_path / names[2], "--bench", "smoke") as stopped,
    ):
        engine.under_load()
        began = time.monotonic()
        engines(engine.pid("server"))[0].kill()
        assert end(engine, began) == (1, "crash", "server")
        assert engine.record()["cause"]["exit_code"] == 0
        assert engine.record()["cause"]["phase"] == "bench"

        api.under_load()
        began = time.monotonic()
        os.kill(api.pid("server"), signal.SIGKILL)
        assert end(api, began) == (1, "crash", "server")
        assert api.record()["cause"]["signal"] == "SIGKILL"

        stopped.under_load()
        began = time.monotonic()
        stopped.process.send_signal(signal.SIGTERM)
        assert end(stopped, began)[:2] == (130, "interrupted")


@pytest.mark.usefixtures("shared")
def test_death_of_the_router(tmp_path):
    path = case(tmp_path, "smollm2-1p1d-files", LONG, tiny=True)
    with running(path, tmp_path, "--bench", "smoke") as run:
        run.under_load()
        began = time.monotonic()
        os.kill(run.pid("proxy"), signal.SIGKILL)
        assert end(run, began) == (1, "crash", "proxy")
        assert run.record()["cause"]["signal"] == "SIGKILL"
