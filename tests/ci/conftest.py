"""Where the repository is, for tests of what CI uses."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_pull_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run in a job of a pull request; the runs that they make are of none."""
    for name in ("GITHUB_EVENT_NAME", "GITHUB_REF", "MULTINODE_PULL_REQUEST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root() -> Path:
    return Path(__file__).parents[2]
