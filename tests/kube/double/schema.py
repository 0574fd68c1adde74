"""What the API accepts: field names and types, names, enums, sizes, and the defaults it fills in.

Enters: an object as it was sent. Leaves: the object as it would be stored, or an
:class:`~tests.kube.double.errors.ApiError` with the recorded words. Touches nothing.

The tables hold the fields of Kubernetes 1.36 that a pod of ours could use. ``OPEN`` marks a part
whose inside is not checked.
"""

from __future__ import annotations

import base64
import copy
import re
from typing import Any

from . import errors, kinds
from .kinds import Kind

Object = dict[str, Any]
OPEN = "open"
STR, INT, BOOL, MAP = "string", "integer", "boolean", "map"
QUANTITY = "quantity"


def _rows(**fields: Any) -> dict[str, Any]:
    return fields


def _list(of: Any) -> list[Any]:
    return [of]


_SELECTOR_KEY = _rows(key=STR, name=STR, optional=BOOL)
_ENV = _rows(
    name=STR,
    value=STR,
    valueFrom=_rows(
        configMapKeyRef=_SELECTOR_KEY,
        secretKeyRef=_SELECTOR_KEY,
        fieldRef=_rows(apiVersion=STR, fieldPath=STR),
        resourceFieldRef=OPEN,
        fileKeyRef=OPEN,
    ),
)
_HTTP_GET = _rows(host=STR, httpHeaders=OPEN, path=STR, port=OPEN, scheme=STR)
_ACTION = _rows(
    exec=_rows(command=_list(STR)),
    httpGet=_HTTP_GET,
    tcpSocket=_rows(host=STR, port=OPEN),
    sleep=OPEN,
)
_PROBE = {
    **_ACTION,
    "grpc": OPEN,
    "initialDelaySeconds": INT,
    "periodSeconds": INT,
    "timeoutSeconds": INT,
    "successThreshold": INT,
    "failureThreshold": INT,
    "terminationGracePeriodSeconds": INT,
}
_CONTAINER: dict[str, Any] = _rows(
    name=STR,
    image=STR,
    imagePullPolicy=STR,
    command=_list(STR),
    args=_list(STR),
    workingDir=STR,
    env=_list(_ENV),
    envFrom=OPEN,
    ports=_list(_rows(name=STR, containerPort=INT, hostIP=STR, hostPort=INT, protocol=STR)),
    resources=_rows(limits=QUANTITY, requests=QUANTITY, claims=OPEN),
    resizePolicy=OPEN,
    restartPolicy=STR,
    volumeMounts=_list(
        _rows(
            name=STR,
            mountPath=STR,
            readOnly=BOOL,
            subPath=STR,
            subPathExpr=STR,
            mountPropagation=STR,
            recursiveReadOnly=STR,
        )
    ),
    volumeDevices=OPEN,
    livenessProbe=_PROBE,
    readinessProbe=_PROBE,
    startupProbe=_PROBE,
    lifecycle=_rows(preStop=_ACTION, postStart=_ACTION, stopSignal=STR),
    terminationMessagePath=STR,
    terminationMessagePolicy=STR,
    securityContext=OPEN,
    stdin=BOOL,
    stdinOnce=BOOL,
    tty=BOOL,
)
_KEYS = _list(_rows(key=STR, path=STR, mode=INT))
_VOLUME = _rows(
    name=STR,
    configMap=_rows(name=STR, items=_KEYS, defaultMode=INT, optional=BOOL),
    secret=_rows(secretName=STR, items=_KEYS, defaultMode=INT, optional=BOOL),
    emptyDir=_rows(medium=STR, sizeLimit=OPEN),
    hostPath=_rows(path=STR, type=STR),
    persistentVolumeClaim=_rows(claimName=STR, readOnly=BOOL),
    projected=OPEN,
    downwardAPI=OPEN,
    nfs=OPEN,
    csi=OPEN,
    ephemeral=OPEN,
    image=OPEN,
)
POD_SPEC = _rows(
    volumes=_list(_VOLUME),
    initContainers=_list(_CONTAINER),
    containers=_list(_CONTAINER),
    ephemeralContainers=OPEN,
    restartPolicy=STR,
    terminationGracePeriodSeconds=INT,
    activeDeadlineSeconds=INT,
    dnsPolicy=STR,
    nodeSelector=MAP,
    serviceAccountName=STR,
    serviceAccount=STR,
    automountServiceAccountToken=BOOL,
    nodeName=STR,
    hostNetwork=BOOL,
    hostPID=BOOL,
    hostIPC=BOOL,
    hostUsers=BOOL,
    shareProcessNamespace=BOOL,
    securityContext=OPEN,
    imagePullSecrets=_list(_rows(name=STR)),
    hostname=STR,
    subdomain=STR,
    affinity=OPEN,
    schedulerName=STR,
    tolerations=_list(_rows(key=STR, operator=STR, value=STR, effect=STR, tolerationSeconds=INT)),
    hostAliases=OPEN,
    priorityClassName=STR,
    priority=INT,
    dnsConfig=OPEN,
    readinessGates=OPEN,
    runtimeClassName=STR,
    enableServiceLinks=BOOL,
    preemptionPolicy=STR,
    overhead=OPEN,
    topologySpreadConstraints=OPEN,
    setHostnameAsFQDN=BOOL,
    os=OPEN,
    schedulingGates=OPEN,
    resourceClaims=OPEN,
    resources=OPEN,
)
_OWNER = _rows(
    apiVersion=STR, kind=STR, name=STR, uid=STR, controller=BOOL, blockOwnerDeletion=BOOL
)
META = _rows(
    name=STR,
    generateName=STR,
    namespace=STR,
    labels=MAP,
    annotations=MAP,
    finalizers=_list(STR),
    ownerReferences=_list(_OWNER),
    uid=STR,
    resourceVersion=STR,
    generation=INT,
    creationTimestamp=OPEN,
    deletionTimestamp=OPEN,
    deletionGracePeriodSeconds=INT,
    managedFields=OPEN,
    selfLink=STR,
)
_TEMPLATE = _rows(metadata=META, spec=POD_SPEC)
_SPECS: dict[str, dict[str, Any]] = {
    "LeaderWorkerSet": _rows(
        spec=_rows(
            replicas=INT,
            leaderWorkerTemplate=_rows(
                size=INT,
                restartPolicy=STR,
                leaderTemplate=_TEMPLATE,
                workerTemplate=_TEMPLATE,
                subGroupPolicy=_rows(subGroupSize=INT, subGroupPolicyType=STR, type=STR),
                resizePolicy=STR,
                volumeClaimTemplates=OPEN,
                persistentVolumeClaimRetentionPolicy=OPEN,
            ),
            networkConfig=_rows(subdomainPolicy=STR),
            rolloutStrategy=_rows(
                type=STR,
                rollingUpdateConfiguration=_rows(maxSurge=OPEN, maxUnavailable=OPEN, partition=INT),
            ),
            startupPolicy=STR,
        ),
        status=OPEN,
    ),
    "Pod": _rows(spec=POD_SPEC, status=OPEN),
    "ConfigMap": _rows(data=MAP, binaryData=MAP, immutable=BOOL),
    "Secret": _rows(data=MAP, stringData=MAP, type=STR, immutable=BOOL),
    "Service": _rows(spec=OPEN, status=OPEN),
    "ResourceQuota": _rows(spec=_rows(hard=QUANTITY, scopes=OPEN, scopeSelector=OPEN), status=OPEN),
    "PersistentVolumeClaim": _rows(spec=OPEN, status=OPEN),
    "StatefulSet": _rows(spec=OPEN, status=OPEN),
    "Namespace": _rows(spec=OPEN, status=OPEN),
    "Node": _rows(spec=OPEN, status=OPEN),
    "ServiceAccount": _rows(secrets=OPEN, imagePullSecrets=OPEN, automountServiceAccountToken=BOOL),
}


