"""Hosts whose disk is too small."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import rig as rigs
from tests.hosts.cases import spread


@pytest.mark.parametrize(
    ("size", "words"),
    [("512k", "No space left on device"), ("64m", "MiB free, expected at least 1024")],
    ids=["before", "preflight"],
)
def test_a_full_disk_is_named(tmp_path: Path, size: str, words: str) -> None:
    reason = rigs.why_not()
    if reason:
        pytest.skip(reason)
    rig = rigs.Rig(tmp_path / "rig", 2, size)
    try:
        run = rig.run(spread(tmp_path / "case.yaml", 2))
        assert run.end() == 3, run.text
        assert words in run.text
        assert str(rig.space) in run.text
        assert run.verdict["verdict"] == "infra"
        assert rig.left() == []
    finally:
        rig.close()


def test_a_disk_that_fills_in_the_middle_loses_no_verdict(tmp_path: Path) -> None:
    reason = rigs.why_not()
    if reason:
        pytest.skip(reason)
    rig = rigs.Rig(tmp_path / "rig", 2, "1100m")
    try:
        run = rig.run(spread(tmp_path / "case.yaml", 2), "--load-seconds", "4")
        run.until("load ...")
        disk = rig.hosts[1].disk
        with (disk / "filler").open("wb") as out, pytest.raises(OSError, match="No space"):
            while True:
                out.write(bytes(1 << 20))
                out.flush()
        code = run.end()
        (disk / "filler").unlink()
        assert code in (0, 3), run.text
        assert run.verdict["missing_records"] == [], run.text
        assert rig.left() == []
    finally:
        rig.close()
