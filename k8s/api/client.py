"""The API server, as far as a run needs it: JSON in, JSON out, faults ridden out.

Enters: a kubeconfig (file, ``KUBECONFIG_B64``, or the pod's own account), paths
and bodies. Leaves: JSON, lines, bytes; an :class:`ApiError` when it is refused or
when patience ends. Touches: the network, with the connection pool of
``kubernetes``; its configuration and credentials come from :mod:`k8s.api.access`.

Bodies stay plain JSON. The client's models add a second of import, refuse some
events that a kubelet writes, and lose the answer of an apply that creates.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from k8s.api import access
from steps.core.case.numbers import dumps, loads
from steps.core.errors import InfraError

Json = dict[str, Any]

MANAGER = "multinode"
LWS_GROUP = "leaderworkerset.x-k8s.io"
LWS_API = f"/apis/{LWS_GROUP}/v1"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
#: How long one request may take, and how long faults are ridden out, in seconds.
CONNECT, READ = 5.0, 20.0
PATIENCE = 60.0
#: A watch is renewed after this many seconds, so that a dead connection cannot hide for long.
WATCH_SECONDS = 120
#: What a short command may say.
OUTPUT_LIMIT = 64 << 20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class ApiError(Exception):
    """The API's refusal, in its own words; ``code`` 0: no answer at all."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self.code == 0 or self.code in _TRANSIENT

    def __str__(self) -> str:
        head = f"{self.code} {self.reason}".strip() if self.code else "no answer"
        return f"{head}: {self.message}" if self.message else head


def path(namespace: str, plural: str, name: str = "", sub: str = "") -> str:
    """Path of a namespaced object or collection."""
    roots = {"leaderworkersets": LWS_API, "statefulsets": "/apis/apps/v1"}
    parts = [roots.get(plural, "/api/v1"), "namespaces", quote(namespace), plural]
    return "/".join([*parts, *([quote(name)] if name else []), *([sub] if sub else [])])


