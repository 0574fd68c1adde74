"""A case and its plan as rules look at it: servers, groups, sides, places.

Enters: a :class:`Case` and its :class:`Plan`. Leaves: a :class:`Fleet`. Touches
nothing. Everything here is read once and asked by many rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from steps.core.case.case import Case, CaseNode
from steps.core.errors import Place
from steps.core.plan.plan import NodePlan, Plan, Process
from steps.core.vllm import kvports
from steps.core.vllm.commandline import Command, Option, parse


@dataclass(frozen=True)
class Server:
    """One `vllm serve` of the fleet with what its command says."""

    node: CaseNode
    plan: NodePlan
    process: Process
    command: Command

    @property
    def dp_size(self) -> int:
        """Ranks of its data-parallel group."""
        return self.command.dp_size

    @cached_property
    def local(self) -> int:
        """Data-parallel ranks it holds itself."""
        return self.command.local_ranks

    @cached_property
    def start(self) -> int:
        """Its first global rank."""
        return self.command.first_rank

    @cached_property
    def tp(self) -> int:
        """Tensor parallel size."""
        return self.command.number("--tensor-parallel-size", 1)

    @cached_property
    def pp(self) -> int:
        """Pipeline parallel size."""
        return self.command.number("--pipeline-parallel-size", 1)

    @cached_property
    def pcp(self) -> int:
        """Prefill context parallel size; it multiplies devices, the decode one does not."""
        return self.command.number("--prefill-context-parallel-size", 1)

    @cached_property
    def nnodes(self) -> int:
        """Nodes that one rank spans."""
        return self.command.nnodes

    @cached_property
    def devices(self) -> int:
        """Devices it takes on its node."""
        return self.command.devices

    @cached_property
    def ray(self) -> bool:
        """Ray places its ranks, so nothing here says where they are."""
        return self.command.ray

    @property
    def headless(self) -> bool:
        """It has no API server."""
        return self.process.headless

    @property
    def side(self) -> str:
        """``prefiller``, ``decoder`` or ``plain``."""
        return self.plan.side

    @property
    def index(self) -> int:
        """Its node."""
        return self.node.index

    @cached_property
    def spans(self) -> bool:
        """Its data-parallel group reaches over more servers than itself."""
        return self.dp_size > max(self.local, 1) and not self.ray

    @cached_property
    def hybrid(self) -> bool:
        """Every node of its group has an API server of its own."""
        return self.command.has("--data-parallel-hybrid-lb")

    @cached_property
    def external(self) -> bool:
        """Each rank is a server of its own, balanced from outside."""
        return (
            self.command.has("--data-parallel-external-lb")
            or self.command.option("--data-parallel-rank") is not None
        )

    @cached_property
    def kv(self) -> dict[str, Any]:
        """Its kv-transfer-config."""
        return self.command.mapping("--kv-transfer-config")

    @cached_property
    def connectors(self) -> tuple[Mapping[str, Any], ...]:
        """The connectors in it: those nested in a MultiConnector, or itself."""
        return kvports.connectors(self.kv)

    @cached_property
    def transfers(self) -> tuple[Mapping[str, Any], ...]:
        """The connectors that hand blocks from prefill to decode; no pools."""
        return kvports.transfers(self.kv)

    @cached_property
    def kv_ports(self) -> tuple[kvports.KvPorts, ...]:
        """The ports on which its ranks hand blocks over."""
        return tuple(kvports.of(self.process.argv, self.start, self.local))

    def key_place(self, option: str, key: str) -> Place:
        """Where ``"key"`` stands in the JSON of an option, else where the JSON starts."""
        return self._finder(option, key)

    def _finder(self, option: str, key: str) -> Place:
        start = self.command.value_place(option)
        found = self.command.option(option)
        end = start.line
        if found is not None:
            behind = found.value_at + len(found.values)
            if behind < len(self.command.places):
                end = self.command.places[behind].line
            else:
                end = start.line + 60
        lines = self.lines
        column = start.column - 1
        for row in range(start.line - 1, min(end + 1, len(lines))):
            spot = lines[row].find(f'"{key}"', column)
            if spot < 0:
                spot = lines[row].find(f'\\"{key}\\"', column)
            if spot >= 0:
                return Place(start.file, row + 1, spot + 1)
            column = 0
        return start

    lines: tuple[str, ...] = field(default=(), repr=False)


@dataclass
class Group:
    """Servers that form one data-parallel group (or one server alone)."""

    name: str
    side: str
    members: list[Server] = field(default_factory=list)
    ranks: int = 0
    node_ranks: set[int] = field(default_factory=set)

    def add(self, server: Server) -> None:
        """Its next member."""
        self.members.append(server)
        self.ranks += max(server.local, 1)
        self.node_ranks.add(server.command.number("--node-rank", 0))

    @property
    def first(self) -> Server:
        """Its leader as far as one can tell: the first node's."""
        return self.members[0]

    @property
    def size(self) -> int:
        """Data-parallel ranks, as its first member says."""
        return self.first.dp_size

    @property
    def master(self) -> str:
        """Address of the node where its ranks should meet."""
        return self.first.plan.address


