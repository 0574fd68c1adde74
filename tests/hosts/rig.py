"""Hosts for tests: real sshd instances on loopback addresses, each with a disk of its own.

Enters: how many hosts, a temporary directory. Leaves: running sshds whose
``space`` directory has one path on all hosts and is another tmpfs on each; a
home directory with key, configuration and known hosts. Touches: processes of
its own in mount namespaces of their own; nothing of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.core.plan import clusters
from tests.faults.rehearse import undrawn

PORT = 2222
#: Of the hosts: the system's own, which lacks most of what the node program needs.
PYTHON = "/usr/bin/python3"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


def why_not() -> str:
    """Why this machine cannot play hosts; empty when it can."""
    if SSHD is None:
        return "openssh-server is not installed"
    if os.geteuid() != 0:
        return "mount namespaces need root"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "mount namespaces are not allowed here"


@dataclass(frozen=True)
class Program:
    """A process of a host."""

    pid: int
    cmdline: bytes
    environ: bytes


@dataclass
class Host:
    """One sshd."""

    address: str
    port: int
    key: Path
    config: Path
    space: Path
    size: str
    wrap: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start sshd; its disk is new."""
        script = (
            "mount -t tmpfs -o mode=755 run /run && mkdir /run/sshd && "
            f"mount -t tmpfs -o mode=1777,size={self.size} space {self.space} && "
            "{ test ! -e ~/.bashrc || mount --bind /dev/null ~/.bashrc; } && "
            f"exec {SSHD} -D -e -f {self.config}"
        )
        self.process = subprocess.Popen(
            [*self.wrap, "unshare", "--mount", "sh", "-c", script],
            stdout=subprocess.DEVNULL,
            stderr=(self.config.parent / "sshd.log").open("ab"),
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it listens."""
        deadline = time.monotonic() + 20
        while True:
            log = self.config.parent / "sshd.log"
            if b"listening on" in log.read_bytes():
                return
            assert self.process is not None
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def again(self, *settings: str) -> None:
        """Start anew with these lines in front of sshd's configuration; none: as it was."""
        self.stop()
        text = self.config.read_text()
        text = text[text.index("Port ") :]
        self.config.write_text("".join(f"{line}\n" for line in settings) + text)
        (self.config.parent / "sshd.log").write_bytes(b"")
        self.start()
        self.wait()

    def shell(self, script: str) -> None:
        """Start anew with a login shell that does this; the command is in ``$C``."""
        self.again(f"ForceCommand C=$SSH_ORIGINAL_COMMAND; export C; {script}")

    @property
    def disk(self) -> Path:
        """The host's own ``space``, seen from outside."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.space}")

    def sessions(self) -> list[int]:
        """Processes of sshd that serve a connection now."""
        assert self.process is not None
        return children(self.process.pid)

    def drop_connections(self) -> None:
        """End every SSH session of the host, as a broken network would."""
        for pid in self.sessions():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End sshd and its sessions."""
        if self.process is not None:
            found = self.sessions()
            for pid in [*found, self.process.pid]:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()


def children(pid: int) -> list[int]:
    """All descendants of a process that are its children's children too."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    found = [int(word) for word in text.split()]
    return found + [inner for child in found for inner in children(child)]


class Rig:
    """Some hosts and a home from which one may enter them."""

    def __init__(
        self,
        root: Path,
        count: int = 0,
        size: str = "2g",
        places: Sequence[tuple[str, list[str]]] = (),
    ) -> None:
        """Start the hosts.

        Args:
            count: hosts on loopback addresses of their own.
            size: of each host's disk.
            places: further hosts: the address, and what runs a command there.
        """
        self.root = root
        self.home = root / "home"
        self.space = root / "space"
        self._runs: list[Run] = []
        self.network = clusters.free_network(PORT)
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        self.space.mkdir()
        make_key(ssh / "id_ed25519")
        addresses = [f"127.{self.network}.{i + 1}" for i in range(count)]
        self.hosts = [self.add(address, size) for address in addresses]
        self.hosts += [self.add(address, size, wrap) for address, wrap in places]
        self.known(self.hosts)

    def add(self, address: str, size: str = "2g", wrap: list[str] | None = None) -> Host:
        """Start one more host; :meth:`known` makes its key known."""
        place = self.root / f"host-{address.replace(':', '_')}"
        place.mkdir()
        make_key(place / "key")
        config = place / "sshd_config"
        config.write_text(
            f"Port {PORT}\nListenAddress {address}\nHostKey {place / 'key'}\nPidFile none\n"
            f"AuthorizedKeysFile {self.home / '.ssh' / 'id_ed25519.pub'}\nStrictModes no\n"
            "UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "MaxStartups 100\nSetEnv LC_ALL=C\n"
        )
        host = Host(address, PORT, place / "key", config, self.space, size, wrap or [])
        host.start()
        return host

    def known(self, hosts: list[Host]) -> None:
        """Let ssh know these hosts' keys, and no others."""
        lines = [
            f"[{host.address}]:{PORT} {host.key.with_suffix('.pub').read_text().strip()}\n"
            for host in hosts
        ]
        (self.home / ".ssh" / "known_hosts").write_text("".join(lines))
        for host in hosts:
            host.wait()

    def hosts_file(self, defaults: dict[str, Any] | None = None, **more: dict[str, Any]) -> Path:
        """A hosts file; ``more`` maps ``hN`` to what node N has besides."""
        entries = [
            {"address": host.address, **more.get(f"h{i}", {})} for i, host in enumerate(self.hosts)
        ]
        common = {
            "port": PORT,
            "user": "root",
            "directory": str(self.space),
            "python": PYTHON,
            **(defaults or {}),
        }
        path = self.root / "hosts.yaml"
        path.write_text(json.dumps({"defaults": common, "hosts": entries}))
        return path

    def environment(self) -> dict[str, str]:
        """The environment of a runner."""
        keep = {k: os.environ[k] for k in ("PATH", "LANG") if k in os.environ}
        cache = os.environ.get("MULTINODE_CACHE") or str(Path.home() / ".cache" / "multinode")
        return {**keep, "HOME": str(self.home), "CI": "1", "MULTINODE_CACHE": cache}

    def run(
        self,
        case: Path,
        *more: str,
        hosts: Path | None = None,
        env: dict[str, str] | None = None,
        draw: bool = False,
    ) -> Run:
        """Start a run from this machine."""
        run_dir = self.root / f"run-{time.monotonic_ns()}"
        argv = [sys.executable, "-m", "ci.run", str(case), "--on", "hosts", "--rehearse"]
        argv += ["--hosts", str(hosts or self.hosts_file()), "--run-dir", str(run_dir), *more]
        whole = {**self.environment(), **(env or {})}
        self._runs.append(Run(argv, run_dir, whole if draw else undrawn(whole, self.root)))
        return self._runs[-1]

    def programs(self) -> list[Program]:
        """What runs on the hosts besides sshd, as it was when it was looked at."""
        needle = f"MULTINODE_PLACE={self.space}/".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                environ = (entry / "environ").read_bytes()
                if needle in environ:
                    cmdline = (entry / "cmdline").read_bytes()
                    found.append(Program(int(entry.name), cmdline, environ))
        return found

    def processes(self) -> list[int]:
        """The numbers of what runs on the hosts besides sshd."""
        return [program.pid for program in self.programs()]

    def left(self) -> list[str]:
        """What is left of runs on the hosts: processes and files."""
        deadline = time.monotonic() + 2
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        files = [str(path) for host in self.hosts for path in host.disk.iterdir()]
        return [*map(str, found), *files]

    def wipe(self) -> None:
        """Empty the hosts' disks and end what runs there, runners of a failed test among it."""
        for run in self._runs:
            if run.popen.poll() is None:
                os.killpg(run.popen.pid, signal.SIGKILL)
                run.popen.wait()
        self._runs.clear()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for host in self.hosts:
            for path in host.disk.iterdir():
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """End everything."""
        for host in self.hosts:
            host.stop()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


class Run:
    """A runner that was started."""

    def __init__(self, argv: list[str], run_dir: Path, env: dict[str, str]) -> None:
        self.dir = run_dir
        self.log = run_dir.with_suffix(".log")
        self.popen = subprocess.Popen(
            [*at_home(Path(env["HOME"])), *argv],
            cwd=clusters.ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def until(self, text: str, seconds: float = 60.0) -> None:
        """Wait until it has printed ``text``."""
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert self.popen.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def end(self, seconds: float = 90.0) -> int:
        """Its exit code."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
            raise AssertionError(self.text) from None

    @property
    def verdict(self) -> dict[str, Any]:
        """Its verdict."""
        found: dict[str, Any] = json.loads((self.dir / "verdict.json").read_text())
        return found


def at_home(home: Path) -> list[str]:
    """What runs a command whose ssh finds the files of ``home`` in place of the user's own.

    For ssh a user's home is what the password file says, whatever HOME is. Those of its own
    ``ssh_config.d``, if there is one, take the place of the machine's.
    """
    own = pwd.getpwuid(os.getuid())
    lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
    mine = ":".join([own.pw_name, "x", *map(str, own[2:5]), str(home), own.pw_shell]) + "\n"
    passwd = home / "passwd"
    passwd.write_text(
        mine + "".join(line for line in lines if not line.startswith(f"{own.pw_name}:"))
    )
    script = f"mount --bind {passwd} /etc/passwd && "
    if (home / "ssh_config.d").is_dir():
        script += f"mount --bind {home / 'ssh_config.d'} /etc/ssh/ssh_config.d && "
    script += 'exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def make_key(path: Path) -> None:
    """An ed25519 key."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True
    )


def free_port(address: str) -> int:
    """A free port of an address."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