class Api:
    """A connection to one API server.

    Attributes:
        namespace: the one of the kubeconfig's context.
        patience: seconds for which faults of one request are ridden out.
        hurry: set when nobody wants to wait for faults to pass any more.
        troubles: called with a sentence when a request has to be repeated.
        away: when the server last failed, by the monotonic clock; 0: never.
    """

    def __init__(self, load: Callable[[], tuple[Any, str]], patience: float = PATIENCE) -> None:
        self._load = load
        self.patience = patience
        self.hurry = threading.Event()
        self.troubles: Callable[[str], None] = lambda text: None
        self.away = 0.0
        self.execs: set[Exec] = set()
        self._lock = threading.Lock()
        self._loaded = 0.0
        self._known = False
        self._configure()

    def _configure(self) -> None:
        """Read the credentials (again)."""
        from kubernetes.client.rest import RESTClientObject

        configuration, self.namespace = self._load()
        configuration.connection_pool_maxsize = 8
        self.configuration = configuration
        self._pool: Any = RESTClientObject(configuration).pool_manager
        # Not every release of the client has a setting for it.
        self._pool.connection_pool_kw["socket_options"] = _keep_alive()
        self._loaded = time.monotonic()

    def cut(self) -> None:
        """Nobody wants to wait any more: commands under way end, and nothing is asked twice."""
        self.hurry.set()
        for command in list(self.execs):
            command.cut()

    def _renew(self) -> bool:
        """After a 401: credentials may have been renewed on disk, or by an exec plug-in.

        Returns:
            whether there is hope: they are others now, or the server knew them once.
        """
        before = self._headers()
        with self._lock:
            if time.monotonic() - self._loaded > 1.0:
                with contextlib.suppress(InfraError):
                    self._configure()
        return self._known or self._headers() != before

    def late(self, seconds: float) -> float:
        """What is left of ``seconds`` after the server's last failure.

        As long the cluster may still catch up: names resolve late, deletions take their time.
        """
        return max(self.away + seconds - time.monotonic(), 0.0) if self.away else 0.0

    def _headers(self) -> dict[str, str]:
        found = {"Accept": "application/json", "User-Agent": MANAGER}
        with self._lock:
            for entry in self.configuration.auth_settings().values():
                if entry["in"] == "header" and entry["value"]:
                    found[str(entry["key"])] = str(entry["value"])
        return found

    def url(self, target: str, query: Mapping[str, Any] | None = None) -> str:
        """The whole address of a path."""
        host = str(self.configuration.host).rstrip("/")
        return host + target + (f"?{urlencode(query, doseq=True)}" if query else "")

    # One request

    def ask(
        self,
        method: str,
        target: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        kind: str = "application/json",
        patience: float | None = None,
    ) -> Json:
        """One request, repeated while it fails in a way that passes.

        Only what may be repeated without harm is asked here: reads, applies, merge patches,
        deletions, reviews.

        Raises:
            ApiError: it is refused, or patience is used up.
        """
        limit = self.patience if patience is None else patience
        began = time.monotonic()
        delay = 0.1
        while True:
            try:
                return self._once(method, target, query, body, kind)
            except ApiError as error:
                spent = time.monotonic() - began
                renewable = error.code == 401 and spent < limit and self._renew()
                if error.code == 0 or error.code >= 500:
                    self.away = time.monotonic()
                if not (error.transient or renewable) or spent > limit or self.hurry.is_set():
                    raise
                self.troubles(f"{method} {target}: {error}; trying again")
                self.hurry.wait(max(delay, min(error.retry_after, limit - spent)))
                delay = min(delay * 2, 5.0)

    def _once(
        self, method: str, target: str, query: Mapping[str, Any] | None, body: Any, kind: str
    ) -> Json:
        headers = self._headers()
        payload = None
        if body is not None:
            headers["Content-Type"] = kind
            payload = dumps(body).encode()
        with _no_answer():
            answer = self._pool.request(
                method,
                self.url(target, query),
                body=payload,
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT, read=READ),
                retries=False,
            )
            data = answer.data
        if answer.status >= 400:
            raise _refused(answer.status, answer.headers, data)
        # What needs no account says nothing of ours.
        self._known = self._known or "/namespaces/" in target
        try:
            found = loads(data)
        except ValueError:
            raise ApiError(0, "", f"{method} {target}: the answer is no JSON") from None
        return found if isinstance(found, dict) else {"items": found}

    def get(self, target: str, query: Mapping[str, Any] | None = None) -> Json:
        """Read an object."""
        return self.ask("GET", target, query)

    def items(self, target: str, query: Mapping[str, Any] | None = None) -> list[Json]:
        """Read a collection, page by page."""
        found: list[Json] = []
        more = ""
        while True:
            page = self.ask("GET", target, {**(query or {}), "limit": 500, "continue": more})
            found += page.get("items") or []
            more = (page.get("metadata") or {}).get("continue") or ""
            if not more:
                return found

    def apply(self, target: str, body: Json) -> Json:
        """Create or change an object; the same request twice does no harm."""
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        return self.ask("PATCH", target, query, body, APPLY)

    def merge(self, target: str, body: Json) -> Json:
        """Change fields of an object."""
        return self.ask("PATCH", target, {"fieldManager": MANAGER}, body, MERGE)

    def delete(
        self, target: str, propagation: str = "Background", grace: int | None = None
    ) -> bool:
        """Delete an object; false when it was not there.

        Args:
            grace: seconds for a pod's processes; 0 takes it out of the API at once, by force.
        """
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            self.ask("DELETE", target, None, body)
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return True

    # Streams

    def lines(
        self,
        target: str,
        query: Mapping[str, Any],
        read: float,
        stop: Callable[[], bool],
        opened: Callable[[], None] = lambda: None,
    ) -> Iterator[bytes]:
        """The lines of an answer that is still being written; the last may be torn off.

        Args:
            read: seconds of silence after which the connection counts as dead.
            stop: asked between chunks.
            opened: called when the answer begins, be it ever so long until its first line.

        Raises:
            ApiError: it is refused, or the connection breaks.
        """
        with _no_answer():
            answer = self._pool.request(
                "GET",
                self.url(target, query),
                headers=self._headers(),
                timeout=urllib3.Timeout(connect=CONNECT, read=read),
                retries=False,
                preload_content=False,
            )
            if answer.status >= 400:
                if answer.status == 401:
                    self._renew()
                raise _refused(answer.status, answer.headers, answer.data)
        opened()
        rest = b""
        try:
            with _no_answer():
                for chunk in answer.stream(1 << 16, decode_content=True):
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from whole
                    if stop():
                        return
            if rest:
                yield rest
        finally:
            # Not back into the pool: the answer is not read to its end.
            answer.close()

    def exec(
        self, namespace: str, pod: str, container: str, argv: list[str], idle: float = 60.0
    ) -> Exec:
        """Start a command in a container.

        Args:
            idle: seconds of silence after which the connection counts as dead.

        Raises:
            ApiError: it is refused.
        """
        import websocket

        query = [("command", word) for word in argv]
        query += [("container", container), ("stdout", "true"), ("stderr", "true")]
        target = path(namespace, "pods", pod, "exec")
        url = self.url(target).replace("http", "ws", 1) + f"?{urlencode(query)}"
        headers = self._headers()
        auth = [f"{key}: {value}" for key, value in headers.items() if key.lower() != "accept"]
        try:
            with _no_answer():
                socket = websocket.create_connection(
                    url,
                    timeout=CONNECT + 10,
                    header=auth,
                    subprotocols=["v4.channel.k8s.io"],
                    sslopt=access.tls_options(self.configuration) if url[:3] == "wss" else {},
                    **access.proxy(self.configuration),
                    skip_utf8_validation=True,
                    enable_multithread=False,
                    suppress_origin=True,
                )
        except websocket.WebSocketBadStatusException as error:
            if error.status_code == 401:
                self._renew()
            raise _refused(error.status_code, error.resp_headers, error.resp_body) from None
        except websocket.WebSocketException as error:
            raise ApiError(0, "", str(error)) from None
        socket.settimeout(idle)
        return Exec(socket, self.execs)

    def run(
        self, namespace: str, pod: str, container: str, argv: list[str], idle: float = 60.0
    ) -> tuple[int, str]:
        """Run a short command to its end; exit code and output (the error's, when it fails)."""
        with self.exec(namespace, pod, container, argv, idle) as command:
            output = bytearray()
            while data := command.read():
                output += data
                if len(output) > OUTPUT_LIMIT:
                    raise ApiError(0, "", "the command says more than can be of use")
            text = bytes(output) if command.code == 0 else bytes(output) + command.errors
            return command.code, text.decode("utf-8", "replace")


