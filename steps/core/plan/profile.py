"""Cluster profiles: what every case on one Kubernetes cluster has in common.

Enters: a file of ``configs/clusters/``. Leaves: a :class:`Profile`, or every
problem of the file with its line. Touches: reads that file.

``FIELDS`` is the single source: the check, the values' defaults in
:class:`Profile` and the reference in docs/kubernetes.md follow it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.core.case import fields
from steps.core.case.asked import Field
from steps.core.case.case import seconds
from steps.core.case.check import check_form
from steps.core.case.fields import DURATION
from steps.core.case.source import Source, load_yaml
from steps.core.errors import CaseError, Problem, UsageError, enough, errors_of
from steps.core.plan import clusters, products
from steps.core.plan.products import Product
from steps.core.redaction import here

CLUSTERS = clusters.ROOT / "configs" / "clusters"

#: Seconds a run waits for each stage of a pod's start, unless the profile says otherwise.
BUDGETS = {"scheduling": 1800.0, "pulling": 1800.0, "starting": 300.0}
LABEL = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
QUANTITY = r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _field(kind: Any, doc: str, **rules: Any) -> Field:
    return {"type": kind, "meta": {"doc": doc}, **rules}


def _quantity(doc: str) -> Field:
    return _field(["string", "number"], doc, regex=QUANTITY)


def _texts(doc: str) -> Field:
    return _field("list", doc, schema={"type": "string", "empty": False})


def _mapping(doc: str, **values: Any) -> Field:
    return _field("dict", doc, keysrules={"type": "string"}, valuesrules=values)


FIELDS: Field = {
    "description": _field("string", "For people."),
    "namespace": _field(
        "string", "Where everything is created; default: the kubeconfig's.", regex=LABEL
    ),
    "image": _field(
        "string", "Image with vLLM and Python 3.10 or later.", required=True, empty=False
    ),
    "image_pull_policy": _field(
        "string", "When to pull.", allowed=["Always", "IfNotPresent", "Never"]
    ),
    "image_pull_secrets": _texts("Names of Secrets for the registry."),
    "service_account": _field("string", "Service account of the pods.", regex=LABEL),
    "python": _field("string", "The interpreter in the image (default python3).", empty=False),
    "device": _field(
        "dict",
        "The device plug-in's resource; absent: no devices are asked for.",
        schema={
            "resource": _field(
                "string",
                "Its name, such as `huawei.com/ascend-1980`.",
                required=True,
                regex=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
            ),
            "per_node": _field(
                "strict_integer", "How many a node has; a case cannot ask for more.", min=1
            ),
        },
    ),
    "cpu": _quantity("CPUs of each pod (a request, no limit)."),
    "memory": _quantity("Memory of each pod, request and limit."),
    "ephemeral_storage": _quantity("Disk of each pod, request and limit; the run's files too."),
    "shm": _quantity("Size of /dev/shm (default 16Gi); it counts as memory."),
    "mounts": _field(
        "list",
        "Host directories, claims and ConfigMaps in every pod.",
        schema={
            "type": "dict",
            "schema": {
                "path": _field("string", "Where.", required=True, regex=r"^/.*"),
                "host_path": _field("string", "A directory of the host.", regex=r"^/.*"),
                "claim": _field("string", "Name of a PersistentVolumeClaim.", regex=LABEL),
                "config_map": _field("string", "Name of a ConfigMap.", regex=LABEL),
                "sub_path": _field("string", "A directory of the volume.", empty=False),
                "read_only": _field("boolean", "Mount read-only (default false)."),
            },
        },
    ),
    "tolerations": _field(
        "list",
        "Taints the pods tolerate, as Kubernetes writes them.",
        schema={
            "type": "dict",
            "schema": {
                "key": _field("string", "Key of the taint."),
                "operator": _field("string", "How.", allowed=["Exists", "Equal"]),
                "value": _field("string", "Value of the taint."),
                "effect": _field(
                    "string", "Effect.", allowed=["NoSchedule", "PreferNoSchedule", "NoExecute"]
                ),
                "tolerationSeconds": _field("strict_integer", "For NoExecute."),
            },
        },
    ),
    "node_selector": _mapping("Labels a node must have.", type="string"),
    "priority_class": _field("string", "Name of a PriorityClass.", regex=LABEL),
    "queue": _field("string", "Kueue's local queue.", regex=LABEL),
    "grace": _field(
        ["number", "string"],
        "Time a deleted pod gets to stop its servers (default 60 s).",
        regex=DURATION,
    ),
    "scripts": _texts(
        "Environment scripts that each node sources (default: CANN's and ATB's, where they are)."
    ),
    "env": _field(
        "dict",
        "Environment of every process.",
        keysrules={"type": "string", "regex": _NAME},
        valuesrules={"type": ["string", "number", "boolean"]},
    ),
    "secret_env": _field(
        "dict",
        "Environment from Secrets: `NAME: secret/key`.",
        keysrules={"type": "string", "regex": _NAME},
        valuesrules={"type": "string", "regex": r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$"},
    ),
    "paths": _field(
        "dict",
        "Directories put in front of path variables: `PATH: [/opt/bin]`.",
        keysrules={"type": "string", "regex": _NAME},
        valuesrules={"type": "list", "schema": {"type": "string", "empty": False}},
    ),
    "workdir": _field("string", "Working directory of the servers.", regex=r"^/.*"),
    "proxy_script": _field("string", "Where upstream's proxy script is in the image."),
    "router": _field("string", "The vllm-router program in the image."),
    "ais_bench": _field("string", "The ais_bench program in the image."),
    "products": _field(
        "dict",
        "Products under test: where each comes from, and how it is installed (docs/products.md).",
        keysrules={"type": "string", "regex": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        valuesrules={"type": "dict", "schema": products.FIELDS},
    ),
    "budgets": _field(
        "dict",
        "How long a pod may take: `scheduling`, `pulling`, `starting`.",
        keysrules={"type": "string", "allowed": list(BUDGETS)},
        valuesrules={"type": ["number", "string"], "regex": DURATION},
    ),
    "keep_for": _field(
        ["number", "string"],
        "After that `janitor` removes what a run left (default 12h).",
        regex=DURATION,
    ),
}
fields.FORMS["profile"] = FIELDS


@dataclass(frozen=True)
class Mount:
    """A volume in every pod; exactly one of ``host_path``, ``claim``, ``config_map`` is set."""

    path: str
    host_path: str = ""
    claim: str = ""
    config_map: str = ""
    sub_path: str = ""
    read_only: bool = False


@dataclass(frozen=True)
class Profile:
    """One cluster's profile; times in seconds, quantities as Kubernetes writes them."""

    name: str
    file: str
    image: str
    namespace: str = ""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    python: str = "python3"
    device: str = ""
    devices_per_node: int | None = None
    cpu: str = ""
    memory: str = ""
    ephemeral_storage: str = ""
    shm: str = "16Gi"
    mounts: tuple[Mount, ...] = ()
    tolerations: tuple[Mapping[str, Any], ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    priority_class: str = ""
    queue: str = ""
    grace: float = 60.0
    scripts: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    workdir: str = ""
    proxy_script: str = ""
    router: str = ""
    ais_bench: str = ""
    budgets: Mapping[str, float] = field(default_factory=lambda: dict(BUDGETS))
    keep_for: float = 12 * 3600.0
    products: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def known_products(self) -> tuple[dict[str, Product], tuple[str, ...]]:
        """Products by name, the built-in ones too, and which of them every run installs."""
        listed = tuple(name for name, entry in self.products.items() if "ref" in entry)
        return products.of_profile(self.products), listed


def find_profile(name: str) -> Path:
    """A profile by path, or by its name in ``configs/clusters/``.

    Raises:
        UsageError: there is none, or none was named.
    """
    known = sorted(path.stem for path in CLUSTERS.glob("*.yaml"))
    for path in (Path(name), CLUSTERS / name, CLUSTERS / f"{name}.yaml"):
        if name and os.path.isfile(path):  # noqa: PTH113 (it takes any text)
            return path
    if not name:
        raise UsageError(
            "--on k8s needs --profile", f"configs/clusters/ has: {', '.join(known)}; or a path."
        )
    close = difflib.get_close_matches(name, known, 1)
    raise UsageError(
        f"--profile: no profile {name!r}, neither as a path nor in configs/clusters/",
        f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known)}.",
    )


