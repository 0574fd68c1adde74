"""Fixtures: a yard for one test, a server for a module."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standins import DEADLINE, Standin, Yard


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    """A yard for one test."""
    made = Yard(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    """One plain server, shared by the tests of a module that change nothing about it."""
    made = Yard(tmp_path_factory.mktemp("served"))
    try:
        yield made.start(
            "--max-model-len", "512", "-tp", "2", "--served-model-name", "M", "alias"
        ).ready()
    finally:
        made.close()


@pytest.fixture
def gone() -> Callable[[int], None]:
    """A check that a process ends soon."""

    def check(pid: int) -> None:
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                return
            if state in "ZX":
                return
            time.sleep(0.02)
        raise AssertionError(f"process {pid} lives on")

    return check
