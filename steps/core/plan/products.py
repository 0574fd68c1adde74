"""The product under test: where it comes from, and how a node installs it.

Enters: ``--product NAME=REF``, ``products:`` of a profile. Leaves: :class:`Product` values, or what
is wrong with the words. Touches nothing; which commit a reference means is looked up by
``steps.core.node.products.pin``.

REF is a branch, tag or commit of the product's repository, ``URL@REF``, ``pr/123``,
``pip:VERSION``, ``wheel:PATH``, ``dir:PATH``, or ``image``: what the image holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steps.core.case.asked import Field
from steps.core.case.case import seconds
from steps.core.errors import UsageError

SECONDS = 3600.0
#: The profile in a run directory that has just the products of the run.
KEPT = "products"
GRAMMAR = (
    "Write NAME=REF, where REF is a branch, tag or commit, URL@REF, pr/123, pip:VERSION, "
    "wheel:PATH, dir:PATH or image; docs/products.md."
)
#: What a build is made of: another tree of these files is another build.
NATIVE = re.compile(
    r"\.(c|cc|cpp|cu|cuh|h|hpp|cmake|rs)$|(^|/)(csrc|CMakeLists\.txt|\.gitmodules)(/|$)"
    r"|(^|/)(setup\.(py|cfg)|pyproject\.toml|Cargo\.(toml|lock)|MANIFEST\.in)$"
    r"|(^|/)requirements([\w-]*|/.*)\.(txt|in)$"
)
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: A reference that git may be given; it begins like no option and holds no blank.
_REF = re.compile(r"(?!-)[^\s\x00-\x1f\x7f:?*\[\\]{1,200}")
_REPOSITORY = re.compile(
    r"(?P<url>(?:https?|ssh|git|file)://[^@\s]*(?:@[^@/\s]+/[^@\s]+)?|[\w.-]+@[\w.-]+:[^@\s]+"
    r"|(?:/|\.{1,2}/|~)[^@]*)@(?P<ref>.*)",
    re.DOTALL,
)
_CREDENTIALS = re.compile(r"https?://[^/]*@")


@dataclass(frozen=True)
class Product:
    """One product under test.

    Attributes:
        source: ``git``, ``pip``, ``wheel``, ``dir`` or ``image``.
        ref: as it was asked for; of ``pip`` the version.
        repository: of ``git``: a URL, or a directory of the machine that plans.
        commit: of ``git``: what ``ref`` meant when the run was planned, in full.
        path: of ``wheel`` and ``dir``.
        install: ``editable``, ``pip``, or ``none``: the checkout as it is, see ``paths``.
        native: when an editable checkout is built again: ``changed``, ``always``, ``never``.
        checkout: where a node has the product's checkout; empty: one of the harness's own.
        module: imported afterwards, so that what does not import is found; empty: nothing is.
        package: what pip and the versions call it; empty: its name.
        options: further words of pip.
        env: environment of its build.
        paths: folders of the checkout that go in front of path variables of the servers.
        seconds: how long its installation may take.
    """

    name: str
    source: str = "image"
    ref: str = ""
    repository: str = ""
    commit: str = ""
    path: str = ""
    install: str = "editable"
    native: str = "changed"
    checkout: str = ""
    module: str = ""
    package: str = ""
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: float = SECONDS

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return self.package or self.name

    @property
    def moves(self) -> bool:
        """Whether anything is to be installed."""
        return self.source != "image"

    def __str__(self) -> str:
        known = self.path or self.commit == self.ref
        at = f" ({self.commit[:12]})" if self.commit and not known else ""
        return f"{self.name}={self.word}{at}"

    @property
    def word(self) -> str:
        """REF as it is written in the grammar."""
        if self.source in ("pip", "wheel"):
            return f"{self.source}:{self.path or self.ref}"
        return f"dir:{self.path}" if self.path else self.ref or "image"


#: What needs no profile, in the order in which it is installed: the engine before its plugin.
KNOWN: Mapping[str, Product] = {
    "vllm": Product(
        "vllm",
        repository="https://github.com/vllm-project/vllm.git",
        checkout="/vllm-workspace/vllm",
        module="vllm",
        # As upstream's images build it: the kernels are the plugin's.
        env={"VLLM_TARGET_DEVICE": "empty"},
    ),
    "vllm-ascend": Product(
        "vllm-ascend",
        repository="https://github.com/vllm-project/vllm-ascend.git",
        checkout="/vllm-workspace/vllm-ascend",
        module="vllm_ascend",
    ),
}


def read(text: str, known: Mapping[str, Product] = KNOWN) -> Product:
    """The product that ``NAME=REF`` names; its commit is not looked up yet.

    Args:
        known: products by name: the built-in ones, with a profile's over them.

    Raises:
        UsageError: the words mean nothing.
    """
    name, equals, ref = text.partition("=")
    if not equals or not re.fullmatch(_NAME, name):
        raise UsageError(f"--product: found {text[:200]!r}, expected NAME=REF", GRAMMAR)
    return of_ref(known.get(name, Product(name)), ref, f"--product {name}")


def of_ref(product: Product, ref: str, said: str) -> Product:
    """The product at another place of its own, or at one elsewhere.

    Args:
        said: names what holds the reference, in messages.

    Raises:
        UsageError: it is no reference, or nothing says where it would be looked up.
    """
    kind, colon, rest = ref.partition(":")
    if ref == "image":
        return replace(product, source="image", ref="")
    if colon and kind in ("pip", "wheel", "dir"):
        if not rest or rest.startswith("-") or (kind == "pip" and not _REF.fullmatch(rest)):
            wanted = "a version" if kind == "pip" else "a path"
            raise UsageError(f"{said}: found {ref[:200]!r}, expected {wanted}", GRAMMAR)
        if kind == "pip":
            return replace(product, source=kind, ref=rest, install="pip")
        return replace(
            product, source=kind, path=rest, install="pip" if kind == "wheel" else product.install
        )
    if split := _REPOSITORY.fullmatch(ref):
        product, ref = replace(product, repository=split["url"]), split["ref"]
    if _CREDENTIALS.match(product.repository):
        raise UsageError(
            f"{said}: the URL holds credentials, which plan and record would keep",
            "Leave them out; git's credential helper or ssh brings them.",
        )
    if not _REF.fullmatch(ref) or ".." in ref:
        raise UsageError(f"{said}: {ref[:200]!r} is no reference of git", GRAMMAR)
    if not product.repository:
        raise UsageError(
            f"{said}: nothing says where {product.name} comes from",
            f"Write {product.name}=URL@REF, or name its repository under products: in a profile. "
            f"Without a profile there are {', '.join(KNOWN)}.",
        )
    number = re.fullmatch(r"pr/(\d{1,9})", ref)
    if ref.startswith("pr/") and not number:
        raise UsageError(f"{said}: found {ref[:200]!r}, expected pr/NUMBER", GRAMMAR)
    commit = ref if _COMMIT.fullmatch(ref) else ""
    return replace(product, source="git", ref=ref, commit=commit)


def git_ref(product: Product) -> str:
    """The product's reference as its repository calls it."""
    return re.sub(r"^pr/(\d+)$", r"refs/pull/\1/head", product.ref)


