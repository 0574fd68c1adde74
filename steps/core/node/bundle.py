"""The harness as one archive, for machines that have Python and nothing of ours.

Enters: this checkout. Leaves: bytes of a ``tar.gz``, the same for the same
files. Touches: reads this checkout and the installed packages.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import io
import marshal
import platform as os_platform
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from steps.core.errors import InfraError
from steps.core.plan import clusters

#: What of this checkout a node needs.
ROOMS = ("steps", "rehearsal")
#: requests and what it imports: module -> distribution.
HTTP = {
    "requests": "requests",
    "urllib3": "urllib3",
    "idna": "idna",
    "certifi": "certifi",
    "charset_normalizer": "charset-normalizer",
}
#: What the node program imports besides the standard library: module -> distribution.
NEEDED = {"yaml": "PyYAML", "cerberus": "cerberus", "psutil": "psutil", **HTTP}
#: What a Python must have in common with ours to read our byte code.
MAGIC = importlib.util.MAGIC_NUMBER.hex()
_LEFT_OUT = ("__pycache__", ".pyc", ".DS_Store", "/tests/")


@dataclass(frozen=True)
class Entry:
    """A file of an archive; ``program`` makes it executable."""

    name: str
    content: bytes
    program: bool = False


def harness(rooms: Iterable[str] = ROOMS) -> Iterator[Entry]:
    """Our own files, by their names in this checkout."""
    for room in rooms:
        for path in sorted((clusters.ROOT / room).rglob("*")):
            name = path.relative_to(clusters.ROOT).as_posix()
            if path.is_file() and not any(part in name for part in _LEFT_OUT):
                yield Entry(name, path.read_bytes(), bool(path.stat().st_mode & 0o100))


def compiled(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The byte code of Python files, for machines whose Python has our :data:`MAGIC`.

    Saves each of them the compiling; the files are unpacked together and never
    change, so the byte code is marked as not to be checked against them.
    """
    for entry in entries:
        path = PurePosixPath(entry.name)
        if path.suffix == ".py":
            code = compile(entry.content, entry.name, "exec", dont_inherit=True)
            head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")
            body = head + importlib.util.source_hash(entry.content) + marshal.dumps(code)
            yield Entry(importlib.util.cache_from_source(entry.name), body)


def packages(modules: Iterable[str]) -> Iterator[Entry]:
    """Our copies of installed packages that a machine lacks, with what they drag in.

    Compiled speed-ups are left out, but for psutil, which is nothing without:
    its part fits machines of this kind only.

    Raises:
        InfraError: a package is not installed here.
    """
    for module in dict.fromkeys(modules):
        distribution = NEEDED.get(module, module)
        try:
            files = importlib.metadata.files(distribution) or ()
        except importlib.metadata.PackageNotFoundError:
            raise InfraError(
                f"the package {distribution}, which travels to the nodes, is not installed here",
                "Install the node side: pip install -e .",
            ) from None
        for file in files:
            name = file.as_posix()
            path = Path(str(file.locate()))
            compiled = path.suffix in (".so", ".pyd") and module != "psutil"
            wanted_file = name.startswith(f"{module}/") and path.is_file() and not compiled
            if wanted_file and not any(part in name for part in _LEFT_OUT):
                yield Entry(name, path.read_bytes())


def pack(entries: Iterable[Entry], *, level: int = 1) -> bytes:
    """A ``tar.gz`` of ``entries``, readable by their owner only, without times or names.

    Args:
        level: how hard to compress; 1 is soon done, 9 is small.
    """
    raw = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=level, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.size = len(entry.content)
            info.mode = 0o700 if entry.program else 0o600
            archive.addfile(info, io.BytesIO(entry.content))
    return raw.getvalue()


def platform() -> list[str]:
    """The kind of machine that compiled packages of ours fit: system and processor."""
    return [sys.platform, os_platform.machine()]


def texts(files: Mapping[str, str]) -> Iterator[Entry]:
    """Text files by name."""
    for name, text in files.items():
        yield Entry(name, text.encode("utf-8", "surrogateescape"))
