"""fetch: bring the nodes' directories of other hosts into the leader's run directory.

Enters: run directories that were copied from the workers. Leaves: their nodes' directories in
this one, so that ``report`` judges the whole. Touches: this run directory.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from steps.core import door
from steps.core.errors import Exit, UsageError
from steps.core.node.alone import holding
from steps.core.plan.plan import Plan
from steps.core.record import outcome, records
from steps.core.record.rundir import RunDir, read_json


def run(run_dir: RunDir, source: RunDir) -> list[int]:
    """Bring every node that ``source`` has a record of; their numbers.

    Raises:
        UsageError: it is of another plan, or has no node to bring.
    """
    plan, theirs = outcome.plan_of(run_dir), outcome.plan_of(source)
    if plan.fingerprint() != theirs.fingerprint() or plan.run != theirs.run:
        raise UsageError(
            f"{source.path} is of another plan: run {theirs.run}, fingerprint "
            f"{theirs.fingerprint()[:12]}; {run_dir.path} is run {plan.run}, "
            f"{plan.fingerprint()[:12]}",
            "Copy one plan to every host: invoke plan --output FILE.",
        )
    run_dir.make()
    here = {hold.node for hold in holding.look(run_dir) if hold.step in holding.HOLDING}
    brought = [index for index in _nodes(plan, source) if index not in here]
    if not brought:
        raise UsageError(
            f"{source.path} has no record of a node that was served elsewhere",
            "Name the run directory of a worker, as it is after invoke stop and collect there.",
        )
    for index in brought:
        target, fresh = run_dir.node(index).path, run_dir.path / f".node-{index}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(
            source.node(index).path,
            fresh,
            symlinks=True,
            ignore=_odd,
            copy_function=shutil.copyfile,
        )
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    return brought


def _odd(folder: str, names: list[str]) -> list[str]:
    """What a run follows no more than any other: links, pipes."""
    found = {name: Path(folder) / name for name in names}
    return [
        name
        for name, path in found.items()
        if path.is_symlink() or not (path.is_file() or path.is_dir())
    ]


def _nodes(plan: Plan, source: RunDir) -> list[int]:
    found = {
        n.index: records.record_from(read_json(source.node(n.index).record)) for n in plan.nodes
    }
    return [index for index, record in found.items() if record and record.run == plan.run]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", default="runs/latest", help="default: runs/latest")
    parser.add_argument(
        "--from", dest="sources", action="append", required=True, metavar="DIR",
        help="a worker's run directory (may be repeated)",
    )  # fmt: skip


def work(arguments: argparse.Namespace) -> int:
    """Bring them all."""
    for name in arguments.sources:
        brought = run(RunDir(Path(arguments.run_dir)), RunDir(Path(name)))
        print(f"{name}: brought node {', '.join(map(str, brought))}")
    return int(Exit.PASS)


main = door.Verb("fetch", __doc__, _options, work)

if __name__ == "__main__":
    raise SystemExit(main())
