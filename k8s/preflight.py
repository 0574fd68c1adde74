"""Before anything is created: everything on the cluster that would make the run fail.

Enters: an API, an order. Leaves: every problem at once, and notes on what could
not be looked at. Touches the API: reads, and asks what it may do.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from k8s.api.client import LWS_GROUP, Api, ApiError, Json, path
from k8s.manifest import Order, documents

#: What a run does, as (verb, group, resource); k8s/role.yaml grants exactly this.
RIGHTS = (
    *(
        (verb, LWS_GROUP, "leaderworkersets")
        for verb in ("create", "patch", "get", "list", "delete")
    ),
    *((verb, "", "configmaps") for verb in ("create", "patch", "list", "delete")),
    *((verb, "", "services") for verb in ("create", "patch", "list", "delete")),
    *((verb, "", "secrets") for verb in ("create", "patch", "delete")),
    *((verb, "", "pods") for verb in ("get", "list", "watch")),
    ("get", "", "pods/log"),
    ("get", "", "pods/exec"),
    ("create", "", "pods/exec"),
    *((verb, "", "events") for verb in ("list", "watch")),
    ("list", "apps", "statefulsets"),
)
_UNITS = {
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}


#: For how many seconds a server that has not answered yet is asked again.
FIRST = 10.0


@dataclass
class Report:
    """What was found: problems stop the run, notes say what was not looked at.

    Attributes:
        hint: what to do, beside what the problems say themselves.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hint: str = "Nothing was created; docs/kubernetes.md explains the rest."


def check(api: Api, order: Order) -> Report:
    """Look at everything.

    Raises:
        ApiError: the API server does not answer, or does not know us.
    """
    report = Report()
    api.ask("GET", "/version", patience=FIRST)
    _lws(api, report)
    namespace = order.names.namespace
    if _namespace(api, namespace, report):
        _rights(api, namespace, report)
        _quota(api, order, report)
        _claims(api, order, report)
    _nodes(api, order, report)
    return report


def _lws(api: Api, report: Report) -> None:
    """LeaderWorkerSet must be installed and serve v1."""
    try:
        group = api.get(f"/apis/{LWS_GROUP}")
    except ApiError as error:
        if error.code != 404:
            raise
        report.problems.append(
            f"LeaderWorkerSet is not installed (no API group {LWS_GROUP}): "
            "https://lws.sigs.k8s.io/docs/installation/"
        )
        return
    versions = [entry["version"] for entry in group.get("versions", [])]
    if "v1" not in versions:
        report.problems.append(
            f"LeaderWorkerSet serves {', '.join(versions) or 'no version'}, expected v1: update it"
        )


def _namespace(api: Api, namespace: str, report: Report) -> bool:
    try:
        found = api.get(f"/api/v1/namespaces/{namespace}")
    except ApiError as error:
        if error.code == 404:
            report.problems.append(f"the namespace {namespace} is not there")
            return False
        if error.code != 403:
            raise
        return True  # a namespaced Role may not look at it
    if (found.get("status") or {}).get("phase") == "Terminating":
        report.problems.append(f"the namespace {namespace} is being deleted")
    return True


def may(api: Api, namespace: str, verb: str, group: str, resource: str) -> bool:
    """Whether we have a right."""
    plain, _, sub = resource.partition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plain}
    if sub:
        attributes["subresource"] = sub
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = api.ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
    return bool(answer["status"].get("allowed"))


def _rights(api: Api, namespace: str, report: Report) -> None:
    with ThreadPoolExecutor(8) as pool:
        granted = list(pool.map(lambda right: may(api, namespace, *right), RIGHTS))
    missing: dict[str, list[str]] = {}
    for (verb, _, resource), good in zip(RIGHTS, granted, strict=True):
        if not good:
            missing.setdefault(resource, []).append(verb)
    if missing:
        words = "; ".join(f"{', '.join(verbs)} {name}" for name, verbs in missing.items())
        report.problems.append(f"rights are missing in the namespace {namespace}: {words}")
        report.hint = (
            f"Nothing was created. `kubectl apply -n {namespace} -f k8s/role.yaml` makes a Role "
            "that has them, and this grants it:\n      `kubectl create rolebinding multinode "
            f"-n {namespace} --role=multinode {_subject(api)}`"
        )


def _subject(api: Api) -> str:
    """Who we are, as a rolebinding is told."""
    kind, name = "authentication.k8s.io/v1", ""
    body = {"apiVersion": kind, "kind": "SelfSubjectReview"}
    with contextlib.suppress(ApiError, KeyError):  # servers before 1.28 have no such question
        name = api.ask("POST", f"/apis/{kind}/selfsubjectreviews", body=body, patience=0.0)[
            "status"
        ]["userInfo"]["username"]
    account = name.removeprefix("system:serviceaccount:")
    if account != name:
        return f"--serviceaccount={account}"
    return f"--user={shlex.quote(name)}" if name else "--serviceaccount=NAMESPACE:NAME"


# Room


def needs(order: Order) -> dict[str, float]:
    """What one pod asks for, by resource."""
    resources = pod_spec(order)["containers"][0]["resources"]
    return {name: quantity(amount) for name, amount in resources.get("requests", {}).items()}


