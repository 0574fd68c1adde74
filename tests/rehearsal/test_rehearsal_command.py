"""The command line of the stand-in vllm ends as the real one does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from standins import ROOT

from rehearsal.engine import cli

KV = {"kv_connector": "MooncakeConnectorV1", "kv_role": "kv_producer", "kv_port": "30000"}

REFUSED = [
    (["--bogus", "1"], 2, "vllm: error: unrecognized arguments: --bogus 1"),
    (["--port 8080"], 2, "vllm: error: unrecognized arguments: --port 8080"),
    (
        ["--max-num-seqs", "abc"],
        2,
        "vllm serve: error: argument --max-num-seqs: invalid int value: 'abc'",
    ),
    (["--port"], 2, "vllm serve: error: argument --port: expected one argument"),
    (
        ["--kv-transfer-config", "{bad"],
        2,
        "argument --kv-transfer-config: 1 validation error for KVTransferConfig",
    ),
    (
        ["--kv-transfer-config", json.dumps({**KV, "kv_rol": 1})],
        2,
        "kv_rol\n  Unexpected keyword argument",
    ),
    (["--kv-transfer-config", json.dumps({**KV, "kv_role": "x"})], 2, "Unsupported kv_role: x"),
    (
        ["--kv-transfer-config", json.dumps({**KV, "kv_port": "x"})],
        2,
        "kv_port\n  Input should be a valid integer",
    ),
    (["--compilation-config", "[1]"], 2, "argument --compilation-config/-cc: 1 validation error"),
    (
        ["--additional-config", "{bad"],
        2,
        "argument --additional-config: Value {bad cannot be converted",
    ),
    (["--dtype", "float99"], 2, "argument --dtype: invalid choice: 'float99'"),
    (
        ["--max-log", "1"],
        2,
        "ambiguous option: --max-log could match --max-log-len, --max-logprobs",
    ),
    (["--enforce-eager", "yes"], 2, "unrecognized arguments: yes"),
    (["--max-model-len", "8.5K"], 2, "argument --max-model-len: Decimals are not allowed"),
    (
        ["-dp", "2", "--data-parallel-size-local", "3"],
        1,
        "data_parallel_size_local (3) must be <= data_parallel_size (2)",
    ),
    (
        ["-dp", "2", "--data-parallel-rank", "2"],
        1,
        "data_parallel_rank (2) must be in the range [0, 2)",
    ),
    (["-tp", "0"], 1, "tensor_parallel_size must be at least 1"),
    (
        [
            "-dp",
            "4",
            "--headless",
            "--data-parallel-size-local",
            "2",
            "--data-parallel-start-rank",
            "3",
        ],
        1,
        "must be <= data_parallel_size (4)",
    ),
]


@pytest.mark.parametrize(
    ("argv", "code", "text"), REFUSED, ids=[" ".join(row[0])[:40] for row in REFUSED]
)
def test_refuses_like_the_real_one(
    argv: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.parse(["serve", "M", *argv])
    assert end.value.code == code
    assert text in capsys.readouterr().err


def test_accepts_what_the_real_one_accepts(capfd: pytest.CaptureFixture[str]) -> None:
    args = cli.parse(
        [
            "serve",
            "M",
            "--port",
            "1",
            "--max-num-seq",
            "7",
            "--additional_config",
            '{"a": 1}',
            "--no-enable-prefix-caching",
            "--max-model-len=8k",
            "--compilation-config.mode",
            "3",
            "-tp",
            "4",
            "--port=2",
            "--quantization",
            "None",
            "--served-model-name",
            "a",
            "b",
        ]
    )
    assert (args.port, args.max_num_seqs, args.max_model_len, args.tp) == (2, 7, 8000, 4)
    assert args.served_names == ("a", "b")
    assert args.raw["additional_config"] == {"a": 1}
    assert args.raw["enable_prefix_caching"] is False
    assert args.raw["compilation_config"] == {"mode": 3}
    assert args.raw["quantization"] is None
    assert "WARNING" in (out := capfd.readouterr().out)
    assert "Found duplicate keys --port\n" in out


def test_table_is_whole() -> None:
    table = cli.load_table()
    assert table["vllm"] == "0.32.0"
    assert len(table["options"]) == 317
    keys = {"names", "nargs", "takes_value", "kind", "type", "choices", "default"}
    assert all(set(option) == keys for option in table["options"])
    assert {option["kind"] for option in table["options"]} == {
        "store",
        "boolean",
        "true",
        "append",
        "help",
    }
    assert {option["type"] for option in table["options"]} == {None, *cli.TYPES, "json"}


@pytest.mark.parametrize(
    ("argv", "mode", "start", "local"),
    [
        (["-dp", "4"], "internal", 0, 4),
        (["-dp", "4", "--data-parallel-size-local", "2"], "internal", 0, 2),
        (
            ["-dp", "4", "--data-parallel-size-local", "2", "--data-parallel-start-rank", "2"],
            "hybrid",
            2,
            2,
        ),
        (["-dp", "4", "--data-parallel-rank", "3"], "external", 3, 1),
    ],
)
def test_data_parallel_modes(argv: list[str], mode: str, start: int, local: int) -> None:
    args = cli.parse(["serve", "M", *argv])
    assert (args.mode, args.dp_start, args.dp_local) == (mode, start, local)


def test_sizes_inside_a_multi_connector() -> None:
    inner = [
        {
            **KV,
            "kv_connector_extra_config": {
                "prefill": {"dp_size": 2, "tp_size": 8},
                "decode": {"dp_size": 4, "tp_size": 4},
            },
        },
        {"kv_connector": "AscendStoreConnector", "kv_role": "kv_producer"},
    ]
    config = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_producer",
        "engine_id": "7",
        "kv_connector_extra_config": {"connectors": inner},
    }
    kv = cli.parse(["serve", "M", "--kv-transfer-config", json.dumps(config)]).kv
    assert kv is not None
    assert (kv.connector, kv.port, kv.engine_id, kv.unknown) == (
        "MooncakeConnectorV1",
        30000,
        "7",
        (),
    )
    assert kv.decode_tp == 4


def test_version_and_help() -> None:

    launcher = ROOT / "rehearsal" / "bin" / "vllm"
    version = subprocess.run(
        [launcher, "--version"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert version.stdout == "0.32.0\n"
    usage = subprocess.run(
        [sys.executable, launcher, "serve", "--help"], capture_output=True, text=True, check=True
    )
    assert "--data-parallel-size, -dp" in usage.stdout


def test_choices_of_the_plugin_are_taken() -> None:
    assert cli.parse(["serve", "M", "--kv-cache-dtype", "int8"])
