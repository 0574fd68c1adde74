"""The API server: routes, verbs, refusals.

Enters: :class:`~tests.kube.double.http.Request`. Leaves: answers as a real server gives them.
    Touches the store, and
through it everything else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import secrets
from collections.abc import Callable
from typing import Any

import yaml

from . import errors, kinds, schema, selectors
from .access import User
from .errors import ApiError, bad_request
from .faults import Fault, Faults
from .gc import Collector
from .http import Cut, Request
from .kinds import Kind
from .kubelet import Kubelet
from .store import Change, Object, Store
from .streams import serve_exec, serve_log
from .timing import Timing

Admin = Callable[[Request], Any]
_OPEN = ("/version", "/readyz", "/livez", "/healthz")


class Api:
    """One API server over one store. ``lws`` False: the LeaderWorkerSet group is not installed."""

    def __init__(
        self,
        *,
        store: Store,
        collector: Collector,
        kubelet: Kubelet,
        faults: Faults,
        users: dict[str, User],
        timing: Timing,
        address: str,
        admin: Admin,
        lws: bool = True,
    ) -> None:
        self.store, self.collector, self.kubelet = store, collector, kubelet
        self.faults, self.users, self.timing, self.address, self.admin = (
            faults,
            users,
            timing,
            address,
            admin,
        )
        self.kinds = [k for k in kinds.ALL if lws or k.group != kinds.LWS_GROUP]
        self.watches: set[asyncio.Queue[Change | str | None]] = set()
        self.requests: list[tuple[str, str]] = []
        self.webhooks: list[Callable[[str, Object], None]] = []

    async def handle(self, request: Request) -> None:
        if request.path.startswith("/_double/"):
            await self.admin(request)
            return
        self.requests.append((request.method, request.target))
        fault = self.faults.take(request.method, request.target)
        if fault:
            await self._suffer(fault, request)
            if request.answered:
                return
        await self._route(request)

    async def _suffer(self, fault: Fault, request: Request) -> None:
        if fault.what == "slow":
            await asyncio.sleep(fault.seconds)
        elif fault.what == "hang":
            await asyncio.sleep(3600)
        elif fault.what == "cut":
            raise Cut
        elif fault.what == "cut-body":
            request.cut_after = fault.after
        else:
            reasons = {
                429: ("TooManyRequests", "too many requests, please try again later"),
                500: ("InternalError", "Internal error occurred: etcdserver: request timed out"),
                503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
                504: ("Timeout", "Timeout: request did not complete within the allotted timeout"),
                401: ("Unauthorized", "Unauthorized"),
            }
            reason, message = reasons.get(fault.code, ("InternalError", f"fault {fault.code}"))
            headers, details = {}, None
            if fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
                details = {"retryAfterSeconds": fault.retry_after}
            await request.answer(
                fault.code, errors.status(fault.code, reason, message, details), headers
            )

    def _user(self, request: Request) -> User:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        user = self.users.get(token.strip()) if scheme.lower() == "bearer" else None
        if user is None or user.expired:
            raise errors.unauthorized()
        user.used += 1
        return user

    async def _route(self, request: Request) -> None:
        path = request.path.rstrip("/") or "/"
        if path in _OPEN:
            await request.answer(200, kinds.VERSION if path == "/version" else "ok")
            return
        user = self._user(request)
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            await self._core(request, user, parts[1:])
        elif parts[0] == "apis":
            await self._group(request, user, parts[1:])
        elif parts[:2] == ["openapi", "v3"]:
            await request.answer(200, kinds.openapi(self.kinds, "/".join(parts[2:])))
        else:
            raise errors.page_not_found()

    async def _core(self, request: Request, user: User, parts: list[str]) -> None:
        if not parts:
            address = [{"clientCIDR": "0.0.0.0/0", "serverAddress": self.address}]
            await request.answer(
                200,
                {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": address},
            )
        elif parts == ["v1"]:
            listing = kinds.resource_list([k for k in self.kinds if not k.group])
            listing["groupVersion"] = "v1"
            await request.answer(200, listing)
        elif parts[0] == "v1":
            await self._resource(request, user, "", parts[1:])
        else:
            raise errors.page_not_found()

    async def _group(self, request: Request, user: User, parts: list[str]) -> None:
        groups = list(dict.fromkeys(k.group for k in self.kinds if k.group))
        if not parts:
            documents = [kinds.group_document(g) for g in groups]
            for document in documents:
                del document["kind"], document["apiVersion"]
            await request.answer(
                200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": documents}
            )
            return
        if parts[0] not in groups or (len(parts) > 1 and parts[1] != "v1"):
            raise errors.page_not_found()
        if len(parts) == 1:
            await request.answer(200, kinds.group_document(parts[0]))
        elif len(parts) == 2:
            await request.answer(
                200, kinds.resource_list([k for k in self.kinds if k.group == parts[0]])
            )
        else:
            await self._resource(request, user, parts[0], parts[2:])

    async def _resource(self, request: Request, user: User, group: str, parts: list[str]) -> None:
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        kind = next((k for k in self.kinds if k.group == group and k.plural == parts[0]), None)
        if kind is None or (kind.namespaced and len(parts) > 1 and not namespace):
            raise errors.no_such_resource()
        name = parts[1] if len(parts) > 1 else ""
        sub = parts[2] if len(parts) > 2 else ""
        if sub and sub not in kind.subresources:
            raise errors.no_such_resource()
        verb = self._verb(request, name)
        if sub == "exec":
            verb = "create" if request.method == "POST" else "get"
        if kind not in (kinds.ACCESS_REVIEWS, kinds.WHO_AM_I):
            checked = namespace or (name if kind is kinds.NAMESPACES else "")
            full = f"{kind.plural}/{sub}" if sub else kind.plural
            if not user.may(verb, kind.group, full, checked, name):
                shown = "" if verb == "create" and not sub else name
                raise errors.forbidden(kind, verb, user.name, namespace, shown, sub)
        if sub == "log":
            await serve_log(request, self.store, self.kubelet, namespace, name)
        elif sub == "exec":
            await serve_exec(request, self.store, self.kubelet, namespace, name)
        elif kind is kinds.ACCESS_REVIEWS:
            await self._review(request, user)
        elif kind is kinds.WHO_AM_I:
            who = {"status": {"userInfo": {"username": user.name}}, "metadata": {}}
            await request.answer(201, {"kind": kind.kind, "apiVersion": kind.api_version, **who})
        elif verb == "watch":
            await self._watch(request, kind, namespace, name)
        elif verb == "list":
            await self._list(request, kind, namespace)
        elif verb == "get":
            await request.answer(200, self.store.need(kind, namespace, name))
        elif verb == "create":
            body = self._parse(request)
            await request.answer(
                201,
                self.create(
                    kind,
                    namespace,
                    body,
                    self._strict(request),
                    request.flag("dryRun") or bool(request.arg("dryRun")),
                ),
            )
        elif verb == "update":
            await request.answer(200, self._update(request, kind, namespace, name, sub))
        elif verb == "patch":
            code, made = self._patch(request, kind, namespace, name, sub)
            await request.answer(code, made)
        elif verb == "delete":
            await self._delete(request, kind, namespace, name)
        elif verb == "deletecollection":
            await self._delete_many(request, kind, namespace)

    @staticmethod
    def _verb(request: Request, name: str) -> str:
        if request.method == "GET":
            if request.flag("watch"):
                return "watch"
            return "get" if name else "list"
        verbs = {
            "POST": "create",
            "PUT": "update",
            "PATCH": "patch",
            "DELETE": "delete" if name else "deletecollection",
        }
        if request.method not in verbs:
            raise ApiError(
                405,
                errors.status(
                    405,
                    "MethodNotAllowed",
                    "the server does not allow this method on the requested resource",
                ),
            )
        return verbs[request.method]

    @staticmethod
    def _strict(request: Request) -> bool:
        return request.arg("fieldValidation") == "Strict"

    @staticmethod
    def _parse(request: Request) -> Any:
        kind = request.headers.get("content-type", "")
        if "yaml" in kind:
            # Most YAML that comes is JSON, and is read a hundred times as fast as such.
            with contextlib.suppress(ValueError):
                return json.loads(request.body)
        try:
            return (
                yaml.safe_load(request.body)
                if "yaml" in kind
                else json.loads(request.body or b"{}")
            )
        except (ValueError, yaml.YAMLError) as error:
            raise bad_request(f"unable to parse the body of the request: {error}") from None

    # -- writing ---------------------------------------------------------------------------------

    def create(
        self, kind: Kind, namespace: str, body: Object, strict: bool = False, dry_run: bool = False
    ) -> Object:
        """Check, default and store a new object, as a POST does."""
        if not isinstance(body, dict):
            raise bad_request("the body of the request was not an object")
        if (body.get("kind") or kind.kind) != kind.kind or (
            body.get("apiVersion") or kind.api_version
        ) != kind.api_version:
            raise bad_request(
                f'{body.get("kind")} in version "{body.get("apiVersion")}" cannot be '
                f"handled as a {kind.kind}: "
                "no kind or version matches"
            )
        made = schema.check_fields(kind, body, strict)
        made["kind"], made["apiVersion"] = kind.kind, kind.api_version
        meta = made.setdefault("metadata", {})
        if kind.namespaced:
            if meta.setdefault("namespace", namespace) != namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace "
                    "sent on the request"
                )
            found = self.store.get(kinds.NAMESPACES, "", namespace)
            if found is None:
                raise errors.not_found(kinds.NAMESPACES, namespace)
        for field in (
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
            "managedFields",
        ):
            meta.pop(field, None)
        if kind is kinds.LEADER_WORKER_SETS:
            made.pop("status", None)
        schema.validate(kind, made)
        made = schema.with_defaults(kind, made)
        self._admit(kind, namespace, made)
        if dry_run:
            return made
        return self.store.create(kind, made)

    def _admit(self, kind: Kind, namespace: str, made: Object) -> None:
        """Webhooks, service account volume and quota, as admission adds and refuses."""
        for webhook in self.webhooks:
            webhook(kind.kind, made)
        if kind is kinds.PODS and made["spec"].get("automountServiceAccountToken") is not False:
            self._api_access(made)
        if kind not in (kinds.PODS, kinds.CONFIGMAPS, kinds.SERVICES, kinds.SECRETS):
            return
        name = made["metadata"].get("name", "")
        asked = _usage(kind, made)
        for quota in self.store.all(kinds.QUOTAS, namespace):
            hard = quota["spec"].get("hard") or {}
            used: dict[str, float] = {}
            for obj in self.store.all(kind, namespace):
                if obj.get("status", {}).get("phase") not in ("Failed", "Succeeded"):
                    for resource, amount in _usage(kind, obj).items():
                        used[resource] = used.get(resource, 0.0) + amount
            over = [
                r
                for r in hard
                if r in asked and used.get(r, 0.0) + asked[r] > schema.quantity(hard[r])
            ]
            if over:
                raise errors.exceeded_quota(
                    kind,
                    name,
                    quota["metadata"]["name"],
                    *(
                        ",".join(
                            f"{r}={t[r] if t is hard else _plain(t.get(r, 0.0))}" for r in over
                        )
                        for t in (asked, used, hard)
                    ),
                )

    @staticmethod
    def _api_access(pod: Object) -> None:
        name = "kube-api-access-" + secrets.token_hex(3)[:5]
        mount = {
            "name": name,
            "readOnly": True,
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        }
        pod["spec"].setdefault("volumes", []).append(
            {"name": name, "projected": {"sources": [], "defaultMode": 420}}
        )
        for list_name in ("initContainers", "containers"):
            for container in pod["spec"].get(list_name) or []:
                container.setdefault("volumeMounts", []).append(dict(mount))

    def _update(self, request: Request, kind: Kind, namespace: str, name: str, sub: str) -> Object:
        before = self.store.need(kind, namespace, name)
        body = schema.check_fields(kind, self._parse(request), self._strict(request))
        sent = (body.get("metadata") or {}).get("resourceVersion")
        if sent and sent != before["metadata"]["resourceVersion"]:
            raise errors.conflict(kind, name)
        return self._write(kind, namespace, name, body, sub)

    def _write(self, kind: Kind, namespace: str, name: str, after: Object, sub: str = "") -> Object:
        before = self.store.need(kind, namespace, name)
        kept = (
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "name",
            "namespace",
        )
        if sub == "status":
            after = {**copy.deepcopy(before), "status": after.get("status")}
        else:
            after = copy.deepcopy(after)
            after["kind"], after["apiVersion"] = kind.kind, kind.api_version
            meta = after.setdefault("metadata", {})
            for field in kept:
                meta.pop(field, None)
                if field in before["metadata"]:
                    meta[field] = before["metadata"][field]
            if "status" in before:
                after["status"] = (
                    before["status"] if kind.subresources else after.get("status", before["status"])
                )
            schema.validate(kind, after)
            if kind is kinds.LEADER_WORKER_SETS:
                after = schema.with_defaults(kind, after)

        def edit(o: Object) -> None:
            o.clear()
            o.update(after)

        made = self.store.change(kind, namespace, name, edit)
        assert made is not None
        if (
            "deletionTimestamp" in made["metadata"]
            and not made["metadata"].get("finalizers")
            and kind is not kinds.PODS
        ):
            self.store.remove(kind, namespace, name)
        return made

    def _patch(
        self, request: Request, kind: Kind, namespace: str, name: str, sub: str
    ) -> tuple[int, Object]:
        body = self._parse(request)
        how = request.headers.get("content-type", "").split(";")[0]
        if how.startswith("application/apply-patch"):
            return self._apply(request, kind, namespace, name, body)
        before = self.store.need(kind, namespace, name)
        if how == "application/json-patch+json":
            after = _json_patch(before, body)
        elif how in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
            after = _merge(before, body, by_name=how.startswith("application/strategic"))
        else:
            text = (
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json-patch+json, application/merge-patch+json, "
                "application/apply-patch+yaml"
            )
            raise ApiError(415, errors.status(415, "UnsupportedMediaType", text))
        after = schema.check_fields(kind, after, self._strict(request))
        return 200, self._write(kind, namespace, name, after, sub)

    def _apply(
        self, request: Request, kind: Kind, namespace: str, name: str, body: Object
    ) -> tuple[int, Object]:
        if not request.arg("fieldManager"):
            text = (
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is '
                "required for apply patch"
            )
            raise ApiError(422, errors.status(422, "Invalid", text))
        if (body.get("metadata") or {}).get("name", name) != name:
            raise bad_request(
                f"metadata.name {body['metadata']['name']!r} does not match the name in "
                f"the URL {name!r}"
            )
        before = self.store.get(kind, namespace, name)
        if before is None:
            body = {**body, "metadata": {**(body.get("metadata") or {}), "name": name}}
            return 201, self.create(
                kind, namespace, body, self._strict(request), bool(request.arg("dryRun"))
            )
        applied = schema.check_fields(kind, body, self._strict(request))
        return 200, self._write(kind, namespace, name, _merge(before, applied, by_name=True))

    # -- deleting --------------------------------------------------------------------------------

    @staticmethod
    def _options(request: Request) -> tuple[str, int | None, Object]:
        try:
            body = json.loads(request.body) if request.body else {}
        except ValueError:
            raise bad_request("unable to decode the delete options") from None
        policy = request.arg("propagationPolicy") or body.get("propagationPolicy") or "Background"
        grace = request.arg("gracePeriodSeconds") or body.get("gracePeriodSeconds")
        return policy, int(grace) if grace not in (None, "") else None, body

    async def _delete(self, request: Request, kind: Kind, namespace: str, name: str) -> None:
        policy, grace, options = self._options(request)
        obj = self.store.need(kind, namespace, name)
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != obj["metadata"]["uid"]:
            raise errors.conflict(kind, name)
        left = self.collector.delete(kind, obj, policy, grace)
        if kind is kinds.PODS or left is not None:
            await request.answer(200, left or obj)
            return
        if kind is kinds.NAMESPACES:
            for other in self.kinds:
                for item in self.store.all(other, name) if other.namespaced else []:
                    self.collector.delete(other, item, "Background")
        details: Object = {"name": name}
        if kind.group:
            details["group"] = kind.group
        details.update(kind=kind.plural, uid=obj["metadata"]["uid"])
        await request.answer(
            200,
            {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": details,
            },
        )

    async def _delete_many(self, request: Request, kind: Kind, namespace: str) -> None:
        policy, grace, _ = self._options(request)
        chosen = self._chosen(request, self.store.all(kind, namespace))
        for obj in chosen:
            self.collector.delete(kind, obj, policy, grace)
        await request.answer(200, self._listing(kind, chosen, self.store.version))

    # -- reading ---------------------------------------------------------------------------------

    @staticmethod
    def _test(request: Request) -> Callable[[Object], bool]:
        by_label = selectors.labels(request.arg("labelSelector"))
        by_field = selectors.fields(request.arg("fieldSelector"))
        return lambda obj: by_label(obj) and by_field(obj)

    def _chosen(self, request: Request, rows: list[Object]) -> list[Object]:
        return list(filter(self._test(request), rows))

    @staticmethod
    def _listing(
        kind: Kind, rows: list[Object], version: int, extra: Object | None = None
    ) -> Object:
        items = rows
        if kind.group != kinds.LWS_GROUP:
            items = [
                {k: v for k, v in row.items() if k not in ("kind", "apiVersion")} for row in rows
            ]
        meta: Object = {"resourceVersion": str(version), **(extra or {})}
        return {
            "kind": f"{kind.kind}List",
            "apiVersion": kind.api_version,
            "metadata": meta,
            "items": items,
        }

    async def _list(self, request: Request, kind: Kind, namespace: str) -> None:
        version = self.store.version
        wanted = request.arg("resourceVersion")
        if wanted and request.arg("resourceVersionMatch") == "Exact" and int(wanted) < version:
            rows, version = self.store.as_of(kind, namespace, int(wanted)), int(wanted)
        else:
            rows = self.store.all(kind, namespace)
        rows = self._chosen(request, rows)
        token, limit = request.arg("continue"), int(request.arg("limit") or 0)
        if token:
            try:
                mark = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
                start, version = mark["start"], mark["rv"]
            except (ValueError, KeyError):
                raise bad_request("continue key is not valid") from None
            if version < self.store.oldest:
                text = (
                    "The provided continue parameter is too old to display a consistent "
                    "list result. You can start a "
                    "new list without the continue parameter."
                )
                raise ApiError(410, errors.status(410, "Expired", text))
            rows = [r for r in rows if _list_key(r, namespace) >= start]
        extra: Object = {}
        if limit and len(rows) > limit:
            mark = {
                "v": "meta.k8s.io/v1",
                "rv": version,
                "start": _list_key(rows[limit - 1], namespace) + "\x00",
            }
            encoded = (
                base64.urlsafe_b64encode(json.dumps(mark, separators=(",", ":")).encode())
                .decode()
                .rstrip("=")
            )
            extra = {"continue": encoded, "remainingItemCount": len(rows) - limit}
            rows = rows[:limit]
        await request.answer(200, self._listing(kind, rows, version, extra))

    async def _watch(self, request: Request, kind: Kind, namespace: str, name: str) -> None:
        test = self._test(request)
        timeout = float(request.arg("timeoutSeconds") or 1800)
        bookmarks = request.flag("allowWatchBookmarks")
        wanted = request.arg("resourceVersion")
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        queue: asyncio.Queue[Change | str | None] = asyncio.Queue()

        def fits(obj: Object) -> bool:
            meta = obj["metadata"]
            in_space = not namespace or meta.get("namespace") == namespace
            return in_space and (not name or meta["name"] == name) and test(obj)

        if wanted not in ("", "0"):
            version = int(wanted)
            backlog = [c for c in self._since(version) if c.kind is kind]
        else:
            version, backlog = self.store.version, []
        old = wanted not in ("", "0") and version < self.store.oldest
        initial = (
            [] if wanted not in ("", "0") else list(filter(fits, self.store.all(kind, namespace)))
        )
        listener = lambda change: queue.put_nowait(change) if change.kind is kind else None  # noqa: E731
        self.store.listeners.append(listener)
        self.watches.add(queue)
        try:
            await request.start_stream()
            if old:
                await request.send(_line("ERROR", errors.expired(version, self.store.oldest)))
                await request.end_stream()
                return
            for obj in initial:
                await request.send(_line("ADDED", obj))
            for change in backlog:
                await request.send(_seen(change, fits))
            next_mark = loop.time() + self.timing.bookmark
            last_mark = end - 2
            while (left := end - loop.time()) > 0:
                wait = left
                if bookmarks:
                    wait = min(left, max(0.0, next_mark - loop.time()))
                    if loop.time() < last_mark:
                        wait = min(wait, last_mark - loop.time())
                try:
                    change_or_word = await asyncio.wait_for(queue.get(), max(wait, 0.001))
                except asyncio.TimeoutError:
                    if (
                        bookmarks
                        and loop.time() < end
                        and (loop.time() >= next_mark or loop.time() >= last_mark)
                    ):
                        await request.send(_line("BOOKMARK", _bookmark(kind, self.store.version)))
                        if loop.time() >= last_mark:
                            last_mark = next_mark = end + 1
                        else:
                            next_mark += self.timing.bookmark
                    continue
                if change_or_word == "expired":
                    await request.send(_line("ERROR", errors.expired(version, self.store.version)))
                    break
                if not isinstance(change_or_word, Change):
                    break
                if (
                    change_or_word.version <= version
                ):  # a watch from the future stays silent until then
                    continue
                await request.send(_seen(change_or_word, fits))
            await request.end_stream()
        finally:
            with contextlib.suppress(ValueError):
                self.store.listeners.remove(listener)
            self.watches.discard(queue)

    def _since(self, version: int) -> list[Change]:
        log = self.store.log
        at = len(log)
        while at and log[at - 1].version > version:
            at -= 1
        return log[at:]

    def end_watches(self, how: str | None) -> None:
        """End every open watch: None quietly, ``expired`` with a 410."""
        for queue in list(self.watches):
            queue.put_nowait(how)

    async def _review(self, request: Request, user: User) -> None:
        body = self._parse(request)
        wanted = (body.get("spec") or {}).get("resourceAttributes") or {}
        resource = wanted.get("resource", "")
        if wanted.get("subresource"):
            resource += "/" + wanted["subresource"]
        allowed = user.may(
            wanted.get("verb", ""),
            wanted.get("group", ""),
            resource,
            wanted.get("namespace", ""),
            wanted.get("name", ""),
        )
        await request.answer(
            201,
            {
                "kind": "SelfSubjectAccessReview",
                "apiVersion": "authorization.k8s.io/v1",
                "metadata": {},
                "spec": body.get("spec") or {},
                "status": {"allowed": allowed},
            },
        )


def _usage(kind: Kind, obj: Object) -> dict[str, float]:
    """What an object counts for in a quota."""
    used = {kind.plural: 1.0, f"count/{kind.plural}": 1.0}
    if kind is kinds.PODS:
        for container in obj["spec"].get("containers") or []:
            for part in ("requests", "limits"):
                for resource, amount in (
                    (container.get("resources") or {}).get(part) or {}
                ).items():
                    name = f"{part}.{resource}"
                    used[name] = used.get(name, 0.0) + schema.quantity(amount)
    return used


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _list_key(obj: Object, namespace: str) -> str:
    """Where an object stands in a paged list."""
    meta = obj["metadata"]
    return f"/{meta['name']}" if namespace else f"/{meta.get('namespace', '')}/{meta['name']}"


def _line(type_: str, obj: Object) -> bytes:
    return json.dumps({"type": type_, "object": obj}, separators=(",", ":")).encode() + b"\n"


def _seen(change: Change, fits: Callable[[Object], bool]) -> bytes:
    """The change as a watcher with a selector sees it: moving in is ADDED, moving out is
    DELETED."""
    after = fits(change.object)
    if change.type != "MODIFIED":
        return change.line() if after else b""
    before = change.before is not None and fits(change.before)
    if after and before:
        return change.line()
    if after:
        return _line("ADDED", change.object)
    return _line("DELETED", change.object) if before else b""


def _bookmark(kind: Kind, version: int) -> Object:
    made: Object = {
        "kind": kind.kind,
        "apiVersion": kind.api_version,
        "metadata": {"resourceVersion": str(version)},
    }
    if kind is kinds.PODS:
        made.update(spec={"containers": None}, status={})
    return made


def _merge(before: Any, patch: Any, by_name: bool) -> Any:
    """A merge patch; ``by_name`` merges lists of named things entry by entry (apply, strategic
    merge)."""
    if isinstance(before, dict) and isinstance(patch, dict):
        made = copy.deepcopy(before)
        for key, value in patch.items():
            if value is None:
                made.pop(key, None)
            else:
                made[key] = _merge(made.get(key), value, by_name)
        return made
    lists = by_name and isinstance(before, list) and isinstance(patch, list)
    if lists and all(isinstance(item, dict) and "name" in item for item in [*before, *patch]):
        made_list = copy.deepcopy(before)
        for item in patch:
            at = next((i for i, old in enumerate(made_list) if old["name"] == item["name"]), None)
            if at is None:
                made_list.append(copy.deepcopy(item))
            else:
                made_list[at] = _merge(made_list[at], item, by_name)
        return made_list
    return copy.deepcopy(patch)


def _json_patch(before: Object, steps: Any) -> Object:
    """RFC 6902: add, replace, remove, test."""
    made = copy.deepcopy(before)
    if not isinstance(steps, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    for step in steps:
        path = [p.replace("~1", "/").replace("~0", "~") for p in step["path"].split("/")[1:]]
        target: Any = made
        try:
            for part in path[:-1]:
                target = target[int(part) if isinstance(target, list) else part]
            last: Any = path[-1]
            if isinstance(target, list):
                last = len(target) if last == "-" else int(last)
            if step["op"] == "remove":
                del target[last]
            elif step["op"] == "test":
                if target[last] != step["value"]:
                    raise KeyError(last)
            elif step["op"] == "add" and isinstance(target, list):
                target.insert(last, step["value"])
            else:
                target[last] = step["value"]
        except (KeyError, IndexError, ValueError, TypeError):
            text = "the server rejected our request due to an error in our request"
            raise ApiError(422, errors.status(422, "Invalid", text, {})) from None
    return made
