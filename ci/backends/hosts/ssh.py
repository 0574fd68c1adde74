"""One host over SSH: a verified connection, a command on it, the loader of a run.

Enters: a :class:`Host`. Leaves: channels, and errors that name the host and
say what to do. Touches: ssh's own configuration, agent and known hosts
(reads them), the network.

Fabric reads ``~/.ssh/config``; jump hosts, keys, users and ports are those ssh
itself would use. A host key that is not known, or not the known one, is never
accepted here, whatever the configuration says.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import paramiko
from fabric import Config, Connection
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    NoValidConnectionsError,
    PasswordRequiredException,
    SSHException,
)

from ci.backends.hosts import ssh_config
from ci.backends.hosts.inventory import Host
from steps.core.case.numbers import dumps
from steps.core.errors import InfraError

CONNECT_SECONDS = 10.0
TRIES = 4
#: The line before a command's own output; what a login shell's rc file prints comes before it.
_MARK = b"multinode-output-begins"
_NOISE = 4096
_NO_KEY = "No authentication methods available"


class UnknownHostKey(SSHException):  # type: ignore[misc]
    """Nothing vouches for a host's key."""

    def __init__(self, name: str, kind: str, fingerprint: str) -> None:
        super().__init__(f"{name} {kind} {fingerprint}")
        self.name = name
        self.kind = kind
        self.fingerprint = fingerprint


