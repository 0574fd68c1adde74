"""hosts-check: facts of machines, and where they differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from steps.core.plan import clusters
from steps.core.system import machine
from steps.core.vllm import installed
from tests.hosts.rig import PORT, Rig, at_home

GOOD = {
    "python": "3.11.2",
    "unhealthy": [],
    "free": 1 << 40,
    "taken": [],
    "model": "3 files, 12 bytes",
}


def check(rig: Rig, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [*at_home(rig.home), sys.executable, "-m", "invoke", "hosts-check", *words],
        cwd=clusters.ROOT,
        env=rig.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_hosts_that_are_well(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"12345")
    hosts = str(rig.hosts_file())
    code, text = check(rig, "--hosts", hosts, "--model", str(tmp_path), "--format", "json")
    assert code == 0, text
    found = json.loads(text)
    assert found["problems"] == []
    assert found["differences"] == {}
    assert {told["model"] for told in found["hosts"].values()} == {"1 files, 5 bytes"}
    assert rig.left() == []


def test_every_problem_of_every_host_at_once(rig: Rig) -> None:
    hosts = str(rig.hosts_file(h1={"port": PORT + 1}))
    code, text = check(rig, "--hosts", hosts, "--model", "/no/model", "--ports", str(PORT))
    assert code == 3
    first, second = (host.address for host in rig.hosts)
    assert f"error: {first}: the model is not there" in text
    assert f"error: {first}: ports in use: {PORT}" in text
    assert f"error: {second}: cannot be reached over SSH" in text


def test_differences_name_the_odd_one_out() -> None:
    found = {f"h{i}": {"python": "3.11.2", "vllm": "0.11.0"} for i in range(3)}
    found["h3"] = {"python": "3.11.2", "vllm": "0.10.2"}
    assert installed.differences(found) == {
        "vllm": {"0.11.0": ["h0", "h1", "h2"], "0.10.2": ["h3"]}
    }
    assert list(installed.sentences(found)) == ["vllm differs: 0.11.0 on h0, h1, h2; 0.10.2 on h3"]


def test_problems_of_one_machine() -> None:
    assert list(machine.problems(GOOD)) == []
    bad = {
        "python": "3.8.1",
        "unhealthy": ["3 910B3 Alarm"],
        "free": 5 << 20,
        "taken": [8080],
        "model": "missing",
    }
    text = "\n".join(machine.problems(bad, skew=-5.25))
    for words in ("3.10 or newer", "3 910B3 Alarm", "5 MiB free", "8080", "model", "5.2 s behind"):
        assert words in text


def test_devices_as_npu_smi_prints_them(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PATH", f"{clusters.STAND_INS / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("REHEARSAL_DEVICES", "4")
    count, ill, driver = machine.devices()
    assert (count, ill) == ("4 x 910B3", [])
    assert driver
