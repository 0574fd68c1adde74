"""Runs over real sshd instances, rehearsal engines on them: all is well, and what may go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ci.test_row import FILE
from tests.hosts.rig import PORT, PYTHON, Rig

TOKEN = "0123456789abcdefSECRETfedcba987654"


def test_a_run_passes_and_leaves_nothing(rig: Rig, case: Path) -> None:
    run = rig.run(case, draw=True)
    assert run.end() == 0, run.text
    assert run.verdict["verdict"] == "pass"
    assert (run.dir / "report.html").exists() == bool(find_spec("matplotlib"))
    for index in (0, 1):
        node = run.dir / f"node-{index}"
        assert json.loads((node / "record.json").read_text())["node"] == index
        assert "vLLM" in (node / "server.log").read_text()
    assert (run.dir / "node-0" / "bench").is_dir()
    assert rig.left() == []


def test_cases_of_one_file_run_one_after_another(rig: Rig, tmp_path: Path) -> None:
    case = tmp_path / "two.yaml"
    case.write_text(FILE, encoding="utf-8")
    everything = json.loads(rig.hosts_file().read_text())
    one = tmp_path / "one.yaml"
    one.write_text(json.dumps({**everything, "hosts": everything["hosts"][:1]}), encoding="utf-8")
    run = rig.run(case, hosts=one)
    assert run.end() == 0, run.text
    assert [entry["verdict"] for entry in run.verdict["cases"]] == ["pass", "pass"]
    assert (run.dir / "first-one" / "node-0" / "record.json").is_file()


def test_events_are_those_of_the_nodes_each_once(rig: Rig, case: Path) -> None:
    run = rig.run(case, "--load-seconds", "2", "--verbose")
    run.until("node 1  load      load ...")
    for host in rig.hosts:
        host.drop_connections()
    assert run.end() == 0, run.text
    assert "connected again" in run.text
    shown = [line for line in run.text.splitlines() if " node 1 " in line]
    assert len(shown) == len(set(shown))
    assert any("stop done" in line for line in shown)
    events = (run.dir / "node-1" / "events.jsonl").read_text().splitlines()
    assert len(events) == len(set(events))


def test_nobody_sees_the_token(rig: Rig, case: Path) -> None:
    run = rig.run(case, "--load-seconds", "2", env={"MULTINODE_TOKEN": TOKEN})
    run.until("load ...")
    for program in rig.programs():
        assert TOKEN.encode() not in program.cmdline + program.environ
    for host in rig.hosts:
        seen = 0
        for path in host.disk.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # byte code is renamed when it is whole
                assert path.stat().st_mode & 0o077 == 0, path
                if path.is_file():
                    assert TOKEN.encode() not in path.read_bytes(), path
                    seen += 1
        assert seen
    assert run.end() == 0, run.text
    for path in run.dir.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("node", [0, 1])
def test_a_killed_node_program_is_the_cause(rig: Rig, case: Path, node: int) -> None:
    run = rig.run(case, "--load-seconds", "20")
    run.until("load ...")
    for program in rig.programs():
        words = program.cmdline.split(b"\0")
        if b"steps.node" in words and words[words.index(b"--node-index") + 1] == b"%d" % node:
            os.kill(program.pid, signal.SIGKILL)
            break
    assert run.end() == 3, run.text
    cause = run.verdict["cause"]
    assert (cause["node"], cause["kind"]) == (node, "lost")
    assert "ready after" not in run.text  # it ended before the load could
    assert "signal 9" in cause["reason"]


def test_a_killed_keeper_ends_the_run(rig: Rig, case: Path) -> None:
    run = rig.run(case, "--load-seconds", "20")
    run.until("load ...")
    for program in rig.programs():
        if b"steps.core.node.keeper" in program.cmdline and b"/host-1" in program.environ:
            os.kill(program.pid, signal.SIGKILL)
    assert run.end() == 3, run.text
    assert "keeper" in run.text
    assert run.verdict["cause"]["node"] == 1


def test_an_interrupt_stops_collects_and_cleans(rig: Rig, case: Path) -> None:
    run = rig.run(case, "--load-seconds", "20")
    run.until("load ...")
    run.popen.send_signal(signal.SIGINT)
    assert run.end() == 130, run.text
    assert run.verdict["verdict"] == "interrupted"
    assert (run.dir / "node-1" / "record.json").is_file()


def test_a_runner_that_is_gone_ends_the_run_when_its_lease_does(rig: Rig, case: Path) -> None:
    run = rig.run(case, "--load-seconds", "60", hosts=rig.hosts_file({"lease": 3}))
    run.until("load ...")
    run.popen.kill()
    run.popen.wait()
    assert rig.processes()
    deadline = time.monotonic() + 20
    while rig.processes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for host in rig.hosts:
        places = list(host.disk.glob("multinode-*/host-*"))
        assert [(place / "ended").is_file() for place in places] == [True]
        record = json.loads(next(places[0].glob("run/node-*/record.json")).read_text())
        assert record["outcome"] == "interrupted"
    rig.wipe()


def test_all_that_is_wrong_with_hosts_is_said_at_once(rig: Rig, case: Path) -> None:
    old = Path("/root/.pyenv/versions/3.6.15/bin/python")
    if not old.exists():
        old = rig.root / "old-python"
        old.write_text('#!/bin/sh\necho \'{"python": [3, 6, 15], "old": true}\'\n')
        old.chmod(0o755)
    hosts = rig.hosts_file(h0={"python": str(old)}, h1={"python": "no-such-python"})
    run = rig.run(case, hosts=hosts)
    assert run.end() == 3
    assert "is Python 3.6.15, expected 3.10 or newer" in run.text
    assert "no-such-python is not there" in run.text
    assert run.verdict["verdict"] == "infra"


def test_a_host_that_is_not_there(rig: Rig, case: Path) -> None:
    run = rig.run(case, hosts=rig.hosts_file(h1={"port": PORT + 1}))
    assert run.end() == 3
    assert "cannot be reached over SSH" in run.text
    assert "sshd" in run.text


@pytest.mark.parametrize(
    ("known", "words"), [("changed", "HAS CHANGED"), ("none", "host key is known for")]
)
def test_a_host_key_that_is_not_the_known_one(rig: Rig, case: Path, known: str, words: str) -> None:
    path = rig.home / ".ssh" / "known_hosts"
    first, second = path.read_text().splitlines()
    other = f"{second.split()[0]} {' '.join(first.split()[1:])}"
    path.write_text(f"{first}\n{other}\n" if known == "changed" else f"{first}\n")
    (rig.home / ".ssh" / "config").write_text("Host *\n  StrictHostKeyChecking no\n")
    try:
        run = rig.run(case)
        assert run.end() == 3
    finally:
        (rig.home / ".ssh" / "config").unlink()
    said = run.verdict["cause"]["reason"]
    assert words in said
    assert ("SHA256:" in said) == (known == "changed")
    assert rig.hosts[1].address in said


def test_keys_that_the_host_does_not_accept(rig: Rig, case: Path) -> None:
    run = rig.run(case, hosts=rig.hosts_file({"user": "nobody"}))
    assert run.end() == 3
    assert "Permission denied (publickey" in run.verdict["cause"]["reason"]
    assert "ssh-copy-id" in run.text


def test_an_environment_script(rig: Rig, case: Path, tmp_path: Path) -> None:
    good = tmp_path / "set_env.sh"
    good.write_text("export FROM_SCRIPT=yes\n")
    run = rig.run(case, "--load-seconds", "2", hosts=rig.hosts_file({"environment": str(good)}))
    run.until("load ...")
    found = [program.environ for program in rig.programs()]
    assert all(b"FROM_SCRIPT=yes" in text for text in found)
    assert run.end() == 0, run.text
    bad = rig.hosts_file(h1={"environment": "/no/such/set_env.sh"})
    run = rig.run(case, hosts=bad)
    assert run.end() == 3
    assert "environment script /no/such/set_env.sh failed" in run.text


def test_a_container_on_the_host(rig: Rig, case: Path, tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\n"
        '[ "$1 $2" = "exec -i" ] || { echo "unknown: $*" >&2; exit 125; }\n'
        '[ "$3" = vllm ] || { echo "Error: No such container: $3" >&2; exit 1; }\n'
        'shift 3; IN_CONTAINER=vllm exec "$@"\n'
    )
    docker.chmod(0o755)
    enter = [str(docker), "exec", "-i"]
    hosts = rig.hosts_file({"container": "vllm", "enter": enter})
    run = rig.run(case, "--load-seconds", "2", hosts=hosts)
    run.until("load ...")
    found = [program.environ for program in rig.programs()]
    assert found
    assert all(b"IN_CONTAINER=vllm" in text for text in found)
    rig.hosts[1].drop_connections()
    assert run.end() == 0, run.text
    run = rig.run(case, hosts=rig.hosts_file({"container": "gone", "enter": enter}))
    assert run.end() == 3
    assert "No such container: gone" in run.text


def test_a_jump_host_is_verified_too(rig: Rig, case: Path) -> None:
    config = rig.home / ".ssh" / "config"
    jump, behind = rig.hosts
    config.write_text(
        f"Host jump\n  HostName {jump.address}\n  Port {PORT}\n  User root\n"
        f"Host behind\n  HostName {behind.address}\n  Port {PORT}\n  User root\n  ProxyJump jump\n"
    )
    hosts = rig.hosts_file(h1={"ssh": "behind"})
    try:
        run = rig.run(case, hosts=hosts)
        assert run.end() == 0, run.text
        known = rig.home / ".ssh" / "known_hosts"
        known.write_text(known.read_text().splitlines()[1] + "\n")
        run = rig.run(case, hosts=hosts)
        assert run.end() == 3
        said = run.verdict["cause"]["reason"]
        assert f"[{jump.address}]:{PORT}" in said
        for name in (jump.address, f"{behind.address} (behind)"):
            assert f"{name}: cannot be reached over SSH: No ED25519 host key is known for" in said
    finally:
        config.unlink()


def test_python_that_has_nothing_of_ours(rig: Rig, case: Path) -> None:
    done = os.popen(f"cd / && {PYTHON} -c 'import cerberus' 2>&1").read()
    if "No module" not in done:
        pytest.skip(f"{PYTHON} has cerberus of its own")
    run = rig.run(case)
    assert run.end() == 0, run.text
