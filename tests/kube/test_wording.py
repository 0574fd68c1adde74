"""What a run on Kubernetes says: hints that fit, paths of the user, files that are there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from ci.nightly.history import case_key
from steps import validate

from . import fleet
from .conftest import Passed
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
    bind = f"kubectl create rolebinding multinode -n {kube.namespace} --role=multinode"
    kube.add_token("human", "jane", role, kube.namespace)
    with fleet.start(kube, tmp_path / "human", env=fleet.environment(kube, "human")) as started:
        hint = started.finish().verdict["cause"]["hint"]
    assert f"{bind} --user=jane" in hint


def test_paths_are_the_user_s(passed: Passed) -> None:
    done = passed.done
    assert done.code == 0, done.text
    case = str(done.run_dir.parent / "case.yaml")
    plan = json.loads((done.run_dir / "plan.json").read_text())
    assert (plan["case_file"], case_key(plan["case_file"])) == (case, case_key(case))
    assert f"of `{case}`" in (done.run_dir / "summary.md").read_text()
    for name in ("summary.md", "junit.xml", "report.html", "verdict.json"):
        assert "/multinode/bundle" not in (done.run_dir / name).read_text(), name
    assert "/multinode/bundle" not in done.text


def test_a_case_of_stand_ins_rehearses_on_the_cluster(passed: Passed, tmp_path: Path) -> None:
    assert passed.done.code == 0, passed.done.text
    assert "says 'rehearse: true': stand-ins play the engines" in passed.done.text
    env = {**os.environ, "HOME": str(tmp_path)}
    place, user = fleet.Place(env, fleet.PROFILE, "", tmp_path), passed.done.run_dir.parent
    words = (str(user / "case.yaml"), "--profile", str(user / "lab.yaml"))
    made = place.tool("k8s.render", *words)
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
