"""The cases for real vLLM on a CPU: clean, complete without any setting, and kind to two cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps import prove
from steps.core.case.build import load_case
from steps.core.plan import clusters
from steps.core.plan.cluster import Rehearsal
from steps.core.plan.plan import Plan, to_json
from steps.core.plan.resolver import Options, resolve
from steps.core.vllm import commandline
from steps.validate import validate_one

CASES = sorted(Path(__file__).parent.parent.joinpath("configs", "cpu").glob("*.yaml"))


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def plan_of(path: Path) -> Plan:
    case = load_case(path)
    return resolve(case, clusters.local(case, network="71.9"), Options(run="r", driver="aisbench"))


def test_the_five_kinds_of_fleet_are_there():
    names = {path.stem for path in CASES}
    assert names >= {"smollm2", "smollm2-dp2", "smollm2-1p1d", "smollm2-1p1d-files"}
    assert "tiny-external-dp" in names


def test_the_linter_finds_nothing(path):
    assert validate_one(path)[1] == []


def test_models_and_data_come_from_the_cache(path, monkeypatch, tmp_path):
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path))
    for name in ("MODELS", "DATASETS", "SHARED_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    plan = plan_of(path)
    assert Path(plan.model).parent == tmp_path / "models"
    assert "$" not in to_json(plan)
    for entry in plan.benchmarks:
        assert entry.benchmark.dataset_path_local == str(tmp_path / "datasets" / "arithmetic")


def test_the_environment_overrules_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELS", "/weights")
    monkeypatch.setenv("DATASETS", "/data")
    plan = plan_of(CASES[0].with_name("smollm2.yaml"))
    assert plan.model == "/weights/smollm2-135m-instruct"
    assert plan.benchmarks[0].benchmark.dataset_path_local == "/data/arithmetic"


def test_servers_listen_where_their_node_is_and_share_the_cores(path):
    plan = plan_of(path)
    cores: dict[str, list[str]] = {"0": [], "1": []}
    for node, process in plan.servers():
        cores[process.env["VLLM_CPU_OMP_THREADS_BIND"]].append(process.name)
        if not process.headless:
            assert commandline.read(process.argv).text("--host") == node.address
    assert len(cores["0"]) - len(cores["1"]) in (0, 1)


@pytest.mark.parametrize(
    ("rehearsal", "status"), [(Rehearsal(), "skipped"), (None, "fail")], ids=["rehearsed", "real"]
)
def test_a_handoff_by_files_is_proved_on_real_engines_only(rehearsal, status):
    case = load_case(CASES[0].with_name("smollm2-1p1d-files.yaml"))
    plan = resolve(
        case, clusters.local(case, network="71.9", rehearsal=rehearsal), Options(run="r")
    )
    served = [
        prove.Served(node, process, {"0": 9.0}, {"local_compute": 430.0}, True)
        for node, process in plan.servers()
    ]
    found = {check.name: check.status for check in prove.judge(plan, served)}
    assert found["handoff"] == status
    assert [found[name] for name in found if name.startswith("traffic")] == ["pass", "pass"]


def test_files_are_shared_whole_blocks_and_never_from_the_prefix_cache():
    for name in ("smollm2-1p1d-files", "tiny-external-dp"):
        for _, process in plan_of(CASES[0].with_name(f"{name}.yaml")).servers():
            assert commandline.read(process.argv).off("--enable-prefix-caching")
            assert commandline.read(process.argv).text("--block-size") == "32"
