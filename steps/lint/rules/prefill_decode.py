"""Prefill and decode: roles, connectors, sizes, engine ids, ports of the handoff.

Sources: the upstream harness (roles, proxy), vLLM's KVTransferConfig, and
vllm-ascend's Mooncake connectors: a rank's handshake port is ``kv_port`` plus
its data-parallel rank times its width plus its tensor rank. The sizes an engine
checks: vllm-ascend's ``check_kv_extra_config``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from steps.core.errors import Place, Severity
from steps.core.plan.plan import KV_TRANSFER, LEADER
from steps.core.vllm.commandline import integer
from steps.core.vllm.kvports import KvPorts
from steps.lint.fleet import Fleet, Server
from steps.lint.registry import Finding, rule

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
KV = "--kv-transfer-config"
EPHEMERAL = range(32768, 61000)
SIDES = {"prefiller": "prefill", "decoder": "decode"}


def _who(server: Server) -> str:
    return f"{server.side} node {server.index}"


def _configured_elsewhere(server: Server) -> bool:
    """A configuration file may hold what the command does not."""
    return server.command.option("--config") is not None


@rule("MN401", ERROR, "Role and kv_role disagree")
def roles_agree(fleet: Fleet) -> Iterator[Finding]:
    """A node that the case lists as prefiller produces KV blocks, a decoder consumes them;
    `kv_both` may stand anywhere."""
    wrong = {"prefiller": "kv_consumer", "decoder": "kv_producer"}
    for server in fleet.commands:
        if server.side not in wrong:
            continue
        bad = wrong[server.side]
        handoff = any(entry.get("kv_role") == bad for entry in (server.kv, *server.transfers))
        if handoff or any(entry.get("kv_role") == bad for entry in server.connectors):
            right = "kv_producer" if server.side == "prefiller" else "kv_consumer"
            yield Finding(
                f"node {server.index} is a {server.side}, but its kv_role is {bad}",
                _role_place(server, bad),
                f"Write {right}, or list the node under the other role.",
                (fleet.role_place(),),
                severity=None if handoff else WARNING,
            )


def _role_place(server: Server, role: str) -> Place:
    """Where the wrong role stands, among several connectors perhaps."""
    start = server.key_place(KV, "kv_role")
    for row in range(start.line - 1, min(start.line + 40, len(server.lines))):
        column = start.column - 1 if row == start.line - 1 else 0
        spot = server.lines[row].find(f'"{role}"', column)
        if spot >= 0:
            return Place(start.file, row + 1, spot + 1)
    return start


@rule("MN402", ERROR, "Node without a role")
def every_node_has_a_role(fleet: Fleet) -> Iterator[Finding]:
    """Under prefill/decode each node with an API server is listed as prefiller or decoder: the
    proxy sends nothing to the others. A headless node that is not listed belongs to the group
    before it. In the routing dialect every node is listed."""
    split_of = fleet.case.split
    if split_of is None:
        return
    listed = {*split_of.prefillers, *split_of.decoders}
    for server in fleet.commands:
        if server.index in listed:
            continue
        if fleet.routing or not server.headless:
            yield Finding(
                f"node {server.index} is neither a prefiller nor a decoder",
                fleet.role_place(),
                "List it under its role.",
                (server.command.place(0),),
                severity=ERROR if fleet.routing or server.kv else WARNING,
            )


@rule("MN403", ERROR, "No connector on one side")
def connector_given(fleet: Fleet) -> Iterator[Finding]:
    """Under prefill/decode every server has a `--kv-transfer-config`; a side without one never
    hands over, and the decoder computes every prompt again."""
    if fleet.case.split is None:
        return
    having = [server for server in fleet.commands if server.kv]
    for server in fleet.commands:
        given = server.command.option(KV) or server.command.option("--ec-transfer-config")
        if given is None and not _configured_elsewhere(server):
            yield Finding(
                f"node {server.index} ({server.side}) has no {KV}",
                server.command.place(0),
                "Give every server of both roles the same connector.",
                tuple(other.command.place_of(KV) for other in having[:1]),
                severity=ERROR if having else WARNING,
            )


@rule("MN404", WARNING, "Producer or consumer without a split")
def split_given(fleet: Fleet) -> Iterator[Finding]:
    """A command says `kv_producer` or `kv_consumer`, but the case has no
    `disaggregated_prefill` (or it is not enabled): no proxy is started, and benchmarks go straight
    to node 0."""
    if fleet.case.split is not None:
        return
    for server in fleet.commands:
        if any(
            entry.get("kv_role") in ("kv_producer", "kv_consumer") for entry in server.transfers
        ):
            yield Finding(
                f"node {server.index} is a {server.kv.get('kv_role')}, but the case has no split",
                server.key_place(KV, "kv_role"),
                "Add disaggregated_prefill with the nodes of both roles.",
            )


def _family(name: str) -> str:
    """Connectors of one family speak one handoff: the V1 is only an older name."""
    return re.sub(r"(V\d+)$", "", name)


@rule("MN405", ERROR, "Connectors of different families")
def one_family(fleet: Fleet) -> Iterator[Finding]:
    """Prefill and decode servers hand over through connectors of one family; pools beside them
    (AscendStore, LMCache...) do not matter."""
    if fleet.case.split is None:
        return
    first: Server | None = None
    for server in fleet.commands:
        names = {_family(str(entry.get("kv_connector"))) for entry in server.transfers}
        if not names:
            continue
        if first is None:
            first, wanted = server, names
        elif not names & wanted:
            yield Finding(
                f"{_who(server)} hands over through {', '.join(sorted(names))}, {_who(first)} "
                f"through {', '.join(sorted(wanted))}",
                server.key_place(KV, "kv_connector"),
                "Use one connector on all nodes.",
                (first.key_place(KV, "kv_connector"),),
            )


@rule("MN406", ERROR, "Sizes of the handoff are not the real ones")
def real_sizes(fleet: Fleet) -> Iterator[Finding]:
    """`kv_connector_extra_config` tells the connector the sizes of both sides. Each engine refuses
    to start when those of its own side (a producer's `prefill`, a consumer's `decode`) are not its
    `--tensor-parallel-size` and its whole `--data-parallel-size`. Of the other side,
    `decode.tp_size` at a prefiller is an error. What a decoder is told of `prefill.tp_size` has
    been overridden since January 2026 by what the prefiller announces: a warning. Nobody reads the
    other side's `dp_size`: an info."""
    found: dict[tuple[str, str, Severity], Finding] = {}
    for server in fleet.commands:
        for entry in server.transfers:
            extra: Any = entry.get("kv_connector_extra_config")
            for side, short in SIDES.items() if isinstance(extra, dict) else ():
                said: Any = extra.get(short)
                for key in _SIZES if isinstance(said, dict) else ():
                    finding = _wrong_size(fleet, server, entry, side, key)
                    if finding is None:
                        continue
                    told = (short + key, repr(said.get(key)), finding.severity or ERROR)
                    first = found.setdefault(told, finding)
                    if first is not finding:
                        related = (*first.related, finding.place)
                        found[told] = replace(first, related=related)
    yield from found.values()


