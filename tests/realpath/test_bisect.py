"""One whole search on each backend: fleets of the tests' own engine, installed by the nodes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import rig as rigs
from tests.hosts.conftest import hosts, rig
from tests.realpath import fleet
from tests.realpath.test_on_k8s import run
from tests.realpath.test_over_ssh import BROUGHT
from tests.realpath.test_products import git

__all__ = ["hosts", "rig"]
pytestmark = [pytest.mark.timing, pytest.mark.timeout(500)]
#: The engine that stands behind it on PATH, told by a file of the commit how to be.
ENGINE = """#!/bin/sh
own="${0%/*}"
TEST_ENGINE="$(cat "$own/../words")"
export TEST_ENGINE
IFS=:
for folder in $PATH; do
  [ "$folder" != "$own" ] && [ -x "$folder/vllm" ] && exec "$folder/vllm" "$@"
done
"""


def product(tmp: Path, *words: str) -> Path:
    """A commit for each: how the engine is."""
    place = tmp / "engine"
    (place / "bin").mkdir(parents=True)
    git(place, "init", "--quiet", "-b", "main")
    (place / "bin" / "vllm").write_text(ENGINE)
    (place / "bin" / "vllm").chmod(0o755)
    for text in words:
        (place / "words").write_text(text)
        (place / "count").write_text(str(len(list(place.iterdir()))) + text)
        git(place, "add", "--all")
        git(place, "commit", "--quiet", "--allow-empty", "-m", text)
    return place


HISTORY = ("load=0", "crash=load code=7", "crash=load code=7 max=9")
PRODUCTS = {"engine": {"install": "none", "paths": {"PATH": ["bin"]}}}


def ends(tmp: Path) -> list[str]:
    """What is searched, of a product that the nodes install."""
    place = product(tmp, *HISTORY)
    return [
        "--repository",
        f"engine={place}",
        "--good",
        "main~2",
        "--repeats",
        "1",
        "--bench",
        "smoke",
    ]


def judge(tmp: Path, code: int, text: str) -> None:
    """The culprit is named, and each start ran the commit that it is told of."""
    assert code == 0, text
    told = json.loads((tmp / "run" / "bisect.json").read_text())
    assert [one["subject"] for one in told["answer"]["suspects"]] == [HISTORY[1]], text
    assert {one["variant"] for one in told["starts"]} == {0, 1, 2}
    for plan in (tmp / "run").glob("[0-9]*-*/plan.json"):
        (one,) = json.loads(plan.read_text())["cluster"]["products"]
        assert one["commit"].startswith(plan.parent.name.partition("-")[2])


def test_over_ssh(rig: Any, tmp_path: Path) -> None:
    here = fleet.environment(tmp_path)
    script = tmp_path / "set_env.sh"
    here["MULTINODE_CACHE"] = str(tmp_path / "cache")
    names = (*BROUGHT, "MULTINODE_CACHE")
    script.write_text("".join(f"export {n}={shlex.quote(here[n])}\n" for n in names))
    listed = rig.hosts_file({"environment": [str(script)]})
    profile = tmp_path / "lab.yaml"
    profile.write_text(json.dumps({"image": "none", "products": PRODUCTS}))
    case = fleet.written(tmp_path, fleet.case(2))
    words = [sys.executable, "-m", "ci.compare.bisect", str(case), *ends(tmp_path)]
    words += ["--dir", str(tmp_path / "run"), "--profile", str(profile)]
    words = [*rigs.at_home(rig.home), *words, "--on", "hosts", "--hosts", str(listed)]
    done = subprocess.run(words, cwd=fleet.ROOT, env=rig.environment(), text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    judge(tmp_path, done.returncode, done.stdout)


def test_on_kubernetes(tmp_path: Path) -> None:
    """Its pods reach no repository: the commit travels."""
    profile = f"products: {json.dumps(PRODUCTS)}\n"
    words = ends(tmp_path)
    verb = ("ci.compare.bisect", "--dir")
    found = run(tmp_path, fleet.case(1), *words, profile=profile, verb=verb, seconds=480)
    judge(tmp_path, found.code, found.output)
