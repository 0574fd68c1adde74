"""Containers as local processes.

Enters: an argv, an environment, volumes as (source on disk, mount path). Leaves: a running
    process, its log file,
its exit code. Touches processes and the directory it was given.

Two ways, chosen once per cluster by trying:

* ``namespaces`` (root, or user namespaces allowed): each life of a container gets its own mount,
  PID and UTS namespaces over a throw-away overlay of this machine's root. Mount paths are real,
  ``/tmp`` is private, the command is PID 1 (so a shell without a trap ignores SIGTERM, as in a
  real pod), ``/etc/hosts`` is the cluster's, and what a container writes is gone with its life.
  The network namespace is shared: pods tell each other apart by their loopback addresses.
* ``rewrite``: plain processes. Each mount path is replaced by the volume's directory in argv and
  environment, and ``/tmp`` by a directory of the container's own; Python processes resolve pod
  names through a ``sitecustomize``. There is no PID 1 and no isolation of writes.

Every process dies with the double, even with a killed one (``setpriv --pdeathsig KILL``).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

PARTIAL = 16 * 1024

# The shell that waits for PID 1. Its first child is PID 1 of the new namespace, so it forks
# nothing else; unlike "unshare --fork" it passes on that a signal killed the child. What it says
# itself is not the container's.
_FIRST = r"""
exec 4>&2 2>/dev/null
script=$1; shift
setpriv --pdeathsig KILL -- /bin/sh -c "$script" sh "$@" 2>&4 4>&-
exit $?
"""

# $1 state directory of this life, $2 hostname, $3 working directory, then the command. Standard
# input is the pipe on which "ready" is said just before the command starts.
_SCRIPT = r"""
set -e
exec 3>&0 </dev/null
own=$PATH; PATH=/usr/sbin:/usr/bin:/sbin:/bin
while read -r source target; do mount --bind "$source" "$target"; done < $1/binds
mount -t overlay overlay -o lowerdir=/,upperdir=$1/upper,workdir=$1/work@OPTIONS@ $1/root
mkdir -p $1/root/.kube-double
mount --rbind $1 $1/root/.kube-double
mount --rbind /dev $1/root/dev
mount --rbind /sys $1/root/sys
mount -t proc proc $1/root/proc
while read -r path; do mount --rbind "$path" "$1/root$path"; done < $1/host-mounts
echo "$2" > /proc/sys/kernel/hostname
root=$1/root; shift
exec chroot $root /bin/sh -c '
set -e
own=$1
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
while read -r source target; do
  if [ -d "$source" ]; then mkdir -p "$target"
  else mkdir -p "${target%/*}"; [ -e "$target" ] || : > "$target"; fi
  mount --bind "$source" "$target"
done < /.kube-double/mounts
umount -l /.kube-double
cd "$3"
shift 3
PATH=$own
echo ready >&3
exec 3>&-
exec "$@"' sh "$own" "$@"
"""


@dataclass
class Box:
    """What one life of a container needs to start."""

    directory: Path
    hostname: str
    argv: list[str]
    env: dict[str, str]
    mounts: list[tuple[Path, str]]
    workdir: str = "/"


class Log:
    """One life's log: ``<time> <line>`` rows in a file, and a way to wait for more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._rest: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self.ended = False
        self.size = 0

    def feed(self, stream: str, data: bytes) -> None:
        """Add what a stream said; a line without its end is kept back until it grows past 16 KiB
        or ends."""
        data = self._rest.pop(stream, b"") + data
        *lines, rest = data.split(b"\n")
        while len(rest) >= PARTIAL:
            lines.append(rest[:PARTIAL])
            rest = rest[PARTIAL:]
        if rest:
            self._rest[stream] = rest
        self._write(lines)

    def end(self) -> None:
        self._write([rest for rest in self._rest.values() if rest])
        self._rest.clear()
        self.ended = True
        self._file.close()
        self._changed.set()

    def _write(self, lines: list[bytes]) -> None:
        if not lines or self.ended:
            return
        start = time.time_ns()
        parts = []
        for i, line in enumerate(lines):
            seconds, nanos = divmod(start + i, 1_000_000_000)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
            parts.append(b"%s.%09dZ %s\n" % (stamp.encode(), nanos, line))
        data = b"".join(parts)
        self._file.write(data)
        self.size += len(data)
        self._changed.set()

    async def more(self) -> None:
        """Wait until there is more, or the end."""
        self._changed.clear()
        if not self.ended:
            await self._changed.wait()
        # one life has several followers: each is woken by the same set(), and clears it for the
        #     next wait
        await asyncio.sleep(0)


