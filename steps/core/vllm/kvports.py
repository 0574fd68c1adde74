"""The ports on which ranks hand KV blocks over: one formula, for the plan and for the rules.

Enters: the words of a ``vllm serve`` command, the ranks it holds. Leaves: ranges
of ports. Touches nothing.

vllm-ascend's Mooncake connectors: data-parallel rank ``r`` begins at ``kv_port``
+ ``r`` x width, where width is tensor x pipeline x prefill context parallel
size, and each of its devices takes one port from there on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steps.core.vllm import commandline
from steps.core.vllm.commandline import integer

#: Words in the names of connectors that keep blocks and hand none over.
STORES = ("Store", "LMCache", "UCM", "Offload", "Pool", "Decode")
#: Connectors that hand KV from one engine to another and keep none of it.
HAND_OVER = {
    "NixlConnector",
    "MooncakeConnector",
    "MooncakeConnectorV1",
    "MooncakeLayerwiseConnector",
    "LLMDataDistCMgrConnector",
    "P2pNcclConnector",
}
#: The connector that hands KV over in files; real engines count it as any other.
BY_FILES = "ExampleConnector"
_DIVIDERS = (
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
    "--prefill-context-parallel-size",
)


@dataclass(frozen=True)
class KvPorts:
    """Ports of one command's ranks.

    Attributes:
        base: its ``kv_port``.
        listens: this side waits there for the other one.
    """

    base: int
    first: int
    count: int
    listens: bool

    @property
    def last(self) -> int:
        """The last one; beyond 65535 there is none."""
        return self.first + self.count - 1

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last


def of(argv: Sequence[str], rank: int, ranks: int) -> Iterator[KvPorts]:
    """The ports of a command that holds ``ranks`` data-parallel ranks from ``rank`` on."""
    command = commandline.read(argv)
    width = 1
    for name in _DIVIDERS:
        width *= max(command.number(name, 1), 1)
    share = -(-width // command.nnodes)
    offset = max(rank, 0) * width + command.number("--node-rank", 0) * share
    for entry in transfers(command.mapping("--kv-transfer-config")):
        base = integer(entry.get("kv_port") or 0) or 0
        if 0 < base <= 65535:
            yield KvPorts(base, base + offset, max(ranks, 1) * share, _listens(entry))


def connectors(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The connectors of a configuration: those nested in a MultiConnector, or itself."""
    extra = config.get("kv_connector_extra_config")
    nested = extra.get("connectors") if isinstance(extra, Mapping) else None
    if isinstance(nested, list) and nested:
        return tuple(entry for entry in nested if isinstance(entry, Mapping))
    return (config,) if config else ()


def transfers(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The connectors that hand blocks from prefill to decode; no pools."""
    found = connectors(config)
    return tuple(c for c in found if not any(w in str(c.get("kv_connector", "")) for w in STORES))


def _listens(entry: Mapping[str, Any]) -> bool:
    """A prefiller waits for those who fetch; where it pushes layer by layer, the decoder waits."""
    pushes = "Layerwise" in str(entry.get("kv_connector"))
    return entry.get("kv_role") != ("kv_producer" if pushes else "kv_consumer")
