"""Requests of the recordings, asked again: refusals word by word, exec and logs, the edges of a
watch."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
import requests
import websocket

from . import condense
from .double import KubeDouble
from .double.cluster import ADMIN_TOKEN

PODS = "/api/v1/namespaces/rec/pods"


def ask(
    kube: KubeDouble, method: str, path: str, token: str = ADMIN_TOKEN, **options: Any
) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
    return requests.request(method, kube.url + path, headers=headers, timeout=30, **options)


def until(test: Any, seconds: float = 15.0) -> Any:
    """Ask again until the answer is true; it is returned."""
    end = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    return found


def start(kube: KubeDouble, scenario: str = "exec-and-logs") -> None:
    body = next(e["request"] for e in condense.load(scenario)["exchanges"] if e["method"] == "POST")
    assert ask(kube, "POST", condense_path(scenario), json=body).status_code == 201


def condense_path(scenario: str) -> str:
    return str(
        next(e["path"] for e in condense.load(scenario)["exchanges"] if e["method"] == "POST")
    )


def test_refusals_agree(kube: KubeDouble) -> None:
    kube.add_token("weak", "system:serviceaccount:rec:default")
    created = None
    for exchange in condense.load("refusals")["exchanges"]:
        note, method = exchange.get("note", ""), exchange["method"]
        token, body, headers = ADMIN_TOKEN, exchange.get("request"), {}
        if note == "bad token":
            token = "nonsense"
        elif note in ("a service account without rights", "asking whether it may create"):
            token, body = "weak", created
        if "selfsubjectaccessreviews" in exchange["path"]:
            body = {"spec": exchange["response"]["spec"]}
        if note == "configmap over 1 MiB":
            body["binaryData"]["x"] = base64.b64encode(b"0" * 1_100_000).decode()
        if note.startswith("server-side apply"):
            headers["Content-Type"] = "application/apply-patch+yaml"
        answer = ask(
            kube,
            method,
            exchange["path"],
            token,
            params=exchange.get("query"),
            headers=headers,
            **({"json": body} if body is not None else {}),
        )
        if note == "created":
            created = body
        is_json = answer.headers["Content-Type"].startswith("application/json")
        mine = condense.answer(answer.json() if is_json else answer.text)
        if is_json and mine.get("kind") == "LeaderWorkerSet":
            mine.pop("status", None)  # the recorded controller had not yet come to it
        assert (answer.status_code, mine) == (exchange["status"], exchange["response"]), (
            note or exchange["path"]
        )


def test_logs_agree(kube: KubeDouble) -> None:
    recorded = condense.load("exec-and-logs")["exchanges"]
    refusals = [e for e in recorded if e["kind"] == "http" and e["status"] >= 400]
    gone, waiting, *_, no_previous, no_container = refusals

    def same(exchange: dict[str, Any]) -> None:
        answer = ask(kube, "GET", exchange["path"], params=exchange.get("query"))
        assert (answer.status_code, answer.json()) == (exchange["status"], exchange["response"])

    def log(pod: str, **query: str) -> str:
        return ask(kube, "GET", f"{PODS}/{pod}/log", params=query).text

    same(gone)
    start(kube)
    until(lambda: len(kube.pods()) == 2 and kube.pods()[0]["status"].get("containerStatuses"))
    same(waiting)
    until(lambda: ask(kube, "GET", f"{PODS}/case-x-0/log").status_code == 200)
    until(lambda: "line 1" in log("case-x-0"))
    assert sorted(log("case-x-0").splitlines()[:3]) == ["err", "hello", "line 0"]
    same(no_previous)
    same(no_container)
    assert until(lambda: log("case-x-0-1")) == "first life\n"
    until(lambda: kube.pods()[1]["status"]["containerStatuses"][0]["restartCount"] == 1)
    assert log("case-x-0-1", previous="true") == "first life\nlast words\n"
    assert until(lambda: log("case-x-0-1")) == "first life\n"
    until(lambda: "line 29" in log("case-x-0"))
    last = log("case-x-0", timestamps="true", tailLines="1")
    assert last.endswith("Z line 29\n")
    assert log("case-x-0", timestamps="true", sinceTime=last.split()[0]) == last
    assert log("case-x-0", tailLines="2") == "line 28\nline 29\n"
    assert log("case-x-0", limitBytes="7") == log("case-x-0")[:7]


def run(
    kube: KubeDouble, pod: str, command: list[str], given: bytes = b"", **query: str
) -> dict[str, Any]:
    """One exec session over a bare websocket."""
    arguments = [("command", word) for word in command] + [
        ("stdout", "true"),
        ("stderr", "true"),
        *query.items(),
    ]
    url = (
        requests.Request("GET", f"{kube.url}{PODS}/{pod}/exec", params=arguments).prepare().url
        or ""
    )
    socket = websocket.create_connection(
        url.replace("http", "ws", 1),
        header=[f"Authorization: Bearer {ADMIN_TOKEN}"],
        subprotocols=["v4.channel.k8s.io"],
        timeout=20,
    )
    made: dict[str, Any] = {"first": None, "bytes": {}}
    parts: dict[str, bytearray] = {}
    if given:
        socket.send_binary(b"\x00" + given)
    while True:
        opcode, data = socket.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            made["close"] = int.from_bytes(data[:2], "big")
            made["text"] = {channel: bytes(part) for channel, part in parts.items()}
            socket.close()
            return made
        channel = str(data[0])
        made["first"] = made["first"] or [data[0], len(data) - 1]
        made["bytes"][channel] = made["bytes"].get(channel, 0) + len(data) - 1
        parts.setdefault(channel, bytearray()).extend(data[1:])


def test_exec_agrees(kube: KubeDouble) -> None:
    start(kube)
    until(
        lambda: (
            len(kube.pods()) == 2 and all(p["status"]["phase"] == "Running" for p in kube.pods())
        )
    )
    for session in condense.load("exec-and-logs")["sessions"]:
        mine = run(kube, "case-x-0", session["command"])
        outcome = condense.normal(mine["text"]["3"].decode())
        assert outcome[: len(session["outcome"])].startswith(
            condense.normal(session["outcome"])[:120]
        )
        assert (mine["first"], mine["close"]) == (session["first"], session["close"])
        if "passwd" not in str(session["command"]):
            assert mine["bytes"] == session["bytes"], session["command"]
    for exchange in condense.load("exec-and-logs")["exchanges"]:
        if exchange["kind"] == "exec" and exchange["status"] in (400, 404):
            query = {"container": "nope"} if exchange["status"] == 400 else {}
            with pytest.raises(websocket.WebSocketBadStatusException) as refused:
                run(kube, exchange["pod"], exchange["command"], **query)
            assert refused.value.status_code == exchange["status"]
            assert json.loads(refused.value.resp_body) == exchange["response"]
    until(lambda: "terminated" in kube.pods()[1]["status"]["containerStatuses"][0]["state"], 20)
    until(lambda: kube.pods()[1]["status"]["containerStatuses"][0]["restartCount"] == 1)
    until(lambda: "running" not in kube.pods()[1]["status"]["containerStatuses"][0]["state"], 20)
    with pytest.raises(websocket.WebSocketBadStatusException) as between:
        run(kube, "case-x-0-1", ["true"])
    assert (between.value.status_code, between.value.resp_body) == (
        500,
        b'container not found ("node")',
    )


def watch(kube: KubeDouble, **query: str) -> tuple[list[dict[str, Any]], float]:
    """All events of one watch on pods, and how long it lasted, seconds."""
    begin = time.monotonic()
    answer = ask(kube, "GET", PODS, params={"watch": "1", **query})
    return [json.loads(line) for line in answer.text.splitlines()], time.monotonic() - begin


def test_watch_edges_agree(kube: KubeDouble) -> None:
    expired, bookmark, _, bad_selector = condense.load("watch-edges")["special"]
    start(kube)
    until(
        lambda: (
            len(kube.pods()) == 2 and all(p["status"]["phase"] == "Running" for p in kube.pods())
        )
    )
    version = ask(kube, "GET", PODS).json()["metadata"]["resourceVersion"]

    assert watch(kube, resourceVersion="1", timeoutSeconds="3")[0] == [
        {
            **expired,
            "object": {
                **expired["object"],
                "message": f"too old resource version: 1 ({kube.store.oldest})",
            },
        }
    ]
    events, lasted = watch(kube, timeoutSeconds="1")
    assert [e["type"] for e in events][:2] == ["ADDED", "ADDED"]
    assert lasted > 0.9
    events, lasted = watch(kube, resourceVersion="999999999", timeoutSeconds="1")
    assert (events, lasted > 0.9) == ([], True)
    assert watch(kube, labelSelector="a in (b")[0] == [bad_selector]
    assert ask(kube, "GET", PODS, params={"labelSelector": "a in (b"}).status_code == 400

    later = str(int(version) + 10_000)
    marks, _ = watch(kube, resourceVersion=later, timeoutSeconds="3", allowWatchBookmarks="true")
    mark = marks[-1]
    assert mark["type"] == "BOOKMARK"
    mark["object"]["metadata"]["resourceVersion"] = bookmark["object"]["metadata"][
        "resourceVersion"
    ]
    assert mark == bookmark

    first = ask(kube, "GET", PODS, params={"limit": "1"}).json()
    assert (
        first["metadata"]["remainingItemCount"],
        [p["metadata"]["name"] for p in first["items"]],
    ) == (1, ["case-x-0"])
    second = ask(
        kube, "GET", PODS, params={"limit": "1", "continue": first["metadata"]["continue"]}
    ).json()
    assert [p["metadata"]["name"] for p in second["items"]] == ["case-x-0-1"]
    assert "continue" not in second["metadata"]
    exact = ask(
        kube, "GET", PODS, params={"resourceVersion": "1", "resourceVersionMatch": "Exact"}
    ).json()
    assert exact == {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "1"},
        "items": [],
    }

    recorded = next(e for e in condense.load("watch-edges")["exchanges"] if e["method"] == "DELETE")
    answer = ask(kube, "DELETE", recorded["path"], json=recorded["request"])
    assert condense.answer(answer.json()) == recorded["response"]
    until(
        lambda: (
            not kube.objects("pods")
            and not kube.objects("statefulsets")
            and not kube.objects("services")
        )
    )