class _Reject(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Refuse, with what one needs to know to decide."""

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        raise UnknownHostKey(hostname, key.get_name(), _fingerprint(key))


def _fingerprint(key: Any) -> str:
    import hashlib

    digest = hashlib.sha256(key.asbytes()).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


class Remote:
    """A host one can run commands on; a broken connection is made anew by :meth:`connect`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.handshake = 0.0
        self._connection: Connection | None = None

    def connect(self, tries: int = TRIES, seconds: float = CONNECT_SECONDS) -> None:
        """Connect, unless connected; sshd turns some of many away, so there are more tries.

        Raises:
            InfraError: the host is not there, is not the one it was, or lets us not in.
        """
        if self._connection is not None and self._connection.is_connected:
            return
        for left in reversed(range(tries)):
            began = time.monotonic()
            try:
                self._connection = self._open(seconds)
                self.handshake = time.monotonic() - began
                return
            except (OSError, SSHException, EOFError, ValueError) as error:
                final = isinstance(error, (UnknownHostKey, BadHostKeyException, socket.gaierror))
                final = final or isinstance(error, (AuthenticationException, TimeoutError))
                final = final or _NO_KEY in str(error)
                if final or left == 0:
                    raise _explain(self.host, error) from None
                time.sleep(0.3)

    def close(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            hops = [connection, *_gateways(connection)]
            for hop in hops:
                with contextlib.suppress(Exception):
                    hop.client.close()

    def start(self, command: str) -> paramiko.Channel:
        """Run a command; gives its channel.

        Raises:
            InfraError: the connection is broken.
        """
        assert self._connection is not None
        try:
            channel = self._connection.transport.open_session(timeout=CONNECT_SECONDS)
            channel.settimeout(CONNECT_SECONDS)
            channel.exec_command(command)
            return channel
        except (OSError, SSHException, EOFError, AttributeError) as error:
            raise _explain(self.host, error) from None

    def python(self, *words: str, cwd: str = "") -> str:
        """The command that runs the host's Python, inside the container if there is one."""
        host = self.host
        steps = ["umask 077", *(_sourcing(path) for path in host.environment)]
        if cwd:
            steps.append(f"cd {shlex.quote(cwd)} || exit 8")
        # An empty line first: what was printed before may have no end of line.
        steps.append(f"echo; echo {_MARK.decode()}")
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
            channel.settimeout(seconds)
            channel.sendall(given.encode())
            channel.shutdown_write()
            out = b"".join(_chunks(channel.recv))
            errors = b"".join(_chunks(channel.recv_stderr))
            code = channel.recv_exit_status()
        except (OSError, SSHException, EOFError) as error:
            raise _explain(self.host, error) from None
        finally:
            channel.close()
        noise, _, said = _parted(out)
        if code:
            raise failure(self.host, code, errors, noise)
        return said.decode("utf-8", "replace")

    def stream(self, command: str) -> tuple[paramiko.Channel, IO[bytes]]:
        """Run a command; gives its channel and its output, to be read as a file.

        Raises:
            InfraError: it fails before it says anything.
        """
        channel = self.start(command)
        out = channel.makefile("rb", 1 << 17)
        noise = b""
        while line := out.readline():
            if line.rstrip() == _MARK:
                return channel, out
            noise = (noise + line)[-_NOISE:]
        errors = b"".join(_chunks(channel.recv_stderr))
        raise failure(self.host, channel.recv_exit_status(), errors, noise)

    def _open(self, seconds: float) -> Connection:
        host = self.host
        connection = Connection(
            host.target,
            user=host.user or None,
            port=host.port or None,
            config=Config(ssh_config=ssh_config.read()),
            connect_timeout=int(seconds),
            connect_kwargs={"banner_timeout": seconds, "auth_timeout": seconds},
        )
        hops = [connection, *_gateways(connection)]
        for hop in hops:
            _verify(hop)
            # ssh passes over key files that are not there; paramiko would fail.
            named = hop.connect_kwargs.get("key_filename") or []
            named = [named] if isinstance(named, str) else named
            kept = [name for name in named if Path(name).expanduser().exists()]
            hop.connect_kwargs["key_filename"] = kept
        try:
            connection.open()
        except BadHostKeyException as error:
            ports = [hop.port for hop in hops if hop.host == error.hostname and hop.port != 22]
            error.hostname = f"[{error.hostname}]:{ports[0]}" if ports else error.hostname
            raise
        return connection


def _gateways(connection: Connection) -> Iterator[Connection]:
    """The jump hosts before a connection."""
    gateway = connection.gateway
    while isinstance(gateway, Connection):
        yield gateway
        gateway = gateway.gateway


def _verify(connection: Connection) -> None:
    """Let a connection accept known host keys only; Fabric would accept any."""
    client = connection.client
    client.set_missing_host_key_policy(_Reject())
    settings = connection.ssh_config
    named = settings.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2").split()
    named += settings.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts").split()
    for name in named:
        path = Path(name).expanduser()
        if path.is_file():
            client.load_system_host_keys(str(path))
    alias = settings.get("hostkeyalias")
    if alias:
        port = connection.port
        own = connection.host if port == 22 else f"[{connection.host}]:{port}"
        for kind, key in (client._system_host_keys.lookup(alias) or {}).items():
            client.get_host_keys().add(own, kind, key)


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


def _ssh_of(host: Host) -> str:
    """The command a person would type to enter the host."""
    port = ("-p", str(host.port)) if host.port else ()
    return " ".join(("ssh", *port, f"{host.user}@{host.target}" if host.user else host.target))


def _explain(host: Host, error: BaseException) -> InfraError:
    """What a failure to connect means, and what to do."""
    if isinstance(error, UnknownHostKey):
        return InfraError(
            f"{host}: the host key of {error.name} is not known ({error.kind} {error.fingerprint})",
            f"Compare the fingerprint with the host's own, then add it: `{_ssh_of(host)}` once, "
            "or ssh-keyscan into ~/.ssh/known_hosts.",
        )
    if isinstance(error, BadHostKeyException):
        return InfraError(
            f"{host}: the host key of {error.hostname} has changed: it shows "
            f"{_fingerprint(error.key)}, known is "
            f"{_fingerprint(error.expected_key)}",
            "If the host was set up anew, remove the old key with "
            f"`ssh-keygen -R {error.hostname}` and add the new one; else somebody is in between.",
        )
    if isinstance(error, PasswordRequiredException):
        return InfraError(
            f"{host}: the key file is encrypted", "Load it into the agent first: ssh-add."
        )
    if isinstance(error, AuthenticationException) or _NO_KEY in str(error):
        none = _NO_KEY in str(error)
        return InfraError(
            f"{host}: you have no key to show it"
            if none
            else f"{host}: it accepts none of your keys",
            f"`{_ssh_of(host)}` must work without a password: ssh-copy-id, or ssh-add for the "
            "agent; 'user' in the hosts file says who you are there.",
        )
    if isinstance(error, socket.gaierror):
        return InfraError(
            f"{host}: there is no host of this name", "Check the name, or ~/.ssh/config."
        )
    if isinstance(error, (NoValidConnectionsError, ConnectionRefusedError)):
        return InfraError(
            f"{host}: cannot be reached over SSH: connection refused or no route",
            "Is the host up, and is sshd listening on that port?",
        )
    if isinstance(error, TimeoutError):
        return InfraError(f"{host}: does not answer over SSH", "Is it up, is a firewall between?")
    words = str(error) or type(error).__name__
    return InfraError(f"{host}: the SSH connection failed: {words}")


def failure(host: Host, code: int, errors: bytes, noise: bytes = b"") -> InfraError:
    """What a command that failed on a host means, and what to do.

    Args:
        code: its exit code; -1 when the connection ended before it.
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
    if code == 9:
        return InfraError(f"{host}: {last}", "Correct 'environment' in the hosts file.")
    if code == 126:
        hint = "Name a Python with 'python' in the hosts file."
    elif host.container:
        hint = "Is the container running, and does it have sh and Python?"
    else:
        hint = f"Try `{_ssh_of(host)} {shlex.quote(host.python)} --version`."
    what = last or "it said nothing"
    return InfraError(f"{host}: the remote command ended with code {code}: {what}", hint)


def _parted(out: bytes) -> tuple[bytes, bytes, bytes]:
    """What came before a command's own output, the mark between, and its output."""
    return (b"\n" + out).partition(b"\n" + _MARK + b"\n")


def _chunks(receive: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := receive(1 << 16):
        yield chunk


# The loader: Python that any Python can parse, so that an old one can say that it is old.

_LOADER = r"""
import os, sys, json
def say(**k):
    os.write(1, (json.dumps(k) + "\n").encode())
def line():
    text = b""
    while not text.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(1)
        text += byte
    return json.loads(text.decode())
if sys.version_info < (3, 10):
    say(python=list(sys.version_info[:3]), old=True)
    sys.exit(0)
import importlib.util, io, platform, shutil, socket, tarfile, time
where = sys.argv[1]
missing = [n for n in sys.argv[2].split(",") if importlib.util.find_spec(n) is None]
try:
    free = shutil.disk_usage(where).free
except OSError as error:
    say(error=where + ": " + (error.strerror or str(error)), python=list(sys.version_info[:3]))
    sys.exit(0)
say(python=list(sys.version_info[:3]), missing=missing, time=time.time(), free=free,
    magic=importlib.util.MAGIC_NUMBER.hex(),
    machine=[sys.platform, platform.machine()], host=socket.gethostname())
head = line()
base, place = head["base"], head["place"]
step = "making " + base
try:
    try:
        os.mkdir(base, 0o700)
    except FileExistsError:
        found = os.lstat(base)
        if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
            raise OSError(1, "is somebody else's")
    step = "unpacking into " + base
    data = bytearray()
    while len(data) < head["size"]:
        chunk = os.read(0, min(1 << 20, head["size"] - len(data)))
        if not chunk:
            sys.exit(1)
        data += chunk
    unpacked = place + ".new"
    archive = tarfile.open(fileobj=io.BytesIO(bytes(data)))
    if hasattr(tarfile, "fully_trusted_filter"):
        archive.extraction_filter = tarfile.fully_trusted_filter
    archive.extractall(unpacked)
    try:
        os.rename(unpacked + "/bundle", base + "/bundle")
    except OSError:
        if not os.path.isdir(base + "/bundle"):
            raise
        shutil.rmtree(unpacked + "/bundle")
    os.rename(unpacked, place)
except OSError as error:
    shutil.rmtree(place + ".new", True)
    shutil.rmtree(place, True)
    try:
        if not any(n.startswith("host-") for n in os.listdir(base)):
            shutil.rmtree(base, True)
    except OSError:
        pass
    say(error=step + ": " + (error.strerror or str(error)))
    sys.exit(0)
os.chdir(base + "/bundle")
own, theirs = os.pipe()
hear, tell = os.pipe()
pid = os.fork()
if pid == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    log = os.open(place + "/keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(own, 0), os.dup2(tell, 1), os.dup2(log, 2)
    os.closerange(3, 64)
    environment = dict(os.environ, MULTINODE_PLACE=place)
    os.execve(sys.executable, [sys.executable, "-m", "steps.core.node.keeper", "run"], environment)
os.close(own), os.close(tell)
os.waitpid(pid, 0)
os.write(theirs, (json.dumps(head["keep"]) + "\n").encode())
os.close(theirs)
if os.read(hear, 64) != b"ready\n":
    with open(place + "/keeper.log") as source:
        say(error="the keeper did not start: " + source.read()[-600:])
    sys.exit(0)
os.close(hear)
say(kept=True)
sys.path.insert(0, base + "/bundle")
from steps.core.node.keeper import main
sys.exit(main(["relay", place]))
"""


def loader(directory: str, needed: Sequence[str]) -> tuple[str, ...]:
    """The words after ``python`` that load a run onto a host.

    No quote, no line break and no exclamation mark is in them, since the
    host's login shell may be any.
    """
    code = base64.b64encode(_LOADER.encode()).decode()
    return ("-c", f"import base64;exec(base64.b64decode(b'{code}'))", directory, ",".join(needed))


class Wire:
    """JSON lines both ways over a channel."""

    def __init__(self, host: Host, channel: paramiko.Channel) -> None:
        self._host = host
        self.channel = channel
        self._begun = False
        self._buffer = b""

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Send one line, and bytes after it.

        Raises:
            OSError: the connection is broken.
        """
        data = memoryview(dumps(message).encode() + b"\n" + payload)
        try:
            self.channel.sendall(data)
        except (SSHException, EOFError) as error:
            raise ConnectionError(str(error)) from None

    def lines(self, seconds: float) -> list[dict[str, Any]] | None:
        """Lines that came within ``seconds``; None when the other side has ended."""
        self.channel.settimeout(seconds)
        try:
            data = self.channel.recv(1 << 17)
        except TimeoutError:
            return []
        except (OSError, SSHException, EOFError):
            return None
        if not data:
            return None
        self._buffer += data
        if not self._begun:
            noise, mark, rest = _parted(self._buffer)
            self._begun, self._buffer = bool(mark), rest if mark else noise[-_NOISE:]
            if not mark:
                return []
        *whole, self._buffer = self._buffer.split(b"\n")
        found = []
        for line in whole:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    found.append(message)
        return found

    def one(self, seconds: float) -> dict[str, Any]:
        """The next line.

        Raises:
            InfraError: none came, with what the host said instead.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.lines(min(1.0, seconds))
            if found is None:
                errors = b"".join(_chunks(self.channel.recv_stderr))
                noise = b"" if self._begun else self._buffer
                raise failure(self._host, self.channel.recv_exit_status(), errors, noise)
            if found:
                return found[0]
        said = "" if self._begun else self._buffer.decode("utf-8", "replace").strip()[-200:]
        raise InfraError(
            f"{self._host}: {self._host.python if self._begun else 'its shell'} said nothing of "
            f"use for {seconds:.0f} s{': ' if said else ''}{said}",
            f"Does `{_ssh_of(self._host)} {shlex.quote(self._host.python)} --version` answer?",
        )