def load_profile(path: Path) -> Profile:
    """Read and check a profile.

    Raises:
        CaseError: with every problem of the file.
    """
    source = load_yaml(path)
    found = check(source)
    if errors_of(found):
        raise CaseError(enough(found))
    return _build(source, path)


def is_one(source: Source) -> bool:
    """Whether a file looks like a profile, not like a case: by more of its keys."""
    keys = set(source.data) if isinstance(source.data, dict) else set()
    return len(keys & FIELDS.keys()) > len(
        keys & (fields.DEPLOYMENT.keys() | fields.ROUTING.keys())
    )


def masked(path: Path) -> str:
    """A profile's text without what is secret in it, its place first."""
    here().study(dict(load_profile(path).env))
    return f"# {path.resolve()}\n{here().text(path.read_text(encoding='utf-8-sig'))}"


def check(source: Source) -> list[Problem]:
    """Every problem of a profile: its form, then what Kubernetes would accept and never run."""
    return check_form(source, "profile") or list(_rules(source))


def _rules(source: Source) -> Iterator[Problem]:
    data = source.data
    seen: dict[str, int] = {}
    for i, entry in enumerate(data.get("mounts", [])):
        kinds = [key for key in ("host_path", "claim", "config_map") if key in entry]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "no volume"
            wanted = "host_path, claim, config_map"
            message = f"found {found}, expected exactly one of {wanted}"
            yield source.problem("MN007", message, ("mounts", i))
        path = entry["path"].rstrip("/") or "/"
        if path in seen or path in ("/", "/dev/shm", "/multinode"):
            why = f"mounts.{seen[path]} too" if path in seen else "the harness's own"
            yield source.problem(
                "MN007",
                f"{path} is {why}",
                ("mounts", i, "path"),
                "Every mount needs a path of its own.",
                place=source.place("mounts", i),
            )
        seen.setdefault(path, i)
    for i, entry in enumerate(data.get("tolerations", [])):
        refused = "Kubernetes refuses the pods otherwise."
        if entry.get("operator") == "Exists" and "value" in entry:
            message = "operator Exists takes no value"
            yield source.problem("MN007", message, ("tolerations", i), refused)
        if entry.get("operator", "Equal") == "Equal" and not entry.get("key"):
            message = "operator Equal needs a key"
            yield source.problem("MN007", message, ("tolerations", i), refused)
    given: dict[tuple[Any, ...], Any]
    given = {(key,): data[key] for key in ("grace", "keep_for") if key in data}
    given.update({("budgets", key): value for key, value in data.get("budgets", {}).items()})
    entries = data.get("products", {})
    given.update(
        {("products", name, "timeout"): entry["timeout"]
         for name, entry in entries.items() if "timeout" in entry}
    )  # fmt: skip
    for where, value in given.items():
        try:
            seconds(value)
        except ValueError as error:
            yield source.problem("MN007", str(error), where)
    for name, entry in entries.items():
        try:
            untimed = {key: value for key, value in entry.items() if key != "timeout"}
            products.of_profile({name: untimed})
        except UsageError as error:
            yield source.problem("MN007", error.message, ("products", name), error.hint)
    for key in sorted(set(data.get("env", {})) & set(data.get("secret_env", {}))):
        yield source.problem("MN007", "is in env too", ("secret_env", key), "Keep one.")
    if re.search(r"\s", str(data["image"])):
        yield source.problem(
            "MN007",
            f"found {data['image']!r}, expected a name without blanks",
            ("image",),
            "Kubernetes accepts it and then shows InvalidImageName.",
        )


def _build(source: Source, path: Path) -> Profile:
    data = {key: value for key, value in source.data.items() if key in FIELDS}
    data.pop("description", None)
    device = data.pop("device", None) or {}
    for key in ("cpu", "memory", "ephemeral_storage", "shm"):
        if key in data:
            data[key] = str(data[key])
    for key in ("grace", "keep_for"):
        if key in data:
            data[key] = seconds(data[key])
    for key in ("image_pull_secrets", "tolerations", "scripts"):
        if key in data:
            data[key] = tuple(data[key])
    data["mounts"] = tuple(Mount(**entry) for entry in data.get("mounts", []))
    data["env"] = {key: str(value) for key, value in data.get("env", {}).items()}
    data["paths"] = {key: tuple(value) for key, value in data.get("paths", {}).items()}
    given = {key: seconds(value) for key, value in data.get("budgets", {}).items()}
    data["budgets"] = {**BUDGETS, **given}
    return Profile(
        name=path.stem,
        file=str(path),
        device=device.get("resource", ""),
        devices_per_node=device.get("per_node"),
        **data,
    )
