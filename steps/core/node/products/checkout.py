"""A product's checkout on a node: at the commit, and built as the commit needs it.

Enters: a bench with a product of git. Leaves: the checkout, and what was done. Touches: the
checkout, through git its repository, through pip the servers' Python environment.

A build is known by its native files. It is made again when they have changed; what was built
before is kept, and taken up when a run comes back to it.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tarfile
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from steps.core.errors import MultinodeError
from steps.core.node.products.bench import Bench, carried, pip, wheel
from steps.core.node.products.pin import head_of
from steps.core.plan.products import Product, native_key
from steps.core.record.rundir import write_text
from steps.core.system import git

#: Builds that are kept of a product, and the bytes of one that is not kept any more.
KEPT, MOST = 8, 4 << 30


def place_of(product: Product, home: Path) -> tuple[Path | None, bool]:
    """Where a product's files are on this node, and whether the checkout is ours."""
    if product.source == "dir":
        return Path(product.path), False
    if product.source != "git":
        return None, False
    if product.install != "none" and product.checkout:
        theirs = Path(product.checkout)
        if (theirs / ".git").exists():
            return theirs, False
    # What only runs from its files needs no place of its own in a Python environment.
    last = product.commit if product.install == "none" else "checkout"
    # A home may be one that machines share; what runs on one of them is its own.
    return home / "hosts" / socket.gethostname() / product.name / last, True


def make(bench: Bench, home: Path) -> tuple[Path, str]:
    """Have the product's commit on this node, built; where, and what was done."""
    product = bench.product
    place, ours = place_of(product, home)
    assert place is not None
    before = ""
    if ours and not (place / ".git").exists():
        place.mkdir(parents=True, exist_ok=True)
        bench.git(place, "init", "--quiet")
    elif ours:  # locks of a git that was killed: nobody else is here
        for name in ("index.lock", "shallow.lock"):
            (place / ".git" / name).unlink(missing_ok=True)
    else:
        head = head_of(place)
        before = head.removesuffix("-dirty")
        if head != before and bench.run.plan.cluster.backend != "k8s":
            hint = "Commit or remove the changes; nothing of yours is overwritten."
            raise bench.failed("dirty", f"{place} has changes that are in no commit", hint=hint)
    _fetch(bench, place)
    old = _key(bench, place, before) if before else ""
    bench.git(place, "checkout", "--quiet", "--force", "--detach", product.commit)
    if product.install == "none":
        return place, "checked out"
    if product.install == "pip":
        return place, _aswheel(bench, place, home)
    return place, Build(bench, place, ours, home / "builds" / product.name).make(old)


def _fetch(bench: Bench, place: Path) -> None:
    """Have the commit here; a checkout with its whole history keeps it whole."""
    product = bench.product
    with suppress(MultinodeError):
        git.git(place, "cat-file", "-e", f"{product.commit}^{{commit}}")
        return
    source = product.repository
    if "://" not in source and ":" not in source.partition("/")[0]:
        source = carried(source).as_uri()
    whole = (place / ".git" / "objects").is_dir() and head_of(place)
    cut = bench.git(place, "rev-parse", "--is-shallow-repository").strip() == "true"
    depth = [] if whole and not cut else ["--depth", "1"]
    words = ["fetch", "--quiet", "--no-recurse-submodules", *depth, "--", source, product.commit]
    bench.call("git", git.words(place, *words), place, **git.environment(bench.env))


def _aswheel(bench: Bench, place: Path, home: Path) -> str:
    """Install the checkout as pip does; its wheel is built once a commit."""
    key = hashlib.sha256(f"{bench.product.commit} {bench.abi()}".encode()).hexdigest()
    folder = home / "wheels" / bench.product.name / key
    found = sorted(folder.glob("*.whl"))
    if not found:
        _submodules(bench, place)
        part = folder.with_suffix(f".{socket.gethostname()}.{os.getpid()}")
        argv = [bench.python, "-m", "pip", "wheel", "--no-deps", "-w", str(part), str(place)]
        bench.call("build", [*argv, *bench.product.options], place, **bench.product.env)
        with suppress(OSError):  # another machine was faster
            part.replace(folder)
        found = sorted(folder.glob("*.whl"))
    if not found:
        raise bench.failed("build", "its build leaves no wheel", "startup")
    wheel(bench, found[0])
    return f"installed {found[0].name}"


