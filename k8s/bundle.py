"""The bundle: the harness at this commit as bytes that fit into ConfigMaps.

Enters: this checkout and the interpreter's installed packages. Leaves: a
:class:`Bundle` of checked parts, the same bytes for the same content. Touches:
reads files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from steps.core.node import bundle

#: Pure-Python packages the node side needs and an image may lack, or have too old. psutil is
#: compiled: the node side uses the image's, or does without.
PACKAGES = ("yaml", "cerberus", "invoke", *bundle.HTTP)
#: The API refuses a ConfigMap of more than 1 MiB; the rest is room for its metadata.
PART_BYTES = 900 * 1024
#: Bytes of products that travel in ConfigMaps, a part in each; etcd is no place for more.
PRODUCT_BYTES = 24 << 20


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


def make(
    rehearsal: bool = False,
    part_bytes: int = PART_BYTES,
    more: Iterable[bundle.Entry] = (),
) -> Bundle:
    """Pack the harness.

    Args:
        rehearsal: the stand-ins travel too.
        more: files beside the harness: products that travel with it.

    Raises:
        InfraError: a package the node side needs is not installed here.
    """
    rooms = bundle.ROOMS if rehearsal else ("steps",)
    data = bundle.pack([*bundle.packages(PACKAGES), *bundle.harness(rooms), *more], level=6)
    return Bundle(tuple(data[i : i + part_bytes] for i in range(0, len(data), part_bytes)))