def pod_spec(order: Order) -> Json:
    """The pods' specification, from the manifests themselves."""
    template = documents(order)[-1]["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    spec: Json = template["spec"]
    return spec


def quantity(text: object) -> float:
    """A Kubernetes quantity as a number."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][+-]?\d+)?)([a-zA-Z]*)", str(text).strip())
    if match is None or match[2] not in _UNITS:
        return 0.0
    return float(match[1]) * _UNITS[match[2]]


def _quota(api: Api, order: Order, report: Report) -> None:
    namespace, size = order.names.namespace, order.case.num_nodes
    try:
        quotas = api.items(path(namespace, "resourcequotas"))
    except ApiError as error:
        if error.code != 403:
            raise
        report.notes.append("quotas were not looked at: no right to list resourcequotas")
        return
    each = needs(order)
    limits = pod_spec(order)["containers"][0]["resources"].get("limits", {})
    wanted = {"pods": float(size), "count/pods": float(size), "services": 2.0}
    wanted["configmaps"] = 1.0 + len(order.bundle.parts)
    wanted["secrets"] = 1.0
    for name, amount in each.items():
        wanted[f"requests.{name}"] = size * amount
        if name in ("cpu", "memory", "ephemeral-storage"):
            wanted[name] = size * amount
    for name, text in limits.items():
        wanted[f"limits.{name}"] = size * quantity(text)
    for quota in quotas:
        status, spec = quota.get("status") or {}, quota.get("spec") or {}
        if spec.get("scopes") or spec.get("scopeSelector"):
            continue
        hard = status.get("hard") or spec.get("hard") or {}
        used = status.get("used") or {}
        for name, amount in wanted.items():
            if name in hard and amount + quantity(used.get(name, 0)) > quantity(hard[name]):
                report.problems.append(
                    f"the quota {quota['metadata']['name']} allows {hard[name]} {name}, "
                    f"{used.get(name, 0)} are used, the run needs {_show(amount)} more"
                )


def _claims(api: Api, order: Order, report: Report) -> None:
    for entry in order.profile.mounts:
        plural = "persistentvolumeclaims" if entry.claim else "configmaps"
        name = entry.claim or entry.config_map
        if not name:
            continue
        try:
            api.get(path(order.names.namespace, plural, name))
        except ApiError as error:
            if error.code == 404:
                report.problems.append(
                    f"the profile mounts {plural[:-1]} {name!r} at {entry.path}, which is not in "
                    f"the namespace {order.names.namespace}"
                )
            elif error.code == 403:
                report.notes.append(f"{plural[:-1]} {name} was not looked at: no right to get it")
            else:
                raise


def _nodes(api: Api, order: Order, report: Report) -> None:
    """Whether there are nodes that could ever hold the pods, however busy they are now."""
    try:
        nodes = api.items("/api/v1/nodes")
    except ApiError as error:
        if error.code != 403:
            raise
        report.notes.append("nodes were not looked at: a namespaced Role cannot list them")
        return
    each, size = needs(order), order.case.num_nodes
    fit = 0
    reasons: dict[str, int] = {}
    for node in nodes:
        why = _unfit(node, order)
        room = (node.get("status") or {}).get("allocatable") or {}
        short = [name for name, amount in each.items() if quantity(room.get(name, 0)) < amount]
        if why or short:
            text = why or "too little " + ", ".join(
                f"{name} ({room.get(name, 0)} of {_show(each[name])})" for name in short
            )
            reasons[text] = reasons.get(text, 0) + 1
            continue
        many = [quantity(room.get(name, 0)) // amount for name, amount in each.items() if amount]
        fit += int(min([*many, quantity(room.get("pods", 110))]))
    if fit < size:
        asked = ", ".join(f"{_show(amount)} {name}" for name, amount in each.items()) or "nothing"
        found = "; ".join(f"{count} with {text}" for text, count in reasons.items())
        report.problems.append(
            f"the cluster's {len(nodes)} nodes could never hold more than {fit} of {size} pods "
            f"that ask for {asked} each" + (f": {found}" if found else "")
        )


def _unfit(node: Json, order: Order) -> str:
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    for key, value in order.profile.node_selector.items():
        if labels.get(key) != value:
            return f"no label {key}={value}"
    spec = node.get("spec") or {}
    for taint in _hard_taints(spec):
        if not any(_tolerates(entry, taint) for entry in order.profile.tolerations):
            return f"the taint {taint.get('key')} that is not tolerated"
    return ""


def _hard_taints(spec: Json) -> Iterator[Json]:
    for taint in spec.get("taints") or []:
        # A node that is cordoned or not ready for the moment may come back.
        passing = str(taint.get("key", "")).startswith("node.kubernetes.io/")
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not passing:
            yield taint


def _tolerates(entry: Mapping[str, object], taint: Json) -> bool:
    if entry.get("effect") and entry["effect"] != taint.get("effect"):
        return False
    if entry.get("operator") == "Exists":
        return not entry.get("key") or entry["key"] == taint.get("key")
    return entry.get("key") == taint.get("key") and entry.get("value", "") == taint.get("value", "")


def _show(amount: float) -> str:
    for unit in ("Ti", "Gi", "Mi"):
        if amount >= _UNITS[unit] and (amount / _UNITS[unit]).is_integer():
            return f"{amount / _UNITS[unit]:g}{unit}"
    return f"{amount:g}"
