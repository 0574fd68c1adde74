"""No proxy stands between the programs of a fleet, whatever the environment says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steps.core.plan.direct import exempt
from tests.core.cases import ROOT
from tests.faults.rehearse import undrawn

HOSTS = ("10.0.0.1", "[fd00::2]", "leader.rack")


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"])
@pytest.mark.parametrize("given", ["", "localhost", "10.0.0.0/8", ".example.com, 10.0.0.1"])
def test_every_host_is_exempt_in_both_spellings(name: str, given: str) -> None:
    env = exempt({name: "http://proxy:3128", "NO_PROXY": given, "A": "b"}, HOSTS)
    assert env[name] == "http://proxy:3128" and env["A"] == "b"
    assert env["no_proxy"] == env["NO_PROXY"]
    words = env["no_proxy"].split(",")
    assert {"10.0.0.1", "fd00::2", "leader.rack", "localhost", "127.0.0.1", "::1"} <= set(words)
    assert all(word.strip() in words for word in given.split(",") if word)
    assert len(words) == len(set(words))


def test_a_star_takes_the_proxies_away_and_without_one_nothing_changes() -> None:
    assert exempt({"http_proxy": "p", "no_proxy": "*", "A": "b"}, HOSTS) == {
        "no_proxy": "*",
        "A": "b",
    }
    assert exempt({"no_proxy": "x", "http_proxy": ""}, HOSTS) == {"no_proxy": "x", "http_proxy": ""}


@pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_machine_keeps_no_run_from_its_own_servers(
    tmp_path: Path, name: str
) -> None:
    """As on any CI machine of a company; the proxy here is a port where nobody listens."""
    done = subprocess.run(
        [sys.executable, "-m", "ci.run", "configs/quickstart.yaml", "--rehearse",
         "--timeout", "load=20", "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=undrawn({**os.environ, name: "http://127.0.0.1:9", "no_proxy": "10.0.0.0/8"}, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
