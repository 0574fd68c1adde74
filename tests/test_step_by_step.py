"""The page "Step by step", run as it stands: its commands, and what it says of them."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

from tests.cli.byhand import Hand
from tests.core.cases import ROOT
from tests.realpath import fleet

PAGE = ROOT / "docs" / "step-by-step.md"
#: Blocks of the page by who types them; most are for one machine.
BLOCKS = re.findall(r"^```sh ?(\w*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
SCP = """#!/bin/sh
[ "$1" = -r ] && shift
from=$(echo "$1" | sed "s,^worker:,$WORKER/,"); to=$(echo "$2" | sed "s,^worker:,$WORKER/,")
exec cp -rL "$from" "$to"
"""


def script(place: Path, name: str, text: str) -> None:
    path = place / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def typed(hand: Hand, block: str) -> None:
    """A block in a shell; every command in it must succeed."""
    done = subprocess.run(
        ["sh", "-e", "-c", block], cwd=hand.place, env=hand.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stdout}"


def user(tmp_path: Path, name: str, **env: str) -> Hand:
    hand = Hand(tmp_path / name, **env)
    invoke = f'exec "{sys.executable}" -m invoke --search-root "{ROOT}" "$@"'
    script(tmp_path, "invoke", f"#!/bin/sh\n{invoke}\n")
    script(tmp_path, "scp", SCP)
    hand.env["PATH"] = f"{tmp_path / 'bin'}:{hand.env['PATH']}"
    return hand


def test_every_block_of_one_machine(tmp_path: Path) -> None:
    hand = user(tmp_path, "user")
    blocks = [block for where, block in BLOCKS if not where]
    assert len(blocks) == 4
    for block in blocks:
        typed(hand, block)
        assert hand.json("verdict.json")["verdict"] == "pass"
        assert hand.left() == []


def test_the_blocks_of_several_hosts(tmp_path: Path) -> None:
    network = fleet.free_network(28999)
    more = {"HOSTS": f"127.{network}.1,127.{network}.2", "WORKER": str(tmp_path / "worker")}
    more["CASE"] = str(fleet.written(tmp_path, fleet.case(2)))
    hands = {
        name: user(tmp_path, name, **fleet.environment(tmp_path, **more))
        for name in ("leader", "worker")
    }
    for where, block in BLOCKS:
        if where:
            typed(hands[where], block)
    assert hands["leader"].json("verdict.json")["verdict"] == "pass"
    assert [left for hand in hands.values() for left in hand.left()] == []


def test_the_index_and_the_readme_lead_there() -> None:
    assert "(step-by-step.md)" in (ROOT / "docs" / "index.md").read_text()
    assert "(docs/step-by-step.md)" in (ROOT / "README.md").read_text()
