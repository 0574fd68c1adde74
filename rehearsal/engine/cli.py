"""The command line of the stand-in `vllm`: refuses what the real one refuses, with its words and
exit codes.

Enters: argv and the option table `flags.json`. Leaves: a `ServeArgs`, or SystemExit (2 for a
command that
does not parse, 1 for sizes that disagree, 0 for help and version). Writes only to the two output
streams.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rehearsal.base import console
from rehearsal.engine import access
from rehearsal.engine.access import Access
from rehearsal.handoff.kvconfig import KvConfig, check_fields, conflict, read_config

TABLE = Path(__file__).resolve().parent / "flags.json"
COMMANDS = "{chat,complete,serve,launch,bench,collect-env,run-batch}"
DEFAULT_MODEL_LENGTH = 131072
"""Stands for what a model's own configuration says when `--max-model-len` is not given."""


class _Parser(argparse.ArgumentParser):
    """argparse with vLLM's way to write usage: one line, then the error."""

    def error(self, message: str) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.write(f"{self.usage_line()}\n{self.prog}: error: {message}\n")
        sys.exit(2)

    def usage_line(self) -> str:
        if self.prog == "vllm":
            return f"usage: vllm [-h] [-v]\n            {COMMANDS} ..."
        return "usage: vllm serve [model_tag] [options]"

    def format_help(self) -> str:
        if self.prog == "vllm":
            return f"{self.usage_line()}\n\nrehearsal stand-in of vLLM: serves, and only serves\n"
        names = "\n".join(f"  {', '.join(option['names'])}" for option in load_table()["options"])
        return f"{self.usage_line()}\n\noptions:\n{names}\n"


