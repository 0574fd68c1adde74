"""keep: hold a node program that somebody far away started, by a lease.

Enters: what to start, on standard input; afterwards words of the runner over a
Unix socket. Leaves: the node program's events and logs, passed on from any
position, and its run directory until it is fetched. Touches: one node program,
one directory, one socket that only its owner can open.

An SSH session may break while a run goes on, and must not take the node
program with it; but a run whose runner has died must not go on either. So the
node program hangs on this keeper, which has left the session, and the keeper
lives by a lease that the runner renews over whatever connection it has. When
the lease runs out, the keeper closes the node program's standard input, which
ends the run as interrupted.

    run          started by the loader of ``ci.backends.hosts``: keep one node program
    relay DIR    standard input and output <-> the keeper of DIR
    pack DIR     the run directory of DIR as a tar.gz on standard output
    clean DIR    end what is left of DIR, remove it, say what was left
    retire DIR   the same, but the results stay, for they could not be fetched

Lines are JSON objects. To the keeper: ``follow`` (from which position of events
and of each log), ``beat``, ``go``, ``say`` (a word for the node program),
``bye``. From it: ``beat``, ``started``, ``events``, ``log``, ``plan``, ``ended``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from steps.core import door
from steps.core.case.numbers import dumps
from steps.core.node.leftovers import (
    LEAVE_TICKS,
    LEFT,
    SOCKET,
    TICK,
    clean,
    leave_results,
    prune,
    retire,
)
from steps.core.record.rundir import RunDir, appending, write_text
from steps.core.redaction import here
from steps.core.system import ancestry, scratch

LEASE = 30.0
#: How long a node program may take to end after its lease; then its group is killed.
END_SECONDS = 180.0
_EVENTS_KEPT = 32 << 20
_UNSENT = 16 << 20
_PIECE = 256 << 10
NO_KEEPER = 7


@dataclass
class Client:
    """One relay that is connected."""

    sock: socket.socket
    unsent: bytearray = field(default_factory=bytearray)
    heard: bytearray = field(default_factory=bytearray)
    follows: bool = False
    events: int = 0
    logs: dict[str, int] = field(default_factory=dict)
    plan_sent: bool = False

    def tell(self, **message: Any) -> None:
        """Queue a message."""
        self.unsent += dumps(message).encode() + b"\n"


class Keeper:
    """Keeps one node program.

    Args:
        config: ``argv`` of the node program after the interpreter, its ``index``, the run's
            ``token``, seconds of the ``lease``.
    """

    def __init__(self, place: Path, config: Mapping[str, Any]) -> None:
        self.place = place
        self.run_dir = RunDir(place / "run").make()
        self.index = int(config["index"])
        self._argv = [str(word) for word in config["argv"]]
        self._token = str(config["token"])
        self._lease = float(config.get("lease", LEASE))
        self._renewed = time.monotonic()
        self._expired = 0.0
        self._node: subprocess.Popen[bytes] | None = None
        self._code: int | None = None
        self._events = bytearray()
        self._events_from = 0
        self._bye = False
        self._clients: dict[int, Client] = {}
        self._selector = selectors.DefaultSelector()
        self._redactor = here()
        self._redactor.learn([self._token])
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._orphans = ancestry.Orphans()

    def listen(self) -> None:
        """Open the socket; the path is relative, since such a path must be short."""
        os.chdir(self.place)
        self._server.bind(SOCKET)
        Path(SOCKET).chmod(0o600)
        self._server.listen(8)
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._expire())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def serve(self) -> None:
        """Until the runner says goodbye, or its lease ran out and the node program ended."""
        while not self._over():
            for key, _ in self._selector.select(TICK):
                key.data()
            self._watch()
            for client in list(self._clients.values()):
                self._follow(client)
                self._flush(client)
        self.end_orphans()
        for client in list(self._clients.values()):
            self._flush(client)
            client.sock.close()
        self._server.close()
        Path(SOCKET).unlink(missing_ok=True)
        if not self._bye:
            leave_results(self.place)

    def end_orphans(self) -> None:
        """End what a killed node program and its guard left, and say what that was."""
        node = [self._node.pid] if self._node is not None else []
        killed, _ = self._orphans.end(node, list, LEAVE_TICKS * TICK)
        scratch.prune_all()
        if killed:
            with contextlib.suppress(OSError):
                write_text(self.place / LEFT, "".join(f"{kin}\n" for kin in killed))

    # The node program

    def _go(self) -> None:
        """Start the node program; its token comes through a pipe, never through a file."""
        if self._node is not None:
            return
        read, write = os.pipe()
        os.write(write, self._token.encode())
        os.close(write)
        argv = [sys.executable, *self._argv, "--token-file", f"/dev/fd/{read}"]
        log = appending(self.run_dir.node(self.index).make().path / "node.log")
        try:
            self._node = subprocess.Popen(
                argv,
                cwd=self.place.parent / "bundle",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(read,),
                start_new_session=True,
            )
        finally:
            log.close()
            os.close(read)
        assert self._node.stdout is not None
        os.set_blocking(self._node.stdout.fileno(), False)
        self._selector.register(self._node.stdout, selectors.EVENT_READ, self._hear_node)
        self._tell_all(started=self._node.pid)

    def _hear_node(self) -> None:
        """Everything the node program has said by now."""
        assert self._node is not None
        out = self._node.stdout
        assert out is not None
        while not out.closed:
            try:
                data = os.read(out.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self._selector.unregister(out)
                out.close()
            self._events += data
            self._forget()

    def _forget(self) -> None:
        """A run of weeks must not fill the memory."""
        excess = len(self._events) - _EVENTS_KEPT
        if excess > 0:
            cut = self._events.find(b"\n", excess) + 1
            del self._events[:cut]
            self._events_from += cut

    def _watch(self) -> None:
        """Has the node program ended; is the lease still good."""
        now = time.monotonic()
        if self._node is not None and self._code is None and self._node.poll() is not None:
            self._hear_node()
            self._code = self._node.returncode
            for client in self._clients.values():
                self._follow(client)
            self._tell_all(ended=self._ending())
        if not self._expired and now - self._renewed > self._lease:
            self._expire()
        if self._expired and now - self._expired > END_SECONDS:
            self._kill_node()

    def _over(self) -> bool:
        """Nobody needs this keeper any more."""
        return bool(self._expired) and (self._node is None or self._code is not None)

    def _kill_node(self) -> None:
        """End the node program at once; its guard ends its servers."""
        if self._node is not None and self._code is None:
            with contextlib.suppress(OSError):
                os.killpg(self._node.pid, signal.SIGKILL)

    def _ending(self) -> dict[str, Any]:
        return {"code": self._code, "record": self.run_dir.node(self.index).record.exists()}

    def _expire(self) -> None:
        """The runner is gone: the node program's input closes, which ends the run."""
        self._expired = self._expired or time.monotonic()
        if self._node is not None and self._node.stdin is not None:
            with contextlib.suppress(OSError):
                self._node.stdin.close()

    # The runner

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._server.accept()
            sock.setblocking(False)
            client = Client(sock)
            self._clients[sock.fileno()] = client
            self._selector.register(sock, selectors.EVENT_READ, lambda: self._hear(client))

    def _hear(self, client: Client) -> None:
        try:
            data = client.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.heard += data
        *lines, rest = bytes(client.heard).split(b"\n")
        client.heard = bytearray(rest)
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                self._obey(client, json.loads(line))

    def _obey(self, client: Client, message: Mapping[str, Any]) -> None:
        """One message of the runner."""
        if not self._expired:
            self._renewed = time.monotonic()
        if "beat" in message:
            client.tell(beat=message["beat"])
        if message.get("go"):
            self._go()
        if "follow" in message:
            wanted = message["follow"]
            client.follows = True
            client.logs = {str(k): int(v) for k, v in wanted["logs"].items()}
            client.plan_sent = bool(wanted.get("plan"))
            client.events = int(wanted["events"])
            if self._node is not None:
                client.tell(started=self._node.pid)
            self._follow(client)
            if self._code is not None:
                client.tell(ended=self._ending())
        if "say" in message and self._node is not None and self._node.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._node.stdin.write(str(message["say"]).encode() + b"\n")
                self._node.stdin.flush()
        if message.get("bye"):
            self._bye = True
            # Killed before its input closes: it shall not begin an end of its own in between.
            self._kill_node()
            self._expire()

    def _follow(self, client: Client) -> None:
        """Pass on what is new since the position the client has."""
        if not client.follows or len(client.unsent) > _UNSENT:
            return
        at = max(client.events, self._events_from)
        fresh = bytes(self._events[at - self._events_from :])
        whole = fresh.rfind(b"\n") + 1
        if whole:
            text = fresh[:whole].decode("utf-8", "replace")
            client.tell(events=text, at=at + whole)
            client.events = at + whole
        if not client.plan_sent and self.index == 0 and self.run_dir.plan.exists():
            with contextlib.suppress(OSError):
                client.tell(plan=self.run_dir.plan.read_text(encoding="utf-8"))
                client.plan_sent = True
        with contextlib.suppress(OSError):
            for path in self.run_dir.node(self.index).path.glob("*.log"):
                self._follow_log(client, path)

    def _follow_log(self, client: Client, path: Path) -> None:
        """Whole new lines of a log, without secrets; a piece at a time."""
        at = client.logs.get(path.name, 0)
        if path.stat().st_size <= at:
            return
        with path.open("rb") as source:
            source.seek(at)
            data = source.read(_PIECE)
        whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == _PIECE else 0)
        if whole:
            text = self._redactor.text(data[:whole].decode("utf-8", "replace"))
            client.logs[path.name] = at + whole
            client.tell(log=path.name, text=text, at=at, to=at + whole)

    def _tell_all(self, **message: Any) -> None:
        for client in self._clients.values():
            if client.follows:
                client.tell(**message)

    def _flush(self, client: Client) -> None:
        while client.unsent:
            try:
                sent = client.sock.send(client.unsent[:65536])
            except BlockingIOError:
                return
            except OSError:
                self._drop(client)
                return
            del client.unsent[:sent]

    def _drop(self, client: Client) -> None:
        for number, known in list(self._clients.items()):
            if known is client:
                del self._clients[number]
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(client.sock)
                client.sock.close()