def check_fields(kind: Kind, body: Object, strict: bool) -> Object:
    """The body with unknown fields pruned; with ``strict`` unknown fields are a 400, wrong types
    a 422 or 400."""
    table = _SPECS.get(kind.kind)
    if table is None:
        return copy.deepcopy(body)
    unknown: list[str] = []
    wrong: list[tuple[str, str, str]] = []
    table = {"apiVersion": STR, "kind": STR, "metadata": META, **table}
    made: Object = _walk(body, table, "", unknown, wrong)
    if wrong and kind.group != kinds.LWS_GROUP:
        field, found, want = wrong[0]
        go = {"string": "string", "integer": "int32", "boolean": "bool"}.get(want, want)
        raise errors.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
            "json: cannot unmarshal "
            f"{found if found != 'integer' else 'number'} into Go struct field "
            f"{kind.kind}.{field} of type {go}"
        )
    if unknown and strict:
        listed = ", ".join(f'unknown field "{field}"' for field in unknown)
        raise errors.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
            f"strict decoding error: {listed}"
        )
    if wrong:
        causes = [
            (
                "FieldValueTypeInvalid",
                f'Invalid value: "{found}": {field} in body must be of type {want}: "{found}"',
                field,
            )
            for field, found, want in wrong
        ]
        raise errors.invalid(kind, (body.get("metadata") or {}).get("name", ""), causes)
    return made


