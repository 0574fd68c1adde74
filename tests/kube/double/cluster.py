"""One cluster: everything wired together, on a thread of its own, behind a small API for tests.

Enters: a directory. Leaves: a server on a loopback port and a kubeconfig. Touches that directory,
    one port and the
processes of the pods; :meth:`KubeDouble.stop` leaves none of them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import yaml

from . import dns, kinds, sandbox
from .access import User
from .api import Api
from .controllers import Controllers
from .faults import Fault, Faults
from .gc import Collector
from .http import Request, Server
from .kubelet import Image, Kubelet, Node
from .store import Object, Store
from .timing import Lag, Timing

T = TypeVar("T")
ADMIN_TOKEN = "double-admin"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class KubeDouble:
    """A Kubernetes for tests. A context manager: ``with KubeDouble(tmp_path) as kube:``.

    Args:
        directory: where logs, volumes and throw-away file systems go; no spaces in its path.
        namespace: made at the start, besides ``default``; the kubeconfig points at it.
        nodes: name to allocatable, or a number of equal nodes; a node has cpu, memory and 110
            pods unless told.
        images: image name to behaviour (:class:`Image`); an image not named is present.
        image_env: environment every image brings; ``{pod_ip}`` is replaced. PATH begins with this
            Python's directory.
        timing: delays (:class:`Timing`), seconds.
        lws: whether LeaderWorkerSet is installed.
        tls: serve https with a certificate made for this run (needs ``openssl``); in-cluster
            clients need it.
        mode: ``namespaces`` or ``rewrite`` (see ``sandbox``); None: the best this machine can do.
        port: listen here; 0: any free port.
        proxy: whether a Service with an address of its own is reachable; pods always are.
    """

    def __init__(
        self,
        directory: Path,
        *,
        namespace: str = "rec",
        nodes: int | dict[str, dict[str, str]] = 1,
        images: dict[str, Image] | None = None,
        image_env: dict[str, str] | None = None,
        timing: Timing | None = None,
        lws: bool = True,
        tls: bool = False,
        mode: str | None = None,
        port: int = 0,
        proxy: bool = True,
    ) -> None:
        self.directory = Path(directory).resolve()
        if " " in str(self.directory):
            raise ValueError(f"{self.directory}: a path without spaces is needed")
        self.namespace = namespace
        self.timing = timing or Timing()
        self.images: dict[str, Image] = images if images is not None else {}
        self.faults = Faults()
        self.lag = Lag()
        self.proxy = proxy
        #: Each is called with the kind and the body of whatever is created, and may change it.
        self.webhooks: list[Callable[[str, Object], None]] = []
        self.users: dict[str, User] = {ADMIN_TOKEN: User("admin")}
        self.defects: list[BaseException] = []
        self.ca = ""
        self._options = (nodes, image_env or {}, lws, tls, mode)
        self._port = port
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._temporary: Path | None = None
        # loopback addresses of this cluster: 127.a.b.c, a and b by chance so that parallel tests
        #     differ
        chance = random.SystemRandom()
        self._octets = (chance.randrange(64, 250), chance.randrange(0, 256))
        self._last_address = 9

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> KubeDouble:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None and self.defects:
            raise AssertionError(f"the double itself failed: {self.defects!r}") from self.defects[0]

    def start(self) -> KubeDouble:
        """Begin to serve; returns when the API answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="kube-double", daemon=True)
        self._thread.start()
        self._ready.wait(60)
        if self._failure:
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop serving; kill every process of every pod and wait for them; remove volumes and
        file systems."""
        if self._thread is None:
            return
        self.call(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._thread = None
        for name in ("pods", "dns", "site", "host", "claims"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._build())
        except BaseException as error:  # handed to the thread that waits in start()
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        self._loop.run_forever()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    async def _build(self) -> None:
        nodes, image_env, lws, tls, mode = self._options
        context = self._certificate() if tls else None
        self.server = Server(self._handle, "127.0.0.1", self._port, context)
        await self.server.open()
        self.store = Store()
        self.collector = Collector(self.store, self.timing)
        self.names = dns.Names(
            self.store, self.timing, self.lag, self.directory / "dns", self.proxy
        )
        site = self.directory / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(
            dns.SITECUSTOMIZE.replace("{hosts!r}", repr(str(self.names.hosts)))
        )
        self.mode = mode or sandbox.choose_mode(self.directory / "trial")
        base = {
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "HOME": "/root" if os.geteuid() == 0 else str(Path.home()),
            **image_env,
        }
        service = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.server.port),
        }
        node = Node(
            self.store,
            self.collector,
            self.timing,
            self.directory,
            self.mode,
            self.images,
            base,
            self.names.hosts,
            self.names.resolv,
            site,
            self._address(1),
            self._new_address,
            service,
            ADMIN_TOKEN,
            self.ca,
            self.defects,
            self.lag,
        )
        self.kubelet = Kubelet(node)
        self.api = Api(
            store=self.store,
            collector=self.collector,
            kubelet=self.kubelet,
            faults=self.faults,
            users=self.users,
            timing=self.timing,
            address=f"127.0.0.1:{self.server.port}",
            admin=self._admin,
            lws=lws,
        )
        self.api.webhooks = self.webhooks
        self.controllers = Controllers(
            self.store, self.collector, self.timing, self._create_pod, self.defects
        )
        for name in ("default", "kube-system", self.namespace):
            if not self.store.get(kinds.NAMESPACES, "", name):
                self.api.create(kinds.NAMESPACES, "", {"metadata": {"name": name}})
        rows = (
            nodes if isinstance(nodes, dict) else {f"node-{chr(97 + i)}": {} for i in range(nodes)}
        )
        for name, allocatable in rows.items():
            self._create_node(name, allocatable)
        self.store.compact()

    async def _shut_down(self) -> None:
        self.controllers.stop()
        self.collector.stop()
        self.names.stop()
        await self.server.close()
        await self.kubelet.stop()

    async def _handle(self, request: Request) -> None:
        await self.api.handle(request)

    # -- wiring ----------------------------------------------------------------------------------

    def _address(self, last: int) -> str:
        first, second = self._octets
        return f"127.{first}.{second}.{last}"

    def _new_address(self) -> str:
        self._last_address += 1
        if self._last_address > 250:
            self._octets, self._last_address = (self._octets[0], (self._octets[1] + 1) % 256), 10
        return self._address(self._last_address)

    def _create_pod(self, pod: Object) -> Object:
        return self.api.create(kinds.PODS, pod["metadata"]["namespace"], pod)

    def _create_node(self, name: str, allocatable: dict[str, str]) -> None:
        room = {
            "cpu": "192",
            "memory": "1536Gi",
            "ephemeral-storage": "500Gi",
            "pods": "110",
            **allocatable,
        }
        condition = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        body = {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": {
                "name": name,
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            },
            "spec": {},
            "status": {
                "capacity": room,
                "allocatable": room,
                "conditions": [condition],
                "addresses": [{"type": "InternalIP", "address": self._address(1)}],
            },
        }
        self.store.create(kinds.NODES, body)

    def _certificate(self) -> ssl.SSLContext:
        self._temporary = Path(tempfile.mkdtemp(dir=self.directory))
        key, cert = self._temporary / "tls.key", self._temporary / "tls.crt"
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                str(key),
                "-out",
                str(cert),
                "-days",
                "2",
                "-subj",
                "/CN=kube-double",
                "-addext",
                "subjectAltName=IP:127.0.0.1,DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:TRUE",
            ],
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self.ca = cert.read_text()
        shutil.rmtree(self._temporary)
        return context

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 60) -> T:
        """Run a coroutine on the double's loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def on_loop(self, function: Callable[[], T]) -> T:
        """Run a function on the double's loop and wait for its result."""

        async def work() -> T:
            return function()

        return self.call(work())

    # -- for clients -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        scheme = "https" if self.ca else "http"
        return f"{scheme}://127.0.0.1:{self.server.port}"

    def kubeconfig(
        self, path: Path | None = None, token: str = ADMIN_TOKEN, namespace: str | None = None
    ) -> Path:
        """Write a kubeconfig for a token and return its path."""
        path = path or self.directory / f"kubeconfig-{token}"
        cluster: Object = {"server": self.url}
        if self.ca:
            cluster["certificate-authority-data"] = base64.b64encode(self.ca.encode()).decode()
        context = {"cluster": "double", "user": "double", "namespace": namespace or self.namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "clusters": [{"name": "double", "cluster": cluster}],
            "contexts": [{"name": "double", "context": context}],
            "users": [{"name": "double", "user": {"token": token}}],
        }
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path

    def add_token(
        self, token: str, user: str, role: Object | None = None, namespace: str = ""
    ) -> str:
        """A further token. ``role``: a Role or ClusterRole document, or None for no rights at
        all."""
        rules = (role or {}).get("rules") or []
        self.users[token] = User(user, rules, namespace)
        return token

    def expire_token(self, token: str = ADMIN_TOKEN) -> None:
        """From now on the token is answered 401."""
        self.users[token].expired = True

    def renew_token(self, token: str = ADMIN_TOKEN) -> None:
        self.users[token].expired = False

    # -- faults ----------------------------------------------------------------------------------

    def fault(self, what: str, **fields: Any) -> Fault:
        """Add a :class:`Fault`; a number as ``what`` is short for ``status`` with that code."""
        if what.isdigit():
            fields, what = {"code": int(what), **fields}, "status"
        return self.faults.add(Fault(what, **fields))

    def drop_watches(self) -> None:
        """The server ends every open watch, quietly, as it does at its own time-outs."""
        self.on_loop(lambda: self.api.end_watches(None))

    def expire_watches(self) -> None:
        """History is compacted: open watches get a 410 ERROR event, and so does every older
        version from now on."""

        def work() -> None:
            self.store.compact()
            self.api.end_watches("expired")

        self.on_loop(work)

    def compact(self) -> None:
        """History is compacted; open watches go on."""
        self.on_loop(self.store.compact)

    def restart_api(self, downtime: float = 0.5, forget: bool = True, lag: float = 0.0) -> None:
        """The API server goes away, cutting every connection, and comes back on the same port.

        Pods go on meanwhile. ``forget``: its watch history is gone, so watches from before get 410.
        ``lag``: for so long after it is back, new names do not resolve and deleted pods do not go.
        """
        self.call(self._restart(downtime, forget, lag))

    async def _restart(self, downtime: float, forget: bool, lag: float) -> None:
        self.lag.until = asyncio.get_running_loop().time() + downtime + lag
        await self.server.close()
        await asyncio.sleep(downtime)
        if forget:
            self.store.compact()
        await self.server.open()

    # -- the cluster from behind -----------------------------------------------------------------

    def pods(self, namespace: str | None = None) -> list[Object]:
        return self.on_loop(lambda: self.store.all(kinds.PODS, namespace or self.namespace))

    def objects(self, resource: str, namespace: str = "") -> list[Object]:
        """All objects of a resource, by its plural name."""
        kind = next(k for k in kinds.ALL if k.plural == resource)
        return self.on_loop(lambda: self.store.all(kind, namespace))

    def create(self, body: Object, namespace: str | None = None) -> Object:
        """Create an object as an administrator would, without HTTP."""
        kind = next(k for k in kinds.ALL if k.kind == body["kind"])
        space = (body.get("metadata") or {}).get("namespace") or namespace or self.namespace
        return self.on_loop(lambda: self.api.create(kind, space if kind.namespaced else "", body))

    def set_status(
        self, resource: str, name: str, status: Object, namespace: str | None = None
    ) -> None:
        """Overwrite an object's status, e.g. a node's allocatable or a claim's phase."""
        kind = next(k for k in kinds.ALL if k.plural == resource)
        self.on_loop(
            lambda: self.store.change(
                kind, namespace or self.namespace, name, lambda o: o.update(status=status)
            )
        )

    def signal(self, pod: str, number: int = 9, container: str = "", oom: bool = False) -> None:
        """Send a signal to a container's first process; with ``oom`` it is reported as
        OOMKilled."""

        def work() -> None:
            process = self._process(pod, container)
            process.oom = process.oom or oom
            process.signal(number)

        self.on_loop(work)

    def cgroups(self, version: str) -> None:
        """Show pods that start from now on the memory counters of cgroup ``v1`` or ``v2``."""
        self.on_loop(lambda: setattr(self.kubelet.node, "cgroup", version))

    def starve(self, pod: str, pid: int) -> None:
        """Let the kernel kill a process of a pod for want of memory, and none besides it."""

        def work() -> None:
            worker = self.kubelet.find(self.namespace, pod)
            assert worker is not None
            worker.starve(pid)

        self.on_loop(work)

    def pid(self, pod: str, container: str = "") -> int:
        """The PID on this machine of a container's first process."""
        return self.on_loop(lambda: self._process(pod, container).pid)

    def _process(self, pod: str, container: str) -> sandbox.Process:
        worker = self.kubelet.find(self.namespace, pod)
        if worker is None:
            raise LookupError(f"pod {pod} runs nowhere")
        found = (
            worker.containers[container]
            if container
            else next(c for c in worker.containers.values() if not c.init)
        )
        if found.process is None:
            raise LookupError(f"container {found.name} of pod {pod} has not started")
        return found.process

    def evict(self, pod: str, grace: int | None = None) -> None:
        """Delete a pod as a drain or a colleague would."""

        def work() -> None:
            self.collector.delete(
                kinds.PODS, self.store.need(kinds.PODS, self.namespace, pod), "Background", grace
            )

        self.on_loop(work)

    # -- admin endpoint --------------------------------------------------------------------------

    async def _admin(self, request: Request) -> None:
        """``/_double/``: faults (GET, POST, DELETE), restart, watches/drop, watches/expire,
        token/expire, token/renew."""
        what = request.path.removeprefix("/_double/")
        body = json.loads(request.body or b"{}")
        if what == "faults" and request.method == "POST":
            try:
                made = self.fault(body.pop("what", "status"), **body)
            except (TypeError, ValueError) as error:
                await request.answer(400, {"error": str(error)})
                return
            await request.answer(201, made.as_dict())
        elif what == "faults" and request.method == "DELETE":
            self.faults.clear()
            await request.answer(200, {})
        elif what == "faults":
            await request.answer(200, {"faults": [f.as_dict() for f in self.faults.rows()]})
        elif what == "watches/drop":
            self.api.end_watches(None)
            await request.answer(200, {})
        elif what == "watches/expire":
            self.store.compact()
            self.api.end_watches("expired")
            await request.answer(200, {})
        elif what in ("token/expire", "token/renew"):
            self.users[body.get("token", ADMIN_TOKEN)].expired = what.endswith("expire")
            await request.answer(200, {})
        elif what == "restart":
            await request.answer(202, {})
            asyncio.get_running_loop().create_task(
                self._restart(
                    float(body.get("downtime", 0.5)),
                    bool(body.get("forget", True)),
                    float(body.get("lag", 0.0)),
                )
            )
        else:
            await request.answer(404, {"error": f"no such switch: {what}"})


__all__ = ["ADMIN_TOKEN", "KubeDouble"]