def load_table() -> dict[str, Any]:
    """The option table: `{"vllm": version, "options": [...]}`."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def human_int(text: str) -> int:
    """`32k` is 32000, `32K` is 32768, `25.6k` is 25600; a plain integer is itself."""
    shape = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text.strip())
    if not shape:
        return int(text)
    number, unit = shape.groups()
    power = "kmgt".index(unit.lower()) + 1
    if unit.isupper():
        if "." in number:
            raise argparse.ArgumentTypeError(
                f"Decimals are not allowed with binary suffixes like {unit}. Did you mean to use "
                f"{number}{unit.lower()} instead?"
            )
        return int(int(number) * 1024**power)
    return int(float(number) * 1000**power)


def human_int_or_auto(text: str) -> int:
    """As `human_int`; `auto` is -1."""
    return -1 if text.strip().lower() == "auto" else human_int(text)


human_int.__name__ = "human_readable_int"
human_int_or_auto.__name__ = "human_readable_int_or_auto"


def _json_value(name: str) -> Any:
    title = "".join(
        part.capitalize()
        for part in name.lstrip("-").replace("kv-transfer", "KV-transfer").split("-")
    )
    title = title.replace("Kv", "KV")

    def parse(text: str) -> Any:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"1 validation error for {title}\n  Invalid JSON: {error} [type=json_invalid, "
                f"input_value={text[:60]!r}, input_type=str]"
            ) from None
        if name == "--kv-transfer-config" and isinstance(value, dict):
            found = check_fields(value)
            if found:
                lines = "".join(
                    f"\n{field}\n  {message}" if field else f"\n  {message}"
                    for field, message in found
                )
                plural = "s" if len(found) > 1 else ""
                raise argparse.ArgumentTypeError(
                    f"{len(found)} validation error{plural} for {title}{lines}"
                )
        if name.endswith("-config") and value is not None and not isinstance(value, dict):
            raise argparse.ArgumentTypeError(
                f"1 validation error for {title}\n  Input should be an object "
                f"[type=dataclass_type, input_value={text[:60]!r}, "
                f"input_type={type(value).__name__}]"
            )
        return value

    return parse


def _json_or_text(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"Value {text} cannot be converted to {json.loads}: {error}"
        ) from None


#: Choices that vllm-ascend adds to vLLM's.
PLUGIN = {"--kv-cache-dtype": ("int8",)}
TYPES: dict[str | None, Any] = {
    None: None,
    "str": str,
    "int": int,
    "float": float,
    "human-int": human_int,
    "human-int-or-auto": human_int_or_auto,
    "json-or-str": _json_or_text,
}


def _optional(convert: Any) -> Any:
    def parse(text: str) -> Any:
        return None if text in ("", "None") else convert(text)

    parse.__name__ = getattr(convert, "__name__", "value")
    return parse


def build_parser(table: dict[str, Any]) -> argparse.ArgumentParser:
    """The parser of `vllm`, with `serve` below it."""
    # A fixed width: argparse would ask for the terminal's for each of the 317 options.
    formatter = functools.partial(argparse.HelpFormatter, width=100)
    parser = _Parser(prog="vllm", formatter_class=formatter)
    parser.add_argument("-v", "--version", action="version", version=table["vllm"])
    commands = parser.add_subparsers(dest="subparser", metavar=COMMANDS)
    serve = commands.add_parser("serve", prog="vllm serve", formatter_class=formatter)
    serve.add_argument("model_tag", nargs="?", default=None)
    for option in table["options"]:
        names = [
            name
            for name in option["names"]
            if option["kind"] != "boolean" or not name.startswith("--no-")
        ]
        if option["kind"] == "help":
            continue
        if option["kind"] == "true":
            serve.add_argument(*names, action="store_true")
        elif option["kind"] == "boolean":
            serve.add_argument(
                *names, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS
            )
        else:
            convert = _json_value(names[0]) if option["type"] == "json" else TYPES[option["type"]]
            if convert and option["default"] is None and option["type"] != "json":
                convert = _optional(convert)
            serve.add_argument(
                *names,
                action="append" if option["kind"] == "append" else "store",
                nargs=option["nargs"],
                type=convert,
                choices=[*option["choices"], *PLUGIN.get(names[0], ())]
                if option["choices"]
                else None,
                metavar=names[0].lstrip("-").upper().replace("-", "_"),
                default=argparse.SUPPRESS,
            )
    return parser


def normalise(argv: list[str]) -> list[str]:
    """What vLLM does before argparse: underscores to dashes, `--config.key v` to JSON, a warning
    for duplicates.
    """
    done: list[str] = []
    nested: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    position = 0
    while position < len(argv):
        item = argv[position]
        position += 1
        if not item.startswith("--") or " " in item.split("=", 1)[0]:
            done.append(item)
            continue
        key, equals, value = item.partition("=")
        key = (
            "--"
            + key[2:].split(".", 1)[0].replace("_", "-")
            + key[2:][len(key[2:].split(".", 1)[0]) :]
        )
        if "." in key:
            if not equals and position < len(argv):
                value, position = argv[position], position + 1
            name, path = key.split(".", 1)
            _nest(nested.setdefault(name, {}), path.split("."), value)
            continue
        seen[key] = seen.get(key, 0) + 1
        done.append(key + equals + value)
    duplicates = [key for key, count in seen.items() if count > 1]
    if duplicates:
        console.warning("argparse_utils.py:252", f"Found duplicate keys {', '.join(duplicates)}")
    for name, values in nested.items():
        done += [name, json.dumps(values)]
    return done


def _nest(target: dict[str, Any], path: list[str], text: str) -> None:
    for part in path[:-1]:
        target = target.setdefault(part, {})
    try:
        target[path[-1]] = json.loads(text)
    except ValueError:
        target[path[-1]] = text


@dataclass(frozen=True)
class ServeArgs:
    """What the stand-in needs of a `vllm serve` command."""

    model: str
    served_names: tuple[str, ...]
    host: str | None
    port: int
    headless: bool
    tp: int
    pp: int
    pcp: int
    nnodes: int
    dp_size: int
    dp_local: int
    dp_start: int
    dp_address: str
    dp_port: int
    mode: str
    """How requests find engines: `internal` (this server to all), `hybrid` or `external` (to its
    own only).
    """
    max_model_len: int
    max_num_seqs: int
    block_size: int
    num_blocks: int | None
    kv: KvConfig | None
    access: Access
    access_log: bool
    quiet_stats: bool
    raw: dict[str, Any]

    @property
    def world_size(self) -> int:
        """Devices of one data-parallel rank on this node."""
        return max(1, self.tp * self.pp * self.pcp // self.nnodes)


def parse(argv: list[str]) -> ServeArgs:
    """The command of `vllm` as values; SystemExit as the real command would end."""
    parser = build_parser(load_table())
    names = vars(parser.parse_args(normalise(argv)))
    if names.get("subparser") != "serve":
        sys.stdout.write(parser.format_help())
        sys.exit(0 if not argv else 2)
    return _interpret(names)


def _fail(message: str, title: str = "ParallelConfig") -> NoReturn:
    sys.stderr.write(
        "Traceback (most recent call last):\n"
        f'  File "vllm/engine/arg_utils.py", line 1721, in create_engine_config\n'
        f"pydantic_core._pydantic_core.ValidationError: 1 validation error for {title}\n"
        f"  Value error, {message} [type=value_error]\n"
    )
    sys.exit(1)


def _interpret(names: dict[str, Any]) -> ServeArgs:
    def get(name: str, default: Any) -> Any:
        value = names.get(name)
        return default if value is None else value

    model = names.get("model_tag") or get("model", "Qwen/Qwen3-0.6B")
    for name in (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "decode_context_parallel_size",
        "data_parallel_size",
        "nnodes",
    ):
        if get(name, 1) < 1:
            _fail(f"{name} must be at least 1, got {names[name]}")
    headless, size, rank = (
        get("headless", False),
        get("data_parallel_size", 1),
        names.get("data_parallel_rank"),
    )
    local, start = names.get("data_parallel_size_local"), names.get("data_parallel_start_rank")
    if get("tensor_parallel_size", 1) % get("decode_context_parallel_size", 1):
        _fail(
            f"tp_size={get('tensor_parallel_size', 1)} must be divisible by "
            f"dcp_size={names['decode_context_parallel_size']}."
        )
    if local is not None and local > size:
        _fail(f"data_parallel_size_local ({local}) must be <= data_parallel_size ({size})")
    if headless and names.get("api_server_count"):
        _raise(
            f"--api-server-count={names['api_server_count']} cannot be used with --headless "
            "(no API servers are started in headless mode)."
        )
    mode = "internal"
    if rank is not None:
        if not 0 <= rank < size:
            _fail(f"data_parallel_rank ({rank}) must be in the range [0, {size})")
        if start is not None:
            _raise("data_parallel_start_rank cannot be set together with data_parallel_rank")
        mode, start, local = "external", rank, 1
    elif get("data_parallel_hybrid_lb", False) or (start and not headless):
        if local is None:
            _raise("data_parallel_size_local must be set to use data_parallel_hybrid_lb.")
        mode = "hybrid"
    local = size if local is None else local
    start = start or 0
    if headless and local < 1:
        _raise("data_parallel_size_local must be > 0 in headless mode")
    if start + local > size:
        _fail(
            f"data_parallel_start_rank ({start}) + data_parallel_size_local ({local}) must be <= "
            f"data_parallel_size ({size})"
        )
    why = conflict(get("kv_transfer_config", {}), get("tensor_parallel_size", 1), size)
    if why:
        _fail(why, "VllmConfig")
    length = get("max_model_len", DEFAULT_MODEL_LENGTH)
    return ServeArgs(
        model=model,
        served_names=tuple(names.get("served_model_name") or [model]),
        host=names.get("host"),
        port=get("port", 8000),
        headless=headless,
        tp=get("tensor_parallel_size", 1),
        pp=get("pipeline_parallel_size", 1),
        pcp=get("prefill_context_parallel_size", 1),
        nnodes=get("nnodes", 1),
        dp_size=size,
        dp_local=local,
        dp_start=start,
        dp_address=get("data_parallel_address", get("master_addr", "127.0.0.1")),
        dp_port=get("data_parallel_rpc_port", 29550),
        mode=mode,
        max_model_len=DEFAULT_MODEL_LENGTH if length <= 0 else length,
        max_num_seqs=max(1, get("max_num_seqs", 256)),
        block_size=max(1, get("block_size", 128)),
        num_blocks=get("num_gpu_blocks_override", None),
        kv=read_config(names.get("kv_transfer_config")),
        access=access.read(names),
        access_log=not get("disable_uvicorn_access_log", False),
        quiet_stats=get("disable_log_stats", False),
        raw={
            key: value
            for key, value in names.items()
            if key not in ("subparser", "model_tag", "hf_token", "api_key")
        },
    )


def _raise(message: str) -> NoReturn:
    sys.stderr.write(
        "Traceback (most recent call last):\n"
        '  File "vllm/entrypoints/cli/serve.py", line 93, in cmd\n'
        f"ValueError: {message}\n"
    )
    sys.exit(1)
