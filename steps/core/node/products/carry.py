"""What of a product travels to machines that reach neither this one nor a git server.

Enters: products of this machine: a wheel, a directory, a repository that is a directory here.
Leaves: files for the archive that brings the node program, and the products as nodes find them
there. Touches: reads the files; git, in a scratch directory.

A repository travels as a bare one of a single commit. So does a directory, as its files are now.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from steps.core.errors import UsageError
from steps.core.node.bundle import Entry
from steps.core.node.products.pin import local
from steps.core.plan.products import Product
from steps.core.system.git import git

PLACE = "products"
#: Bytes of all products together; they are held in memory on their way.
MOST = 512 << 20
#: The same files are the same commit.
_DATES = {"GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z"}
_HINT = "Name a repository on a server that the nodes reach: NAME=URL@REF."


def carry(
    products: Iterable[Product], most: int = MOST, *, rehearsed: bool = False
) -> tuple[tuple[Product, ...], tuple[Entry, ...]]:
    """The products as nodes get them, and what goes with the node program.

    Args:
        most: bytes that may travel.
        rehearsed: nothing travels, since nothing is installed.

    Raises:
        UsageError: a product cannot travel.
        InfraError: git fails.
    """
    if rehearsed:
        return tuple(products), ()
    found: list[Product] = []
    entries: list[Entry] = []
    for product in products:
        one, more = _carried(product)
        found.append(one)
        entries += more
    size = sum(len(entry.content) for entry in entries)
    if size > most:
        raise UsageError(
            f"products of {size >> 20} MiB do not travel to the nodes: at most {most >> 20} MiB do",
            _HINT,
        )
    return tuple(found), tuple(entries)


def _carried(product: Product) -> tuple[Product, list[Entry]]:
    if product.source == "wheel":
        path = Path(product.path)
        name = f"{PLACE}/{path.name}"
        return replace(product, path=name), [Entry(name, path.read_bytes())]
    here = local(product.repository) if product.source == "git" else None
    if product.source != "dir" and here is None:
        return product, []
    name = f"{PLACE}/{product.name}.git"
    with tempfile.TemporaryDirectory(prefix="multinode-product-") as scratch:
        bare = Path(scratch) / "bare"
        git(Path(scratch), "init", "--quiet", "--bare", str(bare))
        if here is None:
            here = Path(product.path)
            commit = _snapshot(here, bare)
        else:
            commit = product.commit
            words = ("--quiet", "--depth", "1", "--no-tags", "--", here.as_uri())
            git(bare, "fetch", *words, f"{commit}:refs/heads/product")
        _refuse_submodules(product, bare, commit)
        git(bare, "repack", "-a", "-d", "-q")
        entries = [
            Entry(f"{name}/{path.relative_to(bare).as_posix()}", path.read_bytes())
            for path in sorted(bare.rglob("*"))
            if path.is_file() and path.parent.name != "hooks"
        ]
    return replace(product, source="git", repository=name, commit=commit), entries


def _snapshot(place: Path, bare: Path) -> str:
    """A commit of a directory as it is now, but for what git ignores there."""
    words = ("--git-dir", str(bare), "--work-tree", str(place))
    index = {"GIT_INDEX_FILE": str(bare / "index"), **_DATES}
    git(place, *words, "add", "--all", more=index)
    tree = git(place, *words, "write-tree", more=index).strip()
    commit = git(place, *words, "commit-tree", tree, "-m", str(place), more=index).strip()
    git(bare, "update-ref", "refs/heads/product", commit)
    (bare / "index").unlink()
    return commit


def _refuse_submodules(product: Product, bare: Path, commit: str) -> None:
    """Raises UsageError when a build would need files that do not travel."""
    lines = git(bare, "ls-tree", "-r", commit).splitlines()
    inner = [line.partition("\t")[2] for line in lines if line.startswith("160000 ")]
    builds = product.install != "none" and product.native != "never"
    if inner and builds:
        raise UsageError(
            f"product {product.name}: its submodules do not travel: {', '.join(inner[:5])}",
            f"{_HINT} Or write native: never under products: in a profile, if nothing is built.",
        )