def _walk(
    value: Any, table: Any, path: str, unknown: list[str], wrong: list[tuple[str, str, str]]
) -> Any:
    if table == OPEN or value is None:
        return copy.deepcopy(value)
    if isinstance(table, dict):
        if not isinstance(value, dict):
            wrong.append((path, _type(value), "object"))
            return value
        made = {}
        for name, inner in value.items():
            where = f"{path}.{name}" if path else name
            if name not in table:
                unknown.append(where)
            elif (
                walked := _walk(inner, table[name], where, unknown, wrong)
            ) is not None or inner is not None:
                made[name] = walked
        return made
    if isinstance(table, list):
        if not isinstance(value, list):
            wrong.append((path, _type(value), "array"))
            return value
        return [
            _walk(item, table[0], f"{path}[{i}]", unknown, wrong) for i, item in enumerate(value)
        ]
    if table in (MAP, QUANTITY):
        if not isinstance(value, dict):
            wrong.append((path, _type(value), "object"))
            return value
        for name, inner in value.items():
            if not isinstance(inner, str) and (table == MAP or not isinstance(inner, (int, float))):
                wrong.append((f"{path}.{name}", _type(inner), "string"))
        return {name: str(inner) if table == QUANTITY else inner for name, inner in value.items()}
    if _type(value) != table:
        wrong.append((path, _type(value), table))
    return value


def _type(value: Any) -> str:
    for kind, name in (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
    ):
        if isinstance(value, kind):
            return name
    return "object"


_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_KEY = re.compile(r"[-._a-zA-Z0-9]+\Z")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")
_LABEL_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', "
    "'_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', "
    "regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
RESTART_POLICIES = ("Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None")


def validate(kind: Kind, body: Object) -> None:
    """Names, label values, enums and sizes; raises with every cause found."""
    meta = body.get("metadata") or {}
    name = meta.get("name", "")
    causes: list[tuple[str, str, str]] = []
    if not name and not meta.get("generateName"):
        causes.append(
            (
                "FieldValueRequired",
                "Required value: name or generateName is required",
                "metadata.name",
            )
        )
    if name and not _SUBDOMAIN.match(name):
        causes.append(
            (
                "FieldValueInvalid",
                f'Invalid value: "{name}": {errors.DNS_1123_SUBDOMAIN}',
                "metadata.name",
            )
        )
    if (
        kind.plural == "services"
        and name
        and not causes
        and (not _LABEL.match(name) or len(name) > 63)
    ):
        causes.append(
            (
                "FieldValueInvalid",
                f'Invalid value: "{name}": {errors.DNS_1035_LABEL}',
                "metadata.name",
            )
        )
    causes += label_causes(meta.get("labels") or {})
    if kind is kinds.LEADER_WORKER_SETS:
        causes += _lws_enums(body)
    if kind in (kinds.CONFIGMAPS, kinds.SECRETS):
        causes += _data(body)
    if kind is kinds.PODS:
        causes += pod_causes(body.get("spec") or {}, "spec")
    if causes:
        raise errors.invalid(kind, name, causes)
    if kind is kinds.LEADER_WORKER_SETS:
        _lws_webhook(body)


def label_causes(labels: dict[str, str]) -> list[tuple[str, str, str]]:
    causes = []
    for value in labels.values():
        if len(value) > 63:
            causes.append(
                (
                    "FieldValueInvalid",
                    f'Invalid value: "{value}": must be no more than 63 bytes',
                    "metadata.labels",
                )
            )
        elif not _LABEL_VALUE.match(value):
            causes.append(
                (
                    "FieldValueInvalid",
                    f'Invalid value: "{value}": {_LABEL_VALUE_TEXT}',
                    "metadata.labels",
                )
            )
    return causes


