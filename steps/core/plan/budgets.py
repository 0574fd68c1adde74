"""How long each phase of a run may take.

Enters: a case, a cluster, the command line's own seconds. Leaves: a budget for
every phase. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steps.core.case.case import Case, seconds
from steps.core.plan.cluster import Cluster
from steps.core.plan.drivers import DRIVERS
from steps.core.plan.plan import Budget

#: Seconds for each phase, and seconds it may pass without progress; ``request`` is no phase: so
#: long may one request of a benchmark be silent.
BUDGETS = {
    "join": Budget(600, 600),
    "preflight": Budget(120, 120),
    "install": Budget(900, 900),
    "pool": Budget(120, 120),
    "load": Budget(3600, 900),
    "probe": Budget(300, 300),
    "checks": Budget(3600, 1800),
    "bench": Budget(7200, 1800),
    "proof": Budget(60, 60),
    "stop": Budget(120, 120),
    "collect": Budget(300, 300),
    "request": Budget(300, 300),
}
REHEARSAL_BUDGETS = {
    "join": Budget(30, 30),
    "preflight": Budget(30, 30),
    "install": Budget(30, 30),
    "pool": Budget(15, 15),
    "load": Budget(60, 30),
    "probe": Budget(30, 30),
    "checks": Budget(60, 15),
    "bench": Budget(120, 15),
    "proof": Budget(15, 15),
    "stop": Budget(60, 60),
    "collect": Budget(60, 60),
    "request": Budget(20, 20),
}


def of(
    case: Case, cluster: Cluster, given: Mapping[str, float], driver: str = ""
) -> dict[str, Budget]:
    """The budget of each phase; the command line counts over the case, the case over the cluster.

    A rehearsal has its own, for the case's are meant for real engines.

    Args:
        given: the command line's seconds by phase.
        driver: of the benchmarks, where one was asked for.
    """
    base = REHEARSAL_BUDGETS if cluster.rehearsal else BUDGETS
    known = DRIVERS.get(driver)
    if cluster.rehearsal and known and known.rehearsal_budget:
        base = {**base, "bench": known.rehearsal_budget}
    if cluster.installs:
        spent = sum(product.seconds for product in cluster.products if product.moves)
        both = base["install"].seconds + spent
        base = {**base, "install": Budget(both, both)}
    said = {**cluster.timeouts, **({} if cluster.rehearsal else case.timeouts), **given}
    return {
        phase: Budget(said[phase], min(budget.stall, said[phase])) if phase in said else budget
        for phase, budget in base.items()
    }


def parse_timeouts(items: Sequence[str]) -> dict[str, float]:
    """``--timeout load=600`` options as seconds by phase.

    Raises:
        ValueError: not ``phase=seconds``, or a phase that does not exist.
    """
    found = {}
    for item in items:
        phase, equals, value = item.partition("=")
        if not equals or phase not in BUDGETS:
            raise ValueError(
                f"--timeout: found {item!r}, expected PHASE=SECONDS with PHASE one of "
                f"{', '.join(BUDGETS)}"
            )
        found[phase] = seconds(value)
    return found
