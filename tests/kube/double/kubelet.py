"""The kubelet: one worker a pod, from binding to removal. Runs the containers, probes them,
publishes the status.

Enters: pods bound to a node. Leaves: statuses, events, processes, logs, in the recorded order.
    Touches the store, the
cluster's state directory and local processes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import events, kinds, sandbox, schema
from .gc import Collector
from .store import Change, Object, Store, now
from .timing import Lag, Timing

TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
MEMORY_WATCH_LIMIT = 8 * 2**30
_IMAGE_NAME = re.compile(r"[a-z0-9][a-zA-Z0-9._:/@-]*\Z")
NOT_LOCATED = "The container could not be located when the pod was terminated"


@dataclass
class Image:
    """How an image behaves. Images nobody described are present.

    Attributes:
        present: whether the node has it before the first pull.
        pull_error: the runtime's words when pulling fails; "" when it works.
        pull_seconds: how long a pull, or the failing of it, takes; None: ``timing.pull``.
        env: environment the image brings, above the cluster's.
        hangs: a pull that has begun does not end while this is true, and the kubelet lets go of a
            deleted pod only after it (seen on the real one).
    """

    present: bool = True
    pull_error: str = ""
    pull_seconds: float | None = None
    env: dict[str, str] = field(default_factory=dict)
    hangs: bool = False


@dataclass
class Container:
    """What the kubelet knows of one container of a pod."""

    spec: Object
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: Object = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    started: bool = False
    id: str = ""
    process: sandbox.Process | None = None
    logs: list[sandbox.Log] = field(default_factory=list)
    init: bool = False

    @property
    def name(self) -> str:
        return str(self.spec["name"])


@dataclass
class Node:
    """What all pods of a cluster share: handed to every worker."""

    store: Store
    collector: Collector
    timing: Timing
    directory: Path
    mode: str
    images: dict[str, Image]
    image_env: dict[str, str]
    hosts: Path
    resolv: Path
    dns_site: Path
    address: str
    new_address: Callable[[], str]
    service_env: dict[str, str]
    token: str
    ca: str
    defects: list[BaseException]
    lag: Lag = field(default_factory=Lag)
    pulled: set[str] = field(default_factory=set)
    cgroup: str = ""


class Kubelet:
    """All workers of a cluster."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.workers: dict[str, Worker] = {}
        node.store.listeners.append(self._changed)

    def _changed(self, change: Change) -> None:
        if change.kind is not kinds.PODS:
            return
        pod, uid = change.object, change.object["metadata"]["uid"]
        worker = self.workers.get(uid)
        if worker is None:
            if change.type != "DELETED" and pod["spec"].get("nodeName"):
                self.workers[uid] = Worker(self.node, pod, self._done)
        elif change.type == "DELETED" or "deletionTimestamp" in pod["metadata"]:
            worker.deletion(
                pod["metadata"].get("deletionGracePeriodSeconds", 0)
                if change.type != "DELETED"
                else 0
            )

    def _done(self, uid: str) -> None:
        self.workers.pop(uid, None)

    def find(self, namespace: str, name: str) -> Worker | None:
        for worker in self.workers.values():
            if worker.namespace == namespace and worker.name == name:
                return worker
        return None

    async def stop(self) -> None:
        """Kill every process of every pod and wait for them."""
        workers = list(self.workers.values())
        for worker in workers:
            worker.abort()
        for worker in workers:
            for container in worker.containers.values():
                if container.process:
                    container.process.kill()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(container.process.exited.wait(), 10)