def pod_causes(spec: Object, path: str) -> list[tuple[str, str, str]]:
    """What the API itself refuses in a pod (LWS templates are not checked so: recorded)."""
    causes: list[tuple[str, str, str]] = []
    volumes = {volume.get("name") for volume in spec.get("volumes") or []}
    if not spec.get("containers"):
        causes.append(("FieldValueRequired", "Required value", f"{path}.containers"))
    for list_name in ("initContainers", "containers"):
        for i, container in enumerate(spec.get(list_name) or []):
            where = f"{path}.{list_name}[{i}]"
            if not container.get("name"):
                causes.append(("FieldValueRequired", "Required value", f"{where}.name"))
            if not container.get("image"):
                causes.append(("FieldValueRequired", "Required value", f"{where}.image"))
            for j, mount in enumerate(container.get("volumeMounts") or []):
                if mount.get("name") not in volumes:
                    field = f"{where}.volumeMounts[{j}].name"
                    causes.append(
                        ("FieldValueNotFound", f'Not found: "{mount.get("name")}"', field)
                    )
            policy = container.get("imagePullPolicy", "Always")
            if policy not in ("Always", "IfNotPresent", "Never"):
                field = f"{where}.imagePullPolicy"
                text = (
                    f'Unsupported value: "{policy}": supported values: "Always", '
                    '"IfNotPresent", "Never"'
                )
                causes.append(("FieldValueNotSupported", text, field))
            limits = (container.get("resources") or {}).get("limits") or {}
            requests = (container.get("resources") or {}).get("requests") or {}
            for resource, wanted in requests.items():
                if "/" in resource and limits.get(resource) != wanted:
                    field = f"{where}.resources.requests[{resource}]"
                    causes.append(
                        (
                            "FieldValueInvalid",
                            f'Invalid value: "{wanted}": must be equal to {resource} limit',
                            field,
                        )
                    )
    return causes


def _enum(value: Any, allowed: tuple[str, ...], field: str) -> list[tuple[str, str, str]]:
    if value is None or value in allowed:
        return []
    listed = ", ".join(f'"{a}"' for a in allowed)
    return [
        (
            "FieldValueNotSupported",
            f'Unsupported value: "{value}": supported values: {listed}',
            field,
        )
    ]


def _lws_enums(body: Object) -> list[tuple[str, str, str]]:
    spec = body.get("spec") or {}
    template = spec.get("leaderWorkerTemplate") or {}
    causes: list[tuple[str, str, str]] = []
    if "leaderWorkerTemplate" not in spec:
        causes.append(("FieldValueRequired", "Required value", "spec.leaderWorkerTemplate"))
    elif "workerTemplate" not in template:
        causes.append(
            ("FieldValueRequired", "Required value", "spec.leaderWorkerTemplate.workerTemplate")
        )
    causes += _enum(
        template.get("restartPolicy"), RESTART_POLICIES, "spec.leaderWorkerTemplate.restartPolicy"
    )
    causes += _enum(
        spec.get("startupPolicy"), ("LeaderCreated", "LeaderReady"), "spec.startupPolicy"
    )
    policy = (spec.get("networkConfig") or {}).get("subdomainPolicy")
    return causes + _enum(
        policy, ("Shared", "UniquePerReplica"), "spec.networkConfig.subdomainPolicy"
    )


def _lws_webhook(body: Object) -> None:
    name = body["metadata"].get("name", "")
    if not _LABEL.match(name) or len(name) > 63:
        raise errors.denied(f'metadata.name: Invalid value: "{name}": {errors.DNS_1035_LABEL}')
    spec = body["spec"]
    size = spec["leaderWorkerTemplate"].get("size", 1)
    if size < 1:
        raise errors.denied(
            f"spec.leaderWorkerTemplate.size: Invalid value: {size}: size must be equal "
            "or greater than 1"
        )
    replicas = spec.get("replicas", 1)
    if replicas < 0:
        raise errors.denied(
            f"spec.replicas: Invalid value: {replicas}: replicas must be equal or greater than 0"
        )


def _data(body: Object) -> list[tuple[str, str, str]]:
    size = 0
    causes: list[tuple[str, str, str]] = []
    for part in ("data", "stringData", "binaryData"):
        for key, value in (body.get(part) or {}).items():
            if not _KEY.match(key):
                text = (
                    f'Invalid value: "{key}": a valid config key must consist of '
                    "alphanumeric characters, '-', '_' "
                    "or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used "
                    "for validation is "
                    "'[-._a-zA-Z0-9]+')"
                )
                causes.append(("FieldValueInvalid", text, f"{part}[{key}]"))
            encoded = part == "binaryData" or (part == "data" and body.get("kind") == "Secret")
            try:
                size += (
                    len(base64.b64decode(value, validate=True)) if encoded else len(value.encode())
                )
            except ValueError:
                raise errors.bad_request(
                    f'{body.get("kind")} in version "v1" cannot be handled as a '
                    f"{body.get('kind')}: "
                    "illegal base64 data at input byte 0"
                ) from None
    if size > 1048576:
        causes.append(("FieldValueTooLong", "Too long: may not be more than 1048576 bytes", "[]"))
    return causes


