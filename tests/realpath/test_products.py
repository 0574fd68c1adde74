"""A product under test, from its repository into a fleet of the tests' own engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ci import replay
from steps.core.plan.profile import load_profile
from steps.core.record.rundir import RunDir
from tests.realpath.fleet import HERE, case, cause, checks, local

SCRIPT = f"""#!/usr/bin/env -S {sys.executable} -SE
import sys
sys.path[:0] = ['WHERE']
from tests.engine.vllm import main
print("engine WHICH", flush=True)
sys.exit(main(sys.argv[1:]))
"""


def git(repository: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always")
    argv = ["git", "-C", str(repository), *identity, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def repository(tmp: Path, *states: str, engine: str = "") -> tuple[Path, list[str]]:
    """A product whose engine says which state it is; its commits, one a state.

    Args:
        engine: where the tests' engine is on the nodes.
    """
    place = tmp / "repository"
    (place / "bin").mkdir(parents=True)
    git(place, "init", "--quiet", "-b", "main")
    commits = []
    for state in states:
        program = place / "bin" / "vllm"
        text = SCRIPT.replace("WHICH", state)
        program.write_text(text.replace("WHERE", engine or str(HERE.parents[1])))
        program.chmod(0o755)
        git(place, "add", "--all")
        git(place, "commit", "--quiet", "--allow-empty", "-m", state)
        git(place, "tag", state)
        commits.append(git(place, "rev-parse", "HEAD"))
    return place, commits


def profile(tmp: Path, place: Path, **more: object) -> str:
    """A profile that says how the product is installed."""
    entry = {"repository": str(place), "install": "none", "paths": {"PATH": ["bin"]}, **more}
    path = tmp / "profile.yaml"
    path.write_text(json.dumps({"image": "none", "products": {"engine": entry}}))
    return str(path)


def test_two_nodes_run_the_commit_that_was_asked_for(tmp_path):
    place, commits = repository(tmp_path, "one", "two", "three")
    words = ("--profile", profile(tmp_path, place), "--product", "engine=two")
    found = local(tmp_path, case(2), *words, MULTINODE_CACHE=str(tmp_path / "cache"))
    assert found.code == 0, found.output
    for index in (0, 1):
        node = found.path / f"node-{index}"
        assert "engine two" in (node / "server.log").read_text()
        record = json.loads((node / "record.json").read_text())
        assert record["versions"]["engine-commit"] == commits[1]
        assert "install" in [phase["name"] for phase in record["phases"]]
    assert "products" not in checks(found)
    plan = json.loads((found.path / "plan.json").read_text())
    assert plan["notes"] == []
    assert plan["cluster"]["products"][0]["commit"] == commits[1]
    assert commits[1] in (found.path / "junit.xml").read_text()
    assert commits[1][:12] in (found.path / "summary.md").read_text()
    [_, kept] = replay.tested(RunDir(found.path), replay.load(RunDir(found.path)))
    known, _ = load_profile(Path(kept)).known_products()
    assert known["engine"].commit == commits[1] and known["engine"].paths == {"PATH": ("bin",)}
    assert git(place, "status", "--porcelain") == "" and git(place, "branch") == "* main"


def test_a_repository_that_vanishes_is_infra_and_says_by_which_rule(tmp_path):
    place, commits = repository(tmp_path, "one")
    url = f"file://{tmp_path}/gone@{commits[0]}"
    words = ("--profile", profile(tmp_path, place), "--product", f"engine={url}")
    found = local(tmp_path, case(1), *words, MULTINODE_CACHE=str(tmp_path / "cache"))
    assert found.code == 3, found.output
    kind, verdict, reason = cause(found, "kind", "verdict", "reason")
    assert (kind, verdict) == ("install", "infra") and "by the rule 'git'" in reason
