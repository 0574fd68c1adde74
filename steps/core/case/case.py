"""A case: what the author wrote, in any dialect, as one value.

Enters: nothing. Leaves: :class:`Case` and what it is made of; ``build`` makes one of a file.
Touches nothing.

All dialects become the same nouns: nodes with an environment and words of a
command. A deployment node has one server; a routing node has one server a rank; a single node
has one, or several commands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steps.core.case import gates
from steps.core.case.content import Content
from steps.core.case.shellwords import Word
from steps.core.errors import Place

if TYPE_CHECKING:  # a node that has a plan reads no case, and YAML takes its time to load
    from steps.core.case.source import Source

#: The ``dataset_conf`` of prompts that a driver makes up itself.
RANDOM = "random"
#: The longest a phase may take: a month.
MAX_SECONDS = 30 * 86400.0
_DURATION_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Ranks:
    """A routing node's external data-parallel ranks (``config[i]``)."""

    port_start: int
    dp_rpc_port: int
    dp_size: int = 1
    dp_size_local: int = 1
    dp_rank_start: int = 0
    tp_size: int = 1
    cp_size: int = 1
    sp_size: int = 1
    pp_size: int = 1
    dp_address: str = ""
    host: str = "0.0.0.0"
    node_group: int = -1

    @property
    def devices_per_rank(self) -> int:
        """Devices one rank occupies."""
        return self.tp_size * self.cp_size * self.sp_size * self.pp_size


@dataclass(frozen=True)
class CaseNode:
    """One node as the author wrote it.

    Attributes:
        command: words of ``server_cmd``; in the routing dialect the words of
            ``vllm serve <model>`` and the template.
        paths: YAML path of the node's entry, environment and command.
        master_index: the old form's explicit master, else None.
        more: words of further servers, each with devices of its own (``service_mode: epd``).
    """

    index: int
    envs: Mapping[str, str]
    command: tuple[Word, ...]
    paths: Mapping[str, tuple[Any, ...]]
    ranks: Ranks | None = None
    headless: bool = False
    master_index: int | None = None
    more: tuple[tuple[Word, ...], ...] = ()

    @property
    def commands(self) -> tuple[tuple[Word, ...], ...]:
        """The words of each of its servers; the ranks of a routing node share one."""
        return (self.command, *self.more)


@dataclass(frozen=True)
class Split:
    """Prefill/decode split: indices as listed, headless nodes perhaps among them."""

    prefillers: tuple[int, ...]
    decoders: tuple[int, ...]


@dataclass(frozen=True)
class KvPool:
    """A KV cache pool that runs on node 0 before any rank."""

    type: str
    ports: Mapping[str, int]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class ProxySpec:
    """What stands in front of a split fleet; ``kind`` is script, vllm-router, command or auto."""

    kind: str = "auto"
    script: str = ""
    args: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Find:
    """The largest load that holds limits.

    Attributes:
        maximise: what is made large; ``output_throughput`` by way of the batch size.
        limits: what has to hold.
        low, high: the range of loads.
        tolerance: how well the border is to be known, as a share.
    """

    maximise: str
    limits: tuple[gates.Gate, ...]
    low: float
    high: float
    tolerance: float = 0.05

    @property
    def knob(self) -> str:
        """The field of the benchmark that is varied."""
        return "request_rate" if self.maximise == "request_rate" else "batch_size"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark with its gates.

    ``sampling`` goes into each request; ``num_prompts`` None means the whole
    data set; ``request_rate`` is in requests/s, 0 without limit; ``rates`` are the
    acceptance rates by position that a spec_decode benchmark has for a baseline; ``sweep`` are
    the fields that each of its points changes.
    """

    name: str
    case_type: str
    dataset_path: str = ""
    dataset_path_local: str = ""
    model_path: str = ""
    request_conf: str = ""
    dataset_conf: str = ""
    num_prompts: int | None = None
    max_out_len: int = 512
    input_len: int = 0
    batch_size: int = 1
    request_rate: float = 0.0
    baseline: float | None = None
    rates: tuple[float, ...] = ()
    threshold: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    thinking: bool = False
    reasoning_effort: str = ""
    num_warmups: int | None = None
    no_pred: bool = False
    trust_remote_code: bool = True
    gates: tuple[gates.Gate, ...] = ()
    no_gate_reason: str = ""
    repeat: int = 1
    confirm: int = 2
    sweep: tuple[Mapping[str, Any], ...] = ()
    find: Find | None = None

    @property
    def sized(self) -> bool:
        """Whether it is measured at several loads."""
        return bool(self.sweep or self.find)

    @property
    def compared(self) -> str:
        """The metric that its baseline is one of."""
        if self.case_type == "accuracy":
            return "accuracy"
        return "capacity" if self.find else "output_throughput"


def conditions(entry: Benchmark) -> tuple[gates.Gate, ...]:
    """All gates of a benchmark, upstream's baseline rule among them."""
    if entry.no_gate_reason:
        return entry.gates
    known = entry.case_type, entry.baseline, entry.threshold, entry.rates
    return (*gates.upstream(*known, entry.compared), *entry.gates)


@dataclass(frozen=True)
class Against:
    """A gate between two variants: at least, where less is better at most, a share of another's."""

    metric: str
    share: float
    of: str


@dataclass(frozen=True)
class Variant:
    """The case with something changed.

    Attributes:
        settings: ``env_common.OMP_NUM_THREADS=8``, ``deployment.0.server_cmd+= --enforce-eager``.
        products: ``NAME=REF`` each; ``image``: of every node.
    """

    name: str
    settings: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    image: str = ""
    gates: tuple[Against, ...] = ()


@dataclass(frozen=True)
class Case:
    """A whole case. Given the same file it is the same value.

    Attributes:
        only: its name among the cases of its file; empty: it is alone there.
    """

    file: str
    sha256: str
    dialect: str
    name: str
    model: str
    num_nodes: int
    npu_per_node: int
    nodes: tuple[CaseNode, ...]
    split: Split | None
    kv_pool: KvPool | None
    proxy: ProxySpec
    benchmarks: tuple[Benchmark, ...]
    content: Content
    cluster_hosts: tuple[str, ...]
    special_dependencies: Mapping[str, str]
    timeouts: Mapping[str, float]
    engine: str
    proof: bool
    rehearse: bool
    lint_ignore: Mapping[str, str]
    inherit: tuple[str, ...]
    source: Source = field(repr=False, compare=False)
    only: str = ""
    variants: tuple[Variant, ...] = ()

    def place(self, *path: Any) -> Place:
        """Where the value at a YAML path stands in the file."""
        return self.source.place(*path)


def seconds(value: float | str) -> float:
    """``600``, ``"600s"``, ``"10m"`` or ``"1h"`` in seconds.

    Raises:
        ValueError: another form, not more than zero, or more than a month.
    """
    match = re.match(r"^\s*(\d+(?:\.\d+)?)\s*(s|m|h|)\s*$", str(value))
    if not match or float(match[1]) <= 0:
        raise ValueError(f"found {value!r}, expected seconds or text such as '45m'")
    found = float(match[1]) * _DURATION_UNITS[match[2]]
    if found > MAX_SECONDS:
        raise ValueError(f"found {str(value)[:40]!r}, expected at most 30 days ({MAX_SECONDS:g} s)")
    return found