def with_defaults(kind: Kind, body: Object) -> Object:
    """The body with the values the server fills in."""
    made = copy.deepcopy(body)
    if kind is kinds.LEADER_WORKER_SETS:
        _lws_defaults(made["spec"])
    elif kind is kinds.PODS:
        _pod_defaults(made["spec"])
        made.setdefault("status", {"phase": "Pending", "qosClass": qos(made["spec"])})
    elif kind is kinds.SERVICES:
        _service_defaults(made)
    elif kind is kinds.QUOTAS:
        made.setdefault("status", {})
    elif kind is kinds.NAMESPACES:
        made.setdefault("spec", {"finalizers": ["kubernetes"]})
        made.setdefault("status", {"phase": "Active"})
    elif kind is kinds.CLAIMS:
        made.setdefault("status", {"phase": "Pending"})
    elif kind is kinds.SECRETS:
        made.setdefault("type", "Opaque")
        for key, value in (made.pop("stringData", None) or {}).items():
            made.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()
    return made


def _lws_defaults(spec: Object) -> None:
    spec.setdefault("replicas", 1)
    spec.setdefault("startupPolicy", "LeaderCreated")
    spec.setdefault("networkConfig", {"subdomainPolicy": "Shared"})
    rolling = {"maxSurge": 0, "maxUnavailable": 1, "partition": 0}
    spec.setdefault(
        "rolloutStrategy", {"type": "RollingUpdate", "rollingUpdateConfiguration": rolling}
    )
    template = spec["leaderWorkerTemplate"]
    template.setdefault("size", 1)
    template.setdefault("restartPolicy", "RecreateGroupOnPodRestart")
    if template["restartPolicy"] == "Default":
        template["restartPolicy"] = "None"
    for part in ("leaderTemplate", "workerTemplate"):
        if part in template:
            template[part].setdefault("metadata", {})
            for list_name in ("containers", "initContainers"):
                for container in template[part].get("spec", {}).get(list_name) or []:
                    container.setdefault("name", "")
                    container.setdefault("resources", {})


def container_defaults(container: Object) -> None:
    container.setdefault("resources", {})
    limits = container["resources"].get("limits")
    if limits:
        requests = container["resources"].setdefault("requests", {})
        for resource, amount in limits.items():
            requests.setdefault(resource, amount)
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        if container.get(probe):
            for field, value in (
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ):
                container[probe].setdefault(field, value)
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = container.get("image", "")
    tag = image.rpartition("/")[2].partition(":")[2]
    container.setdefault(
        "imagePullPolicy",
        "Always" if tag in ("", "latest") and "@" not in image else "IfNotPresent",
    )


def template_defaults(spec: Object) -> None:
    """The defaults that a pod template in a StatefulSet already shows."""
    for list_name in ("initContainers", "containers"):
        for container in spec.get(list_name) or []:
            container_defaults(container)
    for volume in spec.get("volumes") or []:
        for source in ("configMap", "secret"):
            if source in volume:
                volume[source].setdefault("defaultMode", 420)
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")


def _pod_defaults(spec: Object) -> None:
    template_defaults(spec)
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", spec["serviceAccountName"])
    tolerations = spec.setdefault("tolerations", [])
    for condition in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{condition}"
        if not any(t.get("key") == key for t in tolerations):
            tolerations.append(
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            )
    spec.setdefault("priority", 0)
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")


def _service_defaults(service: Object) -> None:
    spec = service.setdefault("spec", {})
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    spec.setdefault("type", "ClusterIP")
    if not spec.get("clusterIP"):
        number = abs(hash((service["metadata"].get("name"), id(service)))) % 65000
        spec["clusterIP"] = f"10.96.{number // 256}.{number % 256}"
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    spec.setdefault("sessionAffinity", "None")
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    spec.setdefault("internalTrafficPolicy", "Cluster")
    service.setdefault("status", {"loadBalancer": {}})


def qos(spec: Object) -> str:
    resources = [c.get("resources") or {} for c in spec.get("containers") or []]
    if not any(r.get("limits") or r.get("requests") for r in resources):
        return "BestEffort"
    guaranteed = all(
        {"cpu", "memory"} <= set(r.get("limits") or {})
        and r.get("requests", r["limits"]) == r["limits"]
        for r in resources
    )
    return "Guaranteed" if guaranteed else "Burstable"


_UNITS = {
    "": 1.0,
    "m": 1e-3,
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


def quantity(text: Any) -> float:
    """A Kubernetes quantity as a number; ValueError when it is none."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)([a-zA-Z]{0,2})", str(text).strip())
    if not match or match[2] not in _UNITS:
        raise ValueError(f"not a quantity: {text!r}")
    return float(match[1]) * _UNITS[match[2]]
