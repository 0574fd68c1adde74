"""One host over SSH: the system's own ``ssh``, and commands that run over it.

Enters: a :class:`Host`. Leaves: channels, and errors that say ssh's own words and
what to do. Touches: processes of ``ssh``.

``ssh`` reads its own configuration, agent and known hosts, so what ``ssh HOST`` can
reach is reached here, jump hosts and certificates included. One connection a host
carries all commands; it ends with us, or soon after us. A host key that is not known,
or not the known one, is never accepted, whatever the configuration says.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ci.backends.hosts.client import Client
from ci.backends.hosts.inventory import Host
from steps.core import settings
from steps.core.errors import InfraError

CONNECT_SECONDS = 10.0
TRIES = 4
#: Seconds for which a connection outlives its last command, should nobody end it.
PERSIST = 20
#: Seconds in which a host must take what is sent, or send what is read.
STALL = 60.0
#: What ssh exits with when it, not the command, fails.
_SSH_FAILED = 255
#: The line before a command's own output; what a login shell's rc file prints comes before it.
MARK = b"multinode-output-begins"
NOISE = 4096
#: What a command exits with whose directory is not there.
_ABSENT = 8
#: What ssh says when the program it goes through has ended, whose own words it hides
#: whenever the connection is to stay behind.
_HIDDEN = "kex_exchange_identification"
#: Words of ssh, and what a person does next; ``{ssh}`` is the command to type.
_ADVICE = (
    (
        "has changed",
        "If the host was set up anew, remove the old key with `ssh-keygen -R NAME` and add the "
        "new one; else somebody is in between.",
    ),
    (
        "host key",
        "Type `{ssh}` once and compare the fingerprint with the host's own, or add its key to "
        "~/.ssh/known_hosts.",
    ),
    (
        "permission denied",
        "`{ssh}` must work without a password: ssh-copy-id, or ssh-add for the agent; 'user' in "
        "the hosts file says who you are there.",
    ),
    ("resolve hostname", "Check the name, or ~/.ssh/config."),
    ("refused", "Is the host up, and is sshd listening on that port?"),
    ("timed out", "Is it up, is a firewall between?"),
    ("connection closed", "It closed the connection: look at the jump host or ProxyCommand."),
    ("configuration", "Correct the file; `ssh -G {name}` shows what ssh makes of it."),
)
#: Words after which another try is of no use.
_FINAL = ("host key", "permission denied", "resolve hostname", "configuration", "refused")


class Channel(io.RawIOBase):
    """A command on a host: its standard input and output, and how it ended.

    Reading raises ``TimeoutError`` when nothing comes for ``seconds``.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.seconds = STALL
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with us)
        self.popen = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,
        )
        assert self.popen.stdin and self.popen.stdout
        self._in, self._out = self.popen.stdin, self.popen.stdout
        os.set_blocking(self._in.fileno(), False)

    def readable(self) -> bool:
        """It can be read as a file."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes of its output; none at its end."""
        if not select.select([self._out], [], [], self.seconds)[0]:
            raise TimeoutError(f"nothing came for {self.seconds:g} s")
        data = os.read(self._out.fileno(), len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes) -> None:
        """Write to its input.

        Raises:
            OSError: it has ended, or takes nothing for :data:`STALL` seconds.
        """
        left = memoryview(data)
        while left:
            if not select.select([], [self._in], [], STALL)[1]:
                raise TimeoutError(f"the host takes nothing for {STALL:g} s")
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self._in.fileno(), left) :]

    def end_input(self) -> None:
        """Close its input."""
        with contextlib.suppress(OSError):
            self._in.close()

    def errors(self) -> bytes:
        """The last of its standard error."""
        size = self._errors.seek(0, 2)
        self._errors.seek(max(0, size - NOISE))
        return self._errors.read()

    def code(self) -> int:
        """Its exit code; -1 when ssh itself failed, or does not end."""
        try:
            code = self.popen.wait(CONNECT_SECONDS)
        except subprocess.TimeoutExpired:
            return -1
        return -1 if code in (_SSH_FAILED, *range(-64, 0)) else code

    def close(self) -> None:
        """End it."""
        if not self.closed:
            self.end_input()
            _kill(self.popen)
            self.popen.wait()
            self._out.close()
            self._errors.close()
        super().close()


