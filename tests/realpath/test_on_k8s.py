"""``--on k8s`` on the double, not rehearsed: the image brings the engine; FAIL_TAG ends the log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.rehearse import Outcome
from tests.kube.conftest import QUICK
from tests.kube.double import Image, KubeDouble
from tests.kube.fleet import PROFILE, environment, leftovers
from tests.realpath import fleet
from tests.realpath import test_products as products

pytest.importorskip("kubernetes")
pytestmark = pytest.mark.timeout(180)
TAG = "TAG-4711"
#: What the pods' image brings; not what a user's shell has.
BROUGHT = ("PATH", "PYTHONPATH", "TEST_PIP_LOG")


def run(
    tmp: Path,
    data: fleet.Case,
    *words: str,
    profile: str = "",
    verb: tuple[str, str] = ("ci.run", "--run-dir"),
    seconds: float = 120,
) -> Outcome:
    """One run on a double of its own, or what another verb makes of it."""
    here = fleet.environment(tmp)
    for entry in data["deployment"]:
        entry["server_cmd"] = entry["server_cmd"].replace("$MODELS", "/models")
    data["model"] = "/models/tiny"
    data["benchmarks"]["chat"]["dataset_path_local"] = "/data/sums"
    (tmp / "opt" / "tests").mkdir(parents=True)
    shutil.copytree(fleet.HERE, tmp / "opt" / "tests" / "engine")
    mounts = {"/models": here["MODELS"], "/data": here["DATASETS"], "/engine": str(tmp / "opt")}
    listed = [{"path": path, "host_path": path} for path in mounts]
    (tmp / "lab.yaml").write_text(f"{PROFILE}mounts: {json.dumps(listed)}\n{profile}")
    argv = [sys.executable, "-m", verb[0], str(fleet.written(tmp, data)), "--on", "k8s"]
    argv += ["--profile", str(tmp / "lab.yaml"), verb[1], str(tmp / "run"), *words]
    # Not the root: what nox has installed is below it too.
    brought = {n: here[n].replace(str(fleet.HERE), "/engine/tests/engine") for n in BROUGHT}
    brought["MULTINODE_CACHE"] = "/tmp/multinode-cache"
    image = Image(env=brought)
    with KubeDouble(tmp / "kube", timing=QUICK, images={"registry.local/py:1": image}) as kube:
        for path, source in mounts.items():
            shutil.copytree(source, kube.directory / "host" / path.lstrip("/"))
        done = subprocess.run(
            argv,
            cwd=fleet.ROOT,
            env=environment(kube, FAIL_TAG=TAG, PATH=os.environ["PATH"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert leftovers(kube) == [], done.stdout
    return Outcome(done.returncode, done.stdout, tmp / "run")


def log(found: Outcome) -> list[str]:
    """The leader's log, as whoever follows the pod sees it."""
    return (found.path / "node-0" / "pod.log").read_text().splitlines()


def test_a_fleet_passes_without_the_tag(tmp_path):
    found = run(tmp_path, fleet.case(2))
    assert (found.code, found.verdict["verdict"]) == (0, "pass"), found.output
    assert not found.verdict["rehearsed"]
    assert found.verdict["benchmarks"][0]["driver"] == "aisbench"
    assert TAG not in log(found)
    assert not any("rehearsal" in name for name in paths(found))


def test_a_directory_travels_with_its_changes_to_pods_that_reach_no_server(tmp_path):
    place, commits = products.repository(tmp_path, "one", "two", engine="/engine")
    program = place / "bin" / "vllm"
    program.write_text(program.read_text().replace("engine two", "engine changed"))
    entry = {"install": "none", "paths": {"PATH": ["bin"]}}
    profile = f"products: {json.dumps({'engine': entry})}\n"
    found = run(tmp_path, fleet.case(2), "--product", f"engine=dir:{place}", profile=profile)
    assert found.code == 0, found.output
    junit = (found.path / "junit.xml").read_text()
    assert f"{commits[1]}-dirty" in junit and "sha256:d9c1f6472be0" in junit
    for index in (0, 1):
        assert "engine changed" in (found.path / f"node-{index}" / "server.log").read_text()


def paths(found: Outcome) -> set[str]:
    """Path variables of the servers: a rehearsal would put its stand-ins there."""
    processes = [process for node in found.plan["nodes"] for process in node["processes"]]
    return {part for process in processes for parts in process["paths"].values() for part in parts}


def test_a_failure_ends_the_leader_s_log_with_the_tag(tmp_path):
    found = run(tmp_path, fleet.case(2, {1: "crash=load code=7"}))
    assert (found.code, found.verdict["verdict"]) == (1, "startup"), found.output
    assert fleet.cause(found, "node", "exit_code") == (1, 7)
    assert log(found)[-1] == TAG, log(found)[-5:]
