"""The bundle: the harness at this commit as bytes that fit into ConfigMaps.

Enters: this checkout and the interpreter's installed packages. Leaves: a
:class:`Bundle` of checked parts, the same bytes for the same content. Touches:
reads files.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from steps.core.errors import InfraError
from steps.core.fleet import ROOT

#: Pure-Python packages the node side needs and an image may lack, or have too old. psutil is
#: compiled: the node side uses the image's, or does without.
PACKAGES = ("PyYAML", "Cerberus", "invoke")
#: The API refuses a ConfigMap of more than 1 MiB; the rest is room for its metadata.
PART_BYTES = 900 * 1024
_COMPILED = (".so", ".pyd", ".dylib", ".pyc")


@dataclass(frozen=True)
class Bundle:
    """The parts in order, each with its sha256."""

    parts: tuple[bytes, ...]

    @property
    def digests(self) -> tuple[str, ...]:
        """The sha256 of each part."""
        return tuple(hashlib.sha256(part).hexdigest() for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(len(part) for part in self.parts)


def make(rehearsal: bool = False, part_bytes: int = PART_BYTES) -> Bundle:
    """Pack the harness.

    Args:
        rehearsal: the stand-ins travel too.

    Raises:
        InfraError: a package the node side needs is not installed here.
    """
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, path in sorted({**dict(_packages()), **dict(_own(rehearsal))}.items()):
            data = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(member, io.BytesIO(data))
    data = packed.getvalue()
    return Bundle(tuple(data[i : i + part_bytes] for i in range(0, len(data), part_bytes)))


def _own(rehearsal: bool) -> Iterator[tuple[str, Path]]:
    """The harness's own code."""
    for room in ("steps", "rehearsal") if rehearsal else ("steps",):
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.is_symlink():
                yield str(path.relative_to(ROOT)), path


def _packages() -> Iterator[tuple[str, Path]]:
    """The packages' own Python files, without tests, programs and compiled speed-ups."""
    for name in PACKAGES:
        try:
            found = metadata.files(name)
        except metadata.PackageNotFoundError:
            found = None
        if not found:
            raise InfraError(
                f"the package {name}, which travels to the pods, is not installed here",
                "Install the node side: pip install -e .",
            )
        for entry in found:
            path = Path(str(entry.locate()))
            parts = entry.parts
            foreign = parts[0].startswith(("..", "/")) or parts[0].endswith(".dist-info")
            if foreign or len(parts) < 2 or {"tests", "__pycache__"} & set(parts):
                continue
            if path.suffix not in _COMPILED and path.is_file():
                yield "/".join(parts), path
