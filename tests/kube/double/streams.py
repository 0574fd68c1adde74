"""Logs and exec: what goes on for longer than a request.

Enters: a request for a pod's log or for a command in it. Leaves: chunks of a log file, frames of
    a websocket. Touches
log files, and processes it starts inside a container. Memory is constant whatever the size.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from datetime import datetime
from typing import Any

from . import kinds
from .errors import ApiError, bad_request
from .http import Request, WebSocket
from .kubelet import Container, Kubelet
from .sandbox import Log
from .store import Object, Store

CHUNK = 256 * 1024
EXEC_CHUNK = 32 * 1024


def pick_container(pod: Object, wanted: str) -> str:
    names = [c["name"] for c in pod["spec"]["containers"]]
    everyone = names + [c["name"] for c in pod["spec"].get("initContainers") or []]
    name = str(pod["metadata"]["name"])
    if not wanted:
        if len(names) > 1:
            raise bad_request(
                f"a container name must be specified for pod {name}, choose one of: "
                f"[{' '.join(names)}]"
            )
        return str(names[0])
    if wanted not in everyone:
        raise bad_request(f"container {wanted} is not valid for pod {name}")
    return wanted


async def serve_log(
    request: Request, store: Store, kubelet: Kubelet, namespace: str, name: str
) -> None:
    """Answer a log request, following it when asked."""
    pod = store.need(kinds.PODS, namespace, name)
    wanted = pick_container(pod, request.arg("container"))
    worker = kubelet.find(namespace, name)
    container = worker.containers[wanted] if worker else None
    log = _choose(pod, container, wanted, request.flag("previous"))
    try:
        since = _since(request)
        tail = int(request.arg("tailLines", "-1"))
        limit = int(request.arg("limitBytes", "-1"))
    except ValueError as error:
        raise bad_request(f"unable to decode log options: {error}") from None
    await request.start_stream("text/plain")
    with log.path.open("rb") as file:
        if tail >= 0:
            file.seek(_tail_offset(log, tail))
        if since:
            _skip_until(file, since)
        stamps, follow = request.flag("timestamps"), request.flag("follow")
        sent = 0
        while True:
            data = _whole_lines(file)
            if data:
                text = (
                    data
                    if stamps
                    else b"".join(line.partition(b" ")[2] for line in data.splitlines(True))
                )
                if limit >= 0 and sent + len(text) >= limit:
                    await request.send(text[: limit - sent])
                    break
                sent += len(text)
                await request.send(text)
                continue
            if log.ended or not follow:
                break
            await log.more()
    await request.end_stream()


def _choose(pod: Object, container: Container | None, wanted: str, previous: bool) -> Log:
    name = pod["metadata"]["name"]
    if container is None:
        raise bad_request(f"pod {name} does not have a host assigned")
    logs = container.logs
    if previous:
        ended = [log for log in logs if log.ended]
        current_is_last = (
            container.process is None
            or container.process.code is None
            or "waiting" not in container.state
        )
        candidates = [log for log in ended if log is not (logs[-1] if current_is_last else None)]
        if not candidates:
            raise bad_request(f'previous terminated container "{wanted}" in pod "{name}" not found')
        return candidates[-1]
    if not logs:
        reason = container.state.get("waiting", {}).get("reason", "ContainerCreating")
        why = {
            "ErrImagePull": "trying and failing to pull image",
            "ImagePullBackOff": "trying and failing to pull image",
            "InvalidImageName": "InvalidImageName",
        }.get(reason, reason)
        raise bad_request(f'container "{wanted}" in pod "{name}" is waiting to start: {why}')
    return logs[-1]


def _since(request: Request) -> bytes:
    if request.arg("sinceTime"):
        text = request.arg("sinceTime")
        if not text.endswith("Z"):
            text = datetime.fromisoformat(text).astimezone(tz=None).isoformat()
        return _padded(text)
    if request.arg("sinceSeconds"):
        begin = time.time() - float(request.arg("sinceSeconds"))
        return _padded(
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(begin)) + f".{int(begin % 1 * 1e9):09d}Z"
        )
    return b""


def _padded(stamp: str) -> bytes:
    """A time with nine digits of a second, so that times compare as text."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9.9}Z".encode()


def _skip_until(file: Any, since: bytes) -> None:
    """Move to the first line whose time is not before ``since``."""
    while True:
        at = file.tell()
        line = file.readline()
        if not line or not line.endswith(b"\n") or line[:30] >= since:
            file.seek(at)
            return


def _whole_lines(file: Any) -> bytes:
    at = file.tell()
    data = file.read(CHUNK)
    end = data.rfind(b"\n") + 1
    while data and not end:
        more = file.read(CHUNK)
        if not more:
            break
        data += more
        end = data.rfind(b"\n") + 1
    file.seek(at + end)
    return bytes(data[:end])


