"""Manifests: everything a run is on Kubernetes, as data.

Enters: a case, a profile, a bundle, the run's names. Leaves: documents in the
order in which they are created. Touches nothing.

One pod template serves leader and workers; the leader is told by the environment
that the LeaderWorkerSet controller gives each pod.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k8s.api.client import LWS_GROUP, Json
from k8s.bundle import Bundle
from steps.core import settings
from steps.core.case.case import Case
from steps.core.case.numbers import dumps
from steps.core.plan.cluster import Cluster, ClusterNode, Rehearsal
from steps.core.plan.clusters import ROOT
from steps.core.plan.products import Product
from steps.core.plan.profile import Profile

RUN_LABEL = "multinode/run"
CASE_LABEL = "multinode/case"
EXPIRES_LABEL = "multinode/expires"
MANAGED = {"app.kubernetes.io/managed-by": "multinode"}
LWS_NAME_LABEL = "leaderworkerset.sigs.k8s.io/name"
LWS_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONTAINER = "node"

#: 50, since the controllers append to it and a label of theirs ends at 63; a longer name is
#: accepted, and then no pod is ever made.
NAME_LIMIT = 50
ROOM = "/multinode"
POD = f"{ROOM}/bundle/0/pod.py"
SITE = f"{ROOM}/work/site"
PASSED = (*settings.PASSED_THROUGH, "LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX", "LWS_GROUP_SIZE")


@dataclass(frozen=True)
class Names:
    """What a run's objects are called.

    Attributes:
        base: the LeaderWorkerSet, the Secret and the first ConfigMap.
    """

    base: str
    namespace: str

    @staticmethod
    def of(case: Case, run: str, namespace: str) -> Names:
        """Names for a new run; the run id's end makes them unique."""
        tail = slug(run.partition("-")[2] or run, 20)
        head = slug(f"mn-{case.name}", NAME_LIMIT - len(tail) - 1)
        return Names(f"{head}-{tail}", namespace)

    @property
    def service(self) -> str:
        """The Service for people; one called like the LeaderWorkerSet would break its DNS."""
        return f"{self.base}-api"

    def bundle(self, part: int) -> str:
        """The ConfigMap of one part of the bundle."""
        return f"{self.base}-bundle-{part}"

    def pod(self, index: int) -> str:
        """The pod of a node."""
        return f"{self.base}-0" if index == 0 else f"{self.base}-0-{index}"

    def address(self, index: int) -> str:
        """The DNS name of a node, as LeaderWorkerSet makes it."""
        return f"{self.pod(index)}.{self.base}.{self.namespace}"

    def index(self, pod: str) -> int | None:
        """The node of a pod; None when it is none of this run."""
        head, rest = f"{self.base}-0", pod[len(self.base) + 2 :]
        if not pod.startswith(head):
            return None
        if not rest:
            return 0
        return int(rest[1:]) if rest[0] == "-" and rest[1:].isdigit() else None


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        arguments: for the node program, such as ``--bench smoke``.
        expires: seconds since the epoch, after which the janitor may remove everything.
        output: ``events`` when a runner listens, ``text`` for people.
        devices: what each pod asks for, when the profile names a resource.
        port: where the leader's endpoint listens, for the Service.
        env: further environment of the pods, such as FAIL_TAG.
        products: what is under test, as the pods get it.
    """

    case: Case
    profile: Profile
    names: Names
    run: str
    token: str
    bundle: Bundle
    expires: float
    output: str = "text"
    arguments: tuple[str, ...] = ()
    rehearsal: Rehearsal | None = None
    port: int = 8080
    devices: int = 0
    env: Mapping[str, str] | None = None
    products: tuple[Product, ...] = ()


def slug(text: str, limit: int) -> str:
    """``text`` as part of a name: lower case, digits and single hyphens."""
    clean = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return clean[:limit].rstrip("-")


def documents(order: Order) -> list[Json]:
    """Every document, in the order of creation."""
    maps = [_bundle_map(order, part, data) for part, data in enumerate(order.bundle.parts)]
    return [_secret(order), _first_map(order), *maps, _service(order), _lws(order)]


def labels(order: Order) -> dict[str, str]:
    """What every object of the run carries."""
    return {
        **MANAGED,
        RUN_LABEL: order.run,
        CASE_LABEL: slug(order.case.name, 63) or "case",
        EXPIRES_LABEL: str(int(order.expires)),
    }


def cluster(order: Order) -> Cluster:
    """The cluster as the nodes get it: names for addresses, nothing known of interfaces."""
    profile = order.profile
    paths = {key: tuple(value) for key, value in profile.paths.items()}
    if order.rehearsal is not None:
        paths["PATH"] = (f"{SITE}/rehearsal/bin", *paths.get("PATH", ()))
        paths["PYTHONPATH"] = (f"{SITE}/rehearsal/lib", *paths.get("PYTHONPATH", ()))
    return Cluster(
        name=profile.name,
        backend="k8s",
        nodes=tuple(ClusterNode(i, order.names.address(i)) for i in range(order.case.num_nodes)),
        control_port=settings.read().control_port,
        env=dict(profile.env),
        paths=paths,
        scripts=profile.scripts,
        workdir=profile.workdir if order.rehearsal is None else "",
        proxy_script=profile.proxy_script,
        router=profile.router,
        ais_bench=profile.ais_bench,
        python=profile.python,
        rehearsal=order.rehearsal,
        image=profile.image,
        products=order.products,
    )


def _meta(order: Order, name: str) -> Json:
    return {"name": name, "namespace": order.names.namespace, "labels": labels(order)}


def _secret(order: Order) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _meta(order, order.names.base),
        "type": "Opaque",
        "data": {"token": base64.b64encode(order.token.encode()).decode()},
    }


def _first_map(order: Order) -> Json:
    """The program that runs first, what it is told, and the case as it was validated."""
    start = {
        "run": order.run,
        "name": order.names.base,
        "parts": [
            {"path": f"{i + 1}/part", "sha256": digest}
            for i, digest in enumerate(order.bundle.digests)
        ],
        "cluster": cluster(order).to_dict(),
        "known": list(PASSED),
        "arguments": [
            *order.arguments,
            f"--case-name={order.case.file}",
            f"--output={order.output}",
        ],
        "output": order.output,
        "until": int(order.expires),
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _meta(order, order.names.base),
        "data": {
            "pod.py": (ROOT / "k8s" / "pod.py").read_text(encoding="utf-8"),
            "start.json": dumps(start, indent=1),
            "case.yaml": "\n".join(order.case.source.lines) + "\n",
        },
    }


def _bundle_map(order: Order, part: int, data: bytes) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _meta(order, order.names.bundle(part)),
        "binaryData": {"part": base64.b64encode(data).decode()},
    }


def _service(order: Order) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(order, order.names.service),
        "spec": {
            "selector": {LWS_NAME_LABEL: order.names.base, LWS_INDEX_LABEL: "0"},
            "ports": [{"name": "http", "port": order.port, "targetPort": order.port}],
            "publishNotReadyAddresses": True,
        },
    }


def _lws(order: Order) -> Json:
    meta = _meta(order, order.names.base)
    if order.profile.queue:
        meta["labels"] = {**meta["labels"], QUEUE_LABEL: order.profile.queue}
    return {
        "apiVersion": f"{LWS_GROUP}/v1",
        "kind": "LeaderWorkerSet",
        "metadata": meta,
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",
            "leaderWorkerTemplate": {
                "size": order.case.num_nodes,
                # A member that dies must be seen, not replaced.
                "restartPolicy": "None",
                "workerTemplate": {
                    "metadata": {
                        "labels": labels(order),
                        "annotations": {"kubectl.kubernetes.io/default-container": CONTAINER},
                    },
                    "spec": _pod(order),
                },
            },
        },
    }


def _pod(order: Order) -> Json:
    """The one pod template."""
    profile = order.profile
    volumes, mounts = _volumes(order)
    spec: Json = {
        "terminationGracePeriodSeconds": int(profile.grace),
        "enableServiceLinks": False,
        "containers": [
            {
                "name": CONTAINER,
                "image": profile.image,
                "imagePullPolicy": profile.image_pull_policy,
                "command": [*_python(order), "-u", POD],
                "env": _environment(order),
                "resources": _resources(order),
                "readinessProbe": {
                    "exec": {"command": [*_python(order), "-c", _PROBE]},
                    "periodSeconds": 1,
                    "timeoutSeconds": 5,
                    "failureThreshold": 1,
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if profile.service_account:
        spec["serviceAccountName"] = profile.service_account
    else:
        spec["automountServiceAccountToken"] = False
    if profile.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in profile.image_pull_secrets]
    if profile.node_selector:
        spec["nodeSelector"] = dict(profile.node_selector)
    if profile.tolerations:
        spec["tolerations"] = [dict(entry) for entry in profile.tolerations]
    if profile.priority_class:
        spec["priorityClassName"] = profile.priority_class
    return spec


_PROBE = f"import os, sys; sys.exit(not os.path.exists('{ROOM}/work/done.json'))"


def _python(order: Order) -> list[str]:
    """A quick interpreter: nothing of the image's site packages."""
    return [order.profile.python, "-I", "-S"]


