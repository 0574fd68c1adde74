"""hosts: every node of a case on a machine of its own, over SSH, from one place.

Enters: a request, the hosts of the case, ``--hosts``, or a hosts file. Leaves:
every node's files in the run directory, and causes that only the runner saw.
Touches: on each host one directory that carries the run id, and what runs
from it; both are gone at the end.

Each host gets the harness as a stream over one SSH channel, and a keeper
(``steps.core.node.keeper``) that starts the node program, outlives a broken connection and
ends with its lease. The nodes meet as those started by hand do; the leader
makes the plan from what they tell.
"""

from __future__ import annotations

import contextlib
import secrets
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from paramiko.ssh_exception import SSHException

from ci.backends import Request
from ci.backends.hosts import inventory as hosts_file
from ci.backends.hosts.inventory import Host, Inventory
from ci.backends.hosts.ssh import Remote, Wire, loader
from steps.core import settings
from steps.core.case.numbers import dumps, loads
from steps.core.errors import InfraError, MultinodeError
from steps.core.node import bundle, contract, wishes
from steps.core.plan.cluster import Cluster, ClusterNode
from steps.core.plan.plan import LEADER, from_json
from steps.core.record.events import Event
from steps.core.record.records import Cause, record_from
from steps.core.record.rundir import read_json, sha256_of, write_text

BEAT = 1.0
#: A connection that says nothing for so long is taken to be broken.
SILENT = 4.0
#: Once every host one can reach has ended, how long one waits for the others.
LAST_WAIT = 0.5
#: A host from which nothing has come for so long, though each beat is answered, is then cut off.
QUIET = 2.5
RECONNECT_SECONDS = 3
SKEW = 1.0
#: Beyond the plan's own budgets for stopping and collecting.
PATIENCE = 30.0
_MINIMUM = (3, 10)
#: What a node program does not import when it starts.
_UNUSED = ("steps/lint/", "rehearsal/")
_BROKEN = (OSError, EOFError, SSHException, tarfile.TarError, zlib.error)


def run(request: Request) -> tuple[Cause, ...]:
    """Carry the case out on its hosts."""
    inventory = hosts_file.of_run(request.case, request.arguments.hosts)
    crew = Crew(request, inventory)
    try:
        crew.stage()
        observed = crew.follow()
        crew.fetch()
        return tuple(cause for cause in observed if not _has_record(request, cause))
    finally:
        crew.leave()


def cluster_of(request: Request, inventory: Inventory) -> Cluster:
    """The machines as the nodes start from them; each adds what it knows of itself."""
    rehearsal = wishes.rehearsal_of(request.arguments)
    here = f"{base_of(request, inventory)}/bundle/rehearsal"
    paths = {"PATH": (f"{here}/bin",), "PYTHONPATH": (f"{here}/lib",)}
    return Cluster(
        name="rehearsal" if rehearsal else "hosts",
        backend="hosts",
        nodes=tuple(
            ClusterNode(i, host.address, host.interface) for i, host in enumerate(inventory.hosts)
        ),
        control_port=settings.read().control_port,
        paths=paths if rehearsal else {},
        rehearsal=rehearsal,
    )


def base_of(request: Request, inventory: Inventory) -> str:
    """The run's directory on every host."""
    return f"{inventory.directory.rstrip('/')}/multinode-{request.run}"


