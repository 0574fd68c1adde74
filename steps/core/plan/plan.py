"""The plan of a run: everything each node will do, with no variable left in it.

Enters: JSON, or the values ``steps.core.plan.resolver`` computes. Leaves: a
:class:`Plan` and its JSON. Touches nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from steps.core.case import gates
from steps.core.case.case import Benchmark
from steps.core.case.content import Content
from steps.core.case.numbers import Refused, dumps, loads
from steps.core.case.values import decode, plain
from steps.core.plan.cluster import Cluster
from steps.core.vllm import access, commandline

SCHEMA = 1
LEADER = 0
#: Kind of a process that a step starts for itself, such as a benchmark's client; in no plan.
TOOL = "tool"


@dataclass(frozen=True)
class Access:
    """A URL, and the key without which its server does not answer; the one thing clients take."""

    url: str
    key: str = field(default="", repr=False)

    def at(self, path: str) -> Access:
        """Another path of the same server."""
        return replace(self, url=f"{self.url}{path}")

    @property
    def headers(self) -> dict[str, str]:
        """Headers that every request needs."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass(frozen=True)
class Probe:
    """How one sees that a process is ready: ``http`` wants 200, ``tcp`` a connection, and one to
    each of ``also`` too.
    """

    kind: str
    url: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Process:
    """One process of a node.

    Attributes:
        name: unique on its node: ``server``, ``server-0`` (a rank), ``pool``, ``proxy``.
        kind: ``server``, ``pool`` or ``proxy``; ``tool`` for what is in no plan.
        argv: the command; no shell runs it.
        env: what is set over the inherited environment.
        paths: what is put in front of path variables.
        files: variables whose value is the path of one of the node's ``files``.
        probe: how others see that it is ready; None for a headless server.
        api: base URL of its OpenAI API, or empty.
        rank: first global data-parallel rank it holds, or None.
        ranks: how many ranks it holds.
        group: name of its data-parallel group, such as ``prefiller-0``.
        grace: seconds between TERM and KILL.
    """

    name: str
    kind: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    probe: Probe | None = None
    api: str = ""
    headless: bool = False
    rank: int | None = None
    ranks: int = 1
    group: str = ""
    grace: float = 20.0

    @property
    def encodes(self) -> bool:
        """Whether it only makes embeddings of pictures for the servers behind it."""
        config = commandline.read(self.argv).mapping("--ec-transfer-config")
        return bool(config.get("ec_role") == "ec_producer")

    @property
    def log(self) -> str:
        """File name of its log in the node's directory."""
        return f"{self.name}.log"

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of which its API wants one."""
        return access.keys(commandline.read(self.argv), self.env) if self.kind == "server" else ()

    @property
    def access(self) -> Access:
        """Its API, as clients ask it."""
        return Access(self.api, next(iter(self.keys), ""))


@dataclass(frozen=True)
class NodePlan:
    """What one node does.

    Attributes:
        role: ``leader`` or ``worker``.
        side: ``prefiller``, ``decoder`` or ``plain``.
        master: address of its data-parallel group's master.
        files: name -> content of files its processes read.
        packages: ``special_dependencies`` as pip requirements.
    """

    index: int
    address: str
    interface: str
    role: str
    side: str
    headless: bool
    master: str
    devices: int
    processes: tuple[Process, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its directory in the run directory."""
        return f"node-{self.index}"


#: The purpose of ports on which ranks hand KV blocks over.
KV_TRANSFER = "kv-transfer"


@dataclass(frozen=True)
class Port:
    """A port, or ``count`` ports from ``port`` on, and what it is for."""

    node: int
    port: int
    purpose: str
    process: str
    count: int = 1
    listens: bool = True


@dataclass(frozen=True)
class Endpoint:
    """Where benchmarks go."""

    url: str
    model: str
    kind: str
    api_key: str = ""

    @property
    def access(self) -> Access:
        """The same, as clients ask it."""
        return Access(self.url, self.api_key)


@dataclass(frozen=True)
class BenchmarkPlan:
    """One benchmark as it will be run.

    Attributes:
        driver: a name in ``steps.core.plan.drivers``.
        gates: all conditions, upstream's baseline rule among them.
        skip_gates: why the gates are not judged; empty when they are.
        judged: metrics whose gates are judged in any case.
        scaled: what was made smaller than the case says, for the reader.
        lasts: seconds for which a point of a request rate sends requests, at least.
    """

    benchmark: Benchmark
    driver: str
    gates: tuple[gates.Gate, ...] = ()
    skip_gates: str = ""
    judged: tuple[str, ...] = ("success_ratio",)
    scaled: str = ""
    lasts: float = 30.0


