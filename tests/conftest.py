"""What every test run remembers for ``tests.again``: which tests failed, and which may be late.

Enters: reports of tests. Leaves: ``.pytest_cache/v/multinode/failed``. Touches: pytest's cache.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.core import redaction

#: The test -> whether it is marked as bound to time; a file that cannot be collected is not.
FAILED: dict[str, bool] = {}
KEY = "multinode/failed"
#: Folders whose tests start real processes and hold these to real deadlines.
PROCESSES = frozenset(
    [
        "bench",
        "cli",
        "conformance",
        "engine",
        "faults",
        "hosts",
        "kube",
        "proof",
        "realpath",
        "rehearsal",
        "telemetry",
    ]
)
HERE = Path(__file__).parent

# What is started in the background of a shell ignores Ctrl-C, and so would all that tests start.
with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """A run directory that a test makes shall change nothing for the next test."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real processes are bound to time, wherever the mark is not written."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.path.relative_to(HERE).parts[0] in PROCESSES:
            item.add_marker(pytest.mark.timing)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what failed; with xdist only the controller hears of all."""
    if report.failed:
        FAILED[report.nodeid] = "timing" in report.keywords


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be read is nobody's lateness."""
    if report.failed:
        FAILED[report.nodeid] = False


@pytest.fixture(autouse=True)
def nothing_learned() -> None:
    """What one test reads is no secret of the next."""
    redaction.here.cache_clear()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write it down, with how pytest ended."""
    cache = getattr(session.config, "cache", None)
    if cache is not None and not hasattr(session.config, "workerinput"):
        cache.set(KEY, {"exit": int(exitstatus), "failed": FAILED})
