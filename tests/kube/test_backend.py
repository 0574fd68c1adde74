"""The whole of ``--on k8s`` against the double: verdicts, first causes, evidence, nothing left."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.ci.test_row import FILE

from . import fleet
from .conftest import Passed
from .double import Image, KubeDouble

pytest.importorskip("kubernetes")
pytestmark = pytest.mark.timeout(180)


def finished(kube: KubeDouble, tmp_path: Path, *options: str, **more: str) -> fleet.Done:
    with fleet.start(kube, tmp_path / "user", *options, **more) as started:  # type: ignore[arg-type]
        done = started.finish()
    assert f'File "{fleet.ROOT}' not in done.text, done.text
    assert fleet.leftovers(kube) == [], done.text
    return done


def test_pass_with_every_record_verified(passed: Passed) -> None:
    done = passed.done
    assert (done.code, done.verdict["verdict"]) == (0, "pass"), done.text
    for index in (0, 1):
        place = done.run_dir / f"node-{index}"
        record = json.loads((place / "record.json").read_text())
        assert record["outcome"] == "pass"
        for artifact in record["artifacts"]:
            assert (place / artifact["path"]).stat().st_size == artifact["size"]
        assert "MULTINODE-DONE" in (place / "pod.log").read_text()
        assert json.loads((place / "done.json").read_text())["exit_code"] == 0
    assert "verdict: pass" in done.text
    assert "was not fetched" not in done.text
    plan = json.loads((done.run_dir / "plan.json").read_text())
    assert plan["cluster"]["backend"] == "k8s"
    assert {node["address"].split(".")[0] for node in plan["nodes"]} == {"127"}
    assert not list(done.run_dir.rglob("*.part*"))
    asked = passed.requests
    assert sum("/exec?" in target for _, target in asked) == 2, "one command a pod brings all"
    parts = [target.split("?")[0] for _, target in asked if "-bundle-" in target]
    uploads = {part: parts.count(part) for part in parts}
    assert {*uploads.values()} == {3}, "uploaded, given its owner, deleted"


def test_cases_of_one_file_run_one_after_another(kube: KubeDouble, tmp_path: Path) -> None:
    done = finished(kube, tmp_path, case=FILE)
    assert done.code == 0, done.text
    assert [entry["verdict"] for entry in done.verdict["cases"]] == ["pass", "pass"]
    for folder, name in (("first-one", "first one"), ("second", "second")):
        plan = json.loads((done.run_dir / folder / "plan.json").read_text())
        assert (plan["only"], plan["cluster"]["backend"]) == (name, "k8s")
        assert (done.run_dir / folder / "node-0" / "record.json").is_file()


def test_a_split_fleet_rehearses_in_an_image_without_a_router(
    kube: KubeDouble, tmp_path: Path
) -> None:
    case = (fleet.ROOT / "configs" / "quickstart.yaml").read_text()
    assert shutil.which("vllm-router") is None
    done = finished(kube, tmp_path, case=case)
    assert (done.code, done.verdict["verdict"]) == (0, "pass"), done.text
    record = json.loads((done.run_dir / "node-0" / "record.json").read_text())
    assert {check["name"]: check["status"] for check in record["checks"]}["handoff"] == "pass"
    for text in (done.text, (done.run_dir / "summary.md").read_text()):
        assert "the rehearsal's own proxy stands in for" in text


def test_a_crash_of_the_product_is_a_failure_with_its_words(
    kube: KubeDouble, tmp_path: Path
) -> None:
    done = finished(kube, tmp_path, "--fault", "crash@1:load")
    assert done.code == 1, done.text
    cause = done.verdict["cause"]
    assert (cause["node"], cause["process"]) == (1, "server"), cause
    assert done.verdict["verdict"] == "startup"
    assert cause["evidence"]
    record = json.loads((done.run_dir / "node-1" / "record.json").read_text())
    assert record["processes"][0]["exit"]["code"] == 1
    assert (done.run_dir / "node-1" / "server.log").exists()


def test_a_pod_killed_for_memory_is_the_cause_and_its_files_survive(
    kube: KubeDouble, tmp_path: Path
) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "6") as started:
        started.until("node 1  load      started server")
        pod = next(
            p["metadata"]["name"] for p in kube.pods() if p["metadata"]["name"][-4:] == "-0-1"
        )
        kube.signal(pod, 9, oom=True)
        done = started.finish()
    assert done.code == 3, done.text
    assert done.verdict["cause"]["node"] == 1
    assert "OOMKilled, over its memory limit of 4Gi" in done.reason
    assert (done.run_dir / "node-1" / "server.log").exists(), done.text
    assert (done.run_dir / "node-0" / "record.json").exists(), done.text
    assert '"preflight"' in (done.run_dir / "node-1" / "pod-previous.log").read_text()
    assert fleet.leftovers(kube) == []


@pytest.mark.parametrize(("node", "version"), [(0, "v1"), (1, "v2")])
def test_a_program_killed_for_memory_is_named_as_such_though_its_container_lives(
    kube: KubeDouble, tmp_path: Path, version: str, node: int
) -> None:
    if kube.mode != "namespaces":
        pytest.skip("cgroups are shown to pods with namespaces of their own only")
    kube.cgroups(version)
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "20") as started:
        started.until("node 0  load      started server")
        phase = "load" if node == 0 else "hold"
        fleet.await_(lambda: fleet.said(kube, node, f'"phase": "{phase}"'), 40, started.text)
        kube.starve(fleet.pod_name(kube, node), fleet.program(kube, node))
        done = started.finish()
    cause = done.verdict["cause"]
    assert (done.code, cause["node"]) == (3, node), done.text
    assert "out of memory: the cgroup's oom_kill counter rose" in done.reason
    assert (cause["phase"], cause["signal"]) == (phase, "SIGKILL")
    assert "memory" in cause["hint"]
    assert fleet.leftovers(kube) == []


def test_a_leader_that_is_killed_ends_the_run(kube: KubeDouble, tmp_path: Path) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "6") as started:
        started.until("started server")
        pod = next(p["metadata"]["name"] for p in kube.pods() if p["metadata"]["name"][-2:] == "-0")
        leader = min((p["metadata"]["name"] for p in kube.pods()), key=len)
        assert pod
        kube.signal(leader, 9)
        done = started.finish()
    assert done.code == 3, done.text
    assert done.verdict["cause"]["node"] == 0
    assert "exit code 137" in done.reason
    assert (done.run_dir / "node-1" / "record.json").exists(), done.text
    assert fleet.leftovers(kube) == []


def test_a_deleted_pod_is_a_lost_node(kube: KubeDouble, tmp_path: Path) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "6") as started:
        started.until("started server")
        kube.evict(max((p["metadata"]["name"] for p in kube.pods()), key=len))
        done = started.finish()
    assert done.code == 3, done.text
    assert (done.verdict["cause"]["node"], "was deleted" in done.reason) == (1, True), done.reason
    assert (done.run_dir / "node-0" / "record.json").exists(), done.text
    assert fleet.leftovers(kube) == []
    text = (done.run_dir / "summary.md").read_text()
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("- `node-")]
    assert "node-1/pod.log" in listed
    gone = [name for name in listed if not (done.run_dir / name).is_file()]
    assert gone == [], "no file is listed that went with its pod"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image(present=False, pull_error="not found: registry.local/py:1"), "not found: registry"),
        (None, "InvalidImageName"),
    ],
    ids=["not-there", "bad-name"],
)
def test_an_image_that_cannot_be_had_ends_the_run_in_seconds(
    kube: KubeDouble, tmp_path: Path, image: Image | None, words: str
) -> None:
    profile = fleet.PROFILE
    if image is None:
        profile = profile.replace("registry.local/py:1", "registry.local/py:1!")
    else:
        kube.images["registry.local/py:1"] = image
    done = finished(kube, tmp_path, profile=profile)
    assert done.code == 3, done.text
    assert words in done.reason, done.reason
    assert done.verdict["cause"]["hint"]


def test_pull_policy_never(kube: KubeDouble, tmp_path: Path) -> None:
    kube.images["registry.local/py:1"] = Image(present=False)
    done = finished(kube, tmp_path, profile=fleet.PROFILE + "image_pull_policy: Never\n")
    assert (done.code, "ErrImageNeverPull" in done.reason) == (3, True), done.text


def test_a_quota_that_comes_between_is_said_in_its_own_words(
    kube: KubeDouble, tmp_path: Path
) -> None:
    quota = {
        "kind": "ResourceQuota",
        "apiVersion": "v1",
        "metadata": {"name": "one-pod"},
        "spec": {"hard": {"pods": "1"}},
    }
    with fleet.start(kube, tmp_path / "user") as started:
        started.until("preflight done")
        kube.create(quota)
        done = started.finish()
    assert done.code == 3, done.text
    assert "exceeded quota: one-pod" in done.reason
    assert fleet.leftovers(kube) == []


def test_preflight_names_everything_at_once_and_creates_nothing(tmp_path: Path) -> None:
    nodes = {"node-a": {"cpu": "4", "memory": "8Gi"}}
    with KubeDouble(tmp_path / "kube", nodes=nodes, lws=False) as kube:
        kube.create(
            {
                "kind": "ResourceQuota",
                "apiVersion": "v1",
                "metadata": {"name": "small"},
                "spec": {"hard": {"pods": "1"}},
            }
        )
        kube.add_token("weak", "weak", None)
        profile = fleet.PROFILE.replace("4Gi", "64Gi") + "mounts: [{path: /m, claim: models}]\n"
        done = finished(kube, tmp_path, profile=profile)
        assert done.code == 3
        for words in (
            "LeaderWorkerSet is not installed",
            "the quota small allows 1 pods",
            "persistentvolumeclaim 'models'",
            "could never hold more than 0 of 2 pods",
        ):
            assert words in done.reason, done.reason
        writes = [m for m, t in kube.api.requests if m in ("PATCH", "PUT", "DELETE")]
        assert writes == []


def test_missing_rights_are_all_named(kube: KubeDouble, tmp_path: Path) -> None:
    role = {"rules": [_rule("", "pods", "get", "list")]}
    kube.add_token("weak", "system:serviceaccount:ci:runner", role, kube.namespace)
    env = fleet.environment(kube, "weak")
    with fleet.start(kube, tmp_path / "user", env=env) as started:
        done = started.finish()
    assert done.code == 3, done.text
    assert "watch pods" in done.reason, done.reason
    assert "create, patch, get, list, delete leaderworkersets" in done.reason
    assert "get, create pods/exec" in done.reason
    hint = done.verdict["cause"]["hint"]
    assert f"kubectl apply -n {kube.namespace} -f k8s/role.yaml" in hint
    bind = f"kubectl create rolebinding multinode -n {kube.namespace} --role=multinode"
    assert f"{bind} --serviceaccount=ci:runner" in hint


def test_the_role_we_ship_suffices(passed: Passed) -> None:
    assert (passed.done.code, passed.left) == (0, []), passed.done.text


def _rule(group: str, resource: str, *verbs: str) -> dict[str, list[str]]:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}


def test_ctrl_c_collects_then_deletes(kube: KubeDouble, tmp_path: Path) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "20") as started:
        started.until("started server")
        started.signal(signal.SIGINT)
        done = started.finish(40)
    assert done.code == 130, done.text
    for index in (0, 1):
        assert (done.run_dir / f"node-{index}" / "record.json").exists(), done.text
        assert (done.run_dir / f"node-{index}" / "server.log").exists()
    assert fleet.leftovers(kube) == []


def test_an_interrupt_before_pods_run_deletes_all(kube: KubeDouble, tmp_path: Path) -> None:
    profile = fleet.PROFILE + "node_selector: {nowhere: 'yes'}\n"
    kube.add_token("ci", "ci", _blind_role(), kube.namespace)
    env = fleet.environment(kube, "ci")
    with fleet.start(kube, tmp_path / "user", profile=profile, env=env) as started:
        started.until("0/1 nodes are available")
        started.signal(signal.SIGTERM)
        done = started.finish(40)
    assert done.code == 130, done.text
    assert fleet.leftovers(kube) == []


def _blind_role() -> dict[str, object]:
    import yaml

    role: dict[str, object] = yaml.safe_load((fleet.ROOT / "k8s" / "role.yaml").read_text())
    return role


def test_pods_that_are_never_scheduled_wait_their_budget_and_say_for_what(
    kube: KubeDouble, tmp_path: Path
) -> None:
    profile = fleet.PROFILE.replace("scheduling: 20", "scheduling: 3")
    kube.add_token("ci", "ci", _blind_role(), kube.namespace)
    env = fleet.environment(kube, "ci")
    profile += "node_selector: {nowhere: 'yes'}\n"
    with fleet.start(kube, tmp_path / "user", profile=profile, env=env) as started:
        done = started.finish()
    assert done.code == 3, done.text
    assert "scheduling took over 3 s" in done.reason, done.reason
    assert "didn't match Pod's node affinity" in done.reason or "0/1 nodes" in done.reason
    assert fleet.leftovers(kube) == []


# The API's own faults


def test_a_rough_api_server_is_ridden_out(kube: KubeDouble, tmp_path: Path) -> None:
    kube.fault("429", times=3, method="PATCH", retry_after=1)
    kube.fault("500", times=3, path="/configmaps")
    kube.fault("503", times=2, path="/pods")
    kube.fault("cut", times=2, path="/services")
    kube.fault("cut", times=2, path="watch=true")
    kube.fault("cut-body", times=3, path="/log", after=2000)
    kube.fault("500", times=2, path="/exec")
    done = finished(kube, tmp_path)
    assert done.code == 0, done.text
    for index in (0, 1):
        lines = (done.run_dir / f"node-{index}" / "pod.log").read_text().splitlines()
        told = [line for line in lines if line.startswith("{")]
        own = (done.run_dir / f"node-{index}" / "events.jsonl").read_text().splitlines()
        assert told == own, "the followed log has every line once"


def test_an_api_server_that_restarts_mid_run(kube: KubeDouble, tmp_path: Path) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "5") as started:
        started.until("started server")
        kube.restart_api(downtime=2.0, forget=True)
        done = started.finish()
    assert done.code == 0, done.text
    assert "the pods go on" in done.text
    for index in (0, 1):
        lines = (done.run_dir / f"node-{index}" / "pod.log").read_text().splitlines()
        told = [line for line in lines if line.startswith("{")]
        own = (done.run_dir / f"node-{index}" / "events.jsonl").read_text().splitlines()
        assert told == own
    assert fleet.leftovers(kube) == []


def test_watches_end_and_expire_and_a_token_that_expires_is_read_again(
    kube: KubeDouble, tmp_path: Path
) -> None:
    env = fleet.environment(kube)
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "4", env=env) as started:
        started.until("applied mn-pair-")
        kube.expire_watches()
        kube.drop_watches()
        started.until("started server")
        kube.expire_watches()
        kube.drop_watches()
        kube.add_token("fresh", "admin", {"rules": [_rule("*", "*", "*")]})
        kube.kubeconfig(Path(env["KUBECONFIG"]), "fresh")
        kube.expire_token()
        kube.drop_watches()
        done = started.finish()
    assert done.code == 0, done.text
    assert fleet.leftovers(kube) == []


def test_no_api_server_at_all_is_said_plainly(tmp_path: Path) -> None:
    with KubeDouble(tmp_path / "kube") as kube:
        env = fleet.environment(kube)
    began = time.monotonic()
    with fleet.start(kube, tmp_path / "user", env=env) as s:
        done = s.finish(120)
    assert time.monotonic() - began < 40  # 12 on an idle machine; 62 where it is waited for
    assert done.code == 3, done.text
    assert "Traceback" not in done.text
    assert "does not answer" in done.reason
