"""What variables mean in a plan: the environment of each process, and what a command says.

Enters: a case, a cluster. Leaves: environments and words without a variable; problems, for those
that nobody defines. Touches nothing.

What is injected follows the upstream harness (vllm-ascend, multi_node).
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from steps.core.case.case import Case, CaseNode, Ranks
from steps.core.case.parts import single
from steps.core.case.shellwords import Word
from steps.core.errors import MAX_PROBLEMS, Place, Problem, Severity, cut
from steps.core.plan import faults
from steps.core.plan.cluster import Cluster, Rehearsal
from steps.core.plan.variables import (
    MAX_FILLED,
    PATH_LISTS,
    TooLong,
    bare_names_in,
    fill,
    fill_environment,
)

DEFAULT_ENV = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENGINE_READY_TIMEOUT_S": "1800",
    "SERVER_PORT": "8080",
}
#: What upstream's workflow of single nodes has besides.
SINGLE_ENV = {"VLLM_USE_MODELSCOPE": "True"}
#: The first port that stands for DEFAULT_PORT.
FIRST_PORT = 8080


def with_ports(case: Case, taken: Container[int]) -> Case:
    """A case of one node with a port wherever it wants a free one, none of ``taken``."""
    if case.dialect != "single":
        return case
    made = []
    for node in case.nodes:
        own = {name: node.envs.get(name, single.DEFAULT_PORT) for name in single.PORT_WORDS}
        used = {int(text) for text in own.values() if text.isdecimal()}
        free = (p for p in range(FIRST_PORT, 65536) if p not in used and p not in taken)
        ports = {
            name: str(next(free)) if text == single.DEFAULT_PORT else text
            for name, text in own.items()
        }
        made.append(replace(node, envs={**node.envs, **ports}))
    return replace(case, nodes=tuple(made))


class Scope:
    """The variables of a case on a cluster."""

    def __init__(self, case: Case, cluster: Cluster) -> None:
        self.case = case
        self.cluster = cluster
        self.problems: list[Problem] = []
        self._filled = 0
        self._unknown: set[tuple[Any, str]] = set()
        self._usual = {**DEFAULT_ENV, **(SINGLE_ENV if case.dialect == "single" else {})}

    def _injected(self, index: int, master: str) -> dict[str, str]:
        if self.case.dialect == "single":
            return {}
        at = self.cluster.nodes[index]
        env = {"HCCL_IF_IP": at.address, "LOCAL_IP": at.address, "MASTER_IP": master}
        if at.interface:
            for name in ("HCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
                env[name] = at.interface
            env["NIC_NAME"] = at.interface
        return env

    def environment(
        self,
        node: CaseNode,
        master: str,
        process: str,
        braced: Mapping[str, str] | None = None,
    ) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        """The environment of a node's process, and what stands in front of path variables.

        Args:
            braced: values of ``${NAME}`` in the routing dialect.
        """
        injected = self._injected(node.index, master)
        given = {**self.cluster.known, **self._usual, **self.cluster.env, **injected}

        def unknown(name: str, missing: str) -> None:
            path = (*node.paths["envs"], name)
            self._unresolved(missing, name, path, given, must=name not in PATH_LISTS)

        if node.ranks is not None:  # the proxy's too, which has the environment of its node
            given |= self._left_empty(node, given)
        own, paths = fill_environment(node.envs, given, unknown, braced)
        self._made(len(own.get(name, "")) for name, text in node.envs.items() if "$" in text)
        env = self.around(node.index, master, process, own)
        merged = {key: tuple(value) for key, value in self.cluster.paths.items()}
        for key, value in paths.items():
            merged[key] = (*merged.get(key, ()), *value)
        return env, merged

    def _left_empty(self, node: CaseNode, given: Mapping[str, str]) -> dict[str, str]:
        """``$NAME`` that nobody defines is empty in an environment of the routing dialect."""
        known = {*given, *node.envs, *PATH_LISTS}
        empty = {}
        for name, text in node.envs.items():
            for missing in bare_names_in(text):
                if missing not in known:
                    empty[missing] = ""
                    path = (*node.paths["envs"], name)
                    self._unresolved(missing, name, path, given, must=False)
        return empty

    def around(
        self, index: int, master: str, process: str, own: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """What a process has in its environment, with ``own`` variables of its node perhaps."""
        injected = self._injected(index, master)
        env = {**self._usual, **self.cluster.env, **(own or {}), **injected}
        if self.cluster.rehearsal is not None:
            env.update(self._of_rehearsal(self.cluster.rehearsal, index, process))
        return env

    def _of_rehearsal(self, rehearsal: Rehearsal, index: int, process: str) -> dict[str, str]:
        return {
            "REHEARSAL_ADDRESS": self.cluster.nodes[index].address,
            "REHEARSAL_NODE_INDEX": str(index),
            "REHEARSAL_PROCESS": process,
            "REHEARSAL_DEVICES": str(self.case.npu_per_node),
            "REHEARSAL_LOAD_SECONDS": f"{rehearsal.load_seconds:g}",
            "REHEARSAL_FAULTS": ";".join(faults.sort(rehearsal.faults)[0]),
            **({"REHEARSAL_ACCEPTANCE": rates} if (rates := _accepted(self.case)) else {}),
        }

    def of_rank(self, node: CaseNode, ranks: Ranks, local_rank: int, master: str) -> dict[str, str]:
        """What ``${NAME}`` means to one of a routing node's ranks."""
        addresses = {f"NODE_{n.index}_IP": n.address for n in self.cluster.nodes}
        own = self.cluster.nodes[node.index].address
        width = ranks.devices_per_rank
        devices = range(local_rank * width, (local_rank + 1) * width)
        table = {
            **addresses,
            "LOCAL_IP": own,
            "MASTER_IP": self.cluster.nodes[0].address,
            "MODEL": self.case.model,
            "HOST": ranks.host,
            "PORT_START": str(ranks.port_start),
            "PORT": str(ranks.port_start + local_rank),
            "DP_SIZE": str(ranks.dp_size),
            "DP_SIZE_LOCAL": str(ranks.dp_size_local),
            "DP_RANK_START": str(ranks.dp_rank_start),
            "DP_RANK": str(ranks.dp_rank_start + local_rank),
            "LOCAL_RANK": str(local_rank),
            "TP_SIZE": str(ranks.tp_size),
            "CP_SIZE": str(ranks.cp_size),
            "SP_SIZE": str(ranks.sp_size),
            "PP_SIZE": str(ranks.pp_size),
            "DP_RPC_PORT": str(ranks.dp_rpc_port),
            "VISIBLE_DEVICES": ",".join(map(str, devices)),
            "NODE_INDEX": str(node.index),
            "CONFIG_INDEX": str(node.paths["config"][1]),
            "LWS_WORKER_INDEX": str(node.index),
        }
        path = (*node.paths["config"], "dp_address")
        table["DP_ADDRESS"] = (
            fill(
                ranks.dp_address,
                {**self.cluster.env, **table},
                lambda name: self._unresolved(name, "dp_address", path, table),
            )
            if ranks.dp_address
            else master
        )
        return table

    def command(
        self,
        node: CaseNode,
        where: str,
        env: Mapping[str, str],
        braced: Mapping[str, str] | None = None,
        words: Iterable[Word] | None = None,
    ) -> tuple[str, ...]:
        """The node's command, or other ``words``, filled."""
        table = {**self.cluster.known, **env}
        known = {**(braced or {}), **table}
        path = node.paths["command"]
        argv = []
        must = self.case.dialect != "single"  # upstream leaves it there
        for word in node.command if words is None else words:
            place = word.place

            def unknown(name: str, place: Place = place) -> None:
                self._unresolved(name, where, path, known, place, must)

            argv.append(fill(word.text, table, unknown, braced))
        self._made(map(len, argv))
        return tuple(argv)

    def value(self, text: str, table: Mapping[str, str], path: tuple[Any, ...]) -> str:
        """A text of the case, filled from ``table``."""
        known = {**self.cluster.known, **table}
        return fill(text, known, lambda name: self._unresolved(name, path[-1], path, known))

    def _made(self, lengths: Iterable[int]) -> None:
        """Counts the text that filling makes of all servers together."""
        self._filled += sum(lengths)
        if self._filled > 256 * MAX_FILLED:
            raise TooLong(f"variables multiply to more than {256 * MAX_FILLED:,} characters")

    def _unresolved(
        self,
        name: str,
        where: str,
        path: tuple[Any, ...],
        known: Mapping[str, str],
        place: Any = None,
        must: bool = True,
    ) -> None:
        """``must``: it has to have a value; a directory of a list can be left out."""
        at = place or self.case.place(*path)
        if (at, name) in self._unknown or len(self._unknown) > 2 * MAX_PROBLEMS:
            return
        self._unknown.add((at, name))
        close = difflib.get_close_matches(name, list(known), 1, 0.75) if len(name) < 100 else []
        hint = (
            f"Did you mean '${close[0]}'?"
            if close
            else "Define it under env_common or the node's envs, or in the cluster's profile."
        )
        self.problems.append(
            Problem(
                "MN020",
                f"{where}: nobody defines the variable '{cut(name, 200)}'",
                at,
                hint,
                Severity.ERROR if must or close else Severity.WARNING,
                field=".".join(map(str, path)),
            )
        )


def _accepted(case: Case) -> str:
    """The acceptance rates that stand-ins keep, by position: what the case expects."""
    listed = [entry.rates for entry in case.benchmarks if entry.rates]
    rates = [max(at) for at in zip_longest(*listed, fillvalue=0.0)]
    if case.content.acceptance.baseline is not None:
        rates[:1] = [case.content.acceptance.baseline]
    return ",".join(f"{rate:.6f}".rstrip("0").rstrip(".") for rate in rates)
