"""Condense a dump of the `vllm serve` parser into the stand-in's options table and the linter's.

Enters: the path of the dump (JSON: `{"vllm": version, "flags": [{flags, nargs, takes_value, kind,
type, choices, default}]}`). Leaves: `flags.json` beside this file, one option a line. Run by hand
when the table is to follow a newer vLLM: `python rehearsal/make_flags.py DUMP.json`.

Why condensed: the dump names vLLM's private parser functions as types. The table names what a value
must look like: `int float str json json-or-str human-int human-int-or-auto` (null: any text).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

JSON_TYPES = {"loads", "parse_dataclass", "_parse_type"}
"""Parser functions of vLLM that refuse what is not JSON."""

OPTIONAL: dict[str, str] = {
    "--max-log-len": "int",
    "--grpc-port": "int",
    "--distributed-timeout-seconds": "int",
    "--cpu-distributed-timeout-seconds": "int",
    "--numa-bind-nodes": "int",
    "--max-parallel-loading-workers": "int",
    "--kv-cache-memory-bytes": "human-int",
    "--num-gpu-blocks-override": "int",
    "--prefix-cache-retention-interval": "int",
    "--mamba-block-size": "int",
    "--kv-offloading-size": "float",
    "--video-pruning-rate": "float",
    "--max-cpu-loras": "int",
    "--max-lora-cls-labels": "int",
    "--max-num-scheduled-tokens": "int",
    "--max-num-active-seqs": "int",
    "--max-num-queued-reqs": "int",
    "--max-num-queued-tokens": "int",
    "--quantization-config": "json",
    "--pooler-config": "json",
    "--mm-processor-kwargs": "json",
    "--default-mm-loras": "json",
    "--custom-histogram-buckets": "json",
    "--speculative-config": "json",
    "--watermark-config": "json",
    "--diffusion-config": "json",
    "--kv-transfer-config": "json",
    "--kv-events-config": "json",
    "--ec-transfer-config": "json",
    "--engram-config": "json",
    "--reasoning-config": "json",
    "--weight-transfer-config": "json",
}
"""What vLLM's `_optional_type` wraps, by option; every other one is text."""

KINDS = {
    "HelpAction": "help",
    "StoreTrueAction": "true",
    "BooleanOptionalAction": "boolean",
    "AppendAction": "append",
}


def value_type(option: dict[str, Any]) -> str | None:
    """What a value of this option must look like, from its parser function in the dump."""
    name, source = option["flags"][0], option["type"]
    if source in JSON_TYPES:
        return "json"
    if source == "_optional_type":
        return OPTIONAL.get(name, "str")
    plain = {
        "union_dict_and_str": "json-or-str",
        "human_readable_int": "human-int",
        "human_readable_int_or_auto": "human-int-or-auto",
        "<lambda>": "str",
    }
    kind: str | None = plain.get(source, source)
    return kind


def condense(dump: dict[str, Any]) -> dict[str, Any]:
    """The table for a dump: pure."""
    options = []
    for option in dump["flags"]:
        options.append(
            {
                "names": option["flags"],
                "nargs": option["nargs"],
                "takes_value": option["takes_value"],
                "kind": KINDS.get(option["kind"], "store"),
                "type": value_type(option),
                "choices": option["choices"],
                "default": None if option["default"] == "==SUPPRESS==" else option["default"],
            }
        )
    return {"vllm": dump["vllm"], "options": options}


def main(argv: list[str]) -> int:
    """Write the table; exit code 2 when the argument is missing."""
    if len(argv) != 2:
        print(f"usage: {argv[0]} DUMP.json", file=sys.stderr)
        return 2
    table = condense(json.loads(Path(argv[1]).read_text(encoding="utf-8")))
    lines = ",\n".join(json.dumps(option) for option in table["options"])
    root = Path(__file__).resolve().parent.parent
    for target in (
        root / "rehearsal/engine/flags.json",
        root / "steps/core/vllm/data/vllm_flags.json",
    ):
        target.write_text(
            f'{{"vllm": {json.dumps(table["vllm"])}, "options": [\n{lines}\n]}}\n',
            encoding="utf-8",
        )
        print(f"{target}: {len(table['options'])} options of vLLM {table['vllm']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