def run() -> int:
    """Keep one node program; the configuration is one line of standard input."""
    config = json.loads(sys.stdin.buffer.readline())
    ancestry.adopt()
    keeper = Keeper(Path(config["place"]), config)
    keeper.listen()
    prune(keeper.place.parent.parent)
    os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    keeper.serve()
    return 0


def relay(place: Path) -> int:
    """Pass bytes on between standard input and output and the keeper, until one side ends."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.chdir(place)
        sock.connect(SOCKET)
    except OSError as error:
        os.write(1, dumps({"gone": f"{error.strerror or error}"}).encode() + b"\n")
        return NO_KEEPER
    while True:
        ready, _, _ = select.select([0, sock.fileno()], [], [])
        for source in ready:
            data = os.read(source, 1 << 16)
            if not data:
                return 0
            if source == 0:
                sock.sendall(data)
            else:
                _write_all(data)


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


class Whole:
    """A file from which all that is asked for comes: zeros where it is shorter by now."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def read(self, size: int) -> bytes:
        """So many bytes; an archive whose files are not as long as they said cannot be read."""
        data = b""
        with contextlib.suppress(OSError):
            data = self._source.read(size)
        return data + bytes(size - len(data))


def pack(place: Path) -> int:
    """The run directory as a compressed stream."""
    import gzip
    import tarfile

    with (
        os.fdopen(1, "wb", closefd=False) as out,  # unlike words, lost files are a failure
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        root = place / "run"
        found = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
        # Records first: they say how large the rest is. What is no file is named, not followed.
        for path in sorted(found, key=lambda path: (path.name != "record.json", str(path))):
            with contextlib.suppress(OSError):  # gone since, or closed: what is there is sent
                member = archive.gettarinfo(path, str(path.relative_to(root)))
                if member is not None and not member.isreg():
                    archive.addfile(member)
                elif member is not None:
                    with path.open("rb") as source:
                        archive.addfile(member, Whole(source))  # type: ignore[arg-type]
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m steps.core.node.keeper run | relay DIR | pack DIR | clean DIR | retire DIR``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["run"]:
        return door.guarded(run)
    verbs = {"relay": relay, "pack": pack, "clean": clean, "retire": retire}
    if len(words) == 2 and words[0] in verbs:
        return door.guarded(lambda: verbs[words[0]](Path(words[1])))
    print("keep is started by the runner: run | relay | pack | clean | retire", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
