"""install: the products under test, then the case's ``special_dependencies``, on this node.

Enters: a node's run. Leaves: ``install.log``, ``products.json``. Touches: through git and pip, the
checkouts and Python packages that the servers of this node will use.

What it changes stays on the machine.
"""

from __future__ import annotations

from steps.core.node import alone
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.node.products import identity, place
from steps.core.node.products.bench import bench_of, wait_for
from steps.core.plan.plan import NodePlan, Plan
from steps.core.record import evidence
from steps.core.record.records import Check
from steps.core.record.rundir import appending


def left_out(plan: Plan, node: NodePlan) -> list[Check]:
    """What a rehearsal does not install, and says so."""
    found = []
    if plan.rehearsed and node.packages:
        found.append(Check("special_dependencies", "skipped", "rehearsed: not installed"))
    found += [Check("products", "skipped", told) for told in plan.cluster.skipped]
    return found


def run(run: NodeRun) -> None:
    """Install what the plan names; products first, since a case's pins count over theirs.

    Raises:
        StepFailed: something cannot be installed; of the class its rule says, packages infra.
    """
    if run.plan.cluster.installs:
        place.install(run)
    if run.me.packages:
        _packages(run)
    if run.plan.cluster.installs:
        identity.check(run)
    run.versions.clear()
    run.versions.update(identity.versions(run))


def _packages(run: NodeRun) -> None:
    """Install ``special_dependencies`` into the servers' environment."""
    bench = bench_of(run)
    argv = [bench.python, "-m", "pip", "install", *run.me.packages]
    with appending(bench.log) as out:
        code = wait_for(run, argv, bench.env, run.dir.path, out)
    if code:
        raise StepFailed(
            run.cause_of(
                "install",
                "infra",
                f"pip install {' '.join(run.me.packages)} failed with code {code}",
                evidence=evidence.of_log(bench.log).lines,
                log=f"{run.me.name}/install.log",
                hint="Check the package names and versions in special_dependencies, and the index.",
            )
        )


def parts(run_: alone.StepRun) -> list[alone.Part]:
    """Nothing for a node without packages; a rehearsal only says that it installs none."""
    run_.checks += left_out(run_.plan, run_.me)
    return [("install", run)] if run_.plan.installs(run_.me) else []


main = alone.step("install", __doc__, parts, starts=True, everywhere=True)

if __name__ == "__main__":
    raise SystemExit(main())
