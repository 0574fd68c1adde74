"""Data-parallel groups: ranks, sizes, where they meet, who has the API server.

Sources: vLLM 0.32's engine arguments and engine handshake (a follower must be
headless unless the group is in hybrid or external load balancing), and the
upstream harness's meaning of LOCAL_IP and MASTER_IP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from steps.core.errors import Place, Severity
from steps.lint.fleet import Fleet, Group, Server
from steps.lint.registry import Finding, rule

ERROR, WARNING = Severity.ERROR, Severity.WARNING
_START = "--data-parallel-start-rank"


def _spanning(fleet: Fleet) -> Iterator[Group]:
    """Groups of more than one server, or that should have more."""
    for group in fleet.groups:
        if group.first.ray or group.first.nnodes > 1:
            continue
        if len(group.members) > 1 or group.first.spans:
            yield group


def _who(server: Server) -> str:
    name = f"node {server.index}"
    return name if server.process.name == "server" else f"{name} {server.process.name}"


def _differs(
    fleet: Fleet, read: Callable[[Server], object], names: tuple[str, ...], key: str
) -> Iterator[tuple[Group, Server, Place, Place]]:
    """Members of a group that disagree with its first one, once a node."""
    for group in _spanning(fleet):
        seen = {group.first.index}
        for member in group.members[1:]:
            if read(member) == read(group.first) or member.index in seen:
                continue
            seen.add(member.index)
            place, other = member.command.place_of(*names), group.first.command.place_of(*names)
            if fleet.routing and key:
                place = fleet.config_place(member, key)
                other = fleet.config_place(group.first, key)
            yield group, member, place, other


@rule("MN201", ERROR, "Ranks do not tile the group")
def ranks_tile(fleet: Fleet) -> Iterator[Finding]:
    """The ranks of all members of a group are 0 to size - 1, each once. With a gap the group waits
    for a rank that nobody starts; with an overlap two engines claim the same one."""
    for group in _spanning(fleet):
        if any(_lacks_start(group, member) for member in group.members):
            continue
        size = group.size
        if len({member.dp_size for member in group.members}) > 1:
            continue
        absent, twice, beyond, wrong = _tiling(group)
        if not (twice or absent or beyond):
            continue
        parts = []
        if absent:
            parts.append(f"nobody has {_ranks(*absent)}")
        if twice:
            parts.append(f"{_ranks(*twice)} twice")
        if beyond:
            parts.append(f"{_ranks(*beyond)} beyond the group")
        names = (_START, "--data-parallel-rank", "--data-parallel-size-local")
        place = wrong.command.place_of(*names)
        related: tuple[Place, ...] = tuple(
            member.command.place_of(*names, "--data-parallel-size")
            for member in group.members
            if member is not wrong
        )
        if fleet.routing:
            place = fleet.config_place(wrong, "dp_rank_start")
            related = tuple(fleet.config_place(member, "dp_rank_start") for member in group.members)
        held = "; ".join(
            f"{_who(member)} has {_ranks(range(member.start, member.start + member.local))}"
            for member in group.members
        )
        yield Finding(
            f"the {size} data-parallel ranks of {group.name} do not tile: {', '.join(parts)} "
            f"({held})",
            place,
            "Each node's start rank is the sum of the local sizes before it.",
            related,
        )


def _tiling(group: Group) -> tuple[list[range], list[range], list[range], Server]:
    """Ranks that nobody has, that two have, that are too many; the member to show it at."""
    absent: list[range] = []
    twice: list[range] = []
    beyond: list[range] = []
    wrong = late = group.members[-1]
    reached = 0
    for member in sorted(group.members, key=lambda m: m.start):
        start, end = member.start, member.start + max(member.local, 1)
        if reached < min(start, group.size):
            absent.append(range(reached, min(start, group.size)))
        if start < reached:
            wrong = wrong if twice else member
            twice.append(range(start, min(end, reached)))
        if end > group.size:
            late = late if beyond else member
            beyond.append(range(max(start, group.size, reached), end))
        reached = max(reached, end)
    if reached < group.size:
        absent.append(range(reached, group.size))
    beyond = [ranks for ranks in beyond if ranks]
    return absent, twice, beyond, wrong if twice else late


def _ranks(*runs: range) -> str:
    """A few of the ranks, as people write them."""
    held = [run for run in runs if run]
    if not held:
        return "no rank"
    words = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in held[:20]]
    many = len(held) > 1 or len(held[0]) > 1
    return f"rank{'s' if many else ''} {', '.join(words)}{', ...' if len(held) > 20 else ''}"


def _lacks_start(group: Group, member: Server) -> bool:
    return (
        member is not group.first
        and not member.external
        and member.command.option(_START) is None
        and group.first.dp_size > 1
    )


@rule("MN202", ERROR, "Group sizes disagree")
def sizes_agree(fleet: Fleet) -> Iterator[Finding]:
    """Every member of a group says the same `--data-parallel-size`; else they wait for different
    numbers of ranks."""
    found = _differs(fleet, lambda s: s.dp_size, ("--data-parallel-size",), "dp_size")
    for group, member, place, other in found:
        yield Finding(
            f"{_who(member)} says data-parallel size {member.dp_size}, {_who(group.first)} of the "
            f"same group says {group.size}",
            place,
            "All members of a group say the same size.",
            (other,),
        )


@rule("MN203", ERROR, "Rpc ports disagree")
def ports_agree(fleet: Fleet) -> Iterator[Finding]:
    """The members of a group meet at one rpc port of the master; a member that knocks at another
    one waits for ever."""

    def port(server: Server) -> int:
        return server.command.number("--data-parallel-rpc-port", 29550)

    for group, member, place, other in _differs(
        fleet, port, ("--data-parallel-rpc-port",), "dp_rpc_port"
    ):
        yield Finding(
            f"{_who(member)} joins its group at rpc port {port(member)}, {_who(group.first)} "
            f"at {port(group.first)}",
            place,
            "All members of a group use one rpc port.",
            (other,),
        )


#: Where a group of one server may meet.
_HERE = ("127.0.0.1", "localhost", "0.0.0.0")


@rule("MN204", ERROR, "Not the address of the group's master")
def masters_address(fleet: Fleet) -> Iterator[Finding]:
    """The ranks of a group meet at the address of the node that has rank 0: on that node
    `$LOCAL_IP`, on the others `$MASTER_IP` (under prefill/decode the first decoder's, for every
    node that is no prefiller). `$LOCAL_IP` on a follower makes it wait for itself; the master of
    another group never knows it."""
    addresses = {node.address: node.index for node in fleet.plan.nodes}
    for group in fleet.groups:
        if group.first.ray or group.first.nnodes > 1:
            continue
        if max(member.dp_size for member in group.members) < 2:
            continue
        first = group.first
        seen: set[int] = set()
        for member in group.members:
            address = member.command.text("--data-parallel-address")
            if not address or "$" in address or address == group.master or member.index in seen:
                continue
            if member is first and address in _HERE and not first.spans:
                continue
            if address not in addresses and fleet.case.cluster_hosts:
                if address == fleet.case.cluster_hosts[first.index]:
                    continue
            elif address not in addresses and not _is_address(address):
                continue
            seen.add(member.index)
            place, related = member.command.value_place("--data-parallel-address"), first
            if fleet.routing and "dp_address" in _config_of(fleet, member):
                place = fleet.config_place(member, "dp_address")
            whose = f"that of node {addresses[address]}" if address in addresses else address
            yield Finding(
                f"{_who(member)} joins its group at {_named(whose, member, addresses, address)}, "
                f"but the master of {group.name} is node {first.index}",
                place,
                _address_hint(fleet, group, member),
                () if member is first else (related.command.place_of("--data-parallel-address"),),
            )


def _config_of(fleet: Fleet, server: Server) -> Mapping[str, object]:
    path = server.node.paths.get("config")
    found: Mapping[str, object] = fleet.case.source.data["config"][path[1]] if path else {}
    return found


def _named(whose: str, member: Server, addresses: dict[str, int], address: str) -> str:
    return "its own address" if addresses.get(address) == member.index else whose


def _is_address(text: str) -> bool:
    return text.replace(".", "").isdigit() or ":" in text


def _address_hint(fleet: Fleet, group: Group, member: Server) -> str:
    if fleet.routing:
        return f"dp_address of its nodes is ${{NODE_{group.first.index}_IP}}."
    if member is group.first:
        return "A group's first node gives its own address: $LOCAL_IP."
    if member.plan.master == group.master:
        return "Write $MASTER_IP."
    return f"Give the address of node {group.first.index}."


@rule("MN205", ERROR, "No address to meet at")
def address_given(fleet: Fleet) -> Iterator[Finding]:
    """A group over several nodes needs `--data-parallel-address` on each of them: the default is
    127.0.0.1, where a leader is not reachable and a follower finds nobody."""
    for group in _spanning(fleet):
        if len({member.index for member in group.members}) < 2:
            continue
        for member in group.members:
            if member.command.option("--data-parallel-address") is None:
                yield Finding(
                    f"{_who(member)} is in the {len(group.members)}-node group {group.name}, but "
                    "has no --data-parallel-address",
                    member.command.place_of("--data-parallel-size"),
                    "Add --data-parallel-address "
                    + ("$LOCAL_IP." if member is group.first else "$MASTER_IP."),
                    (group.first.command.place_of("--data-parallel-address"),),
                )


@rule("MN206", ERROR, "Start rank missing")
def start_rank(fleet: Fleet) -> Iterator[Finding]:
    """Every node of a group but the first says which ranks it has: `--data-parallel-start-rank`;
    without it, it claims rank 0 a second time."""
    for group in _spanning(fleet):
        before = 0
        for member in group.members:
            if _lacks_start(group, member):
                yield Finding(
                    f"{_who(member)} continues {group.name}, but has no {_START}",
                    member.command.place_of("--data-parallel-size-local", "--data-parallel-size"),
                    f"Add {_START} {before}.",
                    (group.first.command.place_of("--data-parallel-size"),),
                )
            before += max(member.local, 1)


@rule("MN207", ERROR, "Headless where it must not be, or not where it must")
def headless(fleet: Fleet) -> Iterator[Finding]:
    """A group's first node has the API server and the others are `--headless`: vLLM refuses a
    remote engine that is not. In hybrid load balancing (`--data-parallel-hybrid-lb` on every node)
    it is the reverse: every node has an API server. A server that is headless alone is reached by
    nobody."""
    for group in fleet.groups:
        first = group.first
        if first.ray:
            continue
        if first.headless:
            yield Finding(
                f"{_who(first)} is headless, but the first of {group.name}: nobody serves its API",
                first.command.place_of("--headless"),
                "Remove --headless here; the nodes that join it are headless.",
            )
            continue
        if first.external:
            continue
        for member in group.members[1:]:
            if first.nnodes > 1 and member.index != first.index and not member.headless:
                yield Finding(
                    f"{_who(member)} is a follower of node {first.index}, but not headless",
                    member.command.place_of("--node-rank"),
                    "Add --headless.",
                    (first.command.place_of("--node-rank"),),
                    severity=WARNING,
                )
            elif first.nnodes > 1 or member.external:
                continue
            elif first.hybrid and member.headless:
                yield Finding(
                    f"{_who(member)} is headless, but its group is in hybrid load balancing",
                    member.command.place_of("--headless"),
                    "Remove --headless, or --data-parallel-hybrid-lb on the first node.",
                    (first.command.place_of("--data-parallel-hybrid-lb"),),
                )
            elif not first.hybrid and not member.headless:
                yield Finding(
                    f"{_who(member)} joins the group of node {first.index}, but is not headless",
                    member.command.place_of(_START, "--data-parallel-address"),
                    "Add --headless (or --data-parallel-hybrid-lb to every node of the group).",
                    (first.command.place_of("--data-parallel-size"),),
                )


@rule("MN208", ERROR, "Parallel sizes disagree in a group")
def widths_agree(fleet: Fleet) -> Iterator[Finding]:
    """All ranks of a group have the same tensor, pipeline and context parallel sizes."""
    widths: tuple[tuple[str, str, Callable[[Server], int]], ...] = (
        ("tensor-parallel", "tp_size", lambda s: s.tp),
        ("pipeline-parallel", "pp_size", lambda s: s.pp),
        ("prefill-context-parallel", "", lambda s: s.pcp),
    )
    for name, key, read in widths:
        for group, member, place, other in _differs(fleet, read, (f"--{name}-size",), key):
            yield Finding(
                f"{_who(member)} has {name} size {read(member)}, {_who(group.first)} of the same "
                f"group {read(group.first)}",
                place,
                "All ranks of a group have the same size.",
                (other,),
            )


@rule("MN210", ERROR, "Nodes of one engine disagree")
def engine_nodes(fleet: Fleet) -> Iterator[Finding]:
    """With `--nnodes` one engine reaches over several nodes: their `--node-rank`s are 0 to
    nnodes - 1, each once, and all give the same master address and port."""
    for group in fleet.groups:
        first = group.first
        if first.nnodes < 2:
            continue
        ranks = [member.command.number("--node-rank", 0) for member in group.members]
        if len(ranks) != first.nnodes or sorted(ranks) != list(range(len(ranks))):
            last = group.members[-1]
            yield Finding(
                f"--node-rank of {group.name} are {', '.join(map(str, ranks))}, expected 0 to "
                f"{first.nnodes - 1}, each once",
                last.command.value_place("--node-rank"),
                "",
                tuple(member.command.value_place("--node-rank") for member in group.members[:-1]),
            )
        for name in ("--nnodes", "--master-addr", "--master-port"):
            for member in group.members[1:]:
                mine, other = member.command.text(name), first.command.text(name)
                if mine != other:
                    yield Finding(
                        f"{_who(member)} has {name} {mine or 'unset'}, {_who(first)} has "
                        f"{other or 'unset'}",
                        member.command.place_of(name),
                        "All nodes of one engine say the same.",
                        (first.command.place_of(name),),
                    )


@rule("MN211", ERROR, "More local ranks than ranks")
def local_fits(fleet: Fleet) -> Iterator[Finding]:
    """`--data-parallel-size-local` is at most `--data-parallel-size`; vLLM refuses the rest at
    once."""
    for server in fleet.commands:
        local = server.command.number("--data-parallel-size-local", 0)
        if local > server.dp_size:
            yield Finding(
                f"{_who(server)} has {local} local ranks of a group of {server.dp_size}",
                server.command.value_place("--data-parallel-size-local"),
                "The local size is at most the group's size.",
                (server.command.place_of("--data-parallel-size"),),
            )


_PAIRS = (
    ("--data-parallel-size", "dp_size", "${DP_SIZE}"),
    ("--tensor-parallel-size", "tp_size", "${TP_SIZE}"),
    ("--pipeline-parallel-size", "pp_size", "${PP_SIZE}"),
    ("--data-parallel-rpc-port", "dp_rpc_port", "${DP_RPC_PORT}"),
)


@rule("MN212", ERROR, "Template and config disagree")
def template_agrees(fleet: Fleet) -> Iterator[Finding]:
    """A rank's arguments say what its node's `config` entry says: sizes, its own rank, its own
    port. A fixed number in a template is the same for every rank of the node."""
    if not fleet.routing:
        return
    for servers in fleet.nodes.values():
        first = servers[0]
        ranks = first.node.ranks
        if ranks is None:
            continue
        for option, key, variable in _PAIRS:
            if first.command.option(option) is None:
                continue
            said = first.command.number(option, -1)
            wanted = getattr(ranks, key)
            if said not in (-1, wanted):
                yield Finding(
                    f"{option} is {said}, but config says {key} {wanted} for node {first.index}",
                    first.command.value_place(option),
                    f"Write {variable}.",
                    (fleet.config_place(first, key),),
                )
        yield from _ranks_of_node(fleet, servers)


def _ranks_of_node(fleet: Fleet, servers: list[Server]) -> Iterator[Finding]:
    first = servers[0]
    size = first.node.ranks.dp_size if first.node.ranks else 1
    if size < 2:
        return
    command = first.command
    if command.option("--data-parallel-rank") is None:
        if len(servers) > 1 and command.option("--data-parallel-size") is not None:
            yield Finding(
                f"node {first.index} has {len(servers)} ranks, but its template has no "
                "--data-parallel-rank",
                command.place_of("--data-parallel-size"),
                "Add --data-parallel-rank ${DP_RANK}.",
                (fleet.config_place(first, "dp_size_local"),),
            )
        return
    for server in servers:
        said = server.command.number("--data-parallel-rank", -1)
        if said not in (-1, server.process.rank):
            yield Finding(
                f"--data-parallel-rank is {said} for every rank of node {first.index}",
                command.value_place("--data-parallel-rank"),
                "Write ${DP_RANK}.",
                (fleet.config_place(first, "dp_rank_start"),),
            )
            break
    ports = {server.command.text("--port") for server in servers}
    if len(servers) > 1 and len(ports) == 1 and command.option("--port") is not None:
        yield Finding(
            f"all {len(servers)} ranks of node {first.index} listen on port {ports.pop()}",
            command.value_place("--port"),
            "Write ${PORT}.",
            (fleet.config_place(first, "port_start"),),
        )
