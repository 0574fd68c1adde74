"""One host of a run: the run is put there, its keeper is followed, its end is judged.

Enters: a host, what goes there. Leaves: events, logs and the plan in the run
directory, a cause when the node program left no record. Touches: one connection,
one directory on the host.
"""

from __future__ import annotations

import contextlib
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ci.backends import Request
from ci.backends.hosts.cargo import Cargo, loader
from ci.backends.hosts.client import Client
from ci.backends.hosts.inventory import Host
from ci.backends.hosts.ssh import STALL, Remote
from ci.backends.hosts.wire import Wire
from steps.core.errors import InfraError, MultinodeError
from steps.core.node import bundle, contract
from steps.core.record.events import Event
from steps.core.record.records import Cause
from steps.core.record.rundir import appending, write_text

BEAT = 1.0
#: A connection that says nothing for so long is taken to be broken.
SILENT = 4.0
RECONNECT_SECONDS = 3
_MINIMUM = (3, 10)
BROKEN = (OSError, EOFError, tarfile.TarError, zlib.error)


class Session:
    """One host of a run: its connection, what came over it, how its node ended."""

    def __init__(
        self,
        request: Request,
        index: int,
        host: Host,
        client: Client,
        base: str,
        token: str,
        cargo: Cargo,
        wake: Callable[[], None],
    ) -> None:
        self.request = request
        self.index = index
        self.host = host
        self.remote = Remote(host, client)
        self.skew = 0.0
        self.version = ""
        self.judged = False
        self._base = base
        self.bundle = f"{base}/bundle"
        self.place = f"{base}/host-{index}"
        self._token = token
        self._cargo = cargo
        self._wake = wake
        self._wire: Wire | None = None
        self._staged = False
        self._ended: dict[str, Any] | None = None
        self._gone = ""
        self.started = False
        self._unreached = ""
        self._trouble = ""
        self._events_at = 0
        self._logs: dict[str, int] = {}
        self._heard = time.monotonic()
        self._beaten = 0.0
        self._detached = threading.Event()
        self._thread: threading.Thread | None = None

    # Staging

    def stage(self) -> None:
        """Connect, ship, leave a keeper there.

        Raises:
            InfraError: what the host lacks, or refuses.
        """
        self.remote.connect()
        self._go_on()
        words = loader(str(Path(self._base).parent), tuple(bundle.NEEDED))
        wire = Wire(self.host, self.remote.start(self.remote.python(*words)))
        asked = time.time()
        hello = wire.one(30.0)
        self._check(hello, asked, time.time())
        archive = self._cargo.archive(hello["missing"], str(hello["magic"]))
        self._go_on()
        head = {
            "base": self._base,
            "place": self.place,
            "size": len(archive),
            "keep": {
                "place": self.place,
                "index": self.index,
                "token": self._token,
                "lease": self.host.lease,
                "argv": self._node_argv(),
            },
        }
        self._staged = True
        with as_infra(self.host):
            wire.send(head, archive)
        while "got" in (answer := wire.one(STALL)):
            self._go_on()
        if "error" in answer:
            raise InfraError(
                f"{self.host}: {answer['error']}",
                "'directory' in the hosts file chooses another place than "
                f"{Path(self._base).parent}.",
            )
        self._wire = wire
        self._heard = time.monotonic()

    def interrupt(self) -> None:
        """Give up staging; a signal handler may do that."""
        if self._wire is None and not self.started:
            self.remote.interrupt()

    def _go_on(self) -> None:
        if self.request.interrupted.is_set():
            raise InfraError(f"{self.host}: interrupted")

    def _check(self, hello: dict[str, Any], asked: float, answered: float) -> None:
        """Whether the host's Python is one the harness runs on."""
        self.version = ".".join(map(str, hello.get("python", [])))
        if hello.get("old"):
            wanted = ".".join(map(str, _MINIMUM))
            raise InfraError(
                f"{self.host}: {self.host.python} is Python {self.version}, expected {wanted} or "
                "newer",
                "Name a newer one with 'python' in the hosts file.",
            )
        if "error" in hello:
            raise InfraError(
                f"{self.host}: {hello['error']}", "Correct 'directory' in the hosts file."
            )
        where = Path(self._base).parent
        compiled = "psutil" in hello["missing"]
        if hello["noexec"] and (compiled or self.request.wishes.rehearsal):
            what = "psutil, which it lacks," if compiled else "stand-ins for the engines"
            raise InfraError(
                f"{self.host}: {where} is mounted noexec, and {what} cannot be used from there",
                "Name a 'directory' in the hosts file from which programs may be started.",
            )
        told = float(hello["time"])
        self.skew = told - min(max(told, asked), answered)
        own = bundle.platform()
        if compiled and hello["machine"] != own:
            raise InfraError(
                f"{self.host}: its Python has no psutil, and ours is for {' '.join(own)}, not for "
                f"{' '.join(hello['machine'])}",
                f"Install it there: {self.host.python} -m pip install psutil.",
            )

    def _node_argv(self) -> list[str]:
        start = contract.Start(
            self.index,
            f"{self.place}/run",
            case=f"{self.place}/case/{self._cargo.case_name}",
            cluster=f"{self.place}/cluster.json",
            run=self.request.run,
            more=self.request.wishes.node_words(),
        )
        return start.argv("")[1:]

    def go(self) -> None:
        """Let the node program start."""
        if self._wire is not None:
            with contextlib.suppress(OSError):
                self._follow_from(self._wire)
                self._wire.send({"go": True})

    # Following

    @property
    def over(self) -> bool:
        """Whether nothing more can come from this host."""
        return bool(self._ended is not None or self._gone or self._unreached)

    @property
    def reachable(self) -> bool:
        """Whether something of the run is there, and the host too."""
        return self._staged and not self._unreached

    @property
    def silent(self) -> float:
        """Seconds since the host was heard."""
        return time.monotonic() - self._heard

    def give_up(self, how: str, reached: bool = False) -> None:
        """Take the host for lost."""
        why = f": {self._trouble}" if self._trouble else ""
        self._unreached = f"did not end, {how}" if reached else f"cannot be reached, {how}{why}"

    def attend(self) -> None:
        """Begin to listen."""
        self._thread = threading.Thread(target=self._listen, name=f"host-{self.index}", daemon=True)
        self._thread.start()

    def detach(self) -> None:
        """Listen no more."""
        self._detached.set()

    def let_go(self) -> None:
        """Listen no more, and end the command over which one listened."""
        self.detach()
        self.join()
        if self._wire is not None:
            self._wire.channel.close()

    def join(self) -> None:
        """Wait for the listener, unless it hangs on a host that is away."""
        if self._thread is not None:
            self._thread.join(2.0 if self._wire is not None and not self._unreached else 0.1)

    def say(self, word: str) -> None:
        """A word for the node program."""
        wire = self._wire
        if wire is not None:
            with contextlib.suppress(OSError):
                wire.send({"say": word})

    def _listen(self) -> None:
        while not self._detached.is_set() and not self._gone:
            wire = self._wire
            if wire is None:
                self._connect_again()
                continue
            lines = wire.lines(0.25)
            now = time.monotonic()
            self._heard = max(self._heard, wire.heard)
            if lines is None or now - self._heard > SILENT:
                self._drop("the connection broke" if lines is None else "it says nothing")
                continue
            for message in lines:
                self._take(message)
            if now - self._beaten >= BEAT:
                self._beaten = now
                try:
                    wire.send({"beat": round(now, 3)})
                except OSError:
                    self._drop("the connection broke")

    def _drop(self, why: str) -> None:
        self._trouble, self._wire = why, None
        if self._gone:
            return
        self.request.events.emit("warning", text=f"{self.host}: {why}; connecting again")
        self.remote.close()

    def _connect_again(self) -> None:
        try:
            self.remote.close()
            self.remote.connect(tries=1, seconds=RECONNECT_SECONDS)
            relay = self.remote.python(
                "-m", "steps.core.node.keeper", "relay", self.place, cwd=self.bundle
            )
            wire = Wire(self.host, self.remote.start(relay))
            self._follow_from(wire)
        except (MultinodeError, OSError) as error:
            self._trouble = error.message if isinstance(error, MultinodeError) else str(error)
            self._detached.wait(0.5)
            return
        self._heard = time.monotonic()
        self._wire = wire
        self.request.say(f"{self.host}: connected again")

    def _follow_from(self, wire: Wire) -> None:
        plan = self.request.run_dir.plan.exists()
        follow = {"events": self._events_at, "logs": self._logs, "plan": plan}
        wire.send({"follow": follow})

    def _take(self, message: dict[str, Any]) -> None:
        """One line of the keeper."""
        if "events" in message and message["at"] > self._events_at:
            self._events_at = int(message["at"])
            self._pass_on(str(message["events"]))
        elif "log" in message and message["at"] == self._logs.get(message["log"], 0):
            self._logs[message["log"]] = int(message["to"])
            name = PurePosixPath(message["log"]).name
            self._append(name, str(message["text"]))
        elif "plan" in message and not self.request.run_dir.plan.exists():
            write_text(self.request.run_dir.plan, str(message["plan"]))
        elif "started" in message and not self.started:
            self.started = True
            self.request.events.emit("node-started", member=self.index, pid=message["started"])
        elif "ended" in message:
            self._ended = message["ended"]
            self._wake()
        elif "gone" in message:
            self._gone = str(message["gone"])
            self._wake()

    def _pass_on(self, text: str) -> None:
        self._append("events.jsonl", text)
        for line in text.splitlines():
            event = Event.from_json(line)
            if event is not None:
                for listener in self.request.events.listeners:
                    listener(event)

    def _append(self, name: str, text: str) -> None:
        path = self.request.run_dir.node(self.index).make().path / name
        with contextlib.suppress(OSError), appending(path) as out:
            out.write(text.encode("utf-8", "backslashreplace"))

    def death(self, began: float) -> Cause | None:
        """The cause that this host's end is; None when its node program left a record."""
        ended = self._ended
        if ended is not None and ended["record"]:
            return None
        code = ended["code"] if ended is not None else None
        if code is not None:
            reason = contract.ended(code)
            hint = f"Look at node-{self.index}/node.log and at what else happened on {self.host}."
        elif self._gone:
            reason = f"the keeper on host {self.host} is gone: {self._gone}"
            hint = "Was it killed there, or did the host start anew?"
        else:
            reason = f"host {self.host} {self._unreached}"
            hint = (
                f"Look at its network and power. What it has of the run is in {self.place}; its "
                f"node program ends by itself within {self.host.lease:g} s."
            )
        return contract.lost(
            self.index,
            reason,
            began,
            process="keeper" if self._gone else "node",
            exit_code=code if code is not None and code >= 0 else None,
            hint=hint,
        )

    def close(self) -> None:
        """Hang up."""
        self.remote.close()


@contextlib.contextmanager
def as_infra(host: Host) -> Iterator[None]:
    """A broken connection as an error for the user."""
    try:
        yield
    except BROKEN as error:
        raise InfraError(f"{host}: the SSH connection broke: {error}") from None
