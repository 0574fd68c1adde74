"""resolve: the plan of a case, printed (``invoke plan``).

Enters: a case and where it would run. Leaves: the plan as text or JSON; with
``--output`` in a file. Touches: nothing else; nothing is started.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from steps.core import door
from steps.core.case.build import load_case
from steps.core.case.case import Case
from steps.core.errors import UsageError
from steps.core.node import wishes
from steps.core.node.wishes import Wishes
from steps.core.plan import clusters
from steps.core.plan.cluster import Cluster, ClusterNode
from steps.core.plan.plan import Plan, to_json
from steps.core.plan.resolver import resolve
from steps.core.record.rundir import write_text
from steps.core.redaction import here


def text(plan: Plan) -> str:
    """The plan for people: nodes, commands, ports, benchmarks."""
    lines = [f"{plan.case_name} on {plan.cluster.name}: {len(plan.nodes)} nodes"]
    lines += [f"  {note}" for note in plan.notes]
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


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", required=True, help="a case: a path, or a name in configs/")
    parser.add_argument("--hosts", default="", help="addresses of the nodes, comma separated")
    parser.add_argument("--run-id", default="plan", help="the plan's run id; default 'plan'")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--output", help="write the JSON plan to this file")
    wishes.add_shape_arguments(parser)


def work(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    asked = wishes.wishes_of(arguments)
    case = load_case(wishes.find_case(asked.case))
    plan = resolve(case, _cluster(case, asked), asked.options(asked.run))
    here().study(plan)
    if arguments.output:
        write_text(Path(arguments.output), to_json(plan))
    shown = here().value(plan)
    print(to_json(shown) if arguments.format == "json" else text(shown))
    return 0


main = door.Verb("plan", __doc__, _options, work)


def _cluster(case: Case, asked: Wishes) -> Cluster:
    hosts = [host for host in asked.hosts.split(",") if host] or list(case.cluster_hosts)
    if hosts and asked.rehearsal is None:
        if len(hosts) != case.num_nodes:
            raise UsageError(f"--hosts: found {len(hosts)} addresses, expected {case.num_nodes}")
        return clusters.plain(case, [ClusterNode(i, host) for i, host in enumerate(hosts)])
    return clusters.local(case, rehearsal=asked.rehearsal, network=asked.network or "71.9")


if __name__ == "__main__":
    raise SystemExit(main())
