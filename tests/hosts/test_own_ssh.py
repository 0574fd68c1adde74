"""The user's own ssh: its configuration counts, its words are shown, nothing of it stays."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ci.backends.hosts import cargo, client, ssh
from ci.backends.hosts.client import Client
from ci.backends.hosts.inventory import Host
from ci.backends.hosts.wire import Wire
from steps.core.errors import InfraError
from tests.hosts import rig as rigs
from tests.hosts.cases import spread
from tests.hosts.rig import PORT, Rig
from tests.hosts.test_check import check

SLOW = Path(__file__).with_name("slow.py")
#: /etc/ssh/ssh_config.d/50-redhat.conf of Fedora and its kin.
REDHAT = """\
Match final all
	# Follow system-wide Crypto Policy, if defined:
	Include /etc/crypto-policies/back-ends/openssh.config

	GSSAPIAuthentication yes

	ForwardX11Trusted yes
"""


@pytest.fixture
def own(rig: Rig) -> Iterator[Rig]:
    """Hosts and a home whose files a test may change."""
    dot = rig.home / ".ssh"
    kept = {path.name: path.read_bytes() for path in dot.iterdir()}
    yield rig
    for path in dot.iterdir():
        if path.name not in kept:
            path.unlink()
    for name, content in kept.items():
        (dot / name).write_bytes(content)
        (dot / name).chmod(0o600)
    shutil.rmtree(rig.home / "ssh_config.d", ignore_errors=True)


def keygen(*words: object) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, words)], check=True, stdin=subprocess.DEVNULL)


def ssh_processes(needle: str) -> list[str]:
    """Command lines that have ``needle`` in them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if needle in text and "pytest" not in text:
                found.append(text)
    return found


def gone(needle: str, seconds: float) -> bool:
    """Whether no such process is left within ``seconds``."""
    deadline = time.monotonic() + seconds
    while ssh_processes(needle):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_the_file_that_fedora_ships_and_authorities_of_other_hosts(own: Rig, case: Path) -> None:
    (own.home / "ssh_config.d").mkdir()
    (own.home / "ssh_config.d" / "50-redhat.conf").write_text(REDHAT)
    dot = own.home / ".ssh"
    key = (dot / "id_ed25519.pub").read_text()
    with (dot / "known_hosts").open("ab") as out:
        out.write(f"@cert-authority *.example.com {key}\n".encode())
        out.write(b"odd.example.com ssh-ed25519 \xff\xfe\n")
    run = own.run(case)
    assert run.end() == 0, run.text
    assert "warning" not in run.text


def test_a_certificate_tokens_and_variables(own: Rig) -> None:
    """Keys that only an authority's word makes good, their place told with ``${}`` and ``%r``."""
    dot, host = own.home / ".ssh", own.hosts[1]
    rigs.make_key(dot / "authority")
    rigs.make_key(dot / "key-of-root")
    keygen("-s", dot / "authority", "-I", "me", "-n", "root", dot / "key-of-root.pub")
    host.again(f"TrustedUserCAKeys {dot / 'authority.pub'}", "AuthorizedKeysFile none")
    (dot / "config").write_text(
        f"Host {host.address}\n  IdentityFile ${{HOME}}/.ssh/key-of-%r\n"
        "  CertificateFile ${HOME}/.ssh/key-of-%r-cert.pub\n"
    )
    try:
        code, text = check(own, "--hosts", str(own.hosts_file()))
        assert code == 0, text
        (dot / "key-of-root-cert.pub").unlink()
        code, text = check(own, "--hosts", str(own.hosts_file()))
        assert code == 3
        assert f"{host.address}: cannot be reached over SSH: root@{host.address}: Perm" in text
    finally:
        host.again()


def test_a_revoked_host_key(own: Rig) -> None:
    key = own.hosts[1].key.with_suffix(".pub").read_text()
    with (own.home / ".ssh" / "known_hosts").open("a") as out:
        out.write(f"@revoked * {key}\n")
    code, text = check(own, "--hosts", str(own.hosts_file()))
    assert code == 3
    assert "REVOKED HOST KEY DETECTED" in text
    assert f"error: {own.hosts[0].address}" not in text


def test_the_words_of_a_proxy_command(own: Rig) -> None:
    config = own.home / ".ssh" / "config"
    config.write_text(f"Host *\n  ProxyCommand {sys.executable} {SLOW} %h %p 1e9 0\n")
    code, text = check(own, "--hosts", str(own.hosts_file()))
    assert code == 0, text
    config.write_text("Host *\n  ProxyCommand sh -c 'echo no way to %h at %p >&2; exit 1'\n")
    code, text = check(own, "--hosts", str(own.hosts_file()))
    assert code == 3
    assert f"no way to {own.hosts[1].address} at {PORT}" in text