@dataclass
class Fleet:
    """Everything rules look at."""

    case: Case
    plan: Plan
    servers: tuple[Server, ...]
    groups: tuple[Group, ...]

    @cached_property
    def nodes(self) -> dict[int, list[Server]]:
        """Servers by node."""
        found: dict[int, list[Server]] = {}
        for server in self.servers:
            found.setdefault(server.index, []).append(server)
        return found

    @cached_property
    def node_groups(self) -> Counter[int]:
        """Nodes of each node group of the routing dialect."""
        return Counter(n.ranks.node_group for n in self.case.nodes if n.ranks is not None)

    @cached_property
    def commands(self) -> tuple[Server, ...]:
        """One server a command: the ranks of a node share their words."""
        return tuple(
            server
            for servers in self.nodes.values()
            for server in servers[: len(servers[0].node.commands)]
        )

    def options(self) -> Iterator[tuple[Server, Option]]:
        """Every option of every command."""
        for server in self.commands:
            for option in server.command.options:
                yield server, option

    @property
    def routing(self) -> bool:
        """Written in the routing dialect."""
        return self.case.dialect == "routing"

    def side(self, name: str) -> list[Server]:
        """The servers of a side."""
        return [server for server in self.servers if server.side == name]

    def env_place(self, node: CaseNode, name: str) -> Place:
        """Where a variable of a node is defined."""
        for path in ((*node.paths["envs"], name), ("env_common", name)):
            mark = self.case.source.marks.get(path)
            if mark:
                return Place(self.case.file, *mark)
        return self.case.place(*node.paths["node"])

    def config_place(self, server: Server, key: str) -> Place:
        """Where a routing node's number is, else where its command starts."""
        if "config" in server.node.paths:
            return self.case.place(*server.node.paths["config"], key)
        return server.command.place(0)

    def role_place(self) -> Place:
        """Where the roles are listed."""
        if self.routing:
            return self.case.place("routing", "groups")
        return self.case.place("disaggregated_prefill")


def build(case: Case, plan: Plan) -> Fleet:
    """The fleet of a case and its plan."""
    servers = []
    nodes = {node.index: node for node in case.nodes}
    for planned in plan.nodes:
        node = nodes[planned.index]
        last = len(node.commands) - 1
        started = [process for process in planned.processes if process.kind == "server"]
        for at, process in enumerate(started):
            places = tuple(word.place for word in node.commands[min(at, last)])
            if places:
                command = parse(process.argv, places)
                servers.append(Server(node, planned, process, command, case.source.lines))
    return Fleet(case, plan, tuple(servers), tuple(_groups(servers)))


def _groups(servers: list[Server]) -> Iterator[Group]:
    """Data-parallel groups, by order and not by what may be wrong: address, port, size."""
    counts: dict[str, int] = {}
    open_group: dict[str, Group] = {}
    made: list[Group] = []
    for server in servers:
        group = open_group.get(server.side)
        if group is None or not _joins(group, server):
            number = counts.get(server.side, 0)
            counts[server.side] = number + 1
            group = Group(f"{server.side}-{number}", server.side)
            made.append(group)
        group.add(server)
        open_group[server.side] = group
    yield from made


def _joins(group: Group, server: Server) -> bool:
    """Whether ``server`` continues the group before it on its side."""
    first = group.first
    if server.nnodes > 1 or first.nnodes > 1:
        rank = server.command.number("--node-rank", 0)
        known = rank in group.node_ranks
        return len(group.members) < first.nnodes and (server.headless or not known)
    if server.ray or first.ray:
        return False
    if server.headless:
        return True
    if not server.spans and not first.spans:
        return False
    full = group.ranks >= max(first.dp_size, 1)
    if full:
        return False
    starts_over = server.start == 0 and first.start == 0
    own = server.command.text("--data-parallel-address") == server.plan.address
    return not (starts_over and own)