@dataclass
class Process:
    """One life of a container."""

    box: Box
    popen: subprocess.Popen[bytes]
    pid: int
    log: Log
    mode: str
    started: str
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    finished: str = ""
    code: int | None = None
    oom: bool = False

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.mode == "namespaces":
                os.kill(self.pid, number)
            else:
                os.killpg(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def cut(self, pid: int) -> None:
        """Kill a command that was started by ``inside``, with all it started.

        What runs in the container goes first, so that its parent outside buries it and ends.
        Orphaned, it would wait for this machine's first process, which may bury nobody; and until
        it is buried the container's first process cannot end.
        """
        inner = below(pid) if self.mode == "namespaces" else []
        for each in inner:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        if not inner:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def find(self, program: str) -> bool:
        """Whether the container could run the program."""
        root = f"/proc/{self.pid}/root" if self.mode == "namespaces" else ""
        if "/" in program:
            return os.access(root + program if program.startswith("/") else program, os.X_OK)
        return any(
            os.access(f"{root}{d}/{program}", os.X_OK)
            for d in self.box.env.get("PATH", "").split(":")
            if d
        )

    def inside(self, argv: list[str]) -> list[str]:
        """The argv that runs a command in this container from outside."""
        if self.mode == "namespaces":
            user = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
            return [
                "nsenter",
                "-t",
                str(self.pid),
                *user,
                "-m",
                "-u",
                "-p",
                "-r",
                "-w",
                "--",
                *argv,
            ]
        return [rewrite(a, self.box.mounts) for a in argv]


def rewrite(text: str, mounts: list[tuple[Path, str]]) -> str:
    """The text with each mount path replaced by its directory on disk, in one pass, longest path
    first."""
    places = {target.rstrip("/"): str(source) for source, target in mounts}
    if not places:
        return text
    paths = "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])(?:{paths})(?=/|$|[^\w.-])", lambda match: places[match[0]], text)


def host_mounts() -> list[str]:
    """Mount points of this machine that an overlay of / does not show, but for the kernel's own."""
    own = ("/proc", "/sys", "/dev")
    found: list[str] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        path = line.split()[1]
        kernel = any(path == o or path.startswith(o + "/") for o in own) or path == "/"
        inside = path in found or any(path.startswith(f + "/") for f in found)
        if not kernel and not inside and "\\" not in path and Path(path).is_dir():
            found.append(path)
    return found


