"""Fixtures for tests over hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import rig as rigs


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rigs.Rig]:
    """Two hosts with sshd, shared by the tests of a module; their disks are empty between."""
    reason = rigs.why_not()
    if reason:
        pytest.skip(reason)
    rig = rigs.Rig(tmp_path_factory.mktemp("hosts"), 2)
    yield rig
    rig.close()


@pytest.fixture
def rig(hosts: rigs.Rig) -> Iterator[rigs.Rig]:
    """The two hosts, known to ssh and clean; whatever a test left makes it fail."""
    hosts.known(hosts.hosts)
    yield hosts
    left = hosts.left()
    hosts.wipe()
    assert left == []


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A case over two nodes."""
    from tests.hosts.cases import spread

    return spread(tmp_path / "case.yaml", 2)
