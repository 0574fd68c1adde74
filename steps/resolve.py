"""resolve: the plan of a case, printed, and a run directory for it (``invoke plan``).

Enters: a case and where it would run. Leaves: a run directory with the plan, which the other
steps find as ``runs/latest``; the plan as text or JSON, with ``--output`` in a file as well.
Touches: that directory and that file; nothing is started.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from steps.core import door, foreign
from steps.core.case.build import load_case
from steps.core.case.case import Case
from steps.core.case.masked import mask
from steps.core.errors import UsageError
from steps.core.node import wishes
from steps.core.node.wishes import Wishes
from steps.core.plan import clusters
from steps.core.plan.cluster import Cluster, ClusterNode
from steps.core.plan.plan import Plan, to_json
from steps.core.plan.resolver import resolve
from steps.core.record.rundir import RunDir, new_run_id, point_latest, write_text
from steps.core.redaction import here


def text(plan: Plan) -> str:
    """The plan for people: nodes, commands, ports, benchmarks."""
    lines = [f"{plan.case_name} on {plan.cluster.name}: {len(plan.nodes)} nodes"]
    lines += [f"  {note}" for note in plan.notes]
    lines += [f"  tests {product}" for product in plan.cluster.products]
    lines.append(f"  benchmarks go to {plan.endpoint.url} ({plan.endpoint.kind})")
    for node in plan.nodes:
        headless = ", headless" if node.headless else ""
        lines.append(
            f"\nnode {node.index}: {node.address} {node.role}, {node.side}{headless}, "
            f"master {node.master}"
        )
        for process in node.processes:
            rank = "" if process.rank is None else f" rank {process.rank}"
            count = (
                f" to {process.rank + process.ranks - 1}"
                if process.rank is not None and process.ranks > 1
                else ""
            )
            lines.append(f"  {process.name} {process.group}{rank}{count}".rstrip())
            lines.append(f"    {' '.join(_quoted(word) for word in process.argv)}")
            if process.probe:
                lines.append(f"    ready when {process.probe.url}")
    lines.append("\nports")
    for port in plan.ports:
        last = f"-{port.port + port.count - 1}" if port.count > 1 else ""
        lines.append(f"  node {port.node} {port.port}{last} {port.purpose} ({port.process})")
    lines.append("\nbenchmarks")
    for entry in plan.benchmarks:
        gates = ", ".join(map(str, entry.gates)) or "no gate"
        skipped = f" [not judged: {entry.skip_gates}]" if entry.skip_gates else ""
        lines.append(f"  {entry.benchmark.name}: {entry.driver}, {gates}{skipped}")
    return "\n".join(lines)


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", required=True, help="a case: a path, or a name in configs/")
    parser.add_argument("--hosts", default="", help="addresses of the nodes, comma separated")
    parser.add_argument("--run-id", default="", help="the plan's run id; default: by the time")
    parser.add_argument("--run-dir", help="default: runs/<run id>")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--output", help="write the JSON plan to this file")
    wishes.add_shape_arguments(parser)


#: Makes the plan for this machine of a case, a run directory and what was asked for.
Local = Callable[[Case, RunDir, Wishes], Plan]


def work(arguments: argparse.Namespace, local: Local | None = None) -> int:
    """Make the run directory and print the plan.

    Args:
        local: makes the plan where all nodes are on this machine, with the tools it needs.
    """
    asked = wishes.wishes_of(arguments, case_may_rehearse=True)
    path = wishes.find_case(asked.case)
    case = load_case(path, only=asked.only)
    asked = asked.of_case(case)
    asked = replace(asked, run=asked.run or new_run_id())
    run_dir = RunDir(asked.run_dir or Path("runs") / asked.run)
    run_dir.check_unused()
    cluster = _far(case, asked)
    if cluster is None and local:
        plan = local(case, run_dir, asked)
    else:
        near = partial(clusters.local, case, rehearsal=asked.rehearsal, network=asked.network)
        plan = resolve(case, asked.placed(cluster or near()), asked.options(asked.run))
    run_dir.make()
    write_text(run_dir.case, mask(path.read_text(encoding="utf-8-sig")))
    write_text(run_dir.plan, to_json(plan))
    point_latest(run_dir.path)
    if arguments.output:
        write_text(Path(arguments.output), to_json(plan))
    known = here()
    known.study(plan)
    shown = known.value(plan)
    print(foreign.json(to_json(shown)) if arguments.format == "json" else text(shown))
    told = f"plan {plan.fingerprint()[:12]} in {run_dir.path}; nothing was started"
    print(told, file=sys.stderr, flush=True)
    return 0


main = door.Verb("plan", __doc__, options, work)


def _far(case: Case, asked: Wishes) -> Cluster | None:
    """The cluster of the hosts that the command line or the case names."""
    hosts = [host for host in asked.hosts.split(",") if host] or list(case.cluster_hosts)
    if not hosts or asked.rehearsal is not None:
        return None
    if len(hosts) != case.num_nodes:
        raise UsageError(f"--hosts: found {len(hosts)} addresses, expected {case.num_nodes}")
    return clusters.plain(case, [ClusterNode(i, host) for i, host in enumerate(hosts)])


if __name__ == "__main__":
    raise SystemExit(main())