@dataclass(frozen=True)
class Budget:
    """Seconds a phase may take, and seconds it may pass without any progress."""

    seconds: float
    stall: float


@dataclass(frozen=True)
class Plan:
    """A run, resolved. ``run`` is the only field that differs between two of the same inputs."""

    run: str
    case_name: str
    case_file: str
    case_sha256: str
    engine: str
    model: str
    cluster: Cluster
    nodes: tuple[NodePlan, ...]
    endpoint: Endpoint
    benchmarks: tuple[BenchmarkPlan, ...]
    budgets: Mapping[str, Budget]
    ports: tuple[Port, ...]
    notes: tuple[str, ...] = ()
    proof: bool = True
    content: Content = field(default_factory=Content)
    harness: str = ""
    only: str = ""
    dialect: str = "deployment"
    schema: int = SCHEMA

    @property
    def rehearsed(self) -> bool:
        """Whether stand-ins play the engines."""
        return self.cluster.rehearsal is not None

    def installs(self, node: NodePlan) -> bool:
        """Whether a node has anything to install; in a rehearsal none has."""
        return not self.rehearsed and bool(node.packages or self.cluster.installs)

    def fingerprint(self) -> str:
        """A digest of everything but the run id: equal plans have equal fingerprints."""
        text = dumps(to_dict(replace(self, run="")), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def issuers(self) -> str:
        """The leader's file of those who issued the servers' certificates; empty: the machine's."""
        servers = [p for p in self.nodes[LEADER].processes if p.kind == "server"]
        return servers[0].env.get(access.TRUST_VARIABLE, "") if servers else ""

    def hosts(self) -> list[str]:
        """Every address under which nodes and their servers are asked."""
        apis = [urlsplit(process.api).hostname for _, process in self.servers()]
        return list(filter(None, [*(node.address for node in self.nodes), *apis]))

    def opened(self, key: str) -> Plan:
        """The plan where a machine's own environment holds the key of servers that name none."""
        if not key or self.endpoint.api_key:
            return self
        variables = {"server": access.KEY_VARIABLE, "proxy": access.PROXY_VARIABLE}

        def told(process: Process) -> Process:
            name = variables.get(process.kind)
            if name is None or process.keys:
                return process
            return replace(process, env={**process.env, name: key})

        nodes = [replace(n, processes=tuple(map(told, n.processes))) for n in self.nodes]
        return replace(self, nodes=tuple(nodes), endpoint=replace(self.endpoint, api_key=key))

    def servers(self) -> Iterator[tuple[NodePlan, Process]]:
        """Every server of every node."""
        for node in self.nodes:
            for process in node.processes:
                if process.kind == "server":
                    yield node, process

    def drafting(self) -> Iterator[tuple[NodePlan, Process]]:
        """Every API server that decodes and drafts tokens ahead."""
        for node, process in self.servers():
            if process.api and node.side != "prefiller" and commandline.read(process.argv).drafts:
                yield node, process

    def probes(self) -> Iterator[tuple[NodePlan, Process]]:
        """Every process that others can see to be ready."""
        for node in self.nodes:
            for process in node.processes:
                if process.probe:
                    yield node, process

    @property
    def proxy(self) -> Process | None:
        """The proxy in front of a split fleet, if there is one."""
        found = [p for p in self.nodes[LEADER].processes if p.kind == "proxy"]
        return found[0] if found else None


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values."""
    found: dict[str, Any] = plain(plan)
    return found


def to_json(plan: Plan) -> str:
    """The plan as text; the same plan is the same text, byte for byte."""
    return dumps(to_dict(plan), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def from_json(text: str) -> Plan:
    """The plan that :func:`to_json` wrote.

    Raises:
        ValueError: not JSON, another schema, or a field missing; says what.
    """
    try:
        data = loads(text)
        if data["schema"] != SCHEMA:
            raise ValueError(f"plan schema {data['schema']}, expected {SCHEMA}")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a plan of this version: {type(error).__name__}: {error}") from None
    try:
        return decode(Plan, data)
    except Refused as error:
        raise ValueError(f"not a plan of this version: {error}") from None
