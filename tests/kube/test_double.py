"""What tests may rely on in the double: the real client works, pods are real processes, faults
bite, nothing is left."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import socket
import subprocess
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.waiting import alive

from . import fleet
from .double import Image, KubeDouble, Timing, sandbox
from .test_fetch import connected
from .test_replay import ask, run, until

kubernetes = pytest.importorskip("kubernetes")
GROUP = ("leaderworkerset.x-k8s.io", "v1")


def lws(command: str, name: str = "set", size: int = 2, **container: Any) -> dict[str, Any]:
    """A LeaderWorkerSet of one container a pod."""
    volumes = container.pop("volumes", [])
    row = {
        "name": "node",
        "image": "registry.local/py:1",
        "command": ["sh", "-c", command],
        **container,
    }
    spec = {"containers": [row], "volumes": volumes, "terminationGracePeriodSeconds": 1}
    template = {"size": size, "restartPolicy": "None", "workerTemplate": {"spec": spec}}
    return {
        "apiVersion": "/".join(GROUP),
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": {"leaderWorkerTemplate": template},
    }


def running(kube: KubeDouble, count: int = 2) -> bool:
    pods = kube.pods()
    return len(pods) == count and all(p["status"]["phase"] == "Running" for p in pods)


def client(kube: KubeDouble) -> Any:
    return kubernetes.config.new_client_from_config(str(kube.kubeconfig()))


def test_client_lists_watches_applies_follows_and_executes(kube: KubeDouble) -> None:
    with client(kube) as api:
        core, custom = kubernetes.client.CoreV1Api(api), kubernetes.client.CustomObjectsApi(api)
        body = lws(
            "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; exec sleep 60"
        )
        made = custom.patch_namespaced_custom_object(
            *GROUP,
            "rec",
            "leaderworkersets",
            "set",
            body,
            field_manager="test",
            force=True,
            _content_type="application/apply-patch+yaml",
        )
        assert made is None  # the client's own oddity: 201 on apply is no answer to it
        seen = []
        for event in kubernetes.watch.Watch().stream(
            core.list_namespaced_pod, "rec", timeout_seconds=10
        ):
            seen.append(
                (event["type"], event["object"].metadata.name, event["object"].status.phase)
            )
            if {("MODIFIED", "set-0", "Running"), ("MODIFIED", "set-0-1", "Running")} <= set(seen):
                break
        assert ("ADDED", "set-0", "Pending") in seen
        lines = []
        for line in kubernetes.watch.Watch().stream(core.read_namespaced_pod_log, "set-0", "rec"):
            lines.append(line)
            if line == "line 39":
                break
        assert lines == [f"line {i}" for i in range(40)]
        session = kubernetes.stream.stream(
            core.connect_get_namespaced_pod_exec,
            "set-0-1",
            "rec",
            command=["sh", "-c", "hostname; exit 3"],
            stdout=True,
            stderr=True,
            _preload_content=False,
        )
        session.run_forever(timeout=10)
        assert (session.returncode, session.read_all()) == (3, "set-0-1\n")
        events = core.list_namespaced_event("rec", field_selector="involvedObject.name=set-0").items
        assert {e.reason for e in events} == {
            "Scheduled",
            "Pulled",
            "Created",
            "Started",
            "SuccessfulCreate",
        }
        custom.delete_namespaced_custom_object(
            *GROUP, "rec", "leaderworkersets", "set", propagation_policy="Foreground"
        )
        until(lambda: not kube.objects("leaderworkersets"))
        assert not kube.pods() + kube.objects("statefulsets") + kube.objects("services", "rec")


def test_pod_has_its_own_files_names_and_address(kube: KubeDouble) -> None:
    kube.create(
        {
            "kind": "ConfigMap",
            "apiVersion": "v1",
            "metadata": {"name": "code"},
            "data": {"hello.py": "print('hi')"},
        }
    )
    kube.create(
        lws(
            "python3 /bundle/hello.py; echo ip=$POD_IP name=$POD; mount | grep -c "
            "/bundle; echo x > /shared/f;"
            " echo y > /etc/only-here; exec sleep 60",
            env=[
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "POD", "value": "$(NAME)/$(LWS_WORKER_INDEX)"},
            ],
            volumes=[
                {"name": "code", "configMap": {"name": "code"}},
                {"name": "shared", "emptyDir": {}},
            ],
            volumeMounts=[
                {"name": "code", "mountPath": "/bundle"},
                {"name": "shared", "mountPath": "/shared"},
            ],
        )
    )
    until(lambda: running(kube))
    first, second = (p["status"]["podIP"] for p in kube.pods())
    assert first != second and first.startswith("127.")
    log = until(
        lambda: (
            (text := ask(kube, "GET", "/api/v1/namespaces/rec/pods/set-0-1/log").text).count("\n")
            >= 3
            and text
        )
    )
    assert log == f"hi\nip={second} name=set-0-1/1\n1\n"
    assert not Path("/etc/only-here").exists() and not Path("/bundle").exists()
    resolve = "import os, socket; print(socket.gethostbyname(os.environ['LWS_LEADER_ADDRESS']))"
    found = until(lambda: run(kube, "set-0-1", ["python3", "-c", resolve])["text"].get("1"))
    assert found.decode().strip() == first
    assert run(kube, "set-0", ["cat", "/shared/f"])["text"]["1"] == b"x\n"


def test_exec_streams_a_tar_and_takes_one(kube: KubeDouble) -> None:
    kube.create(lws("head -c 30000000 /dev/zero > /tmp/big; echo made; exec sleep 60", size=1))
    until(lambda: running(kube, 1))
    until(lambda: "made" in ask(kube, "GET", "/api/v1/namespaces/rec/pods/set-0/log").text)
    out = run(kube, "set-0", ["tar", "cf", "-", "-C", "/tmp", "big"])
    with tarfile.open(fileobj=io.BytesIO(out["text"]["1"])) as archive:
        assert archive.getmember("big").size == 30_000_000
    assert b'"Success"' in out["text"]["3"]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("in.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))
    assert (
        b"Success"
        in run(kube, "set-0", ["tar", "xf", "-", "-C", "/tmp"], packed.getvalue(), stdin="true")[
            "text"
        ]["3"]
    )
    assert run(kube, "set-0", ["cat", "/tmp/in.txt"])["text"]["1"] == b"hello"


def test_without_a_proxy_of_services_pods_are_reachable_and_services_are_not(
    tmp_path: Path,
) -> None:
    ask = "import socket, sys\nsocket.create_connection((sys.argv[1], 8080), timeout=5).close()\n"
    with KubeDouble(tmp_path / "kube", proxy=False) as kube:
        own = {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        kube.create(lws("exec python3 -m http.server 8080 --bind $IP", env=[own]))
        spec = {"selector": {"leaderworkerset.sigs.k8s.io/worker-index": "0"}}
        spec["ports"] = [{"port": 8080}]  # type: ignore[assignment]
        made = {"kind": "Service", "apiVersion": "v1", "metadata": {"name": "api"}, "spec": spec}
        kube.create(made)
        fleet.await_(lambda: running(kube), 40)
        api = connected(kube)

        def reaches(name: str) -> bool:
            where = ("rec", "set-0-1", "node")
            return bool(api.run(*where, ["python3", "-c", ask, f"{name}.rec"])[0] == 0)

        fleet.await_(lambda: reaches("set-0.set"), 40)
        assert not reaches("api")
        hosts = api.run("rec", "set-0-1", "node", ["cat", "/etc/hosts"])[1]
        assert "api.rec" in hosts, "its name is known all the same"


@pytest.fixture
def nobody_buries() -> Iterator[None]:
    """Orphans become ours, who bury nobody: as with some machines' first process."""
    subreaper = ctypes.CDLL(None).prctl
    subreaper(36, 1)
    yield
    subreaper(36, 0)


