"""The real engine passes the checks that the stand-in is held to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.client import CHECKS, Server
from tests.conformance.life import LIVES, Program, running
from tests.real.engine import tiny
from tests.real.fleet import FIGURES


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    began = time.monotonic()
    with running(tiny(tmp_path_factory.mktemp("conformance"))) as run:
        found = run.ready()
        FIGURES.append(f"one tiny engine by itself: ready after {time.monotonic() - began:.0f} s")
        yield found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_answers(server: Server, check: Callable[[Server], None]) -> None:
    check(server)


@pytest.mark.parametrize("check", LIVES, ids=lambda check: check.__name__)
def test_begin_and_end(tmp_path: Path, check: Callable[[Program], None]) -> None:
    check(tiny(tmp_path))