class Crew:
    """All hosts of a run."""

    def __init__(self, request: Request, inventory: Inventory) -> None:
        self.request = request
        self.changed = threading.Condition()
        token = settings.read().token or secrets.token_hex(16)
        base = base_of(request, inventory)
        cargo = Cargo(request, cluster_of(request, inventory))
        self.sessions = [
            Session(request, i, host, base, token, cargo, self._wake)
            for i, host in enumerate(inventory.hosts)
        ]
        request.on_interrupt.append(lambda count: self._say(contract.STOP))

    def stage(self) -> None:
        """Put the run onto every host; start it only if it is on all of them.

        Raises:
            InfraError: with what is wrong with each host.
        """
        began = time.monotonic()
        problems = [problem for problem in self._all(Session.stage) if problem is not None]
        if problems:
            raise InfraError(
                "; ".join(problem.message for problem in problems),
                " ".join(dict.fromkeys(p.hint for p in problems if p.hint))
                or "Nothing was started.",
            )
        for session in self.sessions:
            session.go()
        handshake = max(session.remote.handshake for session in self.sessions)
        self.request.events.emit(
            "note",
            text=f"{len(self.sessions)} hosts have the run after "
            f"{time.monotonic() - began:.1f} s, {handshake:.1f} s of it SSH handshakes",
            handshake=round(handshake, 3),
            seconds=round(time.monotonic() - began, 3),
        )
        self._compare()

    def _compare(self) -> None:
        """What differs between hosts and may explain trouble later."""
        for session in self.sessions:
            if abs(session.skew) > SKEW:
                self.request.events.emit(
                    "warning",
                    text=f"{session.host}: its clock is {abs(session.skew):.1f} s "
                    f"{'ahead of' if session.skew > 0 else 'behind'} this machine's; "
                    "times of its events are off by that. Run chrony or ntpd there.",
                )
        versions: dict[str, list[str]] = {}
        for session in self.sessions:
            versions.setdefault(session.version, []).append(str(session.host))
        if len(versions) > 1:
            text = "; ".join(f"{v} on {', '.join(names)}" for v, names in versions.items())
            self.request.events.emit("warning", text=f"Python differs between hosts: {text}")

    def follow(self) -> list[Cause]:
        """Until every node program has ended or is out of reach."""
        began, last_end = time.time(), 0.0
        observed: list[Cause] = []
        for session in self.sessions:
            session.attend()
        if self.request.interrupted.is_set():
            self._say(contract.STOP)
        while True:
            with self.changed:
                self.changed.wait(0.2)
            for session in self.sessions:
                if session.over and not session.judged:
                    session.judged, last_end = True, time.monotonic()
                    cause = session.death(began)
                    if cause is not None:
                        observed.append(cause)
                        self.request.events.emit("cause", text=str(cause), verdict=cause.verdict)
                        self._tell(session, cause)
            live = [session for session in self.sessions if not session.over]
            if not live:
                return observed
            quiet = time.monotonic() - last_end if last_end else 0.0
            for session in live:
                if session.silent > session.host.lease:
                    session.give_up(f"for {session.silent:.0f} s")
                elif last_end and quiet > LAST_WAIT and all(s.silent > QUIET for s in live):
                    session.give_up("when the run had ended everywhere else")
                elif last_end and quiet > self._patience():
                    session.give_up(f"though the others ended {quiet:.0f} s ago", reached=True)

    def _patience(self) -> float:
        """How long the last nodes may take to stop and collect, in seconds."""
        with contextlib.suppress(OSError, ValueError):
            budgets = from_json(self.request.run_dir.plan.read_text(encoding="utf-8")).budgets
            return budgets["stop"].seconds + budgets["collect"].seconds + PATIENCE
        return 2 * PATIENCE

    def fetch(self) -> None:
        """Bring every node's files here, the leader's last."""
        for problem in self._all(Session.fetch):
            if problem is not None:
                self.request.events.emit("warning", text=problem.message)

    def leave(self) -> None:
        """End and remove what is ours on every host; says what could not be removed."""
        for session in self.sessions:
            session.detach()
        for session in self.sessions:
            session.join()
        for problem in self._all(Session.clean):
            if problem is not None:
                self.request.events.emit("warning", text=problem.message)
        for session in self.sessions:
            session.close()

    def _all(self, work: Callable[[Session], None]) -> list[MultinodeError | None]:
        """Do something on all hosts at once; what went wrong on each."""

        def attempt(session: Session) -> MultinodeError | None:
            try:
                work(session)
            except MultinodeError as error:
                return error
            return None

        with ThreadPoolExecutor(len(self.sessions)) as pool:
            return list(pool.map(attempt, self.sessions))

    def _tell(self, dead: Session, cause: Cause) -> None:
        """Tell the leader, or everybody when it was the leader, so that nobody waits."""
        word = str(contract.Lost.of(cause))
        for session in self.sessions:
            if not session.over and LEADER in (dead.index, session.index):
                session.say(word)

    def _say(self, word: str) -> None:
        for session in self.sessions:
            session.say(word)

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()


