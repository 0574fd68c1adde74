"""Names of pods and services, as CoreDNS would answer them, in one hosts file.

Enters: changes of pods and services. Leaves: a hosts file, rewritten in place. Touches that file.

A pod's name ``pod.subdomain.namespace`` exists while a headless Service called like the subdomain
selects it and the pod is ready, or the Service publishes addresses that are not ready. It appears
``timing.dns`` after the address does. A Service with an address of its own resolves to the
address of its first ready pod, as if a proxy of services stood there; in a cluster without one, to
an address of its own that nobody serves.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from . import kinds
from .store import Change, Object, Store
from .timing import Lag, Timing


class Names:
    """The hosts file of one cluster."""

    def __init__(
        self, store: Store, timing: Timing, lag: Lag, directory: Path, proxy: bool
    ) -> None:
        self.store, self.timing, self.lag, self.proxy = store, timing, lag, proxy
        self.hosts = directory / "hosts"
        self.resolv = directory / "resolv.conf"
        directory.mkdir(parents=True, exist_ok=True)
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.resolv.write_text("nameserver 127.255.255.53\noptions timeout:1 attempts:1\n")
        self._pending: asyncio.TimerHandle | None = None
        store.listeners.append(self._changed)

    def _changed(self, change: Change) -> None:
        if change.kind in (kinds.PODS, kinds.SERVICES) and self._pending is None:
            loop = asyncio.get_running_loop()
            late = max(self.timing.dns, self.lag.left(loop.time()))
            self._pending = loop.call_later(late, self._write)

    def _write(self) -> None:
        self._pending = None
        data = self.table().encode()
        if data == self.hosts.read_bytes():
            return
        # in place and in one write: containers hold the file by a bind mount
        fd = os.open(self.hosts, os.O_RDWR)
        try:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)

    def table(self) -> str:
        """The hosts file as it should be now."""
        lines = ["127.0.0.1 localhost", "::1 ip6-localhost"]
        for service in self.store.all(kinds.SERVICES):
            spec, meta = service["spec"], service["metadata"]
            base = f"{meta['name']}.{meta['namespace']}"
            selector = spec.get("selector") or {}
            pods = [
                p
                for p in self.store.all(kinds.PODS, meta["namespace"])
                if selector and _selected(p, selector)
            ]
            headless = spec.get("clusterIP") == "None"
            shown = [
                p
                for p in pods
                if p["status"].get("podIP")
                and p["status"].get("phase") == "Running"
                and (_is_ready(p) or (headless and spec.get("publishNotReadyAddresses")))
            ]
            if not headless and not self.proxy:
                own = ".".join(str(spec["clusterIP"]).split(".")[2:])
                lines.append(f"127.254.{own} {base} {base}.svc {base}.svc.cluster.local")
                continue
            for pod in shown:
                address = pod["status"]["podIP"]
                names = [base, f"{base}.svc", f"{base}.svc.cluster.local"]
                if headless and pod["spec"].get("subdomain") == meta["name"]:
                    own = f"{pod['metadata']['name']}.{base}"
                    names = [own, f"{own}.svc", f"{own}.svc.cluster.local", *names]
                lines.append(f"{address} {' '.join(names)}")
                if not headless:
                    break
        return "\n".join(lines) + "\n"

    def stop(self) -> None:
        if self._pending:
            self._pending.cancel()


def _selected(pod: Object, selector: dict[str, str]) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return all(labels.get(k) == v for k, v in selector.items())


def _is_ready(pod: Object) -> bool:
    return any(
        c["type"] == "Ready" and c["status"] == "True"
        for c in pod["status"].get("conditions") or []
    )


SITECUSTOMIZE = '''"""Resolve pod names from the cluster's hosts file (no mount namespace here)."""
import socket
_real, _hosts = socket.getaddrinfo, {hosts!r}
def _look_up(host, *args, **kwargs):
    if isinstance(host, str):
        with open(_hosts) as file:
            for line in file:
                address, *names = line.split() or [""]
                if host in names:
                    return _real(address, *args, **kwargs)
    return _real(host, *args, **kwargs)
socket.getaddrinfo = _look_up
socket.gethostbyname = lambda host: _look_up(host, 0, socket.AF_INET)[0][4][0]
'''
