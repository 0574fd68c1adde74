"""Prefill and decode: KV goes over a real connection, and only when both sides fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from standins import Standin, Yard

ASK = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
PROMPT = "What is 20 + 22? " * 40


def config(
    role: str,
    connector: str = "MooncakeConnectorV1",
    port: int = 30000,
    prefill_tp: int = 2,
    decode_tp: int = 1,
    **more: Any,
) -> list[str]:
    sizes = {
        "prefill": {"dp_size": 1, "tp_size": prefill_tp},
        "decode": {"dp_size": 1, "tp_size": decode_tp},
    }
    value = {
        "kv_connector": connector,
        "kv_role": role,
        "kv_port": str(port),
        "kv_connector_extra_config": sizes,
        **more,
    }
    return ["--kv-transfer-config", json.dumps(value)]


def prefill(server: Standin) -> dict[str, Any]:
    status, answer = server.complete(PROMPT, max_tokens=1, min_tokens=1, kv_transfer_params=ASK)
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == 1
    params: dict[str, Any] = answer["kv_transfer_params"]
    return params


def decode(server: Standin, params: dict[str, Any]) -> tuple[int, Any]:
    return server.complete(PROMPT, max_tokens=40, kv_transfer_params=params)


@pytest.fixture
def prefiller(yard: Yard) -> Standin:
    """A started, not yet ready prefiller with tensor parallel size 2."""
    return yard.start("-tp", "2", *config("kv_producer", engine_id="7"))


@pytest.mark.parametrize("connector", ["MooncakeConnectorV1", "NixlConnector", "MultiConnector"])
def test_prompt_tokens_come_from_the_prefiller(yard: Yard, connector: str) -> None:
    def arguments(role: str) -> list[str]:
        if connector != "MultiConnector":
            return config(role, connector)
        inner = [
            json.loads(config(role)[1]),
            {"kv_connector": "AscendStoreConnector", "kv_role": role},
        ]
        value = {
            "kv_connector": connector,
            "kv_role": role,
            "kv_connector_extra_config": {"connectors": inner},
        }
        return ["--kv-transfer-config", json.dumps(value)]

    server = yard.start("-tp", "2", *arguments("kv_producer"))
    decoder = yard.start(*arguments("kv_consumer")).ready()
    params = prefill(server.ready())
    assert (params["do_remote_prefill"], params["do_remote_decode"]) == (True, False)
    assert params["remote_host"] == server.address
    assert params["remote_port"] == (5600 if connector == "NixlConnector" else 30000)
    status, answer = decode(decoder, params)
    assert status == 200
    assert answer["choices"][0]["text"].endswith("#### 42")
    tokens = answer["usage"]["prompt_tokens"]
    assert (
        decoder.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
        == tokens
    )
    assert decoder.metric("vllm:prompt_tokens_by_source_total", source="local_compute") == 0
    assert server.metric("vllm:prompt_tokens_by_source_total", source="local_compute") == tokens
    status, answer = decode(decoder, params)
    assert status == 500
    assert "not held here" in answer["error"]["message"]


def test_what_does_not_fit_is_refused(yard: Yard, prefiller: Standin) -> None:
    decoder = yard.start(*config("kv_consumer")).ready()
    params = prefill(prefiller.ready())
    wrong = [
        ({"remote_engine_id": "8_dp0"}, "is not this engine, which is '7_dp0'"),
        ({"remote_block_ids": [1]}, "1 remote blocks do not fit a prompt of"),
        (
            {"remote_block_ids": [block + 1 for block in params["remote_block_ids"]]},
            "are not held here",
        ),
        ({"remote_port": 1}, "no KV from"),
        ({"remote_host": None}, "kv_transfer_params without remote_host"),
    ]
    for change, text in wrong:
        status, answer = decode(decoder, {**params, **change})
        assert status == 500
        assert answer["error"]["type"] == "InternalServerError"
        assert text in answer["error"]["message"]
        assert text in decoder.log
    assert decode(decoder, params)[0] == 200
    assert decode(decoder, ASK)[0] == 500
    assert decode(prefiller, params)[0] == 500


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["-tp", "2", *config("kv_consumer", decode_tp=2)],
            "the prefiller's kv_connector_extra_config says decode tp_size 1, but the decode "
            "engine runs with tp_size 2",
        ),
        (
            config("kv_consumer", "MooncakeHybridConnector"),
            "the prefiller uses MooncakeConnectorV1, the decoder MooncakeHybridConnector",
        ),
    ],
    ids=["decode size", "connector"],
)
def test_sizes_that_disagree_are_refused(
    yard: Yard, prefiller: Standin, arguments: list[str], text: str
) -> None:
    decoder = yard.start(*arguments).ready()
    status, answer = decode(decoder, prefill(prefiller.ready()))
    assert status == 500
    assert text in answer["error"]["message"]
    assert decoder.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer") == 0


def test_an_engine_is_held_to_its_own_sizes_and_to_no_others(yard: Yard) -> None:
    refused = [
        (["-tp", "2", *config("kv_producer", prefill_tp=1)], "prefill", "tensor", "2, but got 1"),
        (["-tp", "2", *config("kv_both", decode_tp=1)], "decode", "tensor", "2, but got 1"),
        (["-dp", "2", *config("kv_consumer")], "decode", "data", "2, but got 1"),
    ]
    started = [(yard.start(*arguments), said) for arguments, *said in refused]
    odd = yard.start("-tp", "2", *config("kv_producer", decode_tp=1, prefill_tp=2))
    told = yard.start(*config("kv_consumer", prefill_tp=9))
    for server, (side, kind, sizes) in started:
        assert server.exit_code() == 1
        text = f"KV transfer '{side}' config has a conflicting {kind} parallel size. Expected "
        assert f"{text}{sizes}." in server.log
    assert decode(told.ready(), prefill(odd.ready()))[0] == 200  # what it announces counts


def test_plain_requests_are_computed_locally(yard: Yard) -> None:
    decoder = yard.start(*config("kv_consumer")).ready()
    assert decoder.complete("one two three", max_tokens=2)[0] == 200
    assert decoder.metric("vllm:prompt_tokens_by_source_total", source="local_compute") == 3


def test_a_server_without_connector_ignores_the_handoff(served: Standin) -> None:
    status, answer = served.complete("one two", max_tokens=1, kv_transfer_params=ASK)
    assert (status, answer["kv_transfer_params"]) == (200, None)
    served.says("Got KVTransferParams, but no KVConnector found")


def test_example_connector_is_accepted_and_unknown_ones_are_not(yard: Yard) -> None:
    value = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": "/tmp/x"},
    }
    good = yard.start("--kv-transfer-config", json.dumps(value))
    bad = yard.start(*config("kv_both", "MoonConnector", prefill_tp=1))
    assert bad.exit_code() == 1
    assert "ValueError: Unsupported connector type: MoonConnector" in bad.log
    assert good.ready().complete(max_tokens=1)[0] == 200


def test_overlapping_kv_ports_on_one_node(yard: Yard) -> None:
    first = yard.start("-tp", "2", *config("kv_producer")).ready()
    second = yard.start("-tp", "2", *config("kv_producer", port=30001), address=first.address)
    assert second.exit_code() == 1
    assert "KV handoff port" in second.log