#: Each size in JSON and its flag.
_SIZES = {
    "dp_size": "--data-parallel-size",
    "tp_size": "--tensor-parallel-size",
    "pp_size": "--pipeline-parallel-size",
}


def _wrong_size(
    fleet: Fleet, server: Server, entry: Mapping[str, Any], side: str, key: str
) -> Finding | None:
    """What one server is told of one size of a side, if that is not so."""
    short = SIDES[side]
    told = entry["kv_connector_extra_config"][short].get(key)
    role = entry.get("kv_role")
    other = {"prefill": "kv_consumer", "decode": "kv_producer"}[short]
    own = role != other and key != "pp_size"
    peers = [server] if own else fleet.side(side)
    real = {peer.command.number(_SIZES[key], 1) for peer in peers}
    if told is None or not real or told in tuple(real) or (not own and integer(told) in real):
        return None
    severity = ERROR
    if own and entry is not server.kv:
        severity = WARNING  # only the configuration's top is checked, no nested connector
    elif not own and (key == "dp_size" or server.side == "plain"):
        severity = INFO
    elif not own and key == "tp_size" and short == "prefill":
        severity = WARNING
    hint = f"Write {_list(real)} on every node."
    if isinstance(told, str) and integer(told) in real:
        hint = f"Write {_list(real)} without quotes: the engine compares it with a number."
    return Finding(
        f"node {server.index} tells the connector that {short} has {key} {told!r}, "
        f"but {_list(real)} is real",
        _in_side(server, short, key),
        hint,
        (_size_place(fleet, peers[0], key),),
        severity=severity,
    )


