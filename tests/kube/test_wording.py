"""What a run on Kubernetes says: hints that fit, paths of the user, files that are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ci.nightly.history import case_key
from steps import validate

from . import fleet
from .double import KubeDouble

pytest.importorskip("kubernetes")
pytestmark = pytest.mark.timeout(180)


def test_the_hint_about_rights_is_for_rights(kube: KubeDouble, tmp_path: Path) -> None:
    profile = fleet.PROFILE.replace("4Gi", "9Ti")
    with fleet.start(kube, tmp_path / "big", profile=profile) as started:
        done = started.finish()
    cause = done.verdict["cause"]
    assert (done.code, "could never hold" in cause["reason"]) == (3, True), done.text
    assert "role.yaml" not in cause["hint"]
    role = {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}
    kube.add_token("weak", "system:serviceaccount:ci:runner", role, kube.namespace)
    with fleet.start(kube, tmp_path / "weak", env=fleet.environment(kube, "weak")) as started:
        done = started.finish()
    hint = done.verdict["cause"]["hint"]
    assert f"kubectl apply -n {kube.namespace} -f k8s/role.yaml" in hint
    bind = f"kubectl create rolebinding multinode -n {kube.namespace} --role=multinode"
    assert f"{bind} --serviceaccount=ci:runner" in hint
    kube.add_token("human", "jane", role, kube.namespace)
    with fleet.start(kube, tmp_path / "human", env=fleet.environment(kube, "human")) as started:
        hint = started.finish().verdict["cause"]["hint"]
    assert f"{bind} --user=jane" in hint


def test_paths_are_the_user_s(kube: KubeDouble, tmp_path: Path) -> None:
    with fleet.start(kube, tmp_path / "user") as started:
        done = started.finish()
    assert done.code == 0, done.text
    case = str(tmp_path / "user" / "case.yaml")
    plan = json.loads((done.run_dir / "plan.json").read_text())
    assert (plan["case_file"], case_key(plan["case_file"])) == (case, case_key(case))
    assert f"of `{case}`" in (done.run_dir / "summary.md").read_text()
    for name in ("summary.md", "junit.xml", "report.html", "verdict.json"):
        assert "/multinode/bundle" not in (done.run_dir / name).read_text(), name
    assert "/multinode/bundle" not in done.text


def test_no_file_is_listed_that_went_with_its_pod(kube: KubeDouble, tmp_path: Path) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "6") as started:
        started.until("started server")
        kube.evict(max((p["metadata"]["name"] for p in kube.pods()), key=len))
        done = started.finish()
    assert done.code == 3, done.text
    text = (done.run_dir / "summary.md").read_text()
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("- `node-")]
    assert "node-1/pod.log" in listed
    assert [name for name in listed if not (done.run_dir / name).is_file()] == []


def test_a_case_of_stand_ins_rehearses_on_the_cluster(kube: KubeDouble, tmp_path: Path) -> None:
    case = f"rehearse: true\n{fleet.CASE}"
    with fleet.start(kube, tmp_path / "user", case=case, rehearse=False) as started:
        done = started.finish()
    assert done.code == 0, done.text
    assert "says 'rehearse: true': stand-ins play the engines" in done.text
    place = fleet.Place(fleet.environment(kube), fleet.PROFILE, kube.namespace, tmp_path)
    (tmp_path / "stand-ins.yaml").write_text(case)
    profile = str(tmp_path / "user" / "lab.yaml")
    made = place.tool("k8s.render", str(tmp_path / "stand-ins.yaml"), "--profile", profile)
    documents = list(yaml.safe_load_all(made.stdout))
    start = next(json.loads(d["data"]["start.json"]) for d in documents if d["kind"] == "ConfigMap")
    assert start["cluster"]["rehearsal"] is not None
    assert "says 'rehearse: true'" in made.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image: a/b:1\nmemory: 4Gi\ndevice: {resource: x/y, per_node: 8}\n", ""),
        ("image: a/b:1\nmemori: 4Gi\n", "memori: unknown key"),
        ("imag: a/b:1\nmemory: 4Gi\n", "required key 'image'"),
        ("model: m\nnum_nodes: 2\n", "deployment"),
        ("env_common: {A: b}\n", "neither 'deployment' nor 'routing'"),
        ("[]\n", "expected a mapping"),
    ],
)
def test_a_profile_elsewhere_is_recognised_by_its_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "lab.yaml").write_text(text)
    code = validate.run([str(tmp_path / "lab.yaml")])
    said = capsys.readouterr().out
    assert (code, words in said) == (2 if words else 0, True), said