def test_a_command_that_is_cut_keeps_no_pod(nobody_buries: None, kube: KubeDouble) -> None:
    """Until all of a container's processes are buried, its first one cannot end."""
    kube.create(lws("exec sleep 60", size=1))
    fleet.await_(lambda: running(kube, 1), 40)
    api = connected(kube)
    for _ in range(12):
        command = api.exec("rec", "set-0", "node", ["sh", "-c", "echo $$; sleep 50 & sleep 51"])
        assert command.read()
        command.cut()
    kube.evict("set-0")
    uid = kube.pods()[0]["metadata"]["uid"]
    fleet.await_(lambda: fleet.gone(kube, uid), 20)


def test_follow_ends_with_the_container_and_previous_has_the_former_life(kube: KubeDouble) -> None:
    kube.create(lws("echo life; sleep 0.5; exit 4", size=1))
    until(lambda: running(kube, 1))
    assert (
        ask(kube, "GET", "/api/v1/namespaces/rec/pods/set-0/log", params={"follow": "true"}).text
        == "life\n"
    )
    status = until(
        lambda: (s := kube.pods()[0]["status"]["containerStatuses"][0])["restartCount"] and s
    )
    assert status["lastState"]["terminated"]["exitCode"] == 4
    until(lambda: "waiting" in kube.pods()[0]["status"]["containerStatuses"][0]["state"])
    assert (
        kube.pods()[0]["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
        == "CrashLoopBackOff"
    )


def test_faults_by_count_and_by_time(kube: KubeDouble) -> None:
    path = "/api/v1/namespaces/rec/pods"
    kube.fault("429", times=2, path="/pods", method="GET", retry_after=1)
    answers = [ask(kube, "GET", path) for _ in range(3)]
    assert [a.status_code for a in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "1"
    kube.fault("500", lasts=0.4)
    assert ask(kube, "GET", path).status_code == 500
    until(lambda: ask(kube, "GET", path).status_code == 200)
    kube.fault("cut", times=1)
    with pytest.raises(Exception, match=r"aborted|reset|closed"):
        ask(kube, "GET", path)
    kube.fault("slow", seconds=0.3, times=1)
    begin = time.monotonic()
    assert ask(kube, "GET", path).status_code == 200
    assert time.monotonic() - begin >= 0.3
    answer = ask(kube, "POST", "/_double/faults", json={"what": "status", "code": 503, "times": 1})
    assert (answer.status_code, ask(kube, "GET", path).status_code) == (201, 503)
    assert ask(kube, "POST", "/_double/faults", json={"what": "nonsense"}).status_code == 400
    kube.expire_token()
    assert ask(kube, "GET", path).status_code == 401
    kube.renew_token()
    assert ask(kube, "GET", path).status_code == 200


def test_watches_are_dropped_expired_and_cut_by_a_restart(kube: KubeDouble) -> None:
    def watch() -> list[bytes]:
        rows: list[bytes] = []

        def read() -> None:
            try:
                with ask(kube, "GET", "/api/v1/namespaces/rec/pods?watch=1", stream=True) as answer:
                    rows.append(b"open")
                    rows.extend(answer.iter_lines())
                rows.append(b"end")
            except Exception as error:  # what a client sees of a cut connection is the point
                rows.append(type(error).__name__.encode())

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        until(lambda: rows and kube.on_loop(lambda: len(kube.api.watches)))
        return rows

    rows = watch()
    kube.drop_watches()
    until(lambda: rows == [b"open", b"end"])
    rows = watch()
    kube.expire_watches()
    until(lambda: rows[-1] == b"end")
    assert b'"code":410' in rows[1]
    rows = watch()
    version = ask(kube, "GET", "/api/v1/namespaces/rec/pods").json()["metadata"]["resourceVersion"]
    kube.create({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c"}})
    kube.restart_api(downtime=0.2)
    until(lambda: rows[-1] == b"ChunkedEncodingError")
    late = ask(
        kube,
        "GET",
        f"/api/v1/namespaces/rec/pods?watch=1&resourceVersion={version}&timeoutSeconds=2",
    ).text
    assert "too old resource version" in late


def test_rights_come_from_a_role(kube: KubeDouble) -> None:
    role = {
        "rules": [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}]
    }
    kube.add_token("reader", "system:serviceaccount:rec:reader", role, "rec")
    assert ask(kube, "GET", "/api/v1/namespaces/rec/pods", "reader").status_code == 200
    assert ask(kube, "GET", "/api/v1/namespaces/default/pods", "reader").status_code == 403
    refused = ask(kube, "GET", "/api/v1/namespaces/rec/pods?watch=1", "reader")
    assert (refused.status_code, refused.json()["reason"]) == (403, "Forbidden")
    assert ask(kube, "DELETE", "/api/v1/namespaces/rec/pods/x", "reader").status_code == 403


def test_too_large_a_request_is_413(kube: KubeDouble) -> None:
    answer = ask(kube, "POST", "/api/v1/namespaces/rec/configmaps", data=b"x" * (3 * 2**20 + 1))
    assert (answer.status_code, answer.json()["reason"]) == (413, "RequestEntityTooLarge")


def test_an_image_that_must_be_pulled(tmp_path: Path) -> None:
    images = {
        "registry.local/far:1": Image(present=False, pull_seconds=0.3, env={"FROM_IMAGE": "yes"})
    }
    with KubeDouble(tmp_path, images=images) as kube:
        kube.create(lws("echo $FROM_IMAGE; exec sleep 60", size=1, image="registry.local/far:1"))
        until(lambda: running(kube, 1))
        assert (
            until(lambda: ask(kube, "GET", "/api/v1/namespaces/rec/pods/set-0/log").text) == "yes\n"
        )
        reasons = [
            e["reason"] for e in kube.objects("events") if e["involvedObject"]["name"] == "set-0"
        ]
        assert {"Pulling", "Pulled"} <= set(reasons)


def test_owned_objects_go_with_their_owner(kube: KubeDouble) -> None:
    owner = kube.create(lws("exec sleep 60", size=1))
    reference = {k: owner[k] for k in ("apiVersion", "kind")} | {
        k: owner["metadata"][k] for k in ("name", "uid")
    }
    for name, uid in (
        ("ours", reference["uid"]),
        ("stray", "00000000-0000-0000-0000-000000000000"),
    ):
        meta = {"name": name, "ownerReferences": [{**reference, "uid": uid}]}
        kube.create({"kind": "ConfigMap", "apiVersion": "v1", "metadata": meta})
    until(lambda: [c["metadata"]["name"] for c in kube.objects("configmaps")] == ["ours"])
    path = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/rec/leaderworkersets/set"
    assert (
        ask(kube, "DELETE", path, params={"propagationPolicy": "Background"}).json()["status"]
        == "Success"
    )
    until(lambda: not kube.objects("configmaps") and not kube.pods())


@pytest.mark.parametrize("mode", ["namespaces", "rewrite"])
def test_nothing_is_left(tmp_path: Path, mode: str) -> None:
    kube = KubeDouble(tmp_path, mode=mode, timing=Timing(backoff=1.0)).start()
    try:
        if mode == "namespaces" and os.geteuid() != 0:
            pytest.skip("needs root")
        kube.create(lws("(sleep 300 & exec sleep 301) & echo up; exec sleep 302"))
        until(lambda: running(kube))
        pids = [kube.pid("set-0"), kube.pid("set-0-1")]
        port = kube.server.port
    finally:
        kube.stop()
    assert not any(alive(pid) for pid in pids)
    until(lambda: not _processes(str(tmp_path)), 5)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    assert not (tmp_path / "pods").exists()
    assert not kube.defects


def _processes(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes().decode(errors="replace"):
                found.append(str(path))
        except OSError:
            continue
    return found


def test_without_namespaces_paths_and_names_are_rewritten(tmp_path: Path) -> None:
    with KubeDouble(tmp_path, mode="rewrite") as kube:
        kube.create(
            {
                "kind": "ConfigMap",
                "apiVersion": "v1",
                "metadata": {"name": "code"},
                "data": {"say.txt": "hi"},
            }
        )
        resolve = "import os, socket; print(socket.gethostbyname(os.environ['LWS_LEADER_ADDRESS']))"
        kube.create(
            lws(
                "cat /bundle/say.txt; echo; cat $WHERE; echo; touch /tmp/rc; exec sleep 60",
                env=[{"name": "WHERE", "value": "/bundle/say.txt"}],
                readinessProbe={"exec": {"command": ["test", "-e", "/tmp/rc"]}, "periodSeconds": 1},
                volumes=[{"name": "code", "configMap": {"name": "code"}}],
                volumeMounts=[{"name": "code", "mountPath": "/bundle"}],
            )
        )
        until(
            lambda: (
                running(kube)
                and all(p["status"]["containerStatuses"][0]["ready"] for p in kube.pods())
            )
        )
        assert ask(kube, "GET", "/api/v1/namespaces/rec/pods/set-0/log").text == "hi\nhi\n"
        found = until(lambda: run(kube, "set-0-1", ["python3", "-c", resolve])["text"].get("1"))
        assert found.decode().strip() == kube.pods()[0]["status"]["podIP"]


def test_a_death_that_is_not_its_own(kube: KubeDouble) -> None:
    kube.create(lws("exec sleep 60"))
    until(lambda: running(kube))
    kube.signal("set-0-1", signal.SIGKILL, oom=True)
    status = until(
        lambda: (s := kube.pods()[1]["status"]["containerStatuses"][0])["restartCount"] and s
    )
    assert status["lastState"]["terminated"]["reason"] == "OOMKilled"
    assert status["lastState"]["terminated"]["exitCode"] == 137


def test_tls_and_the_open_paths(tmp_path: Path) -> None:
    with KubeDouble(tmp_path, tls=True) as kube:
        with client(kube) as api:
            assert kubernetes.client.VersionApi(api).get_code().git_version == "v1.36.2"
            assert kubernetes.client.CoreV1Api(api).list_node().items[0].metadata.name == "node-a"
        import ssl

        trust = ssl.create_default_context(cadata=kube.ca)
        with urllib.request.urlopen(kube.url + "/readyz", context=trust, timeout=5) as answer:
            assert answer.read() == b"ok"


def test_a_process_may_end_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory was there when it was listed, and is not when it is read."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    assert sandbox.below(gone.pid) == []
