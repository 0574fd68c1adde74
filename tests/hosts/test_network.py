"""Hosts on a network of their own, whose cables can be pulled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import lan as lans
from tests.hosts import rig as rigs
from tests.hosts.cases import spread


@pytest.fixture(scope="module")
def lan() -> Iterator[lans.Lan]:
    """Three machines."""
    reason = lans.why_not() or rigs.why_not()
    if reason:
        pytest.skip(reason)
    found = lans.Lan(3)
    yield found
    found.close()


@pytest.fixture(scope="module")
def rig(lan: lans.Lan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[rigs.Rig]:
    """An sshd on each."""
    places = [(machine.address, machine.wrap) for machine in lan.machines]
    found = rigs.Rig(tmp_path_factory.mktemp("lan"), places=places)
    yield found
    found.close()


@pytest.mark.parametrize("lost", [2, 0], ids=["worker", "leader"])
@pytest.mark.timing
def test_a_host_cut_off_ends_the_run_and_itself(
    lan: lans.Lan, rig: rigs.Rig, tmp_path: Path, lost: int
) -> None:
    case = spread(tmp_path / "case.yaml", 3)
    run = rig.run(case, "--load-seconds", "60", hosts=rig.hosts_file({"lease": 5}))
    run.until("load ...")
    lan.machines[lost].cut()
    try:
        assert run.end() == 3, run.text
        cause = run.verdict["cause"]
        assert (cause["node"], cause["kind"]) == (lost, "lost"), run.text
        assert "cannot be reached" in run.text
        for index in {0, 1, 2} - {lost}:
            assert (run.dir / f"node-{index}" / "record.json").is_file()
            assert list(rig.hosts[index].disk.iterdir()) == []
        # What was followed until then is here, though nothing could be fetched.
        assert (run.dir / f"node-{lost}" / "events.jsonl").stat().st_size > 0
        deadline = time.monotonic() + 30
        while rig.processes():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert next(rig.hosts[lost].disk.glob("multinode-*/host-*/ended")).is_file()
    finally:
        lan.machines[lost].mend()
        rig.wipe()


@pytest.mark.timing
def test_a_network_that_comes_back_in_time_costs_nothing(
    lan: lans.Lan, rig: rigs.Rig, tmp_path: Path
) -> None:
    """Only the runner is cut off: the nodes still see one another."""
    case = spread(tmp_path / "case.yaml", 3)
    run = rig.run(case, "--load-seconds", "8")
    run.until("load ...")
    own = f"{lan.net}.254/32"
    for machine in lan.machines:
        machine.ip("route", "add", "blackhole", own)
    run.until("connecting again")
    for machine in lan.machines:
        machine.ip("route", "del", "blackhole", own)
    assert run.end() == 0, run.text
    assert "connected again" in run.text
    assert rig.left() == []
