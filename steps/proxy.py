"""proxy: start the proxy in front of a split fleet.

Enters: a :class:`NodeRun` on the leader. Leaves: the running proxy. Touches:
starts that process. A fleet without a split has none, and nothing happens.
"""

from __future__ import annotations

from pathlib import Path

from steps.core.node import alone
from steps.core.node.launch import start
from steps.core.node.noderun import NodeRun
from steps.core.plan.cluster import ROUTER
from steps.core.plan.plan import Plan


def late(plan: Plan) -> bool:
    """Whether the proxy is started when all servers answer.

    vllm-router looks for them once a second. A real fleet loads for minutes, and learns at once
    whether its router can be started; a rehearsal has not that second.
    """
    program = Path(plan.proxy.argv[0]).name if plan.proxy else ""
    return plan.rehearsed and program == ROUTER.program


def run(run: NodeRun) -> None:
    """Start the proxy, if this node has one."""
    start(run, "proxy")


main = alone.step("proxy", __doc__, lambda _: [("load", run)], kinds=("proxy",))

if __name__ == "__main__":
    raise SystemExit(main())