class Exec:
    """A command in a container: its standard output, then its exit code.

    Attributes:
        code: the exit code, once ``read`` has returned nothing; -1: it never said.
        errors: the last of its standard error.
    """

    def __init__(self, socket: Any, known: set[Exec]) -> None:
        self._socket = socket
        self._known = known
        known.add(self)
        self.code = -1
        self.errors = b""
        self._over = False

    def read(self) -> bytes:
        """The next bytes of standard output; empty at the end.

        Raises:
            ApiError: the connection broke, or the container runtime refuses the command.
        """
        import websocket

        while not self._over:
            try:
                with _no_answer():
                    opcode, data = self._socket.recv_data()
            except websocket.WebSocketConnectionClosedException:
                raise ApiError(0, "", "the connection of the command broke") from None
            except websocket.WebSocketException as error:
                raise ApiError(0, "", str(error)) from None
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                self._over = True
            elif data[:1] == b"\x01":
                if len(data) > 1:
                    return bytes(data[1:])
            elif data[:1] == b"\x02":
                self.errors = (self.errors + data[1:])[-8192:]
            elif data[:1] == b"\x03":
                self._end(data[1:])
        if self.code < 0:
            raise ApiError(0, "", "the command ended without an exit code")
        return b""

    def _end(self, data: bytes) -> None:
        self._over = True
        status = loads(data)
        if status.get("status") == "Success":
            self.code = 0
            return
        causes = (status.get("details") or {}).get("causes") or []
        for cause in causes:
            if cause.get("reason") == "ExitCode":
                self.code = int(cause["message"])
                return
        raise ApiError(
            int(status.get("code") or 500), str(status.get("reason")), str(status.get("message"))
        )

    def cut(self) -> None:
        """End the connection under whoever reads from it."""
        with contextlib.suppress(OSError, AttributeError):
            self._socket.sock.shutdown(SHUT_RDWR)

    def __enter__(self) -> Exec:
        return self

    def __exit__(self, *_: object) -> None:
        self._known.discard(self)
        with contextlib.suppress(Exception):
            self._socket.close(timeout=1)


@contextlib.contextmanager
def _no_answer() -> Iterator[None]:
    """Every way in which a connection fails is one: no answer."""
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ApiError(0, "", f"{type(reason).__name__}: {reason}"[:300]) from None


def _refused(code: int, headers: Any, data: bytes | str | None) -> ApiError:
    """A refusal from a Status object, or from plain text."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data or "")
    reason, message, after = "", text.strip()[:500], ""
    with contextlib.suppress(ValueError, AttributeError):
        status = loads(text)
        reason = str(status.get("reason") or "")
        message = str(status.get("message") or message)
        after = str((status.get("details") or {}).get("retryAfterSeconds") or "")
    after = str((headers or {}).get("Retry-After") or (headers or {}).get("retry-after") or after)
    return ApiError(code, reason, message, float(after) if after.isdigit() else 0.0)


def _keep_alive() -> list[tuple[int, int, int]]:
    """Socket options that notice a silent death of the other side within about a minute."""
    import socket

    found = [*urllib3.connection.HTTPConnection.default_socket_options]
    found.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            found.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return [(int(level), int(option), int(value)) for level, option, value in found]


# Getting in


def connect(patience: float = PATIENCE) -> Api:
    """The API server that the environment names.

    ``KUBECONFIG_B64``, else ``KUBECONFIG`` or ~/.kube/config, else the account of the pod we
    are in.

    Raises:
        InfraError: none of them is there, or it cannot be read.
    """
    return Api(access.load, patience)
