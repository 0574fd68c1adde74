"""What a node really runs: versions and commits, asked of the servers' own interpreter.

Enters: a node's run. Leaves: versions by name; a package's commit as ``NAME-commit``, ending in
``-dirty`` where its checkout has changes, its branch as ``NAME-branch``. Touches: starts that
interpreter; it runs git.
"""

from __future__ import annotations

from steps.core.node.noderun import NodeRun
from steps.core.node.products import placed
from steps.core.node.products.bench import bench_of
from steps.core.system import machine
from steps.core.vllm import installed


def versions(run: NodeRun) -> dict[str, str]:
    """Versions that matter: of the servers' interpreter, the machine's driver and CANN, the image.

    What was checked out for this run has the last word, since not every product is a package.
    """
    if run.plan.rehearsed:
        return {"engine": "rehearsal stand-in"}
    cluster = run.plan.cluster
    names = {p.name: p.distribution for p in cluster.products}
    bench = bench_of(run)
    facts = {**machine.brief(()), "image": cluster.image}
    found = {name: facts[name] for name in ("driver", "cann", "image") if facts[name]}
    asked = dict.fromkeys([*installed.PACKAGES, *names.values()])
    found |= machine.versions_of([bench.python], list(asked), bench.env)
    for name, one in placed.read(run.run_dir, run.me.index).items():
        if one.commit:
            found[f"{names[name]}-commit"] = one.commit
    return found


def check(run: NodeRun) -> None:
    """The servers' interpreter must have what was installed, no other copy of it.

    Raises:
        StepFailed: it has another commit, by the rule ``identity``.
    """
    bench = bench_of(run)
    there = placed.read(run.run_dir, run.me.index)
    names = {p.name: p.distribution for p in run.plan.cluster.products if p.install == "editable"}
    told = machine.versions_of([bench.python], list(names.values()), bench.env)
    for product in run.plan.cluster.products:
        wanted = there[product.name].commit if product.name in there else ""
        found = told.get(f"{names.get(product.name)}-commit", "")
        if wanted and found and not wanted.startswith(found.split("-")[0]):
            bench.product = product
            raise bench.failed(
                "identity",
                f"{bench.python} has it at {found[:12]}, not at {wanted[:12]}",
                hint="Another checkout is installed there: name it as checkout: under products: "
                "in a profile.",
            )
