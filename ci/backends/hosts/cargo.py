"""What goes to the hosts of a run, and the loader that receives it there.

Enters: a request, what a host lacks. Leaves: an archive, the command that unpacks it
and starts a keeper. Touches: reads this checkout and installed packages.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ci.backends import Request
from steps.core.case.numbers import dumps
from steps.core.node import bundle
from steps.core.plan.cluster import Cluster

#: What a node program does not import when it starts.
_UNUSED = ("steps/lint/", "rehearsal/")


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
import importlib.util, io, platform, select, shutil, socket, tarfile, time
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
    archive = tarfile.open(fileobj=io.BytesIO(data), mode="r|gz")
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