def test_a_jump_host_that_would_take_any_key(own: Rig) -> None:
    """The ssh that makes the jump is not ours, but our conditions are its own too."""
    jump, behind = own.hosts
    dot = own.home / ".ssh"
    (dot / "config").write_text(
        f"Host jump\n  HostName {jump.address}\n  Port {PORT}\n  User root\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        f"Host behind\n  HostName {behind.address}\n  ProxyJump jump\n"
    )
    hosts = own.hosts_file(h1={"ssh": "behind"})
    code, text = check(own, "--hosts", str(hosts))
    assert code == 3
    said = (
        f"(behind): cannot be reached over SSH: No ED25519 host key is known for [{jump.address}]"
    )
    assert said in text


def test_what_people_set_for_themselves_at_a_terminal(own: Rig) -> None:
    dot = own.home / ".ssh"
    (dot / "config").write_text(
        "Host *\n  ControlMaster auto\n  ControlPath ~/.ssh/cm-%C\n  ControlPersist 60\n"
        "  RemoteCommand tmux attach\n  RequestTTY force\n  LogLevel DEBUG\n"
        f"  PermitLocalCommand yes\n  LocalCommand touch {dot / 'local'}\n"
        "  LocalForward 127.0.0.1:28997 127.0.0.1:22\n  ForwardAgent yes\n"
    )
    code, text = check(own, "--hosts", str(own.hosts_file()))
    assert code == 0, text
    assert {path.name for path in dot.iterdir()} == {
        "config", "id_ed25519", "id_ed25519.pub", "known_hosts",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("OpenSSH_7.4p1, OpenSSL 1.0.2k-fips", "found OpenSSH_7.4p1, OpenSSL 1.0.2k-fips, "),
        ("Dropbear v2022.83", "found Dropbear v2022.83, "),
        ("", "found none on PATH, "),
    ],
    ids=["old", "other", "none"],
)
def test_an_ssh_that_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, words: str
) -> None:
    if says:
        (tmp_path / "ssh").write_text(f"#!/bin/sh\necho '{says}' >&2\n")
        (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfraError, match=r"expected OpenSSH 7\.6 or newer") as caught:
        Client()
    assert words in caught.value.message
    assert "openssh-client" in caught.value.hint


def test_the_private_directory_goes_and_that_of_a_killed_program_too(tmp_path: Path) -> None:
    with Client() as made:
        place = made.config.parent
        assert place.stat().st_mode & 0o777 == 0o700
        program = "import time; from ci.backends.hosts.client import Client; c = Client(); "
        program += "print(c.config.parent, flush=True); time.sleep(60)"
        other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with Client():
            assert left.is_dir()
            assert place.is_dir()
        other.kill()
        other.wait()
        other.stdout.close()
        assert left.is_dir()
        with Client():
            assert not left.exists()
            assert place.is_dir()
    assert not place.exists()


def test_no_room_for_the_private_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def full(lock: Any, _how: int) -> None:
        made.append(Path(lock.name).parent)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client.fcntl, "flock", full)
    with pytest.raises(InfraError, match="/tmp: No space left on device"):
        client.Client()
    assert not made[-1].exists()  # before it come those of other runs, which it looks at


def test_a_runner_that_is_killed_leaves_no_ssh(own: Rig, case: Path) -> None:
    run = own.run(case, "--load-seconds", "60", hosts=own.hosts_file({"lease": 3}))
    run.until("load ...")
    lines = [text for text in ssh_processes("mn-ssh-") if own.hosts[0].address in text]
    (config,) = {Path(word) for text in lines for word in text.split() if "/config" in word}
    run.popen.kill()
    run.popen.wait()
    assert gone(str(config.parent), ssh.PERSIST + 5)
    # Another run beside may have taken it away already, as the next one does here.
    assert list(config.parent.glob("*")) in ([config], [])
    with Client():
        assert not config.parent.exists()
    deadline = time.monotonic() + 20
    while own.processes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    own.wipe()


def test_an_interrupt_while_the_run_is_put_there(own: Rig, case: Path) -> None:
    config = own.home / ".ssh" / "config"
    config.write_text(
        f"Host {own.hosts[1].address}\n  ProxyCommand {sys.executable} {SLOW} %h %p 3e5 0.1\n"
    )
    run = own.run(case)
    deadline = time.monotonic() + 20
    while not any("multinode-" in str(p) for p in own.hosts[1].disk.iterdir()):
        assert time.monotonic() < deadline
        assert run.popen.poll() is None, run.text
        time.sleep(0.05)
    began = time.monotonic()
    run.popen.send_signal(signal.SIGINT)
    assert run.end() == 130, run.text
    assert time.monotonic() - began < 8
    assert run.verdict["verdict"] == "interrupted"
    assert "WARNING" not in run.text.upper()
    assert gone(str(SLOW), 2)