class Remote:
    """A host one can run commands on; a broken connection is made anew by :meth:`connect`."""

    def __init__(self, host: Host, client: Client) -> None:
        self.host = host
        self.handshake = 0.0
        self._client = client
        self._socket: Path | None = None
        self._running: subprocess.Popen[bytes] | None = None
        self._given_up = False

    def connect(self, tries: int = TRIES, seconds: float = CONNECT_SECONDS) -> None:
        """Connect, unless connected; sshd turns some of many away, so there are more tries.

        Raises:
            InfraError: the host is not there, is not the one it was, or lets us not in.
        """
        if self._socket is not None and self._socket.exists():
            return
        self._socket = self._client.socket()
        deadline = time.monotonic() + 2 * seconds
        for left in reversed(range(tries)):
            began = time.monotonic()
            words = self._open(seconds)
            self.handshake = time.monotonic() - began
            if not words:
                return
            final = any(word in words.lower() for word in _FINAL)
            if final or left == 0 or time.monotonic() > deadline:
                raise _explain(self.host, words)
            time.sleep(0.3)

    def interrupt(self) -> None:
        """Give up what is going on, until :meth:`close`; a signal handler may do that."""
        self._given_up = True
        if self._running is not None:
            _kill(self._running)

    def close(self) -> None:
        """Hang up: every command over the connection ends too."""
        self._given_up = False
        socket, self._socket = self._socket, None
        if socket is not None and socket.exists():
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "host"],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=5,
                    check=False,
                )
            socket.unlink(missing_ok=True)

    def start(self, command: str) -> Channel:
        """Run a command; gives its channel.

        Raises:
            InfraError: there is no connection.
        """
        if self._socket is None:
            raise InfraError(f"{self.host}: the SSH connection is closed")
        options = ("-o", "ControlMaster=no", "-o", f"ControlPath={self._socket}")
        channel = Channel(self._argv(command, *options))
        self._running = channel.popen
        if self._given_up:
            _kill(channel.popen)
        return channel

    def python(self, *words: str, cwd: str = "") -> str:
        """The command that runs the host's Python, inside the container if there is one."""
        host = self.host
        steps = ["umask 077", *(_sourcing(path) for path in host.environment)]
        if cwd:
            steps.append(f"cd {shlex.quote(cwd)} || exit {_ABSENT}")
        # An empty line first: what was printed before may have no end of line.
        steps.append(f"echo; echo {MARK.decode()}")
        steps.append(" ".join(["exec", _path(host.python), *map(shlex.quote, words)]))
        command = ["bash" if host.environment else "sh", "-c", "; ".join(steps)]
        if host.container:
            command = [*host.enter, host.container, *command]
        return " ".join(map(shlex.quote, command))

    def call(self, *words: str, cwd: str = "", seconds: float = 60.0, given: str = "") -> str:
        """What a short Python command prints; ``given`` is its standard input.

        Raises:
            InfraError: it fails, or takes longer than ``seconds``.
        """
        channel = self.start(self.python(*words, cwd=cwd))
        try:
            channel.seconds = seconds
            channel.send(given.encode())
            channel.end_input()
            out = channel.readall() or b""
            code, errors = channel.code(), channel.errors()
        except OSError as error:
            raise _explain(self.host, str(error)) from None
        finally:
            channel.close()
        noise, _, said = parted(out)
        if code:
            raise failure(self.host, code, errors, noise)
        return said.decode("utf-8", "replace")

    def stream(self, command: str) -> tuple[Channel, io.BufferedReader[Any]]:
        """Run a command; gives its channel and its output, to be read as a file.

        Raises:
            InfraError: it fails before it says anything.
        """
        channel = self.start(command)
        out: io.BufferedReader[Any] = io.BufferedReader(channel, 1 << 17)
        noise = b""
        while line := out.readline():
            if line.rstrip() == MARK:
                return channel, out
            noise = (noise + line)[-NOISE:]
        code, errors = channel.code(), channel.errors()
        out.close()
        raise failure(self.host, code, errors, noise)

    def _argv(self, command: str, *options: str) -> list[str]:
        host = self.host
        argv = ["ssh", "-F", str(self._client.config), "-T", "-e", "none", *options]
        argv += ["-p", str(host.port)] if host.port else []
        argv += ["-l", host.user] if host.user else []
        return [*argv, "--", host.target, *([command] if command else [])]

    def _open(self, seconds: float) -> str:
        """Make the connection, without a command, so that no shell can spoil it.

        Returns:
            What ssh says when it cannot.
        """
        master = ("ControlMaster=yes", f"ControlPersist={PERSIST}", f"ControlPath={self._socket}")
        words = self._try(seconds, "", "-f", "-N", *(part for o in master for part in ("-o", o)))
        if self._socket is not None and self._socket.exists():
            return ""
        if _HIDDEN in words:
            return self._try(seconds, "exit", "-o", "ControlPath=none") or words
        return words or "ssh ended without a word"

    def _try(self, seconds: float, command: str, *options: str) -> str:
        """What ssh says on its standard error.

        Raises:
            InfraError: it was interrupted.
        """
        limit = ("-o", f"ConnectTimeout={int(seconds)}")
        environment = {**settings.inherited(), "SSH_ASKPASS_REQUIRE": "never"}
        # A file, not a pipe: the connection stays behind in the background and may hold it open.
        with tempfile.TemporaryFile() as said:
            self._running = popen = subprocess.Popen(
                self._argv(command, *limit, *options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
                env=environment,
            )
            if self._given_up:
                _kill(popen)
            try:
                popen.wait(seconds + 2)
            except subprocess.TimeoutExpired:
                _kill(popen)
                popen.wait()
                return f"timed out: no answer within {seconds:g} s"
            if self._given_up:
                raise InfraError(f"{self.host}: interrupted while connecting")
            said.seek(0)
            words = said.read(1 << 16).decode("utf-8", "replace")
        lines = [line.strip(" \r@") for line in words.splitlines()]
        return " ".join(filter(None, lines))[-900:]


def _kill(popen: subprocess.Popen[bytes]) -> None:
    """Kill an ssh and the proxy that it started."""
    if popen.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(popen.pid, signal.SIGKILL)


def _path(text: str) -> str:
    """A path as a word for sh; ``~/`` is the home directory there."""
    home, slash, rest = text.partition("/")
    return f'"$HOME"/{shlex.quote(rest)}' if home == "~" and slash else shlex.quote(text)


def _sourcing(path: str) -> str:
    """What sources an environment script: it may neither read our input nor end silently."""
    name = f"environment script {path}"
    failed, ended = (shlex.quote(f"{name} {how}") for how in ("failed", "ended the shell"))
    trap = shlex.quote(f"echo {ended} >&2; exit 9")
    return (
        f"trap {trap} EXIT; . {_path(path)} </dev/null >&2 || "
        f"{{ trap - EXIT; echo {failed} >&2; exit 9; }}; trap - EXIT"
    )


def command_of(host: Host) -> str:
    """The command a person would type to enter the host."""
    port = ("-p", str(host.port)) if host.port else ()
    return " ".join(("ssh", *port, f"{host.user}@{host.target}" if host.user else host.target))


def _explain(host: Host, words: str) -> InfraError:
    """What a failure to connect means, in ssh's own words, and what to do."""
    hint = next((advice for word, advice in _ADVICE if word in words.lower()), "")
    return InfraError(
        f"{host}: cannot be reached over SSH: {words}",
        hint.format(ssh=command_of(host), name=host.target),
    )


class Absent(InfraError):
    """The directory in which a command was to run is not on the host."""


def failure(host: Host, code: int, errors: bytes, noise: bytes = b"") -> InfraError:
    """What a command that failed on a host means, and what to do.

    Args:
        code: its exit code; -1 when ssh itself failed.
        noise: what came before its own output, from a shell or an environment script.
    """
    said = (errors.strip() or noise.strip()).decode("utf-8", "replace")
    last = " ".join(said.splitlines()[-3:])[-400:]
    if code == -1:
        return InfraError(
            f"{host}: the SSH connection broke{': ' if last else ''}{last}",
            "Look at its network, and at sshd's log there.",
        )
    if code == 127:
        return InfraError(
            f"{host}: {host.python} is not there: {last}",
            "Name one with 'python' in the hosts file, or an 'environment' script that brings it.",
        )
    if code == _ABSENT:
        return Absent(f"{host}: {last}")
    if code == 9:
        return InfraError(f"{host}: {last}", "Correct 'environment' in the hosts file.")
    if code == 126:
        hint = "Name a Python with 'python' in the hosts file."
    elif host.container:
        hint = "Is the container running, and does it have sh and Python?"
    else:
        hint = f"Try `{command_of(host)} {shlex.quote(host.python)} --version`."
    what = last or "it said nothing"
    return InfraError(f"{host}: the remote command ended with code {code}: {what}", hint)


def parted(out: bytes) -> tuple[bytes, bytes, bytes]:
    """What came before a command's own output, the mark between, and its output."""
    return (b"\n" + out).partition(b"\n" + MARK + b"\n")
