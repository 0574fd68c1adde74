"""The resources the double serves, one row each. Leaves: :class:`Kind` values and discovery
documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
# a custom resource lists the same verbs in another order
CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")


@dataclass(frozen=True)
class Kind:
    """One resource: API group ("" for core), version, names, and whether it lives in a
    namespace."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    verbs: tuple[str, ...] = VERBS

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """The name as error messages write it, ``leaderworkersets.leaderworkerset.x-k8s.io``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


LWS_GROUP = "leaderworkerset.x-k8s.io"
NAMESPACES = Kind("", "v1", "namespaces", "Namespace", False, ("ns",))
NODES = Kind("", "v1", "nodes", "Node", False, ("no",))
PODS = Kind("", "v1", "pods", "Pod", True, ("po",), ("exec", "log", "status"))
SERVICES = Kind("", "v1", "services", "Service", True, ("svc",))
CONFIGMAPS = Kind("", "v1", "configmaps", "ConfigMap", True, ("cm",))
SECRETS = Kind("", "v1", "secrets", "Secret")
EVENTS = Kind("", "v1", "events", "Event", True, ("ev",))
QUOTAS = Kind("", "v1", "resourcequotas", "ResourceQuota", True, ("quota",))
CLAIMS = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", True, ("pvc",))
SERVICE_ACCOUNTS = Kind("", "v1", "serviceaccounts", "ServiceAccount", True, ("sa",))
STATEFULSETS = Kind("apps", "v1", "statefulsets", "StatefulSet", True, ("sts",), ("status",))
LEADER_WORKER_SETS = Kind(
    LWS_GROUP, "v1", "leaderworkersets", "LeaderWorkerSet", True, ("lws",), ("status", "scale")
)
ACCESS_REVIEWS = Kind(
    "authorization.k8s.io",
    "v1",
    "selfsubjectaccessreviews",
    "SelfSubjectAccessReview",
    False,
    verbs=("create",),
)
WHO_AM_I = Kind(
    "authentication.k8s.io",
    "v1",
    "selfsubjectreviews",
    "SelfSubjectReview",
    False,
    verbs=("create",),
)

ALL = (
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    CONFIGMAPS,
    SECRETS,
    EVENTS,
    QUOTAS,
    CLAIMS,
    SERVICE_ACCOUNTS,
    STATEFULSETS,
    LEADER_WORKER_SETS,
    ACCESS_REVIEWS,
    WHO_AM_I,
)


def resource_list(kinds: list[Kind]) -> dict[str, Any]:
    """The APIResourceList of one group and version."""
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        row: dict[str, Any] = {
            "name": kind.plural,
            "singularName": kind.kind.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(CUSTOM_VERBS if kind.group == LWS_GROUP else kind.verbs),
        }
        if kind.short:
            row["shortNames"] = list(kind.short)
        if kind.group == LWS_GROUP:
            row["storageVersionHash"] = "P5Sive80X4M="
        rows.append(row)
        for sub in kind.subresources:
            verbs = {"exec": ["create", "get"], "log": ["get"]}.get(sub, ["get", "patch", "update"])
            sub_kind = {"exec": "PodExecOptions", "scale": "Scale"}.get(sub, kind.kind)
            entry: dict[str, Any] = {
                "name": f"{kind.plural}/{sub}",
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub_kind,
                "verbs": verbs,
            }
            if sub == "scale":
                entry.update({"group": "autoscaling", "version": "v1"})
            rows.append(entry)
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": kinds[0].api_version,
        "resources": rows,
    }


def group_document(group: str, version: str = "v1") -> dict[str, Any]:
    """The APIGroup document of one group, in the recorded order of keys."""
    entry = {"groupVersion": f"{group}/{version}", "version": version}
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": group,
        "versions": [entry],
        "preferredVersion": entry,
    }


VERSION = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "$Format:%H$",
    "gitTreeState": "",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "go1.27.3",
    "compiler": "gc",
    "platform": "linux/amd64",
}


def openapi(served: list[Kind], place: str) -> dict[str, Any]:
    """What kubectl asks before it applies: the documents there are, or one of them.

    It holds no schema: only that the server checks fields by itself.
    """
    places = {f"apis/{k.api_version}" if k.group else "api/v1": k.api_version for k in served}
    if not place:
        return {"paths": {each: {"serverRelativeURL": f"/openapi/v3/{each}"} for each in places}}
    paths = {
        f"/{place}/{kind.plural}/{{name}}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {
                    "group": kind.group,
                    "version": kind.version,
                    "kind": kind.kind,
                },
            }
        }
        for kind in served
        if kind.api_version == places.get(place)
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": paths}
