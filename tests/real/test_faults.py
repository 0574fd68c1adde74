"""Faults in the middle of a benchmark on real engines: the right cause, soon, and nothing left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conformance.life import engines
from tests.real.cases import case, performance
from tests.real.fleet import FIGURES, Fleet, running

#: As much as the smoke client takes: 6 s a repetition at its quickest, in which the fault comes.
LOAD = performance("perf", 32, 64, "repeat: 3")


def end(run: Fleet, began: float) -> tuple[int, str, str]:
    """Exit code, verdict, and the process that is its cause."""
    run.wait()
    cause = run.verdict["cause"] or {"reason": "it passed", "process": ""}
    FIGURES.append(f"    over {time.monotonic() - began:.1f} s after the fault: {cause['reason']}")
    return run.process.returncode, run.verdict["verdict"], cause["process"]


FAULTS: dict[str, Callable[[Fleet], None]] = {
    "engine": lambda run: engines(run.pid("server"))[0].kill(),
    "api": lambda run: os.kill(run.pid("server"), signal.SIGKILL),
    "stop": lambda run: run.process.send_signal(signal.SIGTERM),
}


def test_death_of_an_engine_of_the_api_server_and_a_stop(tmp_path):
    """Three fleets side by side: their servers need nothing of one another."""
    path = case(tmp_path, "smollm2", LOAD, tiny=True)

    def carry_out(name: str) -> tuple[tuple[int, str, str], dict[str, Any]]:
        with running(path, tmp_path / name, "--bench", "smoke") as run:
            run.under_load()
            began = time.monotonic()
            FAULTS[name](run)
            return end(run, began), run.record()["cause"]

    with ThreadPoolExecutor(len(FAULTS)) as pool:
        found = dict(zip(FAULTS, pool.map(carry_out, FAULTS), strict=True))
    ended, cause = found["engine"]
    assert ended == (1, "crash", "server")
    assert (cause["exit_code"], cause["phase"]) == (0, "bench")
    ended, cause = found["api"]
    assert ended == (1, "crash", "server")
    assert cause["signal"] == "SIGKILL"
    assert found["stop"][0][:2] == (130, "interrupted")


@pytest.mark.usefixtures("shared")
def test_death_of_the_router(tmp_path):
    path = case(tmp_path, "smollm2-1p1d-files", LOAD, tiny=True)
    with running(path, tmp_path, "--bench", "smoke") as run:
        run.under_load()
        began = time.monotonic()
        os.kill(run.pid("proxy"), signal.SIGKILL)
        assert end(run, began) == (1, "crash", "proxy")
        assert run.record()["cause"]["signal"] == "SIGKILL"
