"""Weights and data sets are found where both hubs' clients, old and new, put them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from steps.bench_drivers import aisbench, hub
from steps.bench_drivers.hub import DATASET, MODEL, Hub, NotHere
from steps.core import settings
from steps.core.node.noderun import StepFailed


@pytest.fixture
def caches(tmp_path: Path) -> Hub:
    root = tmp_path / "modelscope"
    return Hub((root, root / "hub"), (tmp_path / "hf",))


@pytest.mark.parametrize(
    ("kind", "name", "place"),
    [
        (MODEL, "org/name", "modelscope/hub/models/org/name"),
        (MODEL, "org/name", "modelscope/models/org/name"),
        (MODEL, "Qwen/Qwen3-0.6B", "modelscope/models/Qwen/Qwen3-0___6B"),
        (MODEL, "Qwen/Qwen3-0.6B", "modelscope/hub/Qwen/Qwen3-0___6B"),
        (MODEL, "org/name", "hf/models--org--name/snapshots/abc"),
        (DATASET, "vllm-ascend/gsm8k-lite", "modelscope/hub/datasets/vllm-ascend/gsm8k-lite"),
        (DATASET, "vllm-ascend/gsm8k-lite", "modelscope/datasets/vllm-ascend/gsm8k-lite"),
    ],
)
def test_layouts(caches, tmp_path, kind, name, place):
    (tmp_path / place).mkdir(parents=True)
    assert caches.find(kind, name) == tmp_path / place


def test_the_commit_that_main_points_at(caches, tmp_path):
    repository = tmp_path / "hf" / "models--org--name"
    for commit in ("aaa", "bbb"):
        (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("bbb\n")
    assert caches.find(MODEL, "org/name").name == "bbb"


def test_paths_come_first_and_are_relative_to_the_case(caches, tmp_path):
    (tmp_path / "case" / "org" / "name").mkdir(parents=True)
    (tmp_path / "modelscope" / "models" / "org" / "name").mkdir(parents=True)
    assert caches.find(MODEL, "org/name", [tmp_path / "case"]) == tmp_path / "case" / "org" / "name"
    absolute = tmp_path / "case" / "org"
    assert caches.find(DATASET, str(absolute)) == absolute


def test_what_is_nowhere_says_where_was_looked_and_how_to_get_it(caches, tmp_path):
    with pytest.raises(NotHere) as caught:
        caches.find(DATASET, "vllm-ascend/gsm8k", [tmp_path])
    text = str(caught.value)
    assert str(tmp_path / "modelscope" / "datasets" / "vllm-ascend" / "gsm8k") in text
    assert "modelscope download --dataset vllm-ascend/gsm8k" in text
    with pytest.raises(NotHere, match="correct the path") as caught:
        caches.find(MODEL, "/nowhere/at/all")
    assert "modelscope download" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "offline", "allowed"),
    [("", "", False), ("1", "", True), ("true", "0", True), ("1", "1", False)],
)
def test_downloads_are_off_unless_asked_for(monkeypatch, wanted, offline, allowed):
    monkeypatch.setenv("MULTINODE_HUB_DOWNLOAD", wanted)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    assert Hub.of(settings.read()).download is allowed


def test_caches_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    found = Hub.of(settings.read())
    assert found.modelscope == (tmp_path / "ms", tmp_path / "ms" / "hub")
    assert found.huggingface == (tmp_path / "hf",)
    monkeypatch.delenv("MODELSCOPE_CACHE")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = Hub.of(settings.read())
    assert found.modelscope == (tmp_path / ".cache" / "modelscope" / "hub",)
    assert found.huggingface == (tmp_path / "home" / "hub",)


MODELSCOPE = """\
import os
from pathlib import Path

def snapshot_download(model_id, repo_type, allow_patterns=None):
    if model_id == "org/never":
        raise OSError("no network")
    place = Path(os.environ["MODELSCOPE_CACHE"], f"{repo_type}s", model_id)
    place.mkdir(parents=True)
    if repo_type == "dataset":
        assert allow_patterns is None
        for name in ("test", "train"):
            line = '{"question": "1 + 1?", "answer": "#### 2"}\\n'
            (place / f"{name}.jsonl").write_text(line * 16)
    else:
        assert "*.json" in allow_patterns and not any("safetensors" in p for p in allow_patterns)
        (place / "tokenizer.json").write_text("{}")
    return str(place)
"""


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A ``modelscope`` package that makes what it is asked for."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "modelscope.py").write_text(MODELSCOPE)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MULTINODE_HUB_DOWNLOAD", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_the_download_command(client, tmp_path):
    argv = hub.download_command(sys.executable, MODEL, "org/name")
    done = subprocess.run(argv, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "ms" / "models" / "org" / "name")


def real(bench):
    """The same plan, not rehearsed."""
    cluster = replace(bench.run.plan.cluster, rehearsal=None)
    bench.run.plan = replace(bench.run.plan, cluster=cluster)


def test_a_real_run_downloads_what_is_absent(client, bench_with_client, tmp_path):
    bench = bench_with_client
    real(bench)
    [entry, _] = bench.run.plan.benchmarks
    assert list(aisbench.problems(bench.run, entry)) == []
    bench.run.supervisor._inherited["FAKE_AISBENCH"] = "leave=perf-good"
    found = aisbench.measure(bench.run, bench.job("perf"))
    assert not found.error and found.metrics
    names = [running.process.name for running in bench.run.supervisor.running]
    assert names == ["download", "download", "bench"]
    assert (tmp_path / "ms" / "datasets" / "org" / "GSM8K-x" / "test.jsonl").exists()


def test_a_real_run_says_before_the_start_what_is_absent(bench, monkeypatch, tmp_path):
    real(bench)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.delenv("MULTINODE_HUB_DOWNLOAD", raising=False)
    perf, acc = bench.run.plan.benchmarks
    [problem] = aisbench.problems(bench.run, perf)
    assert "modelscope download --dataset org/GSM8K-x" in problem
    assert "modelscope download --model demo/tiny" in problem
    [problem] = aisbench.problems(bench.run, acc)
    assert "demo/tiny" not in problem
    found = aisbench.measure(bench.run, bench.job("acc"))
    assert found.fault == "infra" and "org/gsm8k-lite" in found.error


def test_preflight_names_them(bench, monkeypatch, tmp_path):
    from steps import preflight

    real(bench)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.delenv("MULTINODE_HUB_DOWNLOAD", raising=False)
    with pytest.raises(StepFailed, match="benchmark 'perf': the data set org/GSM8K-x is not here"):
        preflight.run(bench.run)


@pytest.fixture
def bench_with_client(client, bench):
    return bench
