"""Products onto a node, in their order: each installed, then each imported.

Enters: a node's run with products in its plan. Leaves: ``install.log``, ``products.json``, notes;
the servers' environment has the folders that a product puts in front. Touches: through ``bench``.
"""

from __future__ import annotations

import fcntl
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from steps.core import settings
from steps.core.node.noderun import NodeRun
from steps.core.node.products import checkout, placed
from steps.core.node.products.bench import Bench, bench_of, carried, pip, wheel
from steps.core.node.products.pin import head_of
from steps.core.node.products.placed import Placed
from steps.core.plan.products import Product

IMPORT_SECONDS = 300.0
#: Locks that this node program holds until it ends: nobody moves a checkout under its servers.
_HELD: list[IO[str]] = []


def install(run: NodeRun) -> None:
    """Install every product of the plan, in its order, then import each.

    Raises:
        StepFailed: with the rule that decided.
    """
    bench = bench_of(run)
    home = settings.read().cache / "products"
    found: dict[str, Placed] = {}
    for product in run.plan.cluster.products:
        if not product.moves:
            continue
        bench.product, bench.until = product, time.monotonic() + product.seconds
        began = time.monotonic()
        try:
            home.mkdir(parents=True, exist_ok=True)
            where, done = _install(bench, home)
        except OSError as error:
            raise bench.failed("disk", f"{home}: {error.strerror or error}") from None
        folders = product.paths.items() if where else ()
        paths = {name: tuple(f"{where}/{each}" for each in those) for name, those in folders}
        found[product.name] = Placed(
            str(product), _commit(product, where), str(where or ""), done, paths
        )
        bench.note(f"{done}, {time.monotonic() - began:.1f} s")
    placed.write(run.run_dir, run.me.index, found)
    run.supervisor.prefer(placed.paths(run.run_dir, run.me.index))
    _import(bench_of(run))


def _commit(product: Product, where: Path | None) -> str:
    if product.path:  # a directory, here or carried: its own commit, not that of what carried it
        return product.ref if product.source != "wheel" else ""
    return head_of(where) if where else ""


def _import(bench: Bench) -> None:
    """Import what was installed; all of it, since a plugin changes its engine."""
    run = bench.run
    for product in run.plan.cluster.products:
        if product.moves and product.module:
            bench.product, bench.until = product, time.monotonic() + IMPORT_SECONDS
            bench.call("import", [bench.python, "-c", f"import {product.module}"], run.dir.path)


def _install(bench: Bench, home: Path) -> tuple[Path | None, str]:
    """One product: where its files are, if it has any, and what was done."""
    product = bench.product
    if product.path and product.source != "git" and not carried(product.path).exists():
        hint = "Copy it to every node that is started by hand, or let the runner start the nodes."
        raise bench.failed("absent", f"{product.path} is not on this node", hint=hint)
    wanted = f"{product} {product.install} {product.commit} {bench.python}"
    # What only runs from its files has a place for each commit, so that runs meet nowhere.
    name = f"{product.name}-{product.commit}" if product.install == "none" else product.name
    own = home / "hosts" / socket.gethostname()
    own.mkdir(parents=True, exist_ok=True)
    if not _lock(bench, own / f"{name}.lock", wanted):
        place, _ = checkout.place_of(product, home)
        return place, "another node of this machine has installed it"
    if product.source == "git":
        place, done = checkout.make(bench, home)
    elif product.source == "dir":
        place, done = Path(product.path), "as it is"
        if product.install != "none":
            done = "installed from its directory"
            pip(bench, "build", *(["-e"] if product.install == "editable" else []), str(place))
    else:
        place, done = None, f"installed {product.word}"
        _from_index(bench)
    _settle(wanted)
    return place, done


# One at a time on a machine


def _lock(bench: Bench, path: Path, wanted: str) -> bool:
    """Hold a product on this machine; whether it is ours to install.

    Raises:
        StepFailed: another run uses another state of it.
    """
    handle = path.open("a+")
    _HELD.append(handle)
    mine: list[bool] = []

    def tried() -> bool:
        for kind, own in ((fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False)):
            with suppress(OSError):
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                mine.append(own)
                return True
        return False

    bench.run.until(tried, lambda: f"another installation of {bench.product.name}")
    if mine[0]:
        handle.truncate(0)
        return True
    handle.seek(0)
    if handle.read() == wanted:
        return False
    raise bench.failed(
        "in use", "another run on this machine uses another state of it",
        hint="Wait for its end, or stop it.",
    )  # fmt: skip


def _settle(wanted: str) -> None:
    """Say what is installed, and let other nodes of this machine use it."""
    handle = _HELD[-1]
    handle.write(wanted)
    handle.flush()
    fcntl.flock(handle, fcntl.LOCK_SH)


def _from_index(bench: Bench) -> None:
    product = bench.product
    if product.source == "pip":
        return pip(bench, "pip", f"{product.distribution}=={product.ref}")
    return wheel(bench, carried(product.path))
