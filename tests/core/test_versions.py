"""What runs: versions and git commits, told by the interpreter that runs the servers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ci.nightly.history import result_of
from ci.report.junit import xml
from steps.core.record.records import fleet_versions
from steps.core.record.verdict import compute
from steps.core.system.machine import versions_of
from tests.core.cases import SPLIT, plan_of
from tests.core.records import records_of

WANTED = ("vllm", "vllm-ascend", "torch")


def installed(site: Path, name: str, version: str, **direct_url: object) -> None:
    """A package as pip leaves its metadata."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if direct_url:
        (info / "direct_url.json").write_text(json.dumps(direct_url))


def checkout(place: Path) -> str:
    """A repository with one commit, and that commit."""
    place.mkdir(parents=True)
    (place / "code.py").write_text("one = 1\n")
    git = ["git", "-C", str(place), "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def looked(site: Path, **env: str) -> dict[str, str]:
    return versions_of(
        [sys.executable], WANTED, {"PYTHONPATH": str(site), "PATH": "/usr/bin", **env}
    )


def test_a_checkout_that_is_installed_in_place_tells_its_commit(tmp_path: Path) -> None:
    source = tmp_path / "a place" / "vllm"
    commit = checkout(source)
    told = {"url": source.as_uri(), "dir_info": {"editable": True}}
    installed(tmp_path / "site", "vllm", "0.32.0+empty", **told)
    assert looked(tmp_path / "site")["vllm"] == "0.32.0+empty"
    assert looked(tmp_path / "site")["vllm-commit"] == commit
    (source / "code.py").write_text("one = 2\n")
    assert looked(tmp_path / "site")["vllm-commit"] == f"{commit}-dirty"


def test_what_was_copied_from_a_checkout_does_not_tell_where_that_is_now(tmp_path: Path) -> None:
    checkout(tmp_path / "source")
    told = {"url": (tmp_path / "source").as_uri(), "dir_info": {}}
    installed(tmp_path / "site", "vllm", "0.32.0", **told)
    assert "vllm-commit" not in looked(tmp_path / "site")


def test_other_ways_to_tell_a_commit(tmp_path: Path) -> None:
    told = {"url": "https://git/x", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}}
    installed(tmp_path, "vllm-ascend", "0.30.0rc2", **told)
    installed(tmp_path, "vllm", "0.32.1.dev7+gabcdef123.d20261101")
    installed(tmp_path, "torch", "2.9.0+cpu")
    assert looked(tmp_path) == {
        "vllm": "0.32.1.dev7+gabcdef123.d20261101",
        "vllm-commit": "abcdef123",
        "vllm-ascend": "0.30.0rc2",
        "vllm-ascend-commit": "c" * 40,
        "torch": "2.9.0+cpu",
    }


@pytest.mark.parametrize("broken", ["{", "[]", '{"url": 7, "dir_info": {"editable": true}}'])
def test_odd_metadata_costs_the_commit_and_not_the_version(tmp_path: Path, broken: str) -> None:
    installed(tmp_path, "vllm", "0.32.0", url="x")
    (tmp_path / "vllm-0.32.0.dist-info" / "direct_url.json").write_text(broken)
    assert looked(tmp_path)["vllm"] == "0.32.0"
    installed(tmp_path / "s", "vllm", "1", url="file:///nowhere", dir_info={"editable": True})
    assert looked(tmp_path / "s", PATH="/nowhere") == {**looked(tmp_path / "s"), "vllm": "1"}


def test_a_fleet_of_two_versions_is_none_of_them() -> None:
    plan = plan_of(SPLIT)
    records = records_of(plan, versions={"vllm": "0.32.0", "cann": "8.5", "vllm-commit": "a" * 40})
    assert records[1] is not None
    same = {"vllm": "0.32.0", "cann": "8.5", "vllm-commit": "b" * 40}
    records[1] = replace(records[1], versions=same)
    told = f"{'a' * 40} (node 0), {'b' * 40} (node 1)"
    assert fleet_versions(records) == {"vllm": "0.32.0", "cann": "8.5", "vllm-commit": told}
    verdict = compute(plan, records)
    assert result_of(plan, verdict, records, 1.0).versions["vllm-commit"] == told
    junit = xml(plan, verdict, records)
    assert f'name="version.vllm-commit" value="{told}"' in junit
    assert 'name="version.cann" value="8.5"' in junit
    records[1] = None
    assert fleet_versions(records)["vllm-commit"] == "a" * 40
    lost = {0: None, 1: None}
    assert fleet_versions(lost) == {}