def test_an_interrupt_while_a_host_does_not_answer(own: Rig, case: Path) -> None:
    config = own.home / ".ssh" / "config"
    config.write_text(f"Host {own.hosts[1].address}\n  ProxyCommand sleep 61.5\n")
    run = own.run(case)
    deadline = time.monotonic() + 20
    while not ssh_processes("sleep 61.5"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    run.popen.send_signal(signal.SIGINT)
    assert run.end() == 130, run.text
    assert time.monotonic() - began < 4
    assert gone("sleep 61.5", 1)


def test_a_slow_link(own: Rig, case: Path) -> None:
    (own.home / ".ssh" / "config").write_text(
        f"Host *\n  ProxyCommand {sys.executable} {SLOW} %h %p 1e6 0.15\n"
    )
    run = own.run(case, "--load-seconds", "2")
    assert run.end(240) == 0, run.text
    assert "warning" not in run.text


def test_bytes_of_a_line_that_is_not_whole_are_a_sign_of_life() -> None:
    channel = ssh.Channel(["sh", "-c", "echo multinode-output-begins; printf abc; sleep 9"])
    wire = Wire(Host("h"), channel)
    began = wire.heard
    deadline = time.monotonic() + 5
    while wire.heard == began and time.monotonic() < deadline:
        assert wire.lines(0.1) == []
    assert wire.heard > began
    channel.close()


def test_a_host_says_how_much_it_has_got(tmp_path: Path) -> None:
    """So that the wait for its answer lasts as long as the link needs; half of it is no run."""
    base = tmp_path / "multinode-x"
    place = base / "host-0"
    with Client() as made:
        words = ssh.Remote(Host("h", python=sys.executable), made).python(
            *cargo.loader(str(tmp_path), ("yaml",))
        )
        wire = Wire(Host("h"), ssh.Channel(["sh", "-c", words]))
        assert wire.one(20)["missing"] == []
        wire.send({"base": str(base), "place": str(place), "size": 200_000}, bytes(150_000))
        assert wire.one(20)["got"] >= 65536
        assert base.is_dir()
        wire.channel.end_input()
        told = [line for _ in range(20) for line in wire.lines(1) or ()]
        wire.channel.close()
    assert told[-1] == {"error": f"unpacking into {base}: the runner is gone"}
    assert not base.exists()


def test_a_place_from_which_nothing_may_be_started(tmp_path: Path) -> None:
    reason = rigs.why_not()
    if reason:
        pytest.skip(reason)
    rig = Rig(tmp_path / "rig", 2, "2g,noexec")
    try:
        run = rig.run(spread(tmp_path / "case.yaml", 2))
        assert run.end() == 3
        assert f"{rig.space} is mounted noexec" in run.verdict["cause"]["reason"]
        assert "'directory'" in run.text
        assert rig.left() == []
    finally:
        rig.close()


def test_two_people_at_once(own: Rig, case: Path, tmp_path: Path) -> None:
    """The second is told whose port it wants; the third has its own; the first goes on."""
    first = own.run(case, "--load-seconds", "8")
    first.until("load ...")
    second = own.run(case)
    assert second.end() == 3, second.text
    assert "Address already in use" in second.text
    other = tmp_path / "other.yaml"
    other.write_text(case.read_text().replace("8080", "8090").replace("13389", "13489"))
    third = own.run(other, env={"MULTINODE_CONTROL_PORT": "28996"})
    assert third.end() == 0, third.text
    assert first.end() == 0, first.text


def test_nothing_is_asked_for(own: Rig) -> None:
    """Neither a terminal nor a window, whatever the environment offers."""
    asked = own.root / "asked"
    program = own.root / "askpass"
    program.write_text(f"#!/bin/sh\ntouch {asked}\necho secret-phrase\n")
    program.chmod(0o755)
    dot = own.home / ".ssh"
    (dot / "id_ed25519").unlink()
    keygen("-t", "ed25519", "-N", "secret-phrase", "-f", dot / "locked")
    (dot / "config").write_text("IdentityFile ~/.ssh/locked\n")
    environment = {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
    run = own.run(spread(own.root / "asking.yaml", 2), env=environment)
    assert run.end() == 3
    assert "Permission denied" in run.verdict["cause"]["reason"]
    assert not asked.exists()
