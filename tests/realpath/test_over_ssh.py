"""``--on hosts`` over real sshd, not rehearsed: the environment script brings the engine."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from tests.hosts import rig as rigs
from tests.hosts.conftest import hosts, rig
from tests.realpath import fleet
from tests.realpath import test_products as products

__all__ = ["hosts", "rig"]
#: What a host's own script says of it.
BROUGHT = ("PATH", "PYTHONPATH", "MODELS", "DATASETS", "TEST_PIP_LOG")


@pytest.mark.parametrize(
    ("knobs", "code", "verdict"), [("", 0, "pass"), ("crash=load code=7", 1, "startup")]
)
def test_a_fleet(rig, tmp_path, knobs, code, verdict):
    here = fleet.environment(tmp_path)
    script = tmp_path / "set_env.sh"
    lines = [f"export {name}={shlex.quote(here[name])}\n" for name in BROUGHT]
    script.write_text("".join(lines))
    data = fleet.case(2, {1: knobs})
    run_dir = tmp_path / "run"
    argv = [sys.executable, "-m", "ci.run", str(fleet.written(tmp_path, data)), "--on", "hosts"]
    listed = rig.hosts_file({"environment": [str(script)]})
    argv += ["--hosts", str(listed), "--run-dir", str(run_dir)]
    run = rigs.Run(argv, run_dir, rig.environment())
    assert run.end() == code, run.text
    assert run.verdict["verdict"] == verdict, run.text
    assert run.verdict["rehearsed"] is False
    plan = json.loads((run_dir / "plan.json").read_text())
    assert (plan["cluster"]["name"], plan["cluster"]["paths"]) == ("hosts", {})
    if code:
        assert run.verdict["cause"]["exit_code"] == 7
    else:
        assert run.verdict["benchmarks"][0]["driver"] == "aisbench"


def test_a_commit_of_a_repository_here_travels_to_the_hosts(rig, tmp_path):
    here = fleet.environment(tmp_path)
    here["MULTINODE_CACHE"] = str(tmp_path / "cache")
    script = tmp_path / "set_env.sh"
    names = (*BROUGHT, "MULTINODE_CACHE")
    script.write_text("".join(f"export {name}={shlex.quote(here[name])}\n" for name in names))
    place, commits = products.repository(tmp_path, "one", "two")
    run_dir = tmp_path / "run"
    argv = [sys.executable, "-m", "ci.run", str(fleet.written(tmp_path, fleet.case(2)))]
    argv += ["--on", "hosts", "--hosts", str(rig.hosts_file({"environment": [str(script)]}))]
    argv += ["--profile", products.profile(tmp_path, place), "--product", "engine=one"]
    run = rigs.Run([*argv, "--run-dir", str(run_dir)], run_dir, rig.environment())
    assert run.end() == 0, run.text
    for index in (0, 1):
        node = run_dir / f"node-{index}"
        assert "engine one" in (node / "server.log").read_text()
        record = json.loads((node / "record.json").read_text())
        assert record["versions"]["engine-commit"] == commits[0]