def _tail_offset(log: Log, lines: int) -> int:
    """Where the last lines of the log begin."""
    if lines == 0:
        return log.size
    with log.path.open("rb") as file:
        at, found = log.size, 0
        while at > 0:
            step = min(65536, at)
            at -= step
            file.seek(at)
            data = file.read(step)
            for i in range(len(data) - 1, -1, -1):
                if data[i] == 10 and at + i != log.size - 1:
                    found += 1
                    if found == lines:
                        return at + i + 1
    return 0


async def serve_exec(
    request: Request, store: Store, kubelet: Kubelet, namespace: str, name: str
) -> None:
    """Run a command in a container over a websocket; the outcome is a Status on channel 3."""
    pod = store.need(kinds.PODS, namespace, name)
    wanted = pick_container(pod, request.arg("container"))
    if request.headers.get("upgrade", "").lower() != "websocket":
        raise bad_request("Upgrade request required")
    worker = kubelet.find(namespace, name)
    process = worker.containers[wanted].process if worker else None
    if process is None or process.code is not None:
        raise ApiError(500, f'container not found ("{wanted}")')
    command = request.query.get("command") or []
    if not command:
        raise bad_request("you must specify at least 1 command for the container")
    offered = [p.strip() for p in request.headers.get("sec-websocket-protocol", "").split(",")]
    known = [p for p in ("v5.channel.k8s.io", "v4.channel.k8s.io") if p in offered]
    socket = request.accept_websocket(known[0] if known else offered[0])
    await socket.send(b"\x01")
    if not process.find(command[0]):
        await socket.send(b"\x03" + _compact(_absent(process_id(worker, wanted), command[0])))
        await socket.close()
        return
    child = await asyncio.create_subprocess_exec(
        *process.inside(command),
        stdin=subprocess.PIPE if request.flag("stdin") else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if request.flag("tty") else subprocess.PIPE,
        env=process.box.env,
        start_new_session=True,
        limit=2 * EXEC_CHUNK,
    )
    try:
        pumps = [_pump(child.stdout, socket, b"\x01"), _pump(child.stderr, socket, b"\x02")]
        listener = asyncio.ensure_future(_listen(socket, child))
        work = asyncio.ensure_future(asyncio.gather(*pumps))
        racing: set[asyncio.Future[Any]] = {listener, work}
        await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():  # the client went away: nobody is left to read
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await work
            return
        work.result()
        code = await child.wait()
        listener.cancel()
        code = 128 - code if code < 0 else code
        outcome = {"metadata": {}, "status": "Success"} if code == 0 else _failed(command, code)
        await socket.send(b"\x03" + _compact(outcome))
        await socket.close()
    finally:
        if child.returncode is None:
            process.cut(child.pid)
            await child.wait()


def process_id(worker: Any, wanted: str) -> str:
    return str(worker.containers[wanted].id).partition("//")[2]


async def _pump(stream: asyncio.StreamReader | None, socket: WebSocket, channel: bytes) -> None:
    while stream is not None and (data := await stream.read(EXEC_CHUNK)):
        await socket.send(channel + data)


async def _listen(socket: WebSocket, child: asyncio.subprocess.Process) -> None:
    """Feed stdin (channel 0) until the client closes; channel 255 closes one stream (v5)."""
    while True:
        opcode, data = await socket.receive()
        if opcode == 8:
            return
        if data[:1] == b"\x00" and child.stdin and not child.stdin.is_closing():
            with contextlib.suppress(ConnectionError):
                child.stdin.write(data[1:])
                await child.stdin.drain()
        elif data[:2] == b"\xff\x00" and child.stdin:
            child.stdin.close()


def _failed(command: list[str], code: int) -> Object:
    text = (
        "command terminated with non-zero exit code: error executing command "
        f"[{' '.join(command)}], exit code {code}"
    )
    cause = {"reason": "ExitCode", "message": str(code)}
    return {
        "metadata": {},
        "status": "Failure",
        "message": text,
        "reason": "NonZeroExitCode",
        "details": {"causes": [cause]},
    }


def _absent(container_id: str, program: str) -> Object:
    words = (
        "error executing command in container: failed to exec in container: failed to "
        f'start exec "{container_id}": '
        "OCI runtime exec failed: exec failed: unable to start container process: exec: "
        f'"{program}": '
        "executable file not found in $PATH: unknown"
    )
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {words}",
        "reason": "InternalError",
        "details": {"causes": [{"message": words}]},
        "code": 500,
    }


def _compact(body: Object) -> bytes:
    """JSON as Go writes it: no spaces, and <, >, & escaped."""
    text = json.dumps(body, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()
