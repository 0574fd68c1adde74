"""Fixtures of the Kubernetes tests: one double a test, cleaned up by leaving its block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .double import KubeDouble, Timing

QUICK = Timing(backoff=1.0, remove=0.05)


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeDouble]:
    """A cluster of one node with short back-offs."""
    with KubeDouble(tmp_path / "kube", timing=QUICK) as double:
        yield double