def python_of(pod: Json) -> str:
    """The interpreter of a pod that runs, from our container, wherever admission put others."""
    own = (each for each in pod["spec"]["containers"] if each["name"] == CONTAINER)
    return str(next(own)["command"][0])


def digest_of(pod: Json) -> str:
    """The digest of the image that our container really runs; empty while it does not."""
    told = pod.get("status", {}).get("containerStatuses") or []
    images = (str(each.get("imageID", "")) for each in told if each.get("name") == CONTAINER)
    found = re.search(r"sha256:[0-9a-f]{64}$", next(images, ""))
    return found[0] if found else ""


def command(profile: Profile, *words: str) -> list[str]:
    """What the runner executes in a pod: ``pod.py`` with ``words``."""
    return [profile.python, "-I", "-S", POD, *words]


def _environment(order: Order) -> list[Json]:
    plain = {**order.profile.env, **(order.env or {})}
    found: list[Json] = [{"name": key, "value": value} for key, value in sorted(plain.items())]
    for key, reference in sorted(order.profile.secret_env.items()):
        name, _, entry = reference.partition("/")
        source = {"secretKeyRef": {"name": name, "key": entry}}
        found.append({"name": key, "valueFrom": source})
    for key, field in (("POD_NAME", "metadata.name"), ("NODE_NAME", "spec.nodeName")):
        found.append({"name": key, "valueFrom": {"fieldRef": {"fieldPath": field}}})
    return found