class Cargo:
    """What goes to the hosts: the harness, the case, the cluster, missing packages."""

    def __init__(self, request: Request, cluster: Cluster) -> None:
        case = Path(request.case.file)
        self.case_name = case.name
        texts = {"cluster.json": dumps(cluster.to_dict())}
        texts[f"case/{case.name}"] = case.read_text(encoding="utf-8-sig")
        script = PurePosixPath(request.case.proxy.script or ".")
        beside = case.parent / script
        if not script.is_absolute() and ".." not in script.parts and beside.is_file():
            texts[f"case/{script}"] = beside.read_text(encoding="utf-8")
        self._own = list(bundle.texts(texts))
        self._made: dict[tuple[bool, tuple[str, ...]], bytes] = {}
        self._lock = threading.Lock()
        self._harness: list[bundle.Entry] = []
        self._compiled: list[bundle.Entry] = []
        self._reader = threading.Thread(target=self._read, name="cargo", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Read and compile the harness while the hosts are being called."""
        self._harness = list(bundle.harness())
        needed = (e for e in self._harness if not e.name.startswith(_UNUSED))
        self._compiled = list(bundle.compiled(needed))

    def archive(self, missing: Sequence[str], magic: str) -> bytes:
        """The archive for a host that lacks these packages; made once for all such hosts."""
        self._reader.join()
        with self._lock:
            key = (magic == bundle.MAGIC, tuple(sorted(missing)))
            if key not in self._made:
                ours = [*self._harness, *bundle.packages(missing)]
                ours += self._compiled if key[0] else []
                placed = [bundle.Entry(f"bundle/{e.name}", e.content, e.program) for e in ours]
                self._made[key] = bundle.pack([*placed, *self._own])
            return self._made[key]


class Session:
    """One host of a run: its connection, what came over it, how its node ended."""

    def __init__(
        self,
        request: Request,
        index: int,
        host: Host,
        base: str,
        token: str,
        cargo: Cargo,
        wake: Callable[[], None],
    ) -> None:
        self.request = request
        self.index = index
        self.host = host
        self.remote = Remote(host)
        self.skew = 0.0
        self.version = ""
        self.judged = False
        self._base = base
        self._place = f"{base}/host-{index}"
        self._token = token
        self._cargo = cargo
        self._wake = wake
        self._wire: Wire | None = None
        self._staged = False
        self._verb = "clean"
        self._ended: dict[str, Any] | None = None
        self._gone = ""
        self._started = False
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
        if self.request.interrupted.is_set():
            return
        words = loader(str(Path(self._base).parent), tuple(bundle.NEEDED))
        wire = Wire(self.host, self.remote.start(self.remote.python(*words)))
        asked = time.time()
        hello = wire.one(30.0)
        self._check(hello, asked, time.time())
        archive = self._cargo.archive(hello["missing"], str(hello["magic"]))
        head = {
            "base": self._base,
            "place": self._place,
            "size": len(archive),
            "keep": {
                "place": self._place,
                "index": self.index,
                "token": self._token,
                "lease": self.host.lease,
                "argv": self._node_argv(),
            },
        }
        self._staged = True
        with _as_infra(self.host):
            wire.send(head, archive)
        answer = wire.one(60.0)
        if "error" in answer:
            raise InfraError(
                f"{self.host}: {answer['error']}",
                "'directory' in the hosts file chooses another place than "
                f"{Path(self._base).parent}.",
            )
        self._wire = wire
        self._heard = time.monotonic()

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
        told = float(hello["time"])
        self.skew = told - min(max(told, asked), answered)
        own = bundle.platform()
        if "psutil" in hello["missing"] and hello["machine"] != own:
            raise InfraError(
                f"{self.host}: its Python has no psutil, and ours is for {' '.join(own)}, not for "
                f"{' '.join(hello['machine'])}",
                f"Install it there: {self.host.python} -m pip install psutil.",
            )

    def _node_argv(self) -> list[str]:
        arguments = self.request.arguments
        more = [part for entry in arguments.timeout for part in ("--timeout", entry)]
        more += ["--bench", arguments.bench] if arguments.bench else []
        start = contract.Start(
            self.index,
            f"{self._place}/run",
            case=f"{self._place}/case/{self._cargo.case_name}",
            cluster=f"{self._place}/cluster.json",
            run=self.request.run,
            more=more,
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
            if lines is None or (not lines and now - self._heard > SILENT):
                self._drop("the connection broke" if lines is None else "it says nothing")
                continue
            if lines:
                self._heard = now
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
                "-m", "steps.core.node.keeper", "relay", self._place, cwd=self._bundle
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

    @property
    def _bundle(self) -> str:
        return f"{self._base}/bundle"

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
        elif "started" in message and not self._started:
            self._started = True
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
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as out:
            out.write(text)

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
                f"Look at its network and power. What it has of the run is in {self._place}; its "
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

    # Fetching and cleaning

    def fetch(self) -> None:
        """Bring the node's files here.

        Raises:
            InfraError: they could not be fetched whole; what was followed is kept.
        """
        if not self._staged or self._unreached:
            return
        # A host may allow one session a connection.
        self.detach()
        self.join()
        if self._wire is not None:
            self._wire.channel.close()
        trouble = ""
        for _ in range(3):
            try:
                self.remote.connect(tries=2)
                self._unpack()
                wrong = self._verify()
                if not wrong:
                    return
                trouble = f"differ from the record: {', '.join(wrong[:5])}"
            except (*_BROKEN, MultinodeError) as error:
                trouble = error.message if isinstance(error, MultinodeError) else str(error)
            self.remote.close()
        self._verb = "retire" if self._started else "clean"
        stay = f"; they stay in {self._place}/run there" if self._started else ""
        raise InfraError(f"{self.host}: not all files could be fetched{stay}: {trouble}")

    def _unpack(self) -> None:
        command = self.remote.python(
            "-m", "steps.core.node.keeper", "pack", self._place, cwd=self._bundle
        )
        channel, out = self.remote.stream(command)
        channel.settimeout(60.0)
        try:
            with tarfile.open(fileobj=out, mode="r|gz") as archive:
                for member in archive:
                    target = self._target(member)
                    source = archive.extractfile(member)
                    if target is None or source is None:
                        continue
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    part = target.with_name(f".{target.name}.part")
                    part.touch(0o600)
                    with part.open("wb") as copy:
                        while chunk := source.read(1 << 20):
                            copy.write(chunk)
                    part.replace(target)
        except tarfile.TarError as error:
            words = channel.recv_stderr(4096).decode("utf-8", "replace").strip().splitlines()
            raise OSError(f"{error}{': ' if words else ''}{''.join(words[-1:])}") from None
        finally:
            channel.close()

    def _target(self, member: tarfile.TarInfo) -> Path | None:
        """Where a file goes: the node's own, and from the leader what others lack here."""
        name = PurePosixPath(member.name)
        if not member.isreg() or name.is_absolute() or ".." in name.parts:
            return None
        target = self.request.run_dir.path / name
        if name.parts[0] == f"node-{self.index}":
            return target
        from_others = self.index == LEADER and name.name in ("record.json", "plan.json")
        return target if from_others and not target.exists() else None

    def _verify(self) -> list[str]:
        """Artifacts that are not here as the record has them."""
        node = self.request.run_dir.node(self.index)
        record = record_from(read_json(node.record))
        wrong = []
        for artifact in record.artifacts if record else ():
            path = node.path / artifact.path
            if not path.is_file() or sha256_of(path) != artifact.sha256:
                wrong.append(artifact.path)
        return wrong

    def clean(self) -> None:
        """End and remove everything of the run on the host; files not fetched whole stay.

        Raises:
            InfraError: something is left, and what.
        """
        if not self._staged or self._unreached:
            return
        try:
            text = self._call_keeper()
        except InfraError:
            self.remote.close()
            text = self._call_keeper()
        try:
            found = loads(text)
        except ValueError:
            found = {"left": [], "removed": False}
        if found["left"]:
            raise InfraError(
                f"{self.host}: processes were left and have been killed: {', '.join(found['left'])}"
            )
        if not found["removed"] and self._verb == "clean":
            raise InfraError(f"{self.host}: {self._place} could not be removed")

    def _call_keeper(self) -> str:
        """What cleaning prints; the connection may be gone by now."""
        with _as_infra(self.host):
            self.remote.connect(tries=2)
            return self.remote.call(
                "-m",
                "steps.core.node.keeper",
                self._verb,
                self._place,
                cwd=self._bundle,
                seconds=30.0,
            )

    def close(self) -> None:
        """Hang up."""
        self.remote.close()


@contextlib.contextmanager
def _as_infra(host: Host) -> Iterator[None]:
    """A broken connection as an error for the user."""
    try:
        yield
    except _BROKEN as error:
        raise InfraError(f"{host}: the SSH connection broke: {error}") from None


def _has_record(request: Request, cause: Cause) -> bool:
    """Whether a node that seemed to have left no record left one with the leader."""
    if cause.node is None or cause.process != "node":
        return False
    return record_from(read_json(request.run_dir.node(cause.node).record)) is not None
