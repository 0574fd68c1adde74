"""The controllers: LeaderWorkerSet, StatefulSet, scheduler. Levels, not edges: each looks at what
is and acts.

Enters: changes of the store. Leaves: objects, statuses and events in the recorded order. Touches
    the store only.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

from . import errors, events, kinds, schema
from .gc import Collector
from .store import Change, Object, Store, now
from .timing import Timing

PREFIX = "leaderworkerset.sigs.k8s.io/"
NAME, GROUP, WORKER, KEY, HASH = (
    PREFIX + part
    for part in ("name", "group-index", "worker-index", "group-key", "template-revision-hash")
)
SIZE, LEADER_NAME, REPLICAS = PREFIX + "size", PREFIX + "leader-name", PREFIX + "replicas"


def revision(value: Any) -> str:
    """Ten characters that change when the template changes."""
    return hashlib.sha1(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


class Queue:
    """Keys to look at, each once, after a delay; a handler that raises is a defect and is kept
    for the test."""

    def __init__(
        self,
        handler: Callable[[str, str], float | None],
        delay: float,
        defects: list[BaseException],
    ) -> None:
        self.handler, self.delay, self.defects = handler, delay, defects
        self._waiting: dict[tuple[str, str], asyncio.TimerHandle] = {}

    def add(self, namespace: str, name: str, delay: float | None = None) -> None:
        key = (namespace, name)
        wait = self.delay if delay is None else delay
        loop = asyncio.get_running_loop()
        pending = self._waiting.get(key)
        if pending is not None:
            if pending.when() <= loop.time() + wait:
                return
            pending.cancel()
        self._waiting[key] = loop.call_later(wait, self._run, key)

    def _run(self, key: tuple[str, str]) -> None:
        self._waiting.pop(key, None)
        try:
            again = self.handler(*key)
        except Exception as defect:  # a defect of the double must fail the test, not stop the loop
            self.defects.append(defect)
            return
        if again is not None:
            self.add(*key, delay=again)

    def stop(self) -> None:
        for handle in self._waiting.values():
            handle.cancel()


class Controllers:
    """LeaderWorkerSet and StatefulSet controllers and the scheduler of one cluster."""

    def __init__(
        self,
        store: Store,
        collector: Collector,
        timing: Timing,
        create_pod: Callable[[Object], Object],
        defects: list[BaseException],
    ) -> None:
        self.store, self.collector, self.timing, self.create_pod = (
            store,
            collector,
            timing,
            create_pod,
        )
        self.sets = Queue(self._sync_lws, timing.sync, defects)
        self.stateful = Queue(self._sync_stateful, timing.sync, defects)
        self.pods = Queue(self._schedule, timing.schedule, defects)
        self._failures: dict[tuple[str, str, str], int] = {}
        self._revised: set[str] = set()
        store.listeners.append(self._changed)

    def stop(self) -> None:
        for queue in (self.sets, self.stateful, self.pods):
            queue.stop()

    def _changed(self, change: Change) -> None:
        meta = change.object["metadata"]
        namespace = meta.get("namespace", "")
        if change.kind is kinds.LEADER_WORKER_SETS:
            self.sets.add(namespace, meta["name"])
        elif change.kind is kinds.STATEFULSETS:
            self.stateful.add(namespace, meta["name"])
            if set_name := meta.get("labels", {}).get(NAME):
                self.sets.add(namespace, set_name, self.timing.sync * 1.5)
        elif change.kind is kinds.PODS:
            for reference in meta.get("ownerReferences") or []:
                if reference["kind"] == "StatefulSet":
                    self.stateful.add(namespace, reference["name"])
            if set_name := (meta.get("labels") or {}).get(NAME):
                self.sets.add(namespace, set_name, self.timing.sync * 1.5)
            if change.type == "ADDED" and not change.object["spec"].get("nodeName"):
                self.pods.add(namespace, meta["name"])
        if change.kind in (kinds.NODES, kinds.CLAIMS, kinds.QUOTAS) or (
            change.kind is kinds.PODS and change.type == "DELETED"
        ):
            for pod in self.store.all(kinds.PODS):
                if not pod["spec"].get("nodeName"):
                    self.pods.add(pod["metadata"]["namespace"], pod["metadata"]["name"])

    # -- LeaderWorkerSet -------------------------------------------------------------------------

    def _sync_lws(self, namespace: str, name: str) -> float | None:
        lws = self.store.get(kinds.LEADER_WORKER_SETS, namespace, name)
        if lws is None or "deletionTimestamp" in lws["metadata"]:
            return None
        template = lws["spec"]["leaderWorkerTemplate"]
        key = revision([template, lws["metadata"]["uid"]])
        leaders = self.store.get(kinds.STATEFULSETS, namespace, name)
        if leaders is None:
            self._lws_event(
                lws,
                "Normal",
                "CreatingRevision",
                "Create",
                f"Creating revision with key {key} for a newly created LeaderWorkerSet",
                again=False,
            )
            leader_template = template.get("leaderTemplate") or template["workerTemplate"]
            policy = leader_template.get("spec", {}).get("restartPolicy", "Always")
            if policy != "Always":
                self._lws_event(
                    lws,
                    "Warning",
                    "FailedCreate",
                    "Create",
                    f"Failed to create leader statefulset {name}: StatefulSet.apps "
                    f'"{name}" is invalid: '
                    f'spec.template.spec.restartPolicy: Unsupported value: "{policy}": '
                    'supported values: "Always"',
                )
                return self._backoff("lws", namespace, name)
            self._create_leaders(lws, leader_template, key)
            self._create_service(lws)
            self._lws_event(
                lws, "Normal", "GroupsProgressing", "Create", f"Created leader statefulset {name}"
            )
        for pod in self._leader_pods(namespace, name):
            self._sync_group(lws, pod, key)
        self._lws_status(lws)
        return None

    def _leader_pods(self, namespace: str, name: str) -> list[Object]:
        return [
            pod
            for pod in self.store.all(kinds.PODS, namespace)
            if pod["metadata"]["labels"].get(NAME) == name
            and pod["metadata"]["labels"].get(WORKER) == "0"
        ]

    def _create_leaders(self, lws: Object, template: Object, key: str) -> None:
        name, namespace = lws["metadata"]["name"], lws["metadata"]["namespace"]
        size = lws["spec"]["leaderWorkerTemplate"]["size"]
        meta = template.get("metadata") or {}
        own = {NAME: name, HASH: key}
        spec = copy.deepcopy(template["spec"])
        schema.template_defaults(spec)
        self.store.create(
            kinds.STATEFULSETS,
            {
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "labels": {**(lws["metadata"].get("labels") or {}), **own},
                    "annotations": {REPLICAS: str(lws["spec"]["replicas"])},
                    "ownerReferences": [_owner(lws)],
                },
                "spec": _stateful_spec(
                    lws["spec"]["replicas"],
                    {NAME: name, WORKER: "0"},
                    {**(meta.get("labels") or {}), **own, WORKER: "0"},
                    {**(meta.get("annotations") or {}), SIZE: str(size)},
                    spec,
                    name,
                ),
                "status": {"replicas": 0, "availableReplicas": 0},
            },
        )

    def _create_service(self, lws: Object) -> None:
        name, namespace = lws["metadata"]["name"], lws["metadata"]["namespace"]
        if self.store.get(kinds.SERVICES, namespace, name):
            return
        service = {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {NAME: name},
                "ownerReferences": [_owner(lws)],
            },
            "spec": {
                "selector": {NAME: name},
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
            },
        }
        self.store.create(kinds.SERVICES, schema.with_defaults(kinds.SERVICES, service))

    def _sync_group(self, lws: Object, leader: Object, key: str) -> None:
        """Make the group's worker StatefulSet; recreate the group when its policy says so."""
        meta = leader["metadata"]
        namespace, template = meta["namespace"], lws["spec"]["leaderWorkerTemplate"]
        if "deletionTimestamp" in meta:
            return
        group = meta["labels"][GROUP]
        if template["restartPolicy"].startswith("RecreateGroup") and (
            failed := self._failed_member(lws, group)
        ):
            self._lws_event(
                lws,
                "Normal",
                "RecreateGroup",
                "Delete",
                f"Worker pod {failed} failed, deleted leader pod {meta['name']} to "
                f"recreate group {group}",
                again=False,
            )
            self.collector.delete(kinds.PODS, leader, "Foreground")
            return
        late = lws["spec"]["startupPolicy"] == "LeaderReady" and not _ready(leader)
        if (
            template["size"] <= 1
            or late
            or self.store.get(kinds.STATEFULSETS, namespace, meta["name"])
        ):
            return
        spec = copy.deepcopy(template["workerTemplate"]["spec"])
        schema.template_defaults(spec)
        own = {GROUP: group, KEY: meta["labels"][KEY], NAME: lws["metadata"]["name"], HASH: key}
        extra = template["workerTemplate"].get("metadata") or {}
        body = {
            "metadata": {
                "name": meta["name"],
                "namespace": namespace,
                "labels": {**(lws["metadata"].get("labels") or {}), **own},
                "ownerReferences": [_owner(leader)],
            },
            "spec": _stateful_spec(
                template["size"] - 1,
                {k: own[k] for k in (GROUP, KEY, NAME)},
                {**(extra.get("labels") or {}), **own},
                {
                    **(extra.get("annotations") or {}),
                    LEADER_NAME: meta["name"],
                    SIZE: str(template["size"]),
                },
                spec,
                lws["metadata"]["name"],
                start=1,
            ),
            "status": {"replicas": 0, "availableReplicas": 0},
        }
        self.store.create(kinds.STATEFULSETS, body)
        self._lws_event(
            lws,
            "Normal",
            "GroupsProgressing",
            "Create",
            f"Created worker statefulset for leader pod {meta['name']}",
            again=False,
        )

    def _failed_member(self, lws: Object, group: str) -> str:
        after_start = (
            lws["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupAfterStart"
        )
        members = [
            pod
            for pod in self.store.all(kinds.PODS, lws["metadata"]["namespace"])
            if pod["metadata"]["labels"].get(NAME) == lws["metadata"]["name"]
            and pod["metadata"]["labels"].get(GROUP) == group
        ]
        if after_start and any(pod["status"].get("phase") == "Pending" for pod in members):
            return ""
        for pod in members:
            restarted = any(c["restartCount"] for c in pod["status"].get("containerStatuses") or [])
            if restarted or "deletionTimestamp" in pod["metadata"]:
                return str(pod["metadata"]["name"])
        return ""

    def _lws_status(self, lws: Object) -> None:
        namespace, name = lws["metadata"]["namespace"], lws["metadata"]["name"]
        size, wanted = lws["spec"]["leaderWorkerTemplate"]["size"], lws["spec"]["replicas"]
        leaders = self.store.get(kinds.STATEFULSETS, namespace, name)
        replicas = (leaders or {}).get("status", {}).get("replicas", 0)
        updated = ready = 0
        for pod in self._leader_pods(namespace, name):
            workers = self.store.get(kinds.STATEFULSETS, namespace, pod["metadata"]["name"])
            if size > 1 and workers is None:
                continue
            updated += 1
            all_ready = size <= 1 or (workers or {})["status"].get("readyReplicas", 0) == size - 1
            ready += _ready(pod) and all_ready
        done = ready == wanted and updated == wanted and replicas == wanted
        generation = lws["metadata"]["generation"]
        status: Object = {
            "conditions": _lws_conditions(
                lws.get("status", {}).get("conditions") or [], done, generation
            ),
            "hpaPodSelector": f"{NAME}={name},{WORKER}=0",
            "observedGeneration": generation,
        }
        for field, value in (
            ("readyReplicas", ready),
            ("replicas", replicas),
            ("updatedReplicas", updated),
        ):
            if value:
                status[field] = value
        if status == lws.get("status"):
            return
        was_done = any(
            c["type"] == "Available" and c["status"] == "True"
            for c in lws.get("status", {}).get("conditions", [])
        )
        if done and not was_done:
            text = f"All replicas are ready, with {ready} groups ready of total {wanted} groups"
            self._lws_event(lws, "Normal", "AllGroupsReady", "Update", text)
        elif not done:
            text = f"Replicas are progressing, with {ready} groups ready of total {wanted} groups"
            self._lws_event(lws, "Normal", "GroupsProgressing", "Update", text)
        self.store.change(
            kinds.LEADER_WORKER_SETS, namespace, name, lambda o: o.update(status=status)
        )

    def _lws_event(
        self, lws: Object, type_: str, reason: str, action: str, message: str, again: bool = True
    ) -> None:
        events.emit(
            self.store, lws, type_, reason, message, "leaderworkerset", action=action, again=again
        )

    # -- StatefulSet -----------------------------------------------------------------------------

    def _sync_stateful(self, namespace: str, name: str) -> float | None:
        owner = self.store.get(kinds.STATEFULSETS, namespace, name)
        if owner is None:
            return None
        again = None
        pods = [p for p in self.store.all(kinds.PODS, namespace) if _owned(p, owner)]
        if "deletionTimestamp" not in owner["metadata"]:
            start = owner["spec"].get("ordinals", {}).get("start", 0)
            have = {p["metadata"]["name"] for p in pods}
            for ordinal in range(start, start + owner["spec"]["replicas"]):
                if f"{name}-{ordinal}" not in have and not self._create_member(owner, ordinal):
                    again = self._backoff("sts", namespace, name)
        rev = f"{name}-{revision(owner['spec']['template'])}"
        alive = sum("deletionTimestamp" not in p["metadata"] for p in pods)
        ready = sum(_ready(p) for p in pods)
        status: Object = {
            "observedGeneration": owner["metadata"]["generation"],
            "replicas": len(pods),
        }
        for field, value in (
            ("readyReplicas", ready),
            ("currentReplicas", alive),
            ("updatedReplicas", alive),
        ):
            if value:
                status[field] = value
        status.update(
            currentRevision=rev, updateRevision=rev, collisionCount=0, availableReplicas=ready
        )
        self.store.change(kinds.STATEFULSETS, namespace, name, lambda o: o.update(status=status))
        return again

    def _create_member(self, owner: Object, ordinal: int) -> bool:
        """Create one pod; False when it was refused."""
        name, namespace = owner["metadata"]["name"], owner["metadata"]["namespace"]
        template = copy.deepcopy(owner["spec"]["template"])
        pod_name = f"{name}-{ordinal}"
        labels = template["metadata"].setdefault("labels", {})
        labels["apps.kubernetes.io/pod-index"] = str(ordinal)
        labels["controller-revision-hash"] = f"{name}-{revision(owner['spec']['template'])}"
        labels["statefulset.kubernetes.io/pod-name"] = pod_name
        pod: Object = {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {
                **template["metadata"],
                "name": pod_name,
                "generateName": f"{name}-",
                "namespace": namespace,
                "ownerReferences": [_owner(owner)],
            },
            "spec": {
                **template["spec"],
                "hostname": pod_name,
                "subdomain": owner["spec"]["serviceName"],
            },
        }
        if NAME in labels:
            _lws_pod(pod, ordinal, owner)
        try:
            self.create_pod(pod)
        except errors.ApiError as refusal:
            words = refusal.body["message"] if isinstance(refusal.body, dict) else refusal.body
            events.emit(
                self.store,
                owner,
                "Warning",
                "FailedCreate",
                f"Create Pod {pod_name} in StatefulSet {name} failed error: {words}",
                "statefulset-controller",
            )
            return False
        events.emit(
            self.store,
            owner,
            "Normal",
            "SuccessfulCreate",
            f"Create Pod {pod_name} in StatefulSet {name} successful",
            "statefulset-controller",
        )
        return True

    def _backoff(self, what: str, namespace: str, name: str) -> float:
        key = (what, namespace, name)
        self._failures[key] = count = self._failures.get(key, 0) + 1
        return float(min(0.02 * 2 ** (count - 1), 300.0))

    # -- Scheduler -------------------------------------------------------------------------------

    def _schedule(self, namespace: str, name: str) -> float | None:
        pod = self.store.get(kinds.PODS, namespace, name)
        if pod is None or pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return None
        node, reason = self._find_node(pod)
        condition: Object = {
            "type": "PodScheduled",
            "observedGeneration": 1,
            "status": "True",
            "lastProbeTime": None,
        }
        condition["lastTransitionTime"] = now()
        if node:
            condition.pop("observedGeneration")

            def bind(o: Object) -> None:
                o["spec"]["nodeName"] = node
                o["status"]["conditions"] = [condition]

            bound = self.store.change(kinds.PODS, namespace, name, bind)
            assert bound is not None
            text = f"Successfully assigned {namespace}/{name} to {node}"
            events.emit(
                self.store,
                bound,
                "Normal",
                "Scheduled",
                text,
                "default-scheduler",
                action="Binding",
            )
            return None
        condition.update(status="False", reason="Unschedulable", message=reason)
        have = pod["status"].get("conditions") or []
        if have and have[0].get("message") == reason:
            return None
        events.emit(
            self.store,
            pod,
            "Warning",
            "FailedScheduling",
            reason,
            "default-scheduler",
            action="Scheduling",
        )
        self.store.change(
            kinds.PODS, namespace, name, lambda o: o["status"].update(conditions=[condition])
        )
        return None

    def _find_node(self, pod: Object) -> tuple[str, str]:
        nodes = self.store.all(kinds.NODES)
        total = len(nodes)
        for volume in pod["spec"].get("volumes") or []:
            claim_name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if not claim_name:
                continue
            claim = self.store.get(kinds.CLAIMS, pod["metadata"]["namespace"], claim_name)
            if claim is None:
                return "", (
                    f'0/{total} nodes are available: persistentvolumeclaim "{claim_name}" '
                    "not found. not found"
                )
            if claim.get("status", {}).get("phase") != "Bound":
                return (
                    "",
                    f"0/{total} nodes are available: pod has unbound immediate "
                    "PersistentVolumeClaims. not found",
                )
        wanted = requests(pod)
        reasons: dict[str, int] = {}
        for node in nodes:
            if found := self._misfit(pod, node, wanted):
                for reason in found:
                    reasons[reason] = reasons.get(reason, 0) + 1
            else:
                return node["metadata"]["name"], ""
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        return "", (
            f"0/{total} nodes are available: {listed}. no new claims to deallocate, preemption: "
            f"0/{total} nodes are available: {total} Preemption is not helpful for scheduling."
        )

    def _misfit(self, pod: Object, node: Object, wanted: dict[str, float]) -> list[str]:
        labels = node["metadata"].get("labels") or {}
        if any(labels.get(k) != v for k, v in (pod["spec"].get("nodeSelector") or {}).items()):
            return ["node(s) didn't match Pod's node affinity/selector"]
        if node["spec"].get("unschedulable"):
            return ["node(s) were unschedulable"]
        for taint in node["spec"].get("taints") or []:
            if taint.get("effect") in ("NoSchedule", "NoExecute") and not _tolerated(taint, pod):
                return ["node(s) had untolerated taint(s)"]
        used: dict[str, float] = {}
        for other in self.store.all(kinds.PODS):
            if other["spec"].get("nodeName") == node["metadata"]["name"] and other["status"].get(
                "phase"
            ) in ("Pending", "Running"):
                for resource, amount in requests(other).items():
                    used[resource] = used.get(resource, 0.0) + amount
        room = node["status"].get("allocatable") or {}
        return [
            "Too many pods" if resource == "pods" else f"Insufficient {resource}"
            for resource, amount in wanted.items()
            if used.get(resource, 0.0) + amount > schema.quantity(room.get(resource, "0"))
        ]


def requests(pod: Object) -> dict[str, float]:
    """What a pod asks of a node, by resource."""
    total: dict[str, float] = {"pods": 1.0}
    for container in pod["spec"].get("containers") or []:
        for resource, amount in ((container.get("resources") or {}).get("requests") or {}).items():
            total[resource] = total.get(resource, 0.0) + schema.quantity(amount)
    return total


def _tolerated(taint: Object, pod: Object) -> bool:
    for toleration in pod["spec"].get("tolerations") or []:
        key_fits = not toleration.get("key") or toleration["key"] == taint.get("key")
        exists = toleration.get("operator") == "Exists"
        value_fits = exists or toleration.get("value", "") == taint.get("value", "")
        effect_fits = not toleration.get("effect") or toleration["effect"] == taint.get("effect")
        if key_fits and value_fits and effect_fits:
            return True
    return False


def _owner(obj: Object) -> Object:
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": obj["metadata"]["name"],
        "uid": obj["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _owned(obj: Object, owner: Object) -> bool:
    return any(
        r.get("uid") == owner["metadata"]["uid"]
        for r in obj["metadata"].get("ownerReferences") or []
    )


def _ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _stateful_spec(
    replicas: int,
    selector: dict[str, str],
    labels: dict[str, str],
    annotations: dict[str, str],
    spec: Object,
    service: str,
    start: int = 0,
) -> Object:
    made: Object = {
        "replicas": replicas,
        "selector": {"matchLabels": selector},
        "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec},
        "serviceName": service,
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "revisionHistoryLimit": 10,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
    }
    if start:
        made["ordinals"] = {"start": start}
    return made


def _lws_pod(pod: Object, ordinal: int, owner: Object) -> None:
    """What the LWS pod webhook adds: group labels and the three variables, in front of the
    container's own."""
    labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
    name, namespace = labels[NAME], pod["metadata"]["namespace"]
    if WORKER in labels:
        labels[GROUP] = str(ordinal)
        unique = f"{namespace}/{pod['metadata']['name']}/{owner['metadata']['uid']}"
        labels[KEY] = hashlib.sha1(unique.encode()).hexdigest()
    else:
        labels[WORKER] = str(ordinal)
    leader = annotations.get(LEADER_NAME, pod["metadata"]["name"])
    own = [
        {"name": "LWS_LEADER_ADDRESS", "value": f"{leader}.{name}.{namespace}"},
        {"name": "LWS_GROUP_SIZE", "value": annotations[SIZE]},
        {"name": "LWS_WORKER_INDEX", "value": labels[WORKER]},
    ]
    for list_name in ("initContainers", "containers"):
        for container in pod["spec"].get(list_name) or []:
            env = container.get("env") or []
            have = {e["name"] for e in env}
            container["env"] = [e for e in own if e["name"] not in have] + env


def _lws_conditions(old: list[Object], done: bool, generation: int) -> list[Object]:
    available = next((c for c in old if c["type"] == "Available"), None)
    progressing = next((c for c in old if c["type"] == "Progressing"), None)

    def condition(
        before: Object | None, type_: str, holds: bool, reason: str, message: str
    ) -> Object:
        status = "True" if holds else "False"
        changed = before is None or before["status"] != status
        return {
            "lastTransitionTime": now() if changed else (before or {})["lastTransitionTime"],
            "message": message,
            "observedGeneration": generation,
            "reason": reason,
            "status": status,
            "type": type_,
        }

    rows = [
        condition(
            progressing, "Progressing", not done, "GroupsProgressing", "Replicas are progressing"
        )
    ]
    if done or available:
        rows.append(
            condition(available, "Available", done, "AllGroupsReady", "All replicas are ready")
        )
    return rows