def _submodules(bench: Bench, place: Path) -> None:
    if (place / ".gitmodules").is_file():
        words = ["submodule", "--quiet", "update", "--init", "--recursive", "--force"]
        bench.call("git", git.words(place, *words), place, **git.environment(bench.env))


def _key(bench: Bench, place: Path, commit: str) -> str:
    listing = bench.git(place, "ls-tree", "-r", commit)
    return native_key(listing, bench.product, bench.abi())


class Build:
    """An editable checkout and what is built in it."""

    def __init__(self, bench: Bench, place: Path, ours: bool, kept: Path) -> None:
        self.bench, self.place, self.ours, self.kept = bench, place, ours, kept
        inside = Path(bench.git(place, "rev-parse", "--absolute-git-dir").strip())
        self.stamp, self.linked = inside / "multinode-build", inside / "multinode-python"

    def make(self, old: str) -> str:
        """Be built as the commit needs it; what was done.

        Args:
            old: the key of what the image had built here, before the first move.
        """
        policy, bench = self.bench.product.native, self.bench
        built = _read(self.stamp) or old
        key = _key(bench, self.place, bench.product.commit)
        there = not self.ours or bool(_read(self.linked))
        if there and (policy == "never" or (policy == "changed" and built == key)):
            write_text(self.stamp, built)
            return "checked out, nothing to build"
        if built and policy == "changed":
            self._keep(built)
        # What a failed build leaves must never be taken for the one before.
        self.stamp.unlink(missing_ok=True)
        bench.git(self.place, "clean", "-ffdxq" if self.ours else "-ffdXq")
        archive = self.kept / f"{key}.tar"
        if policy == "changed" and archive.is_file() and _read(self.linked) == bench.python:
            done = self._restore(archive)
        else:
            _submodules(bench, self.place)
            pip(bench, "build", "-e", str(self.place))
            done = "built"
        write_text(self.linked, bench.python)
        # Asked again, since what it needs may have moved torch.
        write_text(self.stamp, _key(bench, self.place, bench.product.commit))
        return done

    def _keep(self, key: str) -> None:
        """Keep what is built, under its key; a build that cannot be kept is built again."""
        archive = self.kept / f"{key}.tar"
        if archive.exists():
            return
        names = self.bench.git(self.place, "ls-files", "--others", "-z").split("\0")
        names = [name for name in names if name and "__pycache__" not in name]
        part = archive.with_suffix(f".{socket.gethostname()}.{os.getpid()}")
        with suppress(OSError, tarfile.TarError):
            if sum((self.place / name).lstat().st_size for name in names) > MOST:
                return
            self.kept.mkdir(parents=True, exist_ok=True)
            with tarfile.open(part, "w") as tar:
                for name in names:
                    tar.add(self.place / name, name, recursive=False)
            part.replace(archive)
            old = sorted(self.kept.glob("*.tar"), key=lambda path: path.stat().st_mtime)
            for path in old[:-KEPT]:
                path.unlink()
        part.unlink(missing_ok=True)

    def _restore(self, archive: Path) -> str:
        """Take up a build; what it needs of other packages is moved to what it was."""
        with tarfile.open(archive) as tar:
            # Older versions of Python have no filter; the archive is our own.
            known = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
            tar.extractall(self.place, **known)  # type: ignore[arg-type]
        archive.touch()
        lists = sorted(self.place.glob("*.egg-info/requires.txt"))
        lines = (line for path in lists for line in path.read_text().splitlines())
        needs = [line for line in takewhile(lambda line: line[:1] != "[", lines) if line.strip()]
        if needs:
            wanted = self.kept / "requires.txt"
            write_text(wanted, "\n".join(needs) + "\n")
            pip(self.bench, "pip", "-r", str(wanted))
        return "its build was kept, and taken up again"


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""
