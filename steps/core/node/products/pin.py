"""What a reference of a product means now, so that every node gets the same.

Enters: products as they were asked for. Leaves: the same with their commits and whole paths, or
what is wrong with them, before anything is started. Touches: asks git, and through it a server;
looks at files.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from steps.core.errors import InfraError, MultinodeError, UsageError
from steps.core.plan.products import Product, git_ref
from steps.core.system.git import git

_MISSING = re.compile(r"not found|does not exist|does not appear to be a git repo", re.I)
REACH = "Look with: git ls-remote URL. A branch on no server is tested as NAME=DIRECTORY@REF."
KNOWN = "git branch -a and git tag list what there is; git fetch brings more."
PROJECT = ("pyproject.toml", "setup.py")


def pin(product: Product) -> Product:
    """The product with what its reference means now.

    Raises:
        UsageError: there is no such thing.
        InfraError: a server does not answer.
    """
    look = _PINS.get(product.source)
    return look(product) if look else product


def local(repository: str) -> Path | None:
    """The directory that a repository is; None when it is a URL."""
    if "://" in repository or re.match(r"[\w.-]+@[\w.-]+:", repository):
        return None
    return Path(repository).expanduser().absolute()


def commit_in(repository: Path, ref: str, said: str) -> str:
    """The commit that a reference means in a repository on this machine.

    Raises:
        UsageError: there is no repository, or no such commit in it.
    """
    if not repository.is_dir():
        raise UsageError(f"{said}: {repository} is no directory", "Name a git checkout.")
    words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    try:
        return git(repository, *words, refused=UsageError).strip()
    except UsageError:
        pass
    shallow = git(
        repository, "rev-parse", "--is-shallow-repository", refused=UsageError,
        hint=f"{said} names this directory; name a git checkout.",
    )  # fmt: skip
    cut = " It is a shallow clone: git fetch --unshallow." if shallow.strip() == "true" else ""
    raise UsageError(f"{said}: {repository} has no commit {ref!r}", KNOWN + cut)


def head_of(checkout: Path) -> str:
    """The commit of a checkout, with ``-dirty`` behind it; empty when it is none."""
    if not (checkout / ".git").exists():
        return ""
    try:
        head = git(checkout, "rev-parse", "HEAD").strip()
        changed = git(checkout, "status", "--porcelain", "--untracked-files=no").strip()
    except MultinodeError:
        return ""
    return f"{head}-dirty" if changed else head


def _git(product: Product) -> Product:
    said = f"product {product.name}"
    path = local(product.repository)
    if path is None:
        return replace(product, commit=product.commit or _asked(product, said))
    commit = commit_in(path, git_ref(product), said)
    return replace(product, repository=str(path), commit=commit)


def _asked(product: Product, said: str) -> str:
    """The commit that a server says a reference is."""
    ref, url = git_ref(product), product.repository
    whole = [ref] if ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    patterns = [*whole, *(f"{name}^{{}}" for name in whole)]
    try:
        told = git(Path.cwd(), "ls-remote", "--", url, *patterns, hint=REACH)
    except InfraError as error:
        kind = UsageError if _MISSING.search(error.message) else InfraError
        raise kind(f"{said}: {error.message}", error.hint) from None
    found = {name: commit for commit, _, name in (x.partition("\t") for x in told.splitlines())}
    meant = {name: found.get(f"{name}^{{}}", found[name]) for name in whole if name in found}
    if not meant:
        hint = "A commit is written with all its 40 digits, a pull request as pr/NUMBER."
        raise UsageError(f"{said}: {url} has neither a branch nor a tag {product.ref!r}", hint)
    if len(set(meant.values())) > 1:
        raise UsageError(
            f"{said}: {product.ref!r} is a branch and a tag of {url}", f"Write {whole[0]}."
        )
    return next(iter(meant.values()))


def _wheel(product: Product) -> Product:
    path = Path(product.path).expanduser().absolute()
    said = f"product {product.name}: {path}"
    if path.suffix != ".whl" or not path.is_file():
        raise UsageError(f"{said} is no wheel, or not there", "Name a file NAME-VERSION-*.whl.")
    name = path.name.split("-")[0]
    if re.sub(r"[-_.]+", "-", name).lower() != re.sub(r"[-_.]+", "-", product.distribution).lower():
        raise UsageError(
            f"{said} is a wheel of {name}, expected {product.distribution}",
            "Name the right product, or its package under products: in a profile.",
        )
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{said} is no archive", "Build or download it again.")
    return replace(product, path=str(path), ref=path.name.split("-")[1])


def _dir(product: Product) -> Product:
    path = Path(product.path).expanduser().absolute()
    said = f"product {product.name}: {path}"
    if not path.is_dir():
        raise UsageError(f"{said} is no directory", "Name a checkout of the product.")
    if product.install != "none" and not any((path / name).is_file() for name in PROJECT):
        raise UsageError(
            f"{said} is no Python project: it has neither {' nor '.join(PROJECT)}",
            "Name the folder that has them, or use install: none in a profile.",
        )
    return replace(product, path=str(path), ref=head_of(path))


_PINS: Mapping[str, Callable[[Product], Product]] = {"git": _git, "wheel": _wheel, "dir": _dir}
