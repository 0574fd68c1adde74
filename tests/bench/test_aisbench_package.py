"""Data set configurations of the installed AISBench: read, not imported, whatever it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.bench_drivers.aisbench import catalogue, config, material, package, results
from steps.core.case.case import Benchmark
from steps.core.plan.plan import Endpoint

_AIME = """
from ais_bench.benchmark.openicl.icl_prompt_template import PromptTemplate
from ais_bench.benchmark.datasets import (
    Aime2024Dataset,
    MATHEvaluator,
)

aime2024_eval_cfg = dict(evaluator=dict(type=MATHEvaluator, version="v2"))
aime2024_datasets = [
    dict(
        abbr="aime2024",
        type=Aime2024Dataset,
        path="ais_bench/datasets/aime/aime.jsonl",
        infer_cfg=dict(prompt_template=dict(type=PromptTemplate, template="{question}")),
        eval_cfg=aime2024_eval_cfg,
    )
]
"""
_SUBJECTS = """
import copy
from ais_bench.benchmark.datasets import MMLUDataset
from ais_bench.benchmark.configs.datasets.mmlu.names import ALL

mmlu_datasets = []
for _name in ALL:
    mmlu_datasets.append(copy.copy(dict(abbr=f"mmlu_{_name}", type=MMLUDataset, name=_name,
                                        path="ais_bench/datasets/mmlu/")))
"""
_BASE = """
from mmengine.config import read_base

with read_base():
    from .aime2024_gen_0_shot_chat_prompt import aime2024_datasets
"""
FILES = {
    "aime2024/aime2024_gen_0_shot_chat_prompt": _AIME,
    "aime2024/aime2024_gen": _BASE,
    "mmlu/names": "ALL = ['law', 'art']\n",
    "mmlu/mmlu_gen": _SUBJECTS,
    "gsm8k/gsm8k_gen_0_shot_cot_str_perf": _AIME.replace("aime2024", "gsm8k"),
    "bad/bad_gen": "import torch\n",
    "bad/odd_gen": "from ais_bench.benchmark.datasets import A\nx_datasets = [A('b')]\n",
    "bad/loop_gen": "from .loop_gen import x\n",
}


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """An environment with AISBench in it."""
    program = tmp_path / "env" / "bin" / "ais_bench"
    root = tmp_path / "env/lib/python3.11/site-packages/ais_bench/benchmark/configs/datasets"
    for name, text in FILES.items():
        file = root / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return package.roots(str(program), {})


def test_a_configuration_is_what_its_file_says(places):
    found = package.read(places, "aime2024/aime2024_gen")
    assert (found.family, found.abbrs) == ("aime2024", ("aime2024",))
    [entry] = found.entries("/nowhere")
    assert entry["type"] == "ais_bench.benchmark.datasets.Aime2024Dataset"
    assert entry["eval_cfg"]["evaluator"]["version"] == "v2"
    assert entry["path"] == "/nowhere"


@pytest.mark.parametrize("name", ["aime2024_gen", "textvga/aime2024_gen", "gsm8k/aime2024_gen"])
def test_only_the_last_part_of_the_name_counts(name, places):
    assert catalogue.found(name, places).name == "aime2024/aime2024_gen"


def test_a_file_inside_of_a_data_set_is_found(places, tmp_path):
    data = tmp_path / "vllm-ascend" / "aime2024"
    data.mkdir(parents=True)
    (data / "aime.jsonl").write_text("{}\n")
    [entry] = package.read(places, "aime2024_gen").entries(str(data))
    assert entry["path"] == str(data / "aime.jsonl")


def test_one_data_set_for_each_subject(places):
    found = package.read(places, "mmlu/mmlu_gen")
    assert found.abbrs == ("mmlu_law", "mmlu_art")
    benchmark = Benchmark("b", "accuracy", no_pred=True, num_warmups=0)
    request = catalogue.request("vllm_api_general_chat")
    endpoint = Endpoint("http://127.0.0.1:1", "tiny", "server")
    made = config.make(benchmark, endpoint, request, found, Path("/d"), None)
    assert [entry["name"] for entry in made["datasets"]] == ["law", "art"]
    assert "pred_postprocessor" not in made["models"][0], "the whole answer is scored"
    words = config.command("ais_bench", Path("c"), Path("w"), benchmark, None)
    assert words[words.index("--num-warmups") + 1] == "0"


def test_the_installed_one_comes_before_what_is_known_here(places):
    found = catalogue.found("gsm8k/gsm8k_gen_0_shot_cot_str_perf", places)
    assert isinstance(found, catalogue.DataSet), "its files are still checked"
    [entry] = found.entries("/d")
    assert (entry["type"], entry["path"]) == ("ais_bench.benchmark.datasets.Aime2024Dataset", "/d")
    known = catalogue.found("gsm8k/gsm8k_gen_0_shot_cot_str_perf", [])
    assert known.entries("/d")[0]["type"] == "ais_bench.benchmark.datasets.GSM8KDataset"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere/none_gen", "which is not in"),
        ("bad_gen", "it imports torch"),
        ("odd_gen", "datasets.A is called"),
        ("loop_gen", "includes itself"),
    ],
)
def test_what_cannot_be_read_says_why(name, why, places):
    with pytest.raises(KeyError, match=why):
        package.read(places, name)
    with pytest.raises(KeyError, match="and no AISBench"):
        package.read([], name)


def test_a_rehearsal_makes_up_no_questions_of_what_it_does_not_know(places, tmp_path):
    found = catalogue.found("mmlu/mmlu_gen", places)
    with pytest.raises(material.NotMadeUp, match="questions of mmlu"):
        material.made_up(Benchmark("b", "accuracy"), found, tmp_path)
    assert material.located(tmp_path, found) == (tmp_path.resolve(), 0)


def summary(tmp_path: Path, text: str) -> Path:
    run = tmp_path / "20261123_182941"
    (run / "predictions" / "m").mkdir(parents=True)
    (run / "summary").mkdir()
    for name in ("law", "art"):
        lines = '{"id": 0, "success": true, "prediction": "A"}\n' * 2
        (run / "predictions" / "m" / f"{name}.jsonl").write_text(lines)
    (run / "summary" / "summary_1.csv").write_text(text)
    return tmp_path


def test_the_score_of_several_data_sets(tmp_path):
    work = summary(tmp_path, "dataset,version,metric,mode,m\nlaw,1,acc,gen,40\nart,1,acc,gen,60\n")
    benchmark = Benchmark("b", "accuracy", dataset_conf="mmlu/mmlu_gen")
    found = results.read(
        work, "m", "law", benchmark, 0, stream=False, size=0, others=["art"]
    ).measurement
    assert found.metrics == {"accuracy": 40, "success_ratio": 1}, "upstream takes the first row"
    assert found.requests["ok"] == 4
    checks = {check.name: check for check in found.checks}
    assert checks["requests sent"].status == "skipped"
    assert "nobody here counted" in checks["requests sent"].detail


def test_longbench_takes_the_mean_of_all_rows(tmp_path):
    work = summary(tmp_path, "dataset,accuracy,m\nlaw,40,1\nart,60,2\n")
    benchmark = Benchmark("b", "accuracy", dataset_conf="longbenchv2/longbenchv2_gen")
    found = results.read(work, "m", "law", benchmark, 0, stream=False, size=0).measurement
    assert found.metrics["accuracy"] == 50
