"""What every test run remembers for ``tests.again``: which tests failed, and which may be late.

Enters: reports of tests. Leaves: ``.pytest_cache/v/multinode/failed``. Touches: pytest's cache.
"""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from steps.core import redaction

if TYPE_CHECKING:
    from tests.faults.rehearse import Outcome

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
#: Folders whose modules the programs of the tests import.
ROOMS = ("ci", "k8s", "rehearsal", "steps", "tests/engine")

# What is started in the background of a shell ignores Ctrl-C, and so would all that tests start.
with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Compile the checkout once: hundreds of interpreters read it, and most may write none."""
    sys.dont_write_bytecode = False  # pytest keeps its rewritten test modules for the next run
    if not hasattr(config, "workerinput"):
        for room in ROOMS:
            compileall.compile_dir(HERE.parent / room, quiet=2)


@pytest.fixture(scope="session")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One passed rehearsal of quickstart.yaml, for all workers and only to be read."""
    from tests.faults import rehearse

    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "passed"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = place / "outcome"
        if not kept.exists():
            kept.write_bytes(pickle.dumps(rehearse.rehearse("quickstart.yaml", place)))
    found: Outcome = pickle.loads(kept.read_bytes())
    assert found.code == 0, found.output
    return found


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
    items[:] = long_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def long_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """In each worker's share the files that start processes first: the last tests are short.

    A file stays together, for the sake of what its tests share.
    """
    long = {item.path for item in items if item.get_closest_marker("timing")}
    share = -(-len(items) // workers) or 1
    shares = (items[at : at + share] for at in range(0, len(items), share))
    return [item for some in shares for item in sorted(some, key=lambda i: i.path not in long)]


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
