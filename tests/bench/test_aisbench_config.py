"""AISBench's configuration says what the case says, in the words of AISBench's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steps.bench_drivers import generation, practice
from steps.bench_drivers.aisbench import catalogue, config, material
from steps.bench_drivers.hub import NotHere
from steps.core.case.case import Benchmark
from steps.core.plan.plan import Endpoint


def make(request="vllm_api_stream_chat", data="gsm8k_gen_0_shot_cot_str_perf", **more):
    fields = {"case_type": "performance", "max_out_len": 32, "batch_size": 4, **more}
    return config.make(
        Benchmark("b", **fields),
        Endpoint("http://10.0.0.7:6000", "served-name", "proxy"),
        catalogue.request(request),
        catalogue.found(data, []),
        Path("/data/gsm8k"),
        Path("/models/tokenizer"),
    )


def test_a_performance_configuration():
    made = make(request_rate=11.2, trust_remote_code=True)
    [model] = made["models"]
    assert model == {
        "attr": "service",
        "type": "ais_bench.benchmark.models.VLLMCustomAPIChat",
        "abbr": "vllm-api-stream-chat",
        "stream": True,
        "pred_postprocessor": {
            "type": "ais_bench.benchmark.utils.postprocess.model_postprocessors"
            ".extract_non_reasoning_content"
        },
        "path": "/models/tokenizer",
        "model": "served-name",
        "request_rate": 11.2,
        "use_timestamp": False,
        "retry": 2,
        "api_key": "",
        "host_ip": "10.0.0.7",
        "host_port": 6000,
        "url": "",
        "max_out_len": 32,
        "batch_size": 4,
        "trust_remote_code": True,
        "generation_kwargs": {"temperature": 0, "ignore_eos": True},
    }
    [data] = made["datasets"]
    assert data["path"] == "/data/gsm8k"
    assert data["infer_cfg"]["prompt_template"]["template"] == "{question}"
    assert data["eval_cfg"]["pred_role"] == "BOT"
    assert made["summarizer"]["attr"] == "performance"
    assert "P95" in made["summarizer"]["calculator"]["stats_list"]
    assert json.loads(json.dumps(made)) == made


def test_an_accuracy_configuration():
    made = make("vllm_api_general_chat", "gsm8k/gsm8k_gen_0_shot_cot_chat_prompt",
                case_type="accuracy")  # fmt: skip
    assert made["summarizer"] == {"attr": "accuracy"}
    assert made["models"][0]["stream"] is False
    assert made["models"][0]["generation_kwargs"] == {"temperature": 0.6, "ignore_eos": False}
    [data] = made["datasets"]
    assert data["infer_cfg"]["inferencer"]["stopping_criteria"] == ["Question"]
    [turn] = data["infer_cfg"]["prompt_template"]["template"]["round"]
    assert turn["role"] == "HUMAN" and turn["prompt"].endswith("\n\nQuestion: {question}")


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("http://[fd00::1]:8080", "fd00::1", 8080, None),
        ("https://gate.example", "gate.example", 443, True),
        ("http://gate.example", "gate.example", 80, None),
    ],
)
def test_where_the_endpoint_is(url, host, port, tls):
    made = config.make(
        Benchmark("b", "accuracy"),
        Endpoint(url, "m", "server"),
        catalogue.request("vllm_api_general_chat"),
        catalogue.found("gsm8k_gen_0_shot_cot_chat_prompt", []),
        Path("/d"),
        None,
    )
    [model] = made["models"]
    assert (model["host_ip"], model["host_port"], model.get("enable_ssl")) == (host, port, tls)
    assert model["path"] == ""


def test_sampling_goes_into_every_request_as_it_stands():
    penalties = {"presence_penalty": 0.5, "repetition_penalty": 1.1}
    cuts = {"top_p": 0.95, "top_k": 20, "min_p": 0.1}
    sampling = {"temperature": 1.0, "seed": 7, "ignore_eos": False, **cuts, **penalties}
    assert generation(Benchmark("b", "performance", sampling=sampling)) == sampling
    asked = generation(Benchmark("b", "accuracy", thinking=True, reasoning_effort="low"))
    assert asked["chat_template_kwargs"] == {"thinking": True}
    assert asked["reasoning_effort"] == "low"
    assert not {"chat_template_kwargs", "reasoning_effort"} & set(
        generation(Benchmark("b", "spec_decode"))
    )


def test_names_that_nobody_knows_list_those_that_are():
    with pytest.raises(KeyError, match="expected one of gsm8k/gsm8k_gen_0_shot_cot_str_perf"):
        catalogue.found("gsm8k/typo", [])
    with pytest.raises(KeyError, match="expected one of vllm_api_stream_chat"):
        catalogue.request("")


@pytest.mark.parametrize("data", catalogue.DATA_SETS.values(), ids=lambda data: data.name)
def test_every_family_has_material_for_rehearsals(tmp_path, data):
    benchmark = Benchmark("b", "performance", num_prompts=5)
    found = material.made_up(benchmark, data, tmp_path)
    assert found.size == 5
    if data.images:
        found = material.absolute_images(found, tmp_path / "images")
        lines = [json.loads(line) for line in found.data.read_text().splitlines()]
        assert all(Path(line["image"]).is_absolute() for line in lines)
        assert all(Path(line["image"]).read_bytes()[:2] == b"\xff\xd8" for line in lines)
    assert data.to_json(str(found.data))["path"].startswith("/")


def test_a_data_set_of_another_family_is_named(tmp_path):
    practice.write_dataset("gsm8k", tmp_path, 3)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(NotHere, match=r"is no gsm8k: train\.jsonl is missing"):
        material.located(tmp_path, catalogue.found("gsm8k_gen_0_shot_cot_str_perf", []))
    with pytest.raises(NotHere, match=r"is no gpqa: gpqa_diamond\.csv is missing"):
        material.located(tmp_path, catalogue.found("gpqa_gen_0_shot_cot_chat_prompt", []))


def test_an_empty_data_set_has_no_question(tmp_path):
    practice.write_dataset("gsm8k", tmp_path, 1)
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(NotHere, match="has no question"):
        material.located(tmp_path, catalogue.found("gsm8k_gen_0_shot_cot_str_perf", []))


def test_a_picture_that_is_nowhere(tmp_path):
    data = catalogue.found("textvqa_gen_base64", [])
    found = material.made_up(Benchmark("b", "accuracy", num_prompts=1), data, tmp_path)
    (tmp_path / "data" / "train_images" / "pixel.jpg").unlink()
    with pytest.raises(NotHere, match=r"the picture .*pixel\.jpg"):
        material.absolute_images(found, tmp_path / "images")