def ordered(found: Iterable[Product], known: Mapping[str, Product] = KNOWN) -> tuple[Product, ...]:
    """Products in the order of installation: as known ones stand there, then as they were named."""
    places = {name: place for place, name in enumerate(known)}
    return tuple(sorted(found, key=lambda one: places.get(one.name, len(places))))


def wanted(
    words: Sequence[str], known: Mapping[str, Product] = KNOWN, *, listed: Iterable[str] = ()
) -> tuple[Product, ...]:
    """The products of a run: those that a profile places, and those of the command line over them.

    Args:
        listed: names of products that the profile gives a reference.

    Raises:
        UsageError: a word means nothing, or one product is named twice.
    """
    found = {name: known[name] for name in listed}
    named: set[str] = set()
    for word in words:
        product = read(word, known)
        if product.name in named:
            raise UsageError(f"--product: {product.name} is named twice", "Keep one of them.")
        named.add(product.name)
        found[product.name] = product
    return ordered(found.values(), known)


def native_key(listing: str, product: Product, where: str) -> str:
    """The key of a build.

    Args:
        listing: what ``git ls-tree -r`` prints of a commit.
        where: what else a build depends on: the machine, its interpreter, its torch.
    """
    lines = [
        line
        for line in listing.splitlines()
        if line.startswith("160000 ") or NATIVE.search(line.partition("\t")[2])
    ]
    more = [where, *product.options, *(f"{k}={v}" for k, v in sorted(product.env.items()))]
    return hashlib.sha256("\n".join([*lines, *more]).encode()).hexdigest()


