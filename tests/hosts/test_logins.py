"""Login shells, ssh's configuration and keys as people have them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.rig import PORT, PYTHON, Rig
from tests.hosts.test_check import check

AS_IT_IS = 'exec sh -c "$C"'


@pytest.fixture
def odd(rig: Rig) -> Iterator[Rig]:
    """The two hosts, the second of which a test may make odd."""
    yield rig
    rig.hosts[1].again()


def test_what_an_rc_file_prints_harms_nothing(odd: Rig, case: Path) -> None:
    """A title for the terminal, without an end of line, is what rc files print most."""
    odd.hosts[1].shell(f"echo Welcome; printf '{{}}\\\\033]0;rack\\\\007'; {AS_IT_IS}")
    run = odd.run(case)
    assert run.end() == 0, run.text
    assert "warning" not in run.text
    assert (run.dir / "node-1" / "server.log").is_file()
    code, text = check(odd, "--hosts", str(odd.hosts_file()), "--format", "json")
    assert code == 0, text
    assert len(json.loads(text)["hosts"]) == 2


def test_a_shell_that_runs_nothing_is_quoted(odd: Rig, case: Path) -> None:
    odd.hosts[1].shell("echo This account is not available.; exit 1")
    run = odd.run(case)
    assert run.end() == 3
    assert "ended with code 1: This account is not available." in run.text
    assert f"ssh -p {PORT} root@{odd.hosts[1].address} {PYTHON} --version" in run.text
    assert "container" not in run.text


@pytest.mark.parametrize("shell", ["tcsh", "fish"])
def test_login_shells_that_are_not_sh(odd: Rig, case: Path, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    odd.hosts[1].shell(f'exec {shell} -c "$C"')
    python = tmp_path / 'a python\'s "dir"' / "python3"
    python.parent.mkdir()
    python.symlink_to(PYTHON)
    (odd.home / "env.sh").write_text("export FROM_SCRIPT=yes\n")
    more = {"python": str(python), "environment": "~/env.sh"}
    run = odd.run(case, hosts=odd.hosts_file(h1=more))
    assert run.end() == (0 if (Path.home() / "env.sh").exists() else 3), run.text
    assert "environment script ~/env.sh failed" in run.text
    run = odd.run(case, hosts=odd.hosts_file(h1={"python": str(python)}))
    assert run.end() == 0, run.text


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo atb: no toolkit >&2; false", "atb: no toolkit environment script {0} failed"),
        ("exit 4", "environment script {0} ended the shell"),
        ("read -r line; echo $line", ""),
    ],
    ids=["fails", "exits", "reads"],
)
def test_environment_scripts(rig: Rig, case: Path, tmp_path: Path, script: str, words: str) -> None:
    path = tmp_path / "set_env.sh"
    path.write_text(f"{script}\nexport DONE=1\n" if not words else f"{script}\n")
    run = rig.run(case, hosts=rig.hosts_file({"environment": str(path)}))
    assert run.end() == (3 if words else 0), run.text
    assert words.format(path) in run.text


def test_key_files_that_are_not_there_and_included_files(rig: Rig, case: Path) -> None:
    """As ssh: a named key takes the place of the usual ones; of several, those there are tried."""
    ssh = rig.home / ".ssh"
    (ssh / "config.d").mkdir()
    (ssh / "config.d" / "rack").write_text(f"Host rack7\n  HostName {rig.hosts[1].address}\n")
    absent = "Include config.d/*\nIdentityFile ~/.ssh/not-here\n"
    hosts = rig.hosts_file(h1={"ssh": "rack7"})
    try:
        (ssh / "config").write_text(absent)
        run = rig.run(case, hosts=hosts)
        assert run.end() == 3
        assert "Permission denied" in run.verdict["cause"]["reason"]
        (ssh / "config").write_text(f"{absent}IdentityFile ~/.ssh/id_ed25519\n")
        run = rig.run(case, hosts=hosts)
        assert run.end() == 0, run.text
        assert "warning" not in run.text
    finally:
        (ssh / "config").unlink()
        shutil.rmtree(ssh / "config.d")


def test_no_key_at_all_and_one_that_is_locked(rig: Rig, case: Path) -> None:
    key = rig.home / ".ssh" / "id_ed25519"
    key.rename(key.with_suffix(".away"))
    try:
        run = rig.run(case)
        assert run.end() == 3
        assert "Permission denied" in run.verdict["cause"]["reason"]
        assert "ssh-copy-id" in run.text
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret-phrase", "-f"]
        away = key.with_suffix(".pub").read_bytes()
        key.with_suffix(".pub").unlink()
        subprocess.run([*words, str(key)], check=True, stdin=subprocess.DEVNULL)
        key.with_suffix(".pub").write_bytes(away)
        run = rig.run(case)
        assert run.end() == 3
        assert "Permission denied" in run.verdict["cause"]["reason"]
        assert "ssh-add" in run.text
    finally:
        key.with_suffix(".away").replace(key)


def test_one_session_a_connection_is_enough(odd: Rig, case: Path) -> None:
    odd.hosts[1].again("MaxSessions 1")
    run = odd.run(case)
    assert run.end() == 0, run.text
    assert "warning" not in run.text


def test_results_that_cannot_be_fetched_stay_on_the_host(odd: Rig, case: Path) -> None:
    odd.hosts[1].shell(f'case "$C" in *pack*) exit 7;; esac; {AS_IT_IS}')
    run = odd.run(case)
    run.end()
    place = next(odd.hosts[1].disk.glob("multinode-*/host-1"))
    assert f"they stay in {odd.space}/{place.parent.name}/host-1/run there" in run.text
    assert (place / "run" / "node-1" / "server.log").is_file()
    assert (place / "ended").is_file()
    assert odd.processes() == []
    odd.wipe()