def _resources(order: Order) -> Json:
    profile = order.profile
    both: dict[str, str] = {}
    if profile.memory:
        both["memory"] = profile.memory
    if profile.ephemeral_storage:
        both["ephemeral-storage"] = profile.ephemeral_storage
    if profile.device and order.devices and order.rehearsal is None:
        both[profile.device] = str(order.devices)
    requests = {**({"cpu": profile.cpu} if profile.cpu else {}), **both}
    return {
        **({"requests": requests} if requests else {}),
        **({"limits": both} if both else {}),
    }


def _volumes(order: Order) -> tuple[list[Json], list[Json]]:
    """Volumes and where they are mounted: ours, then the profile's."""
    names = order.names
    volumes: list[Json] = [
        {"name": "work", "emptyDir": {}},
        {"name": "token", "secret": {"secretName": names.base, "defaultMode": 0o444}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": order.profile.shm}},
        {"name": "bundle-0", "configMap": {"name": names.base}},
    ]
    mounts: list[Json] = [
        {"name": "work", "mountPath": f"{ROOM}/work"},
        {"name": "token", "mountPath": f"{ROOM}/secret", "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "bundle-0", "mountPath": f"{ROOM}/bundle/0", "readOnly": True},
    ]
    for part in range(len(order.bundle.parts)):
        name = f"bundle-{part + 1}"
        volumes.append({"name": name, "configMap": {"name": names.bundle(part)}})
        mounts.append({"name": name, "mountPath": f"{ROOM}/bundle/{part + 1}", "readOnly": True})
    for i, entry in enumerate(order.profile.mounts):
        name = f"mount-{i}"
        if entry.host_path:
            source: Json = {"hostPath": {"path": entry.host_path}}
        elif entry.claim:
            source = {"persistentVolumeClaim": {"claimName": entry.claim}}
        else:
            source = {"configMap": {"name": entry.config_map}}
        volumes.append({"name": name, **source})
        mount: Json = {"name": name, "mountPath": entry.path}
        if entry.sub_path:
            mount["subPath"] = entry.sub_path
        if entry.read_only:
            mount["readOnly"] = True
        mounts.append(mount)
    return volumes, mounts


# What the API accepts and never runs


def problems(found: Sequence[Json]) -> list[str]:
    """Why documents would be refused, or accepted and never run; empty when they are good."""
    return [problem for document in found for problem in _problems(document, found)]


def _problems(document: Json, everything: Sequence[Json]) -> Iterator[str]:
    kind, meta = document["kind"], document["metadata"]
    who = f"{kind} {meta['name']}"
    for key, value in meta.get("labels", {}).items():
        if len(value) > 63 or not re.fullmatch(r"([A-Za-z0-9]([\w.-]*[A-Za-z0-9])?)?", value):
            yield f"{who}: label {key}={value!r} is no label value (63 letters, digits, -_.)"
    if kind == "ConfigMap":
        size = sum(len(k) + len(v.encode()) for k, v in document.get("data", {}).items())
        for key, text in document.get("binaryData", {}).items():
            size += len(key) + len(base64.b64decode(text))
        if size > 1 << 20:
            yield f"{who}: {size:,} bytes, a ConfigMap holds at most {1 << 20:,}"
    if kind == "LeaderWorkerSet":
        yield from _lws_problems(who, document, everything)


def _lws_problems(who: str, document: Json, everything: Sequence[Json]) -> Iterator[str]:
    name = document["metadata"]["name"]
    if len(name) > NAME_LIMIT:
        yield f"{who}: {len(name)} characters; with more than {NAME_LIMIT} no pod is ever made"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{who}: must start with a letter and have only a-z, 0-9 and hyphens"
    if any(d["kind"] == "Service" and d["metadata"]["name"] == name for d in everything):
        yield f"{who}: a Service of the same name hides the pods' DNS names"
    template = document["spec"]["leaderWorkerTemplate"]
    if template.get("restartPolicy") != "None":
        yield f"{who}: restartPolicy {template.get('restartPolicy')!r} remakes the group in a loop"
    made = {d["metadata"]["name"] for d in everything if d["kind"] in ("ConfigMap", "Secret")}
    for key in ("leaderTemplate", "workerTemplate"):
        spec = (template.get(key) or {}).get("spec")
        if spec is None:
            continue
        if spec.get("restartPolicy", "Always") != "Always":
            yield f"{who}: {key} has restartPolicy {spec['restartPolicy']}: no pod is ever made"
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{who}: {key} mounts the volume {mount['name']!r}, which is not there"
            for entry in container.get("env", []):
                if "value" in entry and not isinstance(entry["value"], str):
                    yield f"{who}: {key} has {entry['name']}={entry['value']!r}, expected text"
            resources: Mapping[str, Any] = container.get("resources", {})
            for resource, amount in resources.get("requests", {}).items():
                limit = resources.get("limits", {}).get(resource)
                if "/" in resource and limit != amount:
                    yield f"{who}: {key} requests {amount} {resource}, its limit is {limit}"
        for volume in volumes.values():
            source = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get(
                "secretName"
            )
            if source and source.startswith(name) and source not in made:
                yield f"{who}: {key} needs {source!r}, which is not among the manifests"
