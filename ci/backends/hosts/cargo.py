"""What goes to the hosts of a run, and the loader that receives it there.

Enters: a request, what a host lacks. Leaves: an archive, the command that unpacks it
and starts a keeper. Touches: reads this checkout and installed packages.
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ci.backends import Request
from steps.core.case.numbers import dumps
from steps.core.errors import InfraError
from steps.core.node import bundle
from steps.core.plan.cluster import Cluster

#: What a node program does not import when it starts.
_UNUSED = ("steps/lint/", "rehearsal/")


class Cargo:
    """What goes to the hosts: the harness, the case, the cluster, missing packages.

    Args:
        more: files beside the harness: products that travel with it.
    """

    def __init__(
        self, request: Request, cluster: Cluster, more: Iterable[bundle.Entry] = ()
    ) -> None:
        case = Path(request.case.file)
        self.case_name = case.name
        texts = {"cluster.json": dumps(cluster.to_dict())}
        texts[f"case/{case.name}"] = case.read_text(encoding="utf-8-sig")
        script = PurePosixPath(request.case.proxy.script or ".")
        beside = case.parent / script
        if not script.is_absolute() and ".." not in script.parts and beside.is_file():
            texts[f"case/{script}"] = beside.read_text(encoding="utf-8")
        self._own = [*bundle.texts(texts), *_placed(more)]
        self._parts: dict[str, bytes] = {}
        self._packer = threading.Thread(target=self._pack, name="cargo", daemon=True)
        self._packer.start()

    def _pack(self) -> None:
        """Pack all that a host may want while the hosts are being called."""
        harness = list(bundle.harness())
        needed = (entry for entry in harness if not entry.name.startswith(_UNUSED))
        self._parts[""] = bundle.pack([*_placed(harness), *self._own])
        self._parts[bundle.MAGIC] = bundle.pack(_placed(bundle.compiled(needed)))
        for module in bundle.NEEDED:
            with contextlib.suppress(InfraError):
                self._parts[module] = bundle.pack(_placed(bundle.packages([module])))

    def archive(self, missing: Sequence[str], magic: str) -> bytes:
        """The archives for a host that lacks these packages, one after another.

        Raises:
            InfraError: a package is not here either.
        """
        self._packer.join()
        for module in missing:
            if module not in self._parts:
                list(bundle.packages([module]))
        return b"".join(self._parts.get(part, b"") for part in ("", magic, *missing))


def _placed(entries: Iterable[bundle.Entry]) -> Iterator[bundle.Entry]:
    """Where these files are on a host."""
    for entry in entries:
        yield bundle.Entry(f"bundle/{entry.name}", entry.content, entry.program)


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
import gzip, importlib.util, io, platform, select, shutil, socket, tarfile, time
where = sys.argv[1]
missing = [n for n in sys.argv[2].split(",") if importlib.util.find_spec(n) is None]
try:
    free = shutil.disk_usage(where).free
    noexec = bool(os.statvfs(where).f_flag & getattr(os, "ST_NOEXEC", 8))
except OSError as error:
    say(error=where + ": " + (error.strerror or str(error)), python=list(sys.version_info[:3]))
    sys.exit(0)
say(python=list(sys.version_info[:3]), missing=missing, time=time.time(), free=free, noexec=noexec,
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
    data, told = bytearray(), 0
    while len(data) < head["size"]:
        chunk = os.read(0, min(1 << 20, head["size"] - len(data)))
        if not chunk:
            break
        data += chunk
        if len(data) - told >= 65536:
            told = len(data)
            say(got=told)
    if len(data) < head["size"]:
        raise OSError(104, "the runner is gone")
    unpacked = place + ".new"
    made = set()
    whole = gzip.GzipFile(fileobj=io.BytesIO(data))
    archive = tarfile.open(fileobj=whole, mode="r|", ignore_zeros=True)
    for member in archive:
        path = unpacked + "/" + member.name
        folder = os.path.dirname(path)
        if folder not in made:
            os.makedirs(folder, exist_ok=True)
            made.add(folder)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode), "wb") as out:
            out.write(archive.extractfile(member).read())
    if select.select([0], [], [], 0)[0]:
        raise OSError(104, "the runner is gone")
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
    try:
        say(error=step + ": " + (error.strerror or str(error)))
    except OSError:
        pass
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