def _list(values: set[int]) -> str:
    return " or ".join(map(str, sorted(value for value in values if value > 0)))


def _in_side(server: Server, side: str, key: str) -> Place:
    """Where ``key`` of a side stands: the first one behind the side's name."""
    start = server.key_place(KV, side)
    lines = server.lines
    column = start.column - 1
    for row in range(start.line - 1, min(start.line + 6, len(lines))):
        spot = lines[row].find(f'"{key}"', column)
        if spot >= 0:
            return Place(start.file, row + 1, spot + 1)
        column = 0
    return start


def _size_place(fleet: Fleet, server: Server, key: str) -> Place:
    if fleet.routing:
        return fleet.config_place(server, key)
    return server.command.place_of(_SIZES[key])


@rule("MN407", ERROR, "Engine id not unique")
def engine_ids(fleet: Fleet) -> Iterator[Finding]:
    """Engines are told apart by `engine_id`: two groups with the same one take each other's
    blocks. Ranks of one group may share it (vLLM adds the rank), and without one vLLM makes up a
    unique one. Among prefillers that push layer by layer it is a warning: the decoders' ids count
    there."""
    owners: dict[str, Server] = {}
    for group in fleet.groups:
        mine: dict[str, Server] = {}
        for member in group.members:
            for entry in member.transfers:
                value = entry.get("engine_id")
                if value is not None and "$" not in str(value):
                    mine.setdefault(str(value), member)
        for value, member in mine.items():
            owner = owners.setdefault(value, member)
            if owner is not member and owner.side != "plain":
                yield Finding(
                    f"engine_id {value} of node {member.index} is that of node {owner.index} too",
                    member.key_place(KV, "engine_id"),
                    "Give each group its own, or none.",
                    (owner.key_place(KV, "engine_id"),),
                    severity=WARNING if _pushes(owner) and _pushes(member) else ERROR,
                )


def _pushes(server: Server) -> bool:
    """A prefiller that pushes its blocks layer by layer: nobody looks it up by its id."""
    names = [str(entry.get("kv_connector")) for entry in server.transfers]
    return server.side == "prefiller" and all("Layerwise" in name for name in names)


@rule("MN408", ERROR, "KV ports meet another port")
def kv_ports(fleet: Fleet) -> Iterator[Finding]:
    """A data-parallel rank hands blocks over from `kv_port` plus its number times its devices on,
    one port a device. None of these may be another
    port of the same host: an API, rpc, proxy, pool or metrics port. The same `kv_port` on two
    hosts is fine."""
    for index, servers in fleet.nodes.items():
        others = _other_ports(fleet, index)
        reported: set[tuple[int, int]] = set()
        for server in servers:
            for found in server.kv_ports:
                for other, purpose in others:
                    if other not in found or (found.base, other) in reported:
                        continue
                    reported.add((found.base, other))
                    yield Finding(
                        f"kv_port {found.base} of node {index} takes ports {found.first} to "
                        f"{found.last}, and {other} is its {purpose} port",
                        server.key_place(KV, "kv_port"),
                        f"Leave {found.count} ports free from {found.first} on.",
                        (_port_place(fleet, server, purpose),),
                    )
                if found.last > 65535:
                    yield Finding(
                        f"kv_port {found.base} of node {index} leaves no room for ports up to "
                        f"{found.last}",
                        server.key_place(KV, "kv_port"),
                        "Choose a lower one.",
                    )