def choose_mode(directory: Path) -> str:
    """``namespaces`` when a trial container starts, else ``rewrite``."""
    if not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "mount", "chroot"))):
        return "rewrite"
    box = Box(directory, "trial", ["true"], dict(os.environ), [])
    _prepare(box)
    try:
        done = subprocess.run(
            [*_namespaces(box), "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "rewrite"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return "namespaces" if done.returncode == 0 else "rewrite"


def _prepare(box: Box) -> None:
    for name in ("upper", "work", "root", "tmp"):
        (box.directory / name).mkdir(parents=True, exist_ok=True)
    (box.directory / "tmp").chmod(0o1777)
    rows, files = [("/.kube-double/tmp", "/tmp")], []
    for i, (source, target) in enumerate(box.mounts):
        link = box.directory / f"volume-{i}"
        files.append((source, link))
        rows.append((f"/.kube-double/volume-{i}", target))
    for source, link in files:
        # bound here first, so that one recursive bind carries all of them into the new root
        if source.is_dir():
            link.mkdir()
        else:
            link.touch()
    (box.directory / "binds").write_text("".join(f"{s} {link}\n" for s, link in files))
    rows.sort(key=lambda row: row[1].count("/"))
    (box.directory / "mounts").write_text("".join(f"{s} {t}\n" for s, t in rows))
    (box.directory / "host-mounts").write_text("".join(f"{m}\n" for m in host_mounts()))


def _namespaces(box: Box) -> list[str]:
    user, options = ([], "") if os.geteuid() == 0 else (["--user", "--map-root-user"], ",userxattr")
    return [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
        "unshare",
        *user,
        "--mount",
        "--pid",
        "--uts",
        "--",
        "/bin/sh",
        "-c",
        _FIRST,
        "sh",
        _SCRIPT.replace("@OPTIONS@", options),
        str(box.directory),
        box.hostname,
        box.workdir,
    ]


class StartFailed(Exception):
    """The container could not be set up; the text says why."""


async def start(box: Box, mode: str, log_path: Path, dns_site: Path) -> Process:
    """Start one life; raises :class:`StartFailed`."""
    loop = asyncio.get_running_loop()
    box.directory.mkdir(parents=True, exist_ok=True)
    log = Log(log_path)
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    ready_r, ready_w = os.pipe()
    env = dict(box.env)
    if mode == "namespaces":
        _prepare(box)
        argv = [*_namespaces(box), *box.argv]
        cwd = "/"
    else:
        own = [(box.directory / "tmp", "/tmp"), *box.mounts]
        (box.directory / "tmp").mkdir(exist_ok=True)
        box.mounts = own
        argv = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        argv += [rewrite(a, own) for a in box.argv]
        env = {k: rewrite(v, own) if k != "PATH" else v for k, v in env.items()}
        env["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(dns_site), env.get("PYTHONPATH", "")])
        )
        env["TMPDIR"] = str(box.directory / "tmp")
        box.env = env
        cwd = rewrite(box.workdir, own)
        if not Path(cwd).is_dir():
            cwd = "/"
    try:
        popen = subprocess.Popen(
            argv,
            stdin=ready_w if mode == "namespaces" else subprocess.DEVNULL,
            stdout=out_w,
            stderr=err_w,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        for fd in (out_r, out_w, err_r, err_w, ready_r, ready_w):
            os.close(fd)
        log.end()
        raise StartFailed(str(error)) from None
    for fd in (out_w, err_w, ready_w):
        os.close(fd)
    process = Process(
        box, popen, popen.pid, log, mode, datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    )
    pipes = {out_r: "out", err_r: "err"}
    for fd, stream in pipes.items():
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 18)
        os.set_blocking(fd, False)
        loop.add_reader(fd, _read, loop, fd, stream, log, pipes)
    _watch(loop, process, pipes)
    if mode == "namespaces":
        try:
            said = await _until_ready(loop, ready_r)
        except asyncio.CancelledError:
            popen.kill()
            await process.exited.wait()
            raise
        if not said:
            await process.exited.wait()
            raise StartFailed(log_path.read_text(errors="replace")[-500:] or f"exit {process.code}")
        children: list[str] = []
        with contextlib.suppress(OSError):  # it may have ended already
            children = Path(f"/proc/{popen.pid}/task/{popen.pid}/children").read_text().split()
        process.pid = int(children[0]) if children else popen.pid
    else:
        os.close(ready_r)
    return process


async def _until_ready(loop: asyncio.AbstractEventLoop, fd: int) -> bytes:
    os.set_blocking(fd, False)
    done: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        if not done.done():
            done.set_result(os.read(fd, 64))

    loop.add_reader(fd, read)
    try:
        return await asyncio.wait_for(done, 30)
    except asyncio.TimeoutError:
        return b""
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _read(
    loop: asyncio.AbstractEventLoop, fd: int, stream: str, log: Log, pipes: dict[int, str]
) -> None:
    try:
        data = os.read(fd, 1 << 18)
    except BlockingIOError:
        return
    if data:
        log.feed(stream, data)
    else:
        _close(loop, fd, pipes)


def _close(loop: asyncio.AbstractEventLoop, fd: int, pipes: dict[int, str]) -> None:
    if pipes.pop(fd, None):
        loop.remove_reader(fd)
        os.close(fd)


def _watch(loop: asyncio.AbstractEventLoop, process: Process, pipes: dict[int, str]) -> None:
    pidfd = os.pidfd_open(process.popen.pid)

    def gone() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        code = process.popen.wait()
        for fd, stream in list(pipes.items()):  # what is still in the pipes belongs to this life
            with contextlib.suppress(BlockingIOError):
                while data := os.read(fd, 1 << 18):
                    process.log.feed(stream, data)
            _close(loop, fd, pipes)
        if process.mode == "rewrite":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.code = 128 - code if code < 0 else code
        process.finished = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        process.log.end()
        process.exited.set()
        loop.run_in_executor(None, _clean, process.box.directory)

    loop.add_reader(pidfd, gone)


def _clean(directory: Path) -> None:
    for name in ("upper", "work", "tmp"):
        shutil.rmtree(directory / name, ignore_errors=True)


def below(pid: int) -> list[int]:
    """All that descends from a process, nearest first."""
    found, pending = [], [pid]
    while pending:
        children = list(_children(pending.pop(0)))
        pending += children
        found += children
    return found


def _children(pid: int) -> Iterator[int]:
    """The children of a process and of its threads, any of which may end meanwhile."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                yield from map(int, (task / "children").read_text().split())


def memory_hog(process: Process, limit: float) -> int:
    """The PID of the biggest process of the container when all together are over the limit
    (bytes), else 0."""
    page, sizes = os.sysconf("SC_PAGE_SIZE"), {}
    for pid in (process.pid, *below(process.pid)):
        with contextlib.suppress(OSError, IndexError):
            sizes[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
    return max(sizes, key=lambda pid: sizes[pid]) if sum(sizes.values()) > limit else 0


def descendant(pid: int, word: str) -> int:
    """The first process below ``pid`` whose command line has ``word``; LookupError without one."""
    for child in below(pid):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "):
                return child
    raise LookupError(f"no process below {pid} has {word!r} in its command line")
