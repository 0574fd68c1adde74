"""Profiles, bundle and manifests: what is created, and what would never run."""

from __future__ import annotations

import argparse
import ast
import base64
import copy
import io
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s import bundle, manifest, render
from k8s.manifest import Names, Order
from steps.core.case.build import load_case
from steps.core.errors import CaseError, UsageError
from steps.core.node.wishes import wishes_of
from steps.core.plan.profile import CLUSTERS, find_profile, load_profile

from . import fleet


def order(tmp_path: Path, profile: str = fleet.PROFILE, **options: Any) -> Order:
    (tmp_path / "case.yaml").write_text(fleet.CASE)
    (tmp_path / "lab.yaml").write_text(profile)
    asked = wishes_of(argparse.Namespace(**options))
    case = load_case(tmp_path / "case.yaml")
    loaded = load_profile(tmp_path / "lab.yaml")
    return render.order(case, loaded, asked, "20261123-191426-f62243", "lab", output="text")


@pytest.mark.parametrize(
    ("env", "words", "profile", "namespace"),
    [
        ("file", [], "", "of-the-file"),
        ("two", [], "", "of-the-file"),
        ("b64", [], "", "of-the-text"),
        ("none", [], "", "default"),
        ("file", ["--namespace", "said"], "", "said"),
        ("file", [], "namespace: of-the-profile\n", "of-the-profile"),
    ],
)
def test_render_takes_the_namespace_that_a_run_would_take(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    env: str,
    words: list[str],
    profile: str,
    namespace: str,
) -> None:
    """No credentials are asked for: an exec plug-in would open somebody's browser."""
    text = """\
    current-context: mine
    contexts:
    - {name: other, context: {cluster: c, user: u, namespace: wrong}}
    - {name: mine, context: {cluster: c, user: u, namespace: NAMESPACE}}
    users: [{name: u, user: {exec: {command: /not/there, apiVersion: v1}}}]
    clusters: [{name: c, cluster: {server: 'https://127.0.0.1:9'}}]
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(text.replace("NAMESPACE", "of-the-file"))
    two.write_text(text.replace("NAMESPACE", "of-the-second"))
    if env == "b64":
        inside = text.replace("NAMESPACE", "of-the-text").encode()
        monkeypatch.setenv("KUBECONFIG_B64", base64.b64encode(inside).decode())
    if env in ("file", "two"):
        monkeypatch.setenv("KUBECONFIG", f"{one}:{two}" if env == "two" else str(one))
    (tmp_path / "case.yaml").write_text(fleet.CASE)
    (tmp_path / "lab.yaml").write_text(fleet.PROFILE + profile)
    argv = [str(tmp_path / "case.yaml"), "--profile", str(tmp_path / "lab.yaml"), "--rehearse"]
    assert render.main([*argv, *words]) == 0
    made = capsys.readouterr().out
    assert "kubectl apply --server-side -f THIS_FILE" in made
    assert f"invoke follow --on k8s --namespace {namespace} --name mn-pair-" in made
    found = {document["metadata"]["namespace"] for document in yaml.safe_load_all(made)}
    assert found == {namespace}


def lws(made: Order) -> dict[str, Any]:
    return manifest.documents(made)[-1]


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_profiles_we_ship_are_good(path: Path) -> None:
    assert load_profile(path).image


def test_every_mistake_of_a_profile_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "imag: x\nmemory: lots\ngrace: soon\n"
        "mounts:\n  - path: /a\n    claim: x\n    hostpath: /b\n"
        "device: {per_node: 0}\nbudgets: {schedule: 3}\n"
    )
    with pytest.raises(CaseError) as caught:
        load_profile(path)
    text = str(caught.value)
    for words in (
        f"{path}:1:1: error MN005: imag: unknown key",
        "Did you mean 'image'?",
        f"{path}:2:1",
        f"{path}:3:1",
        "Did you mean 'host_path'?",
        "required key 'resource'",
        "schedule",
    ):
        assert words in text, text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mounts: [{path: /a, claim: x, host_path: /b}]", "expected exactly one of"),
        ("mounts: [{path: /dev/shm, claim: x}]", "the harness's own"),
        ("tolerations: [{operator: Exists, value: x}]", "takes no value"),
        ("env: {A: 1}\nsecret_env: {A: s/k}", "is in env too"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(
    tmp_path: Path, line: str, words: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"image: a/b:1\n{line}\n")
    with pytest.raises(CaseError, match=words):
        load_profile(path)


def test_unknown_profile_suggests_a_close_one() -> None:
    with pytest.raises(UsageError) as caught:
        find_profile("a33")
    assert "'a3'" in caught.value.hint


def test_names_fit_and_map_to_nodes(tmp_path: Path) -> None:
    case = order(tmp_path).case
    names = Names.of(case, "20261123-191426-f62243", "lab")
    assert names.base == "mn-pair-191426-f62243"
    assert [names.index(names.pod(i)) for i in (0, 1, 12)] == [0, 1, 12]
    assert [names.index(x) for x in (names.base, f"{names.base}-0x", "other-0", "")] == [None] * 4
    assert len(manifest.slug("x" * 99, 30)) == 30


def test_one_template_for_leader_and_worker(tmp_path: Path) -> None:
    spec = lws(order(tmp_path))["spec"]
    template = spec["leaderWorkerTemplate"]
    assert "leaderTemplate" not in template
    assert (template["size"], template["restartPolicy"], spec["replicas"]) == (2, "None", 1)


def test_a_full_profile_is_rendered_whole(tmp_path: Path) -> None:
    profile = """\
