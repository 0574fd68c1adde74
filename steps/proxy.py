"""proxy: start the proxy in front of a split fleet.

Enters: a :class:`NodeRun` on the leader. Leaves: the running proxy. Touches:
starts that process. A fleet without a split has none, and nothing happens.
"""

from __future__ import annotations

from steps.core.node import alone
from steps.core.node.launch import start
from steps.core.node.noderun import NodeRun


def run(run: NodeRun) -> None:
    """Start the proxy, if this node has one."""
    start(run, "proxy")


main = alone.step("proxy", __doc__, lambda _: [("load", run)], kinds=("proxy",))

if __name__ == "__main__":
    raise SystemExit(main())