class Worker:
    """One pod's life on the node."""

    def __init__(self, node: Node, pod: Object, done: Callable[[str], None]) -> None:
        self.node, self.pod, self._done = node, pod, done
        meta, spec = pod["metadata"], pod["spec"]
        self.namespace, self.name, self.uid = meta["namespace"], meta["name"], meta["uid"]
        self.directory: Path = node.directory / "pods" / str(self.uid)
        self.ip = ""
        self.shown_ip = False
        self.sandbox_ready = False
        self.phase = "Pending"
        self.started_at = now()
        self.generation = 1
        self.containers: dict[str, Container] = {}
        for container in spec.get("initContainers") or []:
            waiting = {"waiting": {"reason": "PodInitializing"}}
            self.containers[container["name"]] = Container(container, init=True, state=waiting)
        for container in spec["containers"]:
            self.containers[container["name"]] = Container(container)
        self._grace: asyncio.Event = asyncio.Event()
        self.grace = 0.0
        self.terminating = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._mounts: dict[str, Path] = {}
        self._pulling: set[str] = set()
        self._cache = node.timing.cache
        self._main = self._spawn(self._life())

    # -- the pod's life --------------------------------------------------------------------------

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(self._guard(work))
        self._tasks.add(task)

        def over(done: asyncio.Task[Any]) -> None:
            self._tasks.discard(done)
            work.close()  # a task cancelled before its first step never came to it

        task.add_done_callback(over)
        return task

    async def _guard(self, work: Any) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as defect:  # a defect of the double must fail the test, not hang it
            self.node.defects.append(defect)

    def deletion(self, grace: float) -> None:
        if not self.terminating:
            self.terminating = True
            self.grace = grace
            self.generation = 2
            self._spawn(self._end())
        elif grace < self.grace:
            self.grace = grace
            self._grace.set()

    def abort(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def _life(self) -> None:
        timing = self.node.timing
        await asyncio.sleep(timing.kubelet)
        self.publish()
        await self._mount()
        await asyncio.sleep(timing.sandbox)
        self.ip = self.node.new_address()
        self.sandbox_ready = True
        self.publish()
        for container in [c for c in self.containers.values() if c.init]:
            while not await self._run_init(container):
                await asyncio.sleep(timing.backoff)
        for container in [c for c in self.containers.values() if not c.init]:
            container.state = {"waiting": {"reason": "ContainerCreating"}}
            self._spawn(self._keep(container))

    async def _end(self) -> None:
        """Terminate: stop what runs, then the last status, then let the object go."""
        self._main.cancel()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        self.publish()
        for name in self._pulling:
            await self._unhung(name)
        running = [c for c in self.containers.values() if c.process and c.process.code is None]
        for container in running:
            self._event("Normal", "Killing", f"Stopping container {container.name}", container)
        await asyncio.gather(*(self._stop(c) for c in running))
        await asyncio.sleep(self.node.timing.stop)
        for container in self.containers.values():
            if (
                container.process
                and container.process.code is not None
                and "terminated" not in container.state
            ):
                container.state = self._terminated(container)
            container.ready = container.started = False
        never = [c for c in self.containers.values() if "waiting" in c.state and not c.init]
        if never:
            for container in never:
                container.state = {"waiting": {"reason": "ContainerCreating"}}
            if self.shown_ip:
                self.publish()
            if self.sandbox_ready:
                self.sandbox_ready = False
                self.publish()
        for container in self.containers.values():
            if "waiting" in container.state:
                unknown = {
                    "exitCode": 137,
                    "reason": "ContainerStatusUnknown",
                    "message": NOT_LOCATED,
                }
                container.state = {"terminated": {**unknown, "startedAt": None, "finishedAt": None}}
        self.sandbox_ready = False
        codes = [c.state["terminated"]["exitCode"] for c in self.containers.values() if not c.init]
        self.phase = "Succeeded" if not any(codes) else "Failed"
        self.publish(lost=bool(never))
        await asyncio.sleep(min(self.node.timing.remove, max(self.grace, 0.01)))
        await asyncio.sleep(self.node.lag.left(asyncio.get_running_loop().time()))
        self.node.collector.finish_pod(self.namespace, self.name, self.uid)
        self._done(self.uid)
        for name in ("lives", "volumes"):  # beside the loop: on a slow disk it takes seconds
            await asyncio.to_thread(shutil.rmtree, self.directory / name, ignore_errors=True)

    async def _stop(self, container: Container) -> None:
        process = container.process
        assert process is not None
        begin = asyncio.get_running_loop().time()

        def left() -> float:
            return max(0.0, begin + self.grace - asyncio.get_running_loop().time())

        hook = ((container.spec.get("lifecycle") or {}).get("preStop") or {}).get("exec")
        if hook:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._exec(container, hook["command"]), left())
        process.signal(signal.SIGTERM)
        waits = [
            asyncio.ensure_future(process.exited.wait()),
            asyncio.ensure_future(self._grace.wait()),
        ]
        try:
            await asyncio.wait(waits, timeout=left(), return_when=asyncio.FIRST_COMPLETED)
            if process.code is None and self._grace.is_set():
                await asyncio.wait(waits[:1], timeout=left())
        finally:
            for wait in waits:
                wait.cancel()
        if process.code is None:
            process.kill()
            await process.exited.wait()

    # -- containers ------------------------------------------------------------------------------

    async def _run_init(self, container: Container) -> bool:
        if not await self._start(container):
            return False
        self.publish()
        assert container.process is not None
        await self._wait_exit(container)
        container.state = self._terminated(container)
        good = container.process.code == 0
        container.ready = good
        self.publish()
        if not good:
            container.last, container.restarts = container.state, container.restarts + 1
        return good

    async def _keep(self, container: Container) -> None:
        """Start a container, and start it again whenever it exits."""
        timing, lives = self.node.timing, 0
        while True:
            if await self._start(container):
                self.phase = "Running"
                self.shown_ip = True
                probe = None
                if container.spec.get("readinessProbe"):
                    container.ready = False
                    probe = self._spawn(self._probe(container))
                else:
                    container.ready = True
                self.publish()
                await self._wait_exit(container)
                if probe:
                    probe.cancel()
                container.state = self._terminated(container)
            container.ready = container.started = False
            policy = self.pod["spec"].get("restartPolicy", "Always")
            failed = container.state["terminated"]["exitCode"] != 0
            if policy == "Never" or (policy == "OnFailure" and not failed):
                self._finish()
                return
            lives += 1
            delay = timing.restart
            if lives > 1:
                delay = min(timing.backoff * 2 ** (lives - 2), timing.backoff_limit)
                text = (
                    f"Back-off restarting failed container {container.name} in pod "
                    f"{self.name}_{self.namespace}({self.uid})"
                )
                self._event("Warning", "BackOff", text, container)
            self.publish()
            terminated = container.state
            if lives > 1:
                shown = min(delay, timing.backoff * 1.08)
                await asyncio.sleep(shown)
                text = (
                    f"back-off {_go_duration(delay)} restarting failed container={container.name} "
                    f"pod={self.name}_{self.namespace}({self.uid})"
                )
                container.last = terminated
                container.state = {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
                self.publish()
                delay = max(delay - shown, min(0.15, delay))
            await asyncio.sleep(delay)
            container.last = terminated
            container.restarts += 1

    def _finish(self) -> None:
        """A container of a pod that is not restarted has ended: the pod's phase, once all have."""
        mains = [c for c in self.containers.values() if not c.init]
        if all("terminated" in c.state for c in mains):
            self.phase = (
                "Failed" if any(c.state["terminated"]["exitCode"] for c in mains) else "Succeeded"
            )
            self.sandbox_ready = False
        self.publish()

    async def _wait_exit(self, container: Container) -> None:
        process = container.process
        assert process is not None
        limit = schema.quantity(
            ((container.spec.get("resources") or {}).get("limits") or {}).get("memory", "0")
        )
        while limit and limit < MEMORY_WATCH_LIMIT:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.exited.wait(), 0.05)
            if process.code is not None:
                return
            if hog := sandbox.memory_hog(process, limit):
                process.oom = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(hog, signal.SIGKILL)
        await process.exited.wait()

    async def _start(self, container: Container) -> bool:
        """Image, configuration, process; False when the container could not run (its state says
        why)."""
        spec, timing = container.spec, self.node.timing
        if not await self._image(container):
            return False
        while True:
            try:
                env = self._environment(container)
                break
            except LookupError as missing:
                text = str(missing.args[0])
                self._event("Warning", "Failed", f"Error: {text}", container)
                container.state = {
                    "waiting": {"reason": "CreateContainerConfigError", "message": text}
                }
                self.publish()
                await asyncio.sleep(max(1.0, timing.backoff / 5))
        life = self.directory / "lives" / f"{container.name}-{container.restarts}"
        argv = [
            _expand(a, env) for a in (spec.get("command") or []) + (spec.get("args") or [])
        ] or ["sleep", "infinity"]
        mounts = [
            (
                self._mounts[m["name"]] / m.get("subPath", "")
                if m.get("subPath")
                else self._mounts[m["name"]],
                m["mountPath"].rstrip("/"),
            )
            for m in spec.get("volumeMounts") or []
            if m["name"] in self._mounts
        ]
        if self.node.mode == "namespaces":
            hostname = self.directory / "hostname"
            hostname.write_text(self.name + "\n")
            mounts += [
                (self.node.hosts, "/etc/hosts"),
                (self.node.resolv, "/etc/resolv.conf"),
                (hostname, "/etc/hostname"),
            ]
            if self.node.cgroup:
                mounts += [(self._counters(0), "/sys/fs/cgroup")]
        box = sandbox.Box(life, self.name, argv, env, mounts, spec.get("workingDir") or "/")
        container.id = "containerd://" + secrets.token_hex(32)
        self._event("Normal", "Created", "Container created", container)
        logs = self.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        if container.process:
            shutil.rmtree(container.process.box.directory, ignore_errors=True)
        try:
            process = await sandbox.start(
                box,
                self.node.mode,
                logs / f"{container.name}-{len(container.logs)}.log",
                self.node.dns_site,
            )
        except sandbox.StartFailed as failed:
            self._event("Warning", "Failed", f"Error: {failed}", container)
            container.state = {
                "terminated": {
                    "exitCode": 128,
                    "reason": "StartError",
                    "message": str(failed),
                    "startedAt": "1970-01-01T00:00:00Z",
                    "finishedAt": now(),
                    "containerID": container.id,
                }
            }
            return False
        container.process = process
        container.logs.append(process.log)
        container.started = True
        container.state = {"running": {"startedAt": process.started}}
        self._event("Normal", "Started", "Container started", container)
        return True

    async def _unhung(self, name: str) -> None:
        """Until a pull does not hang any more, or somebody took the pod out of the API by force."""
        there = self.node.store.get
        while self.node.images.get(name, Image()).hangs and there(
            kinds.PODS, self.namespace, self.name
        ):
            await asyncio.sleep(0.05)

    def _counters(self, kills: int) -> Path:
        """The memory counters of the container's cgroup, as version 1 or 2 shows them inside."""
        root: Path = self.directory / "cgroup"
        v1 = self.node.cgroup == "v1"
        path = root / "memory" / "memory.oom_control" if v1 else root / "memory.events"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = "oom_kill_disable 0\nunder_oom 0\n" if v1 else "low 0\nhigh 0\nmax 9\noom 1\n"
        path.write_text(f"{rows}oom_kill {kills}\n")
        return root

    def starve(self, pid: int) -> None:
        """Kill one process for want of memory; the others of its container live on."""
        self._counters(1)
        os.kill(pid, signal.SIGKILL)

    async def _image(self, container: Container) -> bool:
        """Make the image present, for ever if it must be."""
        spec, timing = container.spec, self.node.timing
        name, policy = spec["image"], spec.get("imagePullPolicy", "IfNotPresent")
        if not _IMAGE_NAME.match(name):
            text = (
                f'Failed to apply default image tag "{name}": couldn\'t parse image name '
                f'"{name}": invalid reference format'
            )
            self._event("Warning", "InspectFailed", text, container)
            self._event("Warning", "Failed", "Error: InvalidImageName", container)
            await self._stuck(container, "InvalidImageName", text)
        image = self.node.images.get(name, Image())
        present = image.present or name in self.node.pulled
        if policy == "Never" and not present:
            text = f'Container image "{name}" is not present with pull policy of Never'
            shown = False
            while True:
                self._event("Warning", "ErrImageNeverPull", text, container)
                self._event("Warning", "Failed", "Error: ErrImageNeverPull", container)
                if shown:
                    container.state = {"waiting": {"reason": "ErrImageNeverPull", "message": text}}
                    self.shown_ip = True
                    self.publish()
                await asyncio.sleep(timing.backoff if shown else timing.restart)
                shown = True
        if present and (policy != "Always" or not image.pull_error):
            self._event(
                "Normal",
                "Pulled",
                f'Container image "{name}" already present on machine and can be accessed '
                "by the pod",
                container,
            )
            return True
        attempt = 0
        while True:
            self._event("Normal", "Pulling", f'Pulling image "{name}"', container)
            seconds = timing.pull if image.pull_seconds is None else image.pull_seconds
            self._pulling.add(name)
            await asyncio.sleep(seconds)
            await self._unhung(name)
            self._pulling.discard(name)
            image = self.node.images.get(name, Image())
            if not image.pull_error:
                text = (
                    f'Successfully pulled image "{name}" in {seconds * 1000:.0f}ms '
                    f"({seconds * 1000:.0f}ms including waiting). Image size: 45000000 bytes."
                )
                self._event("Normal", "Pulled", text, container)
                self.node.pulled.add(name)
                return True
            words = f'failed to pull and unpack image "{name}": {image.pull_error}'
            self._event("Warning", "Failed", f'Failed to pull image "{name}": {words}', container)
            self._event("Warning", "Failed", "Error: ErrImagePull", container)
            container.state = {"waiting": {"reason": "ErrImagePull", "message": words}}
            self.shown_ip = True
            self.publish()
            delay = min(timing.backoff * 2**attempt, timing.backoff_limit)
            attempt += 1
            self._event("Normal", "BackOff", f'Back-off pulling image "{name}"', container)
            self._event("Warning", "Failed", "Error: ImagePullBackOff", container)
            await asyncio.sleep(timing.pull_backoff)
            text = f'Back-off pulling image "{name}": ErrImagePull: {words}'
            container.state = {"waiting": {"reason": "ImagePullBackOff", "message": text}}
            self.publish()
            await asyncio.sleep(delay)

    async def _stuck(self, container: Container, reason: str, message: str) -> None:
        container.state = {"waiting": {"reason": reason, "message": message}}
        self.publish()
        await asyncio.Event().wait()

    def _terminated(self, container: Container) -> Object:
        process = container.process
        assert process is not None
        code = process.code or 0
        reason = (
            "Completed" if code == 0 else "OOMKilled" if process.oom and code == 137 else "Error"
        )
        return {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                "startedAt": process.started,
                "finishedAt": process.finished,
                "containerID": container.id,
            }
        }

    # -- probes and commands ---------------------------------------------------------------------

    async def _probe(self, container: Container) -> None:
        probe = container.spec["readinessProbe"]
        process = container.process
        assert process is not None
        await asyncio.sleep(
            probe.get("initialDelaySeconds", 0) or min(0.05, self.node.timing.sandbox)
        )
        failures = successes = 0
        while process.code is None:
            good, words = await self._check(container, probe)
            if process.code is not None or self.terminating:
                return
            failures, successes = (0, successes + 1) if good else (failures + 1, 0)
            if not good:
                self._event("Warning", "Unhealthy", f"Readiness probe failed: {words}", container)
            before = container.ready
            if good and successes >= probe.get("successThreshold", 1):
                container.ready = True
            elif failures >= probe.get("failureThreshold", 3):
                container.ready = False
            if container.ready != before:
                self.publish()
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _check(self, container: Container, probe: Object) -> tuple[bool, str]:
        timeout = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            try:
                code, out = await asyncio.wait_for(
                    self._exec(container, probe["exec"]["command"]), timeout + 1
                )
            except asyncio.TimeoutError:
                return (
                    False,
                    f"command timed out: {' '.join(probe['exec']['command'])!r} timed out "
                    f"after {timeout}s",
                )
            return code == 0, out[:1024]
        action = probe.get("httpGet") or probe.get("tcpSocket")
        if not action:
            return True, ""
        port = action["port"]
        if isinstance(port, str):
            ports = container.spec.get("ports") or []
            port = next((p["containerPort"] for p in ports if p.get("name") == port), 0)
        host = action.get("host") or self.ip
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout)
            if "tcpSocket" in probe:
                writer.close()
                return True, ""
            writer.write(
                f"GET {action.get('path', '/')} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode()
            )
            line = await asyncio.wait_for(reader.readline(), timeout)
            writer.close()
            code = int(line.split()[1])
        except (OSError, asyncio.TimeoutError, IndexError, ValueError) as error:
            return False, f'Get "http://{host}:{port}{action.get("path", "/")}": {error}'
        return 200 <= code < 400, f"HTTP probe failed with statuscode: {code}"

    async def _exec(self, container: Container, command: list[str]) -> tuple[int, str]:
        process = container.process
        assert process is not None
        child = await asyncio.create_subprocess_exec(
            *process.inside(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=process.box.env,
            start_new_session=True,
        )
        try:
            out, _ = await child.communicate()
        except asyncio.CancelledError:
            process.cut(child.pid)
            raise
        return child.returncode or 0, out.decode(errors="replace")

    # -- environment and volumes -----------------------------------------------------------------

    def _environment(self, container: Container) -> dict[str, str]:
        """The container's variables; LookupError names a config map, secret or key that is
        missing."""
        image = self.node.images.get(container.spec["image"], Image())
        env = {
            k: v.replace("{pod_ip}", self.ip)
            for k, v in {**self.node.image_env, **image.env}.items()
        }
        env["HOSTNAME"] = self.name
        env.update(self.node.service_env)
        for source in container.spec.get("envFrom") or []:
            for kind, field_name in (
                (kinds.CONFIGMAPS, "configMapRef"),
                (kinds.SECRETS, "secretRef"),
            ):
                if field_name in source:
                    data = self._data(kind, source[field_name]["name"])
                    env.update({source.get("prefix", "") + k: v.decode() for k, v in data.items()})
        for entry in container.spec.get("env") or []:
            origin = entry.get("valueFrom")
            if not origin:
                env[entry["name"]] = _expand(entry.get("value") or "", env)
            elif "fieldRef" in origin:
                env[entry["name"]] = self._field(origin["fieldRef"]["fieldPath"])
            elif "resourceFieldRef" in origin:
                env[entry["name"]] = self._resource(container, origin["resourceFieldRef"])
            else:
                field_name = "configMapKeyRef" if "configMapKeyRef" in origin else "secretKeyRef"
                ref = origin[field_name]
                kind = kinds.CONFIGMAPS if field_name == "configMapKeyRef" else kinds.SECRETS
                try:
                    env[entry["name"]] = self._data(kind, ref["name"])[ref["key"]].decode()
                except KeyError:
                    if not ref.get("optional"):
                        what = "ConfigMap" if kind is kinds.CONFIGMAPS else "Secret"
                        text = (
                            f"couldn't find key {ref['key']} in {what} "
                            f"{self.namespace}/{ref['name']}"
                        )
                        raise LookupError(text) from None
                except LookupError:
                    if not ref.get("optional"):
                        raise
        return env

    def _field(self, path: str) -> str:
        pod = self.node.store.get(kinds.PODS, self.namespace, self.name) or self.pod
        named = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
        if named:
            return str((pod["metadata"].get(named[1]) or {}).get(named[2], ""))
        values = {
            "status.podIP": self.ip,
            "status.podIPs": self.ip,
            "status.hostIP": self.node.address,
        }
        if path in values:
            return values[path]
        found: Any = pod
        for step in path.split("."):
            found = (found or {}).get(step)
        return str(found or "")

    def _resource(self, container: Container, ref: Object) -> str:
        which, _, resource = ref["resource"].partition(".")
        amount = ((container.spec.get("resources") or {}).get(which) or {}).get(resource, "0")
        return str(int(-(-schema.quantity(amount) // schema.quantity(ref.get("divisor") or "1"))))

    def _data(self, kind: kinds.Kind, name: str) -> dict[str, bytes]:
        """The content of a config map or secret; LookupError in the kubelet's words when it is
        absent."""
        obj = self.node.store.get(kind, self.namespace, name)
        if obj is None:
            raise LookupError(f'{kind.kind.lower()} "{name}" not found')
        if kind is kinds.SECRETS:
            return {k: base64.b64decode(v) for k, v in (obj.get("data") or {}).items()}
        made = {k: v.encode() for k, v in (obj.get("data") or {}).items()}
        made.update({k: base64.b64decode(v) for k, v in (obj.get("binaryData") or {}).items()})
        return made

    async def _mount(self) -> None:
        """Put the pod's volumes on disk; a missing source is retried with the recorded back-off."""
        for volume in self.pod["spec"].get("volumes") or []:
            delay = 0.5
            if "configMap" in volume and self._cache:
                text = (
                    f'MountVolume.SetUp failed for volume "{volume["name"]}" : failed to sync '
                    "configmap cache: timed out waiting for the condition"
                )
                self._event("Warning", "FailedMount", text)
                await asyncio.sleep(self._cache)
                self._cache = 0.0
            while True:
                try:
                    self._mounts[volume["name"]] = self._materialise(volume)
                    break
                except LookupError as missing:
                    text = (
                        f'MountVolume.SetUp failed for volume "{volume["name"]}" : '
                        f"{missing.args[0]}"
                    )
                    self._event("Warning", "FailedMount", text)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, 122.0)

    def _materialise(self, volume: Object) -> Path:
        path: Path = self.directory / "volumes" / volume["name"]
        path.mkdir(parents=True, exist_ok=True)
        for kind, field_name, key in (
            (kinds.CONFIGMAPS, "configMap", "name"),
            (kinds.SECRETS, "secret", "secretName"),
        ):
            source = volume.get(field_name)
            if source is None:
                continue
            try:
                data = self._data(kind, source[key])
            except LookupError:
                if source.get("optional"):
                    return path
                raise
            names = (
                {i["key"]: i["path"] for i in source["items"]}
                if source.get("items")
                else {k: k for k in data}
            )
            for entry, name in names.items():
                if entry not in data:
                    raise LookupError(f"references non-existent config key: {entry}")
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data[entry])
                (path / name).chmod(source.get("defaultMode", 0o644))
        if "hostPath" in volume:
            host: Path = self.node.directory / "host" / volume["hostPath"]["path"].lstrip("/")
            host.mkdir(parents=True, exist_ok=True)
            return host
        if "persistentVolumeClaim" in volume:
            claim: Path = (
                self.node.directory
                / "claims"
                / self.namespace
                / volume["persistentVolumeClaim"]["claimName"]
            )
            claim.mkdir(parents=True, exist_ok=True)
            return claim
        if volume["name"].startswith("kube-api-access"):
            (path / "token").write_text(self.node.token)
            (path / "ca.crt").write_text(self.node.ca)
            (path / "namespace").write_text(self.namespace)
        for item in (volume.get("downwardAPI") or {}).get("items") or []:
            (path / item["path"]).parent.mkdir(parents=True, exist_ok=True)
            (path / item["path"]).write_text(self._field(item["fieldRef"]["fieldPath"]))
        return path

    # -- what others see -------------------------------------------------------------------------

    def _event(
        self, type_: str, reason: str, message: str, container: Container | None = None
    ) -> None:
        pod = self.node.store.get(kinds.PODS, self.namespace, self.name)
        if pod is None or pod["metadata"]["uid"] != self.uid:
            return
        where = f"spec.containers{{{container.name}}}" if container else ""
        if container and container.init:
            where = where.replace("containers", "initContainers")
        events.emit(self.node.store, pod, type_, reason, message, "kubelet", field_path=where)

    def publish(self, lost: bool = False) -> None:
        """Write the status as it is now."""
        status = self._status(lost)

        def edit(o: Object) -> None:
            if o["metadata"]["uid"] == self.uid:
                old = {c["type"]: c for c in o["status"].get("conditions") or []}
                for condition in status["conditions"]:
                    before = old.get(condition["type"])
                    if before and before["status"] == condition["status"]:
                        condition["lastTransitionTime"] = before["lastTransitionTime"]
                o["status"] = status

        self.node.store.change(kinds.PODS, self.namespace, self.name, edit)

    def _status(self, lost: bool) -> Object:
        mains = [c for c in self.containers.values() if not c.init]
        inits = [c for c in self.containers.values() if c.init]
        unready = [c.name for c in mains if not c.ready]
        uninitialised = [c.name for c in inits if not c.ready]
        over = self.phase in ("Failed", "Succeeded") and not lost
        why: Object = {}
        if over:
            why = {"reason": "PodFailed" if self.phase == "Failed" else "PodCompleted"}
        elif unready:
            why = {
                "reason": "ContainersNotReady",
                "message": f"containers with unready status: [{' '.join(unready)}]",
            }

        def condition(type_: str, holds: bool, extra: Object | None = None) -> Object:
            return {
                "type": type_,
                "observedGeneration": self.generation,
                "status": "True" if holds else "False",
                "lastProbeTime": None,
                "lastTransitionTime": now(),
                **(extra or {}),
            }

        initialised: Object = (
            {"reason": "PodCompleted"} if over and self.phase == "Succeeded" else {}
        )
        if uninitialised:
            text = f"containers with incomplete status: [{' '.join(uninitialised)}]"
            initialised = {"reason": "ContainersNotInitialized", "message": text}
        status: Object = {
            "observedGeneration": self.generation,
            "phase": self.phase,
            "conditions": [
                condition("PodReadyToStartContainers", self.sandbox_ready),
                condition("Initialized", not uninitialised, initialised),
                condition("Ready", not unready and not over, why),
                condition("ContainersReady", not unready and not over, why),
                condition("PodScheduled", True),
            ],
            "hostIP": self.node.address,
            "hostIPs": [{"ip": self.node.address}],
        }
        if self.shown_ip:
            status.update(podIP=self.ip, podIPs=[{"ip": self.ip}])
        status["startTime"] = self.started_at
        if inits:
            status["initContainerStatuses"] = [self._container_status(c) for c in inits]
        status["containerStatuses"] = [self._container_status(c) for c in mains]
        allocated = [
            c["allocatedResources"]
            for c in status["containerStatuses"]
            if "allocatedResources" in c
        ]
        if allocated:
            status["allocatedResources"] = allocated[0] if len(allocated) == 1 else {}
        status["qosClass"] = self.pod["status"].get("qosClass", "BestEffort")
        return status

    def _container_status(self, container: Container) -> Object:
        made: Object = {
            "name": container.name,
            "state": container.state,
            "lastState": container.last,
            "ready": container.ready,
            "restartCount": container.restarts,
            "image": container.spec["image"],
            "imageID": "",
        }
        if container.id:
            made["imageID"] = (
                "sha256:d9c1f6472be0d65b4daaf69ee76bec9f16457a04fbb915ce300b1404a83fcde4"
            )
            made["containerID"] = container.id
        requests = (container.spec.get("resources") or {}).get("requests") or {}
        if container.id and (own := {k: v for k, v in requests.items() if k in ("cpu", "memory")}):
            made["allocatedResources"] = own
        made["started"] = container.started
        made["volumeMounts"] = container.spec.get("volumeMounts") or []
        return made


def _expand(text: str, env: dict[str, str]) -> str:
    """``$(NAME)`` replaced where NAME is known, ``$$`` is one dollar."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)", value, text)


def _go_duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