def _other_ports(fleet: Fleet, node: int) -> list[tuple[int, str]]:
    found = [
        (port.port, port.purpose)
        for port in fleet.plan.ports
        if port.node == node and port.purpose not in ("control", KV_TRANSFER)
    ]
    for server in fleet.nodes[node]:
        for name, purpose in (("--master-port", "master"), ("--data-parallel-rpc-port", "rpc")):
            port = integer(server.command.text(name))
            if port is not None and (purpose == "master" or server.start == 0):
                found.append((port, purpose))
        base = integer(server.process.env.get("HCCL_IF_BASE_PORT"))
        if base is not None:
            found += [(base + n, "HCCL base") for n in range(16)]
    return list(dict.fromkeys(found))


def _port_place(fleet: Fleet, server: Server, purpose: str) -> Place:
    if purpose == "api":
        return (
            fleet.config_place(server, "port_start")
            if fleet.routing
            else server.command.place_of("--port")
        )
    if purpose.startswith("kv-pool"):
        return fleet.case.place("kv_pool")
    if purpose == "HCCL base":
        return fleet.env_place(server.node, "HCCL_IF_BASE_PORT")
    if purpose == "master":
        return server.command.place_of("--master-port")
    if purpose == "proxy":
        return fleet.role_place()
    return server.command.place_of("--data-parallel-rpc-port")


@rule("MN409", WARNING, "KV ports in a range that others use")
def kv_ranges(fleet: Fleet) -> Iterator[Finding]:
    """Mooncake's AscendDirect transport takes 100 ports for each device of the node from 20000 (or
    `ASCEND_BASE_PORT`) on (1000 up to Mooncake 0.3.7), Mooncake's own RPC takes some in 15000 to
    17000: a `kv_port` there works until the day it does not. The kernel gives outgoing connections
    ports from 32768 to 60999 (`net.ipv4.ip_local_port_range`), where vllm-ascend's own documents
    choose ports: an info. One finding a file."""
    inside: list[tuple[Place, str]] = []
    ephemeral: list[tuple[Place, str]] = []
    for server in fleet.servers:
        names = {str(entry.get("kv_connector")) for entry in server.transfers}
        mooncake = any("Mooncake" in name for name in names)
        for found in server.kv_ports:
            place = server.key_place(KV, "kv_port")
            window = _taken(fleet, server, found) if mooncake else None
            if window is not None:
                inside.append((place, f"{found.base} lies in {window}"))
            elif found.first < EPHEMERAL.stop and found.last >= EPHEMERAL.start:
                kernel = f"{EPHEMERAL.start}-{EPHEMERAL.stop - 1}, the kernel's range for outgoing"
                ephemeral.append((place, f"{found.base} lies in {kernel} connections"))
    for places, severity in ((inside, WARNING), (ephemeral, INFO)):
        if places:
            (place, text), *rest = dict(places).items()
            hint = "Choose one outside of it, and below 32768." if severity is WARNING else ""
            yield Finding(f"kv_port {text}", place, hint, tuple(p for p, _ in rest), severity)
            return


def _taken(fleet: Fleet, server: Server, found: KvPorts) -> str | None:
    """The range of Mooncake's own that these ports meet, and whose it is."""
    base = integer(server.process.env.get("ASCEND_BASE_PORT")) or 20000
    direct = range(base, base + 100 * (fleet.case.npu_per_node or 16))
    for taken, whose in ((direct, "AscendDirect"), (range(15000, 17001), "Mooncake's RPC")):
        if found.first < taken.stop and found.last >= taken.start:
            return f"{taken.start}-{taken.stop - 1}, where {whose} takes ports of its own"
    return None


