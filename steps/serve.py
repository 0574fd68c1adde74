"""serve: start this node's processes, the KV pool before the servers.

Enters: a :class:`NodeRun`. Leaves: running processes, each with its log.
Touches: starts processes; writes the files the plan gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from steps.core.node import alone
from steps.core.node.http import look
from steps.core.node.launch import start
from steps.core.node.noderun import NodeRun
from steps.core.plan.plan import Probe


def pool(run: NodeRun) -> None:
    """Start the KV pool and wait until it accepts connections."""
    start(run, "pool")
    probes = [process.probe for process in run.me.processes if process.kind == "pool"]
    for probe in filter(None, probes):
        run.until(
            partial(_answers, probe),
            partial("the KV pool at {}".format, probe.url),
            blame=lambda: (run.me, "pool"),
        )


def _answers(probe: Probe) -> bool:
    return look(probe, 1.0).ok


def servers(run: NodeRun) -> None:
    """Start every server of this node."""
    start(run, "server")


def parts(run: alone.StepRun) -> Iterator[alone.Part]:
    """This node's share; the pool and, where the whole fleet is meant, the proxy as well.

    What a step of its own holds already is left to it.
    """
    kinds = run.kinds_here()
    if "pool" in kinds:
        yield "pool", pool
    yield "load", servers
    if run.whole and "proxy" in kinds:
        yield "load", partial(start, kind="proxy")


main = alone.step("serve", __doc__, parts, kinds=("server",), everywhere=True)

if __name__ == "__main__":
    raise SystemExit(main())