def _field(kind: Any, doc: str, **rules: Any) -> Field:
    return {"type": kind, "meta": {"doc": doc}, **rules}


_VARIABLE = {"type": "string", "regex": r"^[A-Za-z_][A-Za-z0-9_]*$"}
#: An entry of ``products:`` in a profile.
FIELDS: Field = {
    "ref": _field(
        "string",
        "What every run installs, as in `--product NAME=REF`; absent: only what `--product` asks.",
        empty=False,
    ),
    "repository": _field("string", "Where references are looked up: a URL.", regex=r"^[^-\s]\S*$"),
    "install": _field(
        "string",
        "`editable` (default), `pip`, or `none`: the checkout as it is, with `paths`.",
        allowed=["editable", "pip", "none"],
    ),
    "native": _field(
        "string",
        "When an editable checkout is built again: `changed` (default: when native files are), "
        "`always`, `never`.",
        allowed=["changed", "always", "never"],
    ),
    "checkout": _field("string", "Where the image has its checkout.", regex=r"^/.*"),
    "module": _field("string", "Imported afterwards, to see that it works.", regex=r"^[\w.]*$"),
    "package": _field("string", "What pip calls it; default: its name.", regex=rf"^{_NAME}$"),
    "options": _field("list", "Further words of pip.", schema={"type": "string", "empty": False}),
    "env": _field(
        "dict",
        "Environment of its build.",
        keysrules=_VARIABLE,
        valuesrules={"type": ["string", "number", "boolean"]},
    ),
    "paths": _field(
        "dict",
        "Folders of the checkout in front of path variables: `PATH: [bin]`.",
        keysrules=_VARIABLE,
        valuesrules={"type": "list", "schema": {"type": "string", "regex": r"^(?!/)(?!.*\.\.).+"}},
    ),
    "timeout": _field(["number", "string"], "How long its installation may take (default 1h)."),
}


def of_profile(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Product]:
    """``products:`` of a profile over the built-in ones; those with a ``ref`` are at it.

    Raises:
        UsageError: a reference means nothing.
        ValueError: a time is none.
    """
    found = dict(KNOWN)
    for name, entry in entries.items():
        given = {key: value for key, value in entry.items() if key not in ("ref", "timeout")}
        if "env" in given:
            given["env"] = {key: str(value) for key, value in given["env"].items()}
        if "paths" in given:
            given["paths"] = {key: tuple(value) for key, value in given["paths"].items()}
        if "options" in given:
            given["options"] = tuple(given["options"])
        if "timeout" in entry:
            given["seconds"] = seconds(entry["timeout"])
        product = replace(found.get(name, Product(name)), **given)
        if "ref" in entry:
            product = of_ref(product, str(entry["ref"]), f"products.{name}.ref")
        found[name] = product
    return found


def entry(product: Product) -> dict[str, Any]:
    """The product as an entry of ``products:`` that means just this state of it."""
    ref = f"{product.repository}@{product.commit}" if product.source == "git" else product.word
    kept = {name: getattr(product, name) for name in ("install", "native", "checkout", "module",
            "package", "options", "env", "paths")}  # fmt: skip
    plain = {name: value for name, value in kept.items() if value or name == "module"}
    return {"ref": ref, **plain, "timeout": f"{product.seconds:.15g}"}