@rule("MN411", ERROR, "Two things listen on one port")
def ports_unique(fleet: Fleet) -> Iterator[Finding]:
    """Each port of a host has one purpose: API servers, rpc, pool, metrics, proxy."""
    by_port: dict[tuple[int, int], list[str]] = {}
    for port in fleet.plan.ports:
        if port.purpose == KV_TRANSFER:  # MN408
            continue
        for number in range(port.port, port.port + port.count):
            by_port.setdefault((port.node, number), []).append(port.purpose)
    for servers in fleet.nodes.values():
        server = servers[0]
        master = integer(server.command.text("--master-port"))
        if master is not None and server.command.number("--node-rank", 0) == 0:
            by_port.setdefault((server.index, master), []).append("master")
    for (node, number), purposes in sorted(by_port.items()):
        if len(set(purposes)) < 2:
            continue
        if node not in fleet.nodes:
            continue
        server = fleet.nodes[node][0]
        places = [_port_place(fleet, server, purpose) for purpose in dict.fromkeys(purposes)]
        control = "control" in purposes
        yield Finding(
            f"port {number} of node {node} is used for {' and '.join(dict.fromkeys(purposes))}",
            places[-1] if node == LEADER or not control else places[0],
            "Choose another port for one of them."
            if not control
            else "The harness itself uses it; choose another, or set MULTINODE_CONTROL_PORT.",
            tuple(places[:-1]),
            severity=WARNING if control else ERROR,
        )


#: Keys of additional-config that belong on one side (vllm-ascend's documentation).
_ONE_SIDED = {
    "layer_sharding": "prefiller",
    "c8_enable_reshape_optim": "prefiller",
    "lmhead_tensor_parallel_size": "decoder",
    "oproj_tensor_parallel_size": "decoder",
}


@rule("MN412", WARNING, "Option on the wrong side")
def right_side(fleet: Fleet) -> Iterator[Finding]:
    """Some options mean something on one side only: layer sharding on prefillers, the split
    lm_head and o_proj and decode-only graphs on decoders, the recompute scheduler under
    prefill/decode."""
    for server in fleet.commands:
        config = server.command.mapping("--additional-config")
        nested = config.get("finegrained_tp_config")
        flat = {**(nested if isinstance(nested, dict) else {}), **config}
        for key, side in _ONE_SIDED.items():
            if server.side in SIDES and server.side != side and flat.get(key):
                yield Finding(
                    f"{key} is for {side}s, node {server.index} is a {server.side}",
                    server.key_place("--additional-config", key),
                    "Remove it here.",
                )
        on = str(config.get("recompute_scheduler_enable", "")).lower() == "true"
        if on and server.side == "plain" and not server.kv:
            yield Finding(
                f"recompute_scheduler_enable is for prefill/decode, node {server.index} is not",
                server.key_place("--additional-config", "recompute_scheduler_enable"),
                "Remove it: vllm-ascend refuses it outside of prefill/decode.",
            )
        mode = server.command.mapping("--compilation-config").get("cudagraph_mode")
        if (
            server.side == "prefiller"
            and mode == "FULL_DECODE_ONLY"
            and not server.command.has("--enforce-eager")
        ):
            yield Finding(
                f"cudagraph_mode FULL_DECODE_ONLY on prefiller node {server.index}, which decodes "
                "nothing",
                server.key_place("--compilation-config", "cudagraph_mode"),
                "A prefiller usually has --enforce-eager.",
                severity=INFO,
            )


@rule("MN413", WARNING, "Generic data parallel has no proxy here")
def generic_dp(fleet: Fleet) -> Iterator[Finding]:
    """`routing.type: generic_dp` asks for a balancing proxy over all ranks, which this harness
    does not start: benchmarks go to the first rank of node 0."""
    if fleet.routing and fleet.case.split is None:
        yield Finding(
            "generic_dp: benchmarks go to the first rank of node 0, no proxy balances",
            fleet.case.place("routing", "type"),
        )
