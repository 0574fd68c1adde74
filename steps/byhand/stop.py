"""stop: end what ``serve``, ``proxy`` and ``pool`` hold in a run directory.

Enters: a run directory. Leaves: nothing running of it on this host. Touches: the processes that
hold, the proxy's first; each ends what it has started, and writes the node's record.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from steps.core import door
from steps.core.errors import Exit
from steps.core.node.alone import holding
from steps.core.node.alone.holding import Hold
from steps.core.record import outcome
from steps.core.record.rundir import RunDir


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", default="runs/latest", help="default: runs/latest")
    parser.add_argument("--node-index", type=int, help="one node's; default: all on this host")


def work(arguments: argparse.Namespace) -> int:
    """End it all, and say what there was."""
    run_dir = RunDir(Path(arguments.run_dir))
    plan = outcome.plan_of(run_dir)
    began = time.monotonic()

    def patience(hold: Hold) -> float:
        graces = [process.grace for process in plan.nodes[hold.node].processes]
        return 2.0 * sum(graces) + plan.budgets["stop"].seconds

    for hold in holding.settle(run_dir):
        print(f"{hold} had died; its guard ended what it held")
    ended = holding.stop(run_dir, arguments.node_index, patience)
    for hold in ended:
        print(f"ended {hold}")
    took = f" in {time.monotonic() - began:.1f} s" if ended else ""
    print(f"nothing is held any more{took}" if ended else "nothing was held")
    return int(Exit.PASS)


main = door.Verb("stop", __doc__, _options, work)

if __name__ == "__main__":
    raise SystemExit(main())