image: quay.io/x/y:1
image_pull_secrets: [pull]
device: {resource: huawei.com/ascend-1980, per_node: 16}
cpu: 125
memory: 512Gi
ephemeral_storage: 100Gi
mounts:
  - {path: /models, claim: models, sub_path: a, read_only: true}
  - {path: /tools, host_path: /usr/local/tools}
tolerations: [{key: npu, operator: Exists, effect: NoSchedule}]
node_selector: {pool: a3}
priority_class: high
queue: nightly
service_account: runner
grace: 2m
env: {HF_ENDPOINT: https://x}
secret_env: {HF_TOKEN: hub/token}
"""
    document = lws(order(tmp_path, profile))
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nightly"
    pod = document["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["huawei.com/ascend-1980"] == "2"
    assert container["resources"]["requests"]["cpu"] == "125"
    assert "cpu" not in container["resources"]["limits"]
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("high", "runner")
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["nodeSelector"] == {"pool": "a3"}
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    mounts = {entry["mountPath"]: entry for entry in container["volumeMounts"]}
    assert mounts["/models"]["subPath"] == "a"
    token = next(entry for entry in container["env"] if entry["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}


def test_a_pod_gets_no_account_of_the_cluster(tmp_path: Path) -> None:
    for profile, mounted in (
        (fleet.PROFILE, False),
        (f"{fleet.PROFILE}service_account: me\n", None),
    ):
        template = lws(order(tmp_path, profile))["spec"]["leaderWorkerTemplate"]["workerTemplate"]
        assert template["spec"].get("automountServiceAccountToken") is mounted


def test_a_rehearsal_asks_for_no_devices(tmp_path: Path) -> None:
    profile = fleet.PROFILE + "device: {resource: huawei.com/ascend-1980}\n"
    document = lws(order(tmp_path, profile, rehearse=True))
    assert "ascend" not in json.dumps(document)


def test_more_devices_than_a_node_has_is_refused(tmp_path: Path) -> None:
    profile = fleet.PROFILE + "device: {resource: huawei.com/ascend-1980, per_node: 1}\n"
    with pytest.raises(UsageError, match="a node need 2 devices, one of the profile 'lab' has 1"):
        order(tmp_path, profile)


@pytest.mark.parametrize(
    ("written", "per_node", "asked"), [(16, 8, "8"), (16, None, "16"), (1, 8, "2"), (2, 8, "2")]
)
def test_devices_are_those_the_commands_need_whatever_the_number_written(
    written: int, per_node: int | None, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = fleet.CASE.replace("npu_per_node: 2", f"npu_per_node: {written}")
    monkeypatch.setattr(fleet, "CASE", text)
    device = {"resource": "huawei.com/ascend-1980", **({"per_node": per_node} if per_node else {})}
    made = order(tmp_path, f"{fleet.PROFILE}device: {json.dumps(device)}\n")
    template = lws(made)["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    limits = template["spec"]["containers"][0]["resources"]["limits"]
    assert limits["huawei.com/ascend-1980"] == asked


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d[-1]["metadata"].update(name="x" * 51), "no pod is ever made"),
        (lambda d: d[-1]["metadata"].update(name="3x"), "start with a letter"),
        (lambda d: d[-2]["metadata"].update(name=d[-1]["metadata"]["name"]), "DNS names"),
        (lambda d: _template(d).update(restartPolicy="RecreateGroupOnPodRestart"), "in a loop"),
        (lambda d: _pod(d).update(restartPolicy="Never"), "no pod is ever made"),
        (lambda d: _pod(d)["volumes"].pop(0), "which is not there"),
        (lambda d: d.pop(2), "not among the manifests"),
        (lambda d: _pod(d)["containers"][0]["env"].append({"name": "A", "value": 1}), "text"),
        (lambda d: d[1]["data"].update(x="y" * (1 << 20)), "a ConfigMap holds at most"),
        (lambda d: d[0]["metadata"]["labels"].update(a="b c"), "no label value"),
    ],
)
def test_what_the_api_accepts_and_never_runs_is_found_offline(
    tmp_path: Path, spoil: Any, words: str
) -> None:
    documents = copy.deepcopy(manifest.documents(order(tmp_path)))
    assert manifest.problems(documents) == []
    spoil(documents)
    assert any(words in problem for problem in manifest.problems(documents))


def _template(documents: list[dict[str, Any]]) -> Any:
    return documents[-1]["spec"]["leaderWorkerTemplate"]


def _pod(documents: list[dict[str, Any]]) -> Any:
    return _template(documents)["workerTemplate"]["spec"]


def test_core_kinds_agree_with_kubernetes_own_schemas(tmp_path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    documents = manifest.documents(order(tmp_path))
    for document in documents[:-1]:
        validate.validate(document, "1.30", strict=True)
    spec = documents[-1]["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    validate.validate(pod, "1.30", strict=True)


# The bundle


def test_the_same_content_is_the_same_bundle_and_its_parts_fit(tmp_path: Path) -> None:
    made = bundle.make(True)
    assert bundle.make(True) == made
    small = bundle.make(True, part_bytes=100_000)
    assert b"".join(small.parts) == b"".join(made.parts)
    assert max(map(len, small.parts)) <= 100_000
    for document in manifest.documents(order(tmp_path)):
        for value in document.get("binaryData", {}).values():
            assert len(base64.b64decode(value)) < 1 << 20


def test_the_bundle_has_all_the_node_side_imports_and_nothing_compiled() -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(bundle.make().parts))) as tar:
        names = tar.getnames()
        assert all(member.isfile() and member.mtime == 0 for member in tar.getmembers())
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert not [name for name in names if name.startswith(("ci/", "tests/", "k8s/"))]
    tops = {name.split("/")[0] for name in names}
    wanted = set()
    for path in (fleet.ROOT / "steps").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted.add(node.module.split(".")[0])
    missing = wanted - tops - set(sys.stdlib_module_names)
    # psutil is compiled: an image's own is used, or none. Only validate, on no node, writes JUnit.
    assert missing <= {"psutil", "junit_xml"}, missing


def _node_arguments(made: Order) -> list[str]:
    start = json.loads(manifest.documents(made)[1]["data"]["start.json"])
    return list(start["arguments"])


def test_nodes_wait_for_one_another_as_long_as_a_pod_may_take_to_start(tmp_path: Path) -> None:
    """20 s each to be scheduled, to pull, to start; then the 600 s in which nodes meet."""
    assert "join=660" in _node_arguments(order(tmp_path))
    given = _node_arguments(order(tmp_path, timeout=["join=5"]))
    assert [word for word in given if word.startswith("join=")] == ["join=5"]


def test_nodes_that_run_and_never_meet_are_found_out(tmp_path: Path) -> None:
    from k8s.backend import Run

    request: Any = argparse.Namespace(events=None)
    api: Any = argparse.Namespace(late=lambda seconds: 0.0)
    run = Run(request, api, order(tmp_path))
    assert run._apart(600.0) is None
    apart = run._apart(601.0)
    assert apart is not None
    assert "NetworkPolicy" in apart.hint
    api.late = lambda seconds: 30.0  # the API was away: names resolve late
    assert run._apart(601.0) is None
    api.late = lambda seconds: 0.0
    run._planned = True
    assert run._apart(601.0) is None


def test_texts_that_look_like_numbers_stay_texts_for_kubectl(tmp_path: Path) -> None:
    """kubectl reads YAML 1.2's numbers too; an environment value must be text."""
    values = ["1e5", "1E-3", "0o17", "0x1F", "+1", "-.5e3", "1_000", "12:30:45", "08", "12e07"]
    entries = "".join(f"  V{i}: '{value}'\n" for i, value in enumerate(values))
    written = render.text(order(tmp_path, f"{fleet.PROFILE}env:\n{entries}"))
    for i, value in enumerate(values):
        assert re.search(rf"- name: V{i}\n +value: (['\"]){re.escape(value)}\1\n", written), value
