"""How one node was started: from a plan, or by hand from a case.

Enters: the wishes of the node program's command line and the environment. Leaves: a
:class:`Start`, or every reason why there can be none. Touches: makes the run
directory, reads the case, the plan, the cluster and the token's file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from steps.core import settings
from steps.core.case.case import Case
from steps.core.errors import UsageError
from steps.core.node import alone, identify, wishes
from steps.core.node.wishes import Wishes
from steps.core.plan import clusters
from steps.core.plan.budgets import BUDGETS
from steps.core.plan.cluster import Cluster, own_addresses
from steps.core.plan.plan import Plan
from steps.core.plan.resolver import Options, resolve
from steps.core.record.events import Event
from steps.core.record.rundir import RunDir, new_run_id, write_text

GUESSABLE = (
    "no MULTINODE_TOKEN: whoever has the same case and harness and reaches the control port, such "
    "as another user of these machines, can join or end this run. To keep them out, "
    "export MULTINODE_TOKEN with one secret on all nodes, or --token-file with one file (mode 0600)"
)


@dataclass
class Start:
    """How this node was started.

    Attributes:
        plan: the whole plan, when the starter made it; else the leader makes it from ``case``,
            ``cluster``, whose addresses may be names, and ``options``.
        bound: the run ends when standard input closes (its starter is gone).
        guessable: the token is one that everybody who has the same files can work out.
    """

    index: int
    token: str
    run_dir: RunDir
    plan: Plan | None = None
    case: Case | None = None
    cluster: Cluster | None = None
    options: Options = field(default_factory=Options)
    bound: bool = False
    guessable: bool = False
    listeners: list[Callable[[Event], None]] = field(default_factory=list)

    def join_seconds(self) -> float:
        """How long the nodes may take to find one another, before there is a plan that says so."""
        of_case = self.case.timeouts if self.case else {}
        return {**of_case, **self.options.timeouts}.get("join", BUDGETS["join"].seconds)


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`start_of` reads."""
    wishes.add_plan_arguments(parser)
    more = parser.add_argument_group("how it was started")
    more.add_argument("--token-file", help="the run's token; default: MULTINODE_TOKEN")
    more.add_argument("--cluster", help="JSON of the cluster; addresses may be names")
    more.add_argument("--case-name", help="what messages call the case; default: its path")
    more.add_argument("--run-id", default="", help="default: made of the time")
    more.add_argument("--bound", action="store_true", help="end the run when stdin closes")
    more.add_argument(
        "--output", choices=("text", "events"), default="text", help="lines for people, or JSON"
    )


def start_of(asked: Wishes) -> Start:
    """How these wishes start this node.

    Raises:
        UsageError, CaseError: they mean nothing.
    """
    listeners = [alone.printer() if asked.output == "text" else _print_json]
    case_name = asked.case or ("" if asked.plan else settings.read().config_yaml_path)
    if not case_name:
        asked.check_faults()
        plan, path = wishes.plan_of(asked)
        index = wishes.index_in(plan, asked.node_index)
        return Start(
            index,
            _token(asked) or secrets.token_hex(16),
            RunDir(path).make(),
            plan=plan,
            bound=asked.bound,
            listeners=listeners,
        )
    from steps.core.case.build import load_case  # here: a node that has a plan reads no case
    from steps.core.case.masked import mask

    case = load_case(wishes.find_case(case_name), asked.case_name, only=asked.only)
    if not asked.cluster:
        asked = asked.of_case(case)
    cluster = _cluster(case, asked)
    index = clusters.node_index(case, asked.node_index, own_addresses())
    options = asked.options(asked.run or new_run_id())
    _try_out(case, cluster, options)
    token = _token(asked)
    run_dir = RunDir(asked.run_dir or Path("runs") / f"{options.run}-node-{index}").make()
    run_dir.check_unused()
    write_text(run_dir.case, mask("\n".join(case.source.lines) + "\n"))
    return Start(
        index,
        token or identify.default_token(case, cluster),
        run_dir,
        case=case,
        cluster=cluster,
        options=options,
        bound=asked.bound,
        guessable=not token and cluster.backend == "hosts" and len(cluster.nodes) > 1,
        listeners=listeners,
    )


def _try_out(case: Case, cluster: Cluster, options: Options) -> None:
    """Find what is wrong with the plan now, not when all nodes have joined.

    Raises:
        CaseError: with every problem; interfaces are unknown yet and are taken as there.
    """
    named = (replace(node, interface=node.interface or "eth0") for node in cluster.nodes)
    resolve(case, replace(cluster, nodes=tuple(named)), options)


def _cluster(case: Case, asked: Wishes) -> Cluster:
    """Where the nodes are: a file, this machine, or what case and environment say."""
    if asked.cluster:
        return identify.at_home(identify.read_cluster(Path(asked.cluster)), case)
    if asked.rehearsal is not None:
        network = asked.network or "71.9"
        return asked.placed(clusters.local(case, rehearsal=asked.rehearsal, network=network))
    return asked.placed(identify.by_hand(case))


def _token(asked: Wishes) -> str:
    """The run's token, from a file or the environment; empty when neither has one."""
    if not asked.token_file:
        return settings.read().token
    name = f"--token-file {asked.token_file}"
    try:
        with Path(asked.token_file).open(encoding="utf-8") as file:
            found, token = os.fstat(file.fileno()), file.read().strip()
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    # Who starts node programs (a pod, a runner) looks after its own files.
    if not asked.bound and stat.S_ISREG(found.st_mode):
        _check_private(name, asked.token_file, found)
    if not token:
        raise UsageError(f"{name}: it is empty", "Write one secret into it, on all nodes the same.")
    return settings.usable_token(token, name)


def _check_private(name: str, file: str, found: os.stat_result) -> None:
    """Raises UsageError when others know, or may have chosen, the token."""
    if found.st_uid not in (os.geteuid(), 0):
        raise UsageError(
            f"{name}: it belongs to another user, number {found.st_uid}, who knows the token",
            "Name a file of your own, mode 0600.",
        )
    if found.st_mode & 0o077:
        raise UsageError(
            f"{name}: found mode {found.st_mode & 0o777:04o}, expected 0600: others can read it",
            f"chmod 600 {file}",
        )


def _print_json(event: Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(event.to_json(), flush=True)
