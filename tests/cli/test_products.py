"""--product and --image on every door where a case is planned: what is said, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ci import run as ci_run
from steps import resolve
from tests.faults.rehearse import ROOT
from tests.realpath.test_products import profile, repository

QUICK = str(ROOT / "configs" / "quickstart.yaml")


@pytest.fixture
def product(tmp_path: Path) -> tuple[list[str], str]:
    place, commits = repository(tmp_path, "one", "two")
    return ["--profile", profile(tmp_path, place), "--product", "engine=one"], commits[0]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--product", "vllm"], 2, "expected NAME=REF"),
        (["--product", "vllm=-x"], 2, "no reference of git"),
        (["--product", "nobody=main"], 2, "nothing says where nobody comes from"),
        (["--product", "vllm=/nowhere@main"], 2, "is no directory"),
        (["--product", f"vllm={ROOT}@no-such-branch"], 2, "has no commit 'no-such-branch'"),
        (["--product", "vllm=wheel:/nowhere.whl"], 2, "is no wheel, or not there"),
        (["--product", "vllm=dir:/proc"], 2, "is no Python project"),
        (["--product", "vllm=git://127.0.0.1:1/x@main"], 3, "ls-remote"),
        (["--image", "other:1"], 2, "--image works with --on k8s"),
        (["--profile", "/nowhere.yaml"], 2, "no profile"),
    ],
)
def test_what_cannot_be_tested_is_refused_at_the_door(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--run-dir", str(tmp_path / "run")]
    assert ci_run.main([QUICK, "--rehearse", *where, *words]) == code
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


def test_a_plan_names_what_it_tests(
    product: tuple[list[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, commit = product
    where = ["--run-dir", str(tmp_path / "run"), "--rehearse"]
    assert resolve.main(["--case", QUICK, *words, *where]) == 0
    told = capsys.readouterr().out
    assert f"tests engine=one ({commit[:12]})" in told
    assert "not installed in a rehearsal" in told
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["cluster"]["products"][0]["commit"] == commit


def test_manifests_have_the_image_and_the_products(
    product: tuple[list[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    render = pytest.importorskip("k8s.render")
    words, commit = product
    case = str(ROOT / "configs" / "quickstart.yaml")
    assert render.main([case, *words, "--namespace", "n", "--image", "registry/other:2"]) == 0
    found = list(yaml.safe_load_all(capsys.readouterr().out))
    text = yaml.safe_dump(found[-1])
    assert "image: registry/other:2" in text and "image: none" not in text
    start = json.loads(
        next(d for d in found if "start.json" in d.get("data", {}))["data"]["start.json"]
    )
    assert start["cluster"]["image"] == "registry/other:2"
    assert start["cluster"]["products"][0]["commit"] == commit


def test_a_rehearsal_says_what_it_does_not_install(
    product: tuple[list[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, commit = product
    where = ["--run-dir", str(tmp_path / "run")]
    assert ci_run.main([QUICK, "--rehearse", *words, *where]) == 0
    summary = (tmp_path / "run" / "summary.md").read_text()
    said = f"not installed in a rehearsal: engine=one ({commit[:12]}): skipped"
    assert said in summary and said in capfd.readouterr().out
    assert (
        f'name="product.engine" value="engine=one ({commit[:12]})"'
        in (tmp_path / "run" / "junit.xml").read_text()
    )
    assert not (tmp_path / "run" / "node-0" / "products.json").exists()
