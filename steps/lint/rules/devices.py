"""Devices: how many the parallel sizes take, and which are visible to whom."""

from __future__ import annotations

from collections.abc import Iterator

from steps.core.errors import Severity
from steps.core.vllm.commandline import integer
from steps.lint.fleet import Fleet, Server
from steps.lint.registry import Finding, rule

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def _wanted(server: Server) -> str:
    parts = [f"tp {server.tp}"]
    parts += [f"pp {server.pp}"] if server.pp > 1 else []
    parts += [f"pcp {server.pcp}"] if server.pcp > 1 else []
    parts += [f"{server.local} local ranks"] if server.local > 1 else []
    text = " x ".join(parts)
    return f"{text} over {server.nnodes} nodes" if server.nnodes > 1 else text


def _has(fleet: Fleet, servers: list[Server]) -> int:
    """Devices a node's servers can take: the node's, or all of its node group's."""
    ranks = servers[0].node.ranks
    group = ranks.node_group if ranks is not None else -1
    if group < 0:
        return fleet.case.npu_per_node
    return fleet.case.npu_per_node * fleet.node_groups[group]


def _needs(fleet: Fleet, servers: list[Server]) -> int:
    """Devices a node's servers take."""
    ranks = servers[0].node.ranks
    if ranks is not None:
        return max(ranks.devices_per_rank * len(servers), sum(s.devices for s in servers))
    return sum(server.devices for server in servers)


@rule("MN301", ERROR, "More devices than the node has")
def too_many(fleet: Fleet) -> Iterator[Finding]:
    """Tensor x pipeline x prefill-context parallel size x local data-parallel ranks is at most
    `npu_per_node` (decode context parallelism takes no devices of its own). In the deployment
    dialect the number is only recorded: the commands say what is needed, and a pod gets it."""
    if not fleet.case.npu_per_node:
        return
    for index, servers in fleet.nodes.items():
        first = servers[0]
        if first.ray:
            continue
        have, needs = _has(fleet, servers), _needs(fleet, servers)
        if needs > have:
            place = first.command.place_of("--tensor-parallel-size", "--data-parallel-size-local")
            what = _wanted(first)
            if fleet.routing:
                place = fleet.config_place(first, "tp_size")
                what = f"{_wanted(first)} x {len(servers)} ranks"
            yield Finding(
                f"node {index} needs {needs} devices ({what}), npu_per_node is {have}",
                place,
                "Make the sizes smaller, or correct npu_per_node.",
                (fleet.case.place("npu_per_node"),),
                severity=ERROR if fleet.routing else WARNING,
            )


@rule("MN302", INFO, "Devices that nobody uses")
def unused(fleet: Fleet) -> Iterator[Finding]:
    """The node has more devices than its servers take."""
    for index, servers in fleet.nodes.items():
        have, needs = _has(fleet, servers), _needs(fleet, servers)
        if servers[0].ray or not have:
            continue
        if needs < have:
            yield Finding(
                f"node {index} uses {needs} of {have} devices",
                fleet.config_place(servers[0], "tp_size")
                if fleet.routing
                else servers[0].command.place_of("--tensor-parallel-size"),
                "",
                (fleet.case.place("npu_per_node"),),
            )


def _visible(server: Server) -> list[int] | None:
    text = server.process.env.get(VISIBLE, "")
    found = [integer(part) for part in text.split(",")] if text.strip() else [None]
    return None if None in found else [device for device in found if device is not None]


@rule("MN303", ERROR, "Visible devices wrong")
def visible(fleet: Fleet) -> Iterator[Finding]:
    """`ASCEND_RT_VISIBLE_DEVICES` names devices the node has, enough for the server, and for two
    servers of a node different ones. Ranks of a node without it would all take the first devices:
    in the routing dialect it is `${VISIBLE_DEVICES}`."""
    for index, servers in fleet.nodes.items():
        first = servers[0]
        ranks = first.node.ranks
        if ranks is not None and ranks.node_group >= 0:
            continue
        have = fleet.case.npu_per_node
        place = fleet.env_place(first.node, VISIBLE)
        taken: dict[int, str] = {}
        for server in servers:
            devices = _visible(server)
            if devices is None:
                if len(servers) > 1 and not _chosen_otherwise(server):
                    yield Finding(
                        f"the {len(servers)} ranks of node {index} all see every device",
                        fleet.case.place(*first.node.paths["envs"]),
                        f"Set {VISIBLE}: ${{VISIBLE_DEVICES}} in its envs.",
                        severity=WARNING,
                    )
                break
            beyond = [device for device in devices if device >= have > 0]
            if beyond:
                yield Finding(
                    f"{VISIBLE} names device {beyond[0]}, node {index} has 0 to {have - 1}",
                    place,
                    "",
                    (fleet.case.place("npu_per_node"),),
                )
                break
            if len(devices) < server.devices and not server.ray:
                yield Finding(
                    f"{VISIBLE} shows {len(devices)} devices, the server of node {index} needs "
                    f"{server.devices} ({_wanted(server)})",
                    place,
                    "Show it as many devices as it takes.",
                    (server.command.place_of("--tensor-parallel-size"),),
                )
                break
            both = [device for device in devices if device in taken]
            if both:
                yield Finding(
                    f"{taken[both[0]]} and {server.process.name} of node {index} both see device "
                    f"{both[0]}",
                    place,
                    "Write ${VISIBLE_DEVICES}.",
                )
                break
            taken.update(dict.fromkeys(devices, server.process.name))


def _chosen_otherwise(server: Server) -> bool:
    return server.command.option("--device-ids") is not None or any(
        VISIBLE in word for word in server.command.argv[:6]
    )
