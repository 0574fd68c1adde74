"""Values of `vllm serve` that are JSON: form, keys, their level, what is refused.

Sources: the fields of vLLM 0.32's KVTransferConfig, SpeculativeConfig and
CompilationConfig, and vllm-ascend's documentation of ``--additional-config``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from steps.core.errors import Place, Severity
from steps.core.vllm import options
from steps.core.vllm.commandline import integer, parse_json
from steps.lint.fleet import Fleet, Server
from steps.lint.registry import Finding, rule
from steps.lint.spelling import FALSE, TRUE, one_away, shortened

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
JSON_OPTIONS = (
    "--kv-transfer-config",
    "--speculative-config",
    "--compilation-config",
    "--additional-config",
)


@rule("MN110", ERROR, "JSON that does not parse")
def broken_json(fleet: Fleet) -> Iterator[Finding]:
    """The value is not JSON (a comma missing or too many, `True` for `true`, quotes that the
    command line ate), or not a mapping where one is wanted."""
    for server, option in fleet.options():
        spec = option.spec
        if spec is None or option.part or spec.type not in ("json", "json-or-str"):
            continue
        for value in option.values[:1]:
            place = server.command.place(option.value_at)
            if "$" in value and not value.startswith("{"):
                continue
            try:
                data = parse_json(value)
            except ValueError as error:
                if spec.type == "json-or-str" and value[:1] not in "{[":
                    continue
                if spec.name == "--compilation-config" and re.fullmatch(r"\w+", value):
                    continue
                yield Finding(
                    f"{spec.name}: not JSON: {_json_reason(value, error)}",
                    place,
                    _json_hint(value),
                )
                continue
            mapping = (*JSON_OPTIONS, "--hf-overrides", "--attention-config", "--profiler-config")
            plain_number = spec.name == "--compilation-config" and isinstance(data, int)
            if spec.name in mapping and not isinstance(data, dict) and not plain_number:
                yield Finding(
                    f"{spec.name}: found {shortened(value)!r}, expected a JSON mapping", place
                )


def _json_reason(text: str, error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        around = " ".join(text[max(error.pos - 12, 0) : error.pos + 12].split())
        return f"{error.msg} near '{around}'" if around else error.msg
    return str(error)


def _json_hint(text: str) -> str:
    if re.search(r"[:\[,{]\s*(True|False|None)\b", text):
        return "JSON writes true, false and null."
    if text[:1] == "{" and '"' not in text:
        return "The command line took the quotes away: put the whole value in single quotes."
    if "'" in text:
        return "JSON wants double quotes inside, single quotes around the whole value."
    return "Check the commas, the brackets and the quotes."


def _levels(server: Server) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(option, path in it, mapping) for each mapping whose keys are known."""
    for entry in _transfer_levels(server.kv, ""):
        yield ("--kv-transfer-config", *entry)
    for name in ("--speculative-config", "--compilation-config"):
        value = server.command.mapping(name)
        if value:
            yield name, "", value


def _transfer_levels(config: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if config:
        yield path, config
    extra = config.get("kv_connector_extra_config")
    nested = extra.get("connectors") if isinstance(extra, dict) else None
    for number, entry in enumerate(nested if isinstance(nested, list) else ()):
        if isinstance(entry, dict):
            inner = f"{path}kv_connector_extra_config.connectors[{number}]."
            yield from _transfer_levels(entry, inner)


def _known_keys(option: str) -> tuple[set[str], set[str]]:
    table = options.tables()[option[2:].replace("-", "_")]
    return set(table["keys"]), set(table["former"])


@rule("MN111", ERROR, "Unknown key in JSON")
def unknown_key(fleet: Fleet) -> Iterator[Finding]:
    """vLLM refuses keys it does not know in `kv-transfer-config`, `speculative-config` and
    `compilation-config`. An error when the key is near a known one, a warning when it may belong
    to another release. Plugins change: in `additional-config` it is always a warning."""
    for server in fleet.commands:
        for option, path, mapping in _levels(server):
            keys, former = _known_keys(option)
            for key in mapping:
                if key in keys or _misplaced(option, path, key):
                    continue
                known = sorted(keys - set(mapping))
                close = difflib.get_close_matches(str(key)[:60], known, 1, 0.8)
                surely = (
                    bool(close)
                    and key not in former
                    and (one_away(str(key), close[0]) or _ratio(str(key), close[0]) > 0.9)
                )
                yield Finding(
                    f"{option[2:]}: unknown key '{path}{key}'",
                    server.key_place(option, str(key)),
                    f"Did you mean '{close[0]}'?" if surely else "Check it against your vLLM.",
                    severity=ERROR if surely else WARNING,
                )
        yield from _unknown_extra(server)
        yield from _unknown_additional(server)


def _unknown_extra(server: Server) -> Iterator[Finding]:
    table = options.tables()["kv_transfer_config"]
    for entry in server.transfers:
        extra = entry.get("kv_connector_extra_config")
        if not isinstance(extra, dict):
            continue
        groups = [("", extra, table["extra"])]
        groups += [
            (f"{side}.", extra[side], table["sides"])
            for side in ("prefill", "decode")
            if isinstance(extra.get(side), dict)
        ]
        for path, mapping, known in groups:
            for key in mapping:
                if key in known or _misplaced_extra(path, key):
                    continue
                close = [
                    word
                    for word in _CERTAIN
                    if word in known
                    and word not in mapping
                    and str(key)[:1] == word[:1]
                    and one_away(str(key), word)
                ]
                if close:
                    yield Finding(
                        f"kv-transfer-config: unknown key 'kv_connector_extra_config.{path}{key}'",
                        server.key_place("--kv-transfer-config", str(key)),
                        f"Did you mean '{close[0]}'? A wrong key is silently ignored.",
                    )


#: Keys of kv_connector_extra_config that every release has; others come and go with connectors.
_CERTAIN = ("prefill", "decode", "connectors", "dp_size", "tp_size", "pp_size")


def _ratio(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()


def _unknown_additional(server: Server) -> Iterator[Finding]:
    config = server.command.mapping("--additional-config")
    keys = options.tables()["additional_config"]["keys"]
    groups = [("", config, keys[""])]
    groups += [
        (f"{name}.", value, keys[name])
        for name, value in config.items()
        if isinstance(value, dict) and keys.get(name)
    ]
    for path, mapping, known in groups:
        for key in mapping:
            if key in known or _misplaced_additional(path, key):
                continue
            close = difflib.get_close_matches(str(key)[:60], known, 1, 0.8)
            yield Finding(
                f"additional-config: unknown key '{path}{key}'",
                server.key_place("--additional-config", str(key)),
                f"Did you mean '{close[0]}'?" if close else "Check it against your vllm-ascend.",
                severity=WARNING,
            )


def _misplaced(option: str, path: str, key: str) -> str:
    """Where a key of kv-transfer-config belongs that stands at its top; empty: nowhere else."""
    table = options.tables()
    if option == "--kv-transfer-config":
        extra = table["kv_transfer_config"]["extra"]
        return f"{path}kv_connector_extra_config" if key in extra else ""
    if option == "--speculative-config" and key in table["compilation_config"]["keys"]:
        return "--compilation-config"
    if option == "--compilation-config":
        if key in ("num_speculative_tokens", "method"):
            return "--speculative-config"
        if key in table["additional_config"]["keys"][""]:
            return "--additional-config"
    return ""


def _misplaced_extra(path: str, key: str) -> str:
    table = options.tables()["kv_transfer_config"]
    if key in table["keys"]:
        return "the top of kv-transfer-config"
    if path and key in ("prefill", "decode", "use_ascend_direct", "connectors"):
        return "kv_connector_extra_config"
    if not path and key in ("dp_size", "tp_size"):
        return "kv_connector_extra_config.prefill or .decode"
    return ""


def _misplaced_additional(path: str, key: str) -> str:
    table = options.tables()["additional_config"]
    if not path:
        return str(table["moved"].get(key, ""))
    here = path.rstrip(".")
    if key in table["keys"].get(here, ()):
        return ""
    if key in table["keys"][""]:
        return "the top of additional-config"
    homes = [name for name, keys in table["keys"].items() if name and key in keys]
    return homes[0] if len(homes) == 1 else ""


@rule("MN112", ERROR, "JSON key at the wrong level")
def wrong_level(fleet: Fleet) -> Iterator[Finding]:
    """A known key stands one level too deep or too high, where nobody reads it: connectors and
    plugins ignore it silently. In `additional-config` it is a warning, since keys moved between
    releases; a default there changes nothing and is an info, once a file."""
    defaults: dict[str, list[Finding]] = {}
    for server in fleet.commands:
        for option, path, mapping in _levels(server):
            keys, _ = _known_keys(option)
            for key in mapping:
                home = "" if key in keys else _misplaced(option, path, key)
                if home:
                    yield Finding(
                        f"{option[2:]}: '{path}{key}' stands at the wrong level",
                        server.key_place(option, str(key)),
                        f"It belongs in {home}.",
                    )
        for entry in server.connectors:
            extra = entry.get("kv_connector_extra_config")
            if not isinstance(extra, dict):
                continue
            for path, inner in (
                ("", extra),
                ("prefill.", extra.get("prefill")),
                ("decode.", extra.get("decode")),
            ):
                for key in inner if isinstance(inner, dict) else ():
                    home = _misplaced_extra(path, key)
                    if home:
                        yield Finding(
                            f"kv-transfer-config: 'kv_connector_extra_config.{path}{key}' stands "
                            "at the wrong level",
                            server.key_place("--kv-transfer-config", str(key)),
                            f"It belongs in {home}.",
                        )
        config = server.command.mapping("--additional-config")
        levels = [("", config)]
        levels += [(f"{k}.", v) for k, v in config.items() if isinstance(v, dict)]
        table = options.tables()["additional_config"]["keys"]
        for path, mapping in levels:
            if path and path.rstrip(".") not in table:
                continue
            for key, value in mapping.items():
                home = _misplaced_additional(path, str(key))
                if not home:
                    continue
                finding = Finding(
                    f"additional-config: '{path}{key}' stands at the wrong level",
                    server.key_place("--additional-config", str(key)),
                    f"It belongs in {home}.",
                    severity=WARNING,
                )
                if _DEFAULTS.get(key) != value:
                    yield finding
                    continue
                defaults.setdefault(key, []).append(finding)
    for first, *rest in defaults.values():
        places = tuple(each.place for each in rest)
        hint = f"{first.hint} It is the default there, so nothing is lost."
        yield replace(first, hint=hint, related=places, severity=INFO)


#: Keys that stand at the top of additional-config in many cases, with the value they have anyway.
_DEFAULTS = {"fuse_muls_add": True}


@rule("MN115", WARNING, "Key that releases no longer read")
def gone(fleet: Fleet) -> Iterator[Finding]:
    """A key at the top of `additional-config` that vllm-ascend read once and reads no more: what
    it asks for is not what runs (a case that believes EPLB is on has it off). From 0.30 on the
    plugin refuses to start with a key it does not know. Once a file for each key."""
    table = options.tables()["additional_config"]
    places: dict[str, list[Place]] = {}
    for server in fleet.commands:
        for key in server.command.mapping("--additional-config"):
            if key in table["gone"]:
                place = server.key_place("--additional-config", key)
                places.setdefault(key, []).append(place)
    for key, (first, *rest) in places.items():
        since, last, lost = table["gone"][key]
        homes = [name for name, keys in table["keys"].items() if name and key in keys]
        yield Finding(
            f"additional-config: '{key}' was read by vllm-ascend {since} to {last}, and by no "
            f"release from {lost} on",
            first,
            f"It belongs in {homes[0]} now." if homes else "Remove it.",
            tuple(rest),
        )


#: Keys of additional-config with the only values the plugin takes (vllm-ascend, ascend_config).
_ALLOWED: dict[tuple[str, ...], tuple[int, ...]] = {
    ("enable_fused_mc2",): (0, 1),
    ("weight_nz_mode",): (0, 1, 2),
    ("eplb_config", "eplb_policy_type"): (0, 1, 2, 3),
}


@rule("MN113", ERROR, "Value the plugin refuses")
def refused_value(fleet: Fleet) -> Iterator[Finding]:
    """vllm-ascend checks some values of `additional-config` when it starts: `enable_fused_mc2` is
    0 or 1, `weight_nz_mode` 0 to 2, `eplb_policy_type` 0 to 3, switches are true or false."""
    for server in fleet.commands:
        config = server.command.mapping("--additional-config")
        for path, allowed in _ALLOWED.items():
            value: Any = config
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if value is None or isinstance(value, (dict, list)):
                continue
            number = integer(value)
            if number not in allowed:
                yield Finding(
                    f"additional-config: {'.'.join(path)} is {_shown(value)}, expected one of "
                    f"{', '.join(map(str, allowed))}",
                    server.key_place("--additional-config", path[-1]),
                    "The plugin refuses it when the engine starts.",
                )
        for key, value in config.items():
            switch = str(key).startswith("enable_") or str(key).startswith("multistream_")
            if (
                switch
                and isinstance(value, str)
                and value.lower() not in (*TRUE, *FALSE)
                and (str(key),) not in _ALLOWED
                and not value.isdigit()
            ):
                yield Finding(
                    f"additional-config: {key} is {_shown(value)}, expected true or false",
                    server.key_place("--additional-config", str(key)),
                )


_ROLES = ("kv_producer", "kv_consumer", "kv_both")
_CONNECTORS = (
    "AscendStoreConnector",
    "ExampleConnector",
    "LLMDataDistCMgrConnector",
    "LMCacheAscendConnector",
    "LMCacheConnectorV1",
    "MooncakeConnector",
    "MooncakeConnectorStoreV1",
    "MooncakeConnectorV1",
    "MooncakeHybridConnector",
    "MooncakeLayerwiseConnector",
    "MooncakeStoreConnector",
    "MooncakeStoreConnectorV1",
    "MultiConnector",
    "NixlConnector",
    "OffloadingConnector",
    "P2pNcclConnector",
    "SharedStorageConnector",
    "SimpleCPUOffloadConnector",
    "UCMConnector",
)
_MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")


@rule("MN114", ERROR, "Value vLLM refuses in JSON")
def refused_json_value(fleet: Fleet) -> Iterator[Finding]:
    """`kv_role` is `kv_producer`, `kv_consumer` or `kv_both` and goes with `kv_connector`;
    `kv_port` is a port; `cudagraph_mode` one of five words; `num_speculative_tokens` at least 1.
    An unknown connector or speculative `method` is an error only when it is near a known one."""
    for server in fleet.commands:
        for entry in (server.kv, *server.connectors):
            yield from _transfer_values(server, entry)
        compilation = server.command.mapping("--compilation-config")
        mode = compilation.get("cudagraph_mode")
        if isinstance(mode, str) and mode.upper() not in _MODES:
            yield Finding(
                f"compilation-config: cudagraph_mode is {mode!r}, expected one of "
                f"{', '.join(_MODES)}",
                server.key_place("--compilation-config", "cudagraph_mode"),
            )
        yield from _speculative_values(server)


def _shown(value: Any) -> str:
    return shortened(repr(value))


def _transfer_values(server: Server, entry: Mapping[str, Any]) -> Iterator[Finding]:
    option = "--kv-transfer-config"
    name = str(entry.get("kv_connector", ""))
    close = [known for known in _CONNECTORS if name not in _CONNECTORS and one_away(name, known)]
    if close:
        yield Finding(
            f"kv-transfer-config: there is no connector {name!r}",
            server.key_place(option, "kv_connector"),
            f"Did you mean '{close[0]}'?",
        )
    role = entry.get("kv_role")
    if entry.get("kv_connector") and role is None and "kv_rol" not in "".join(map(str, entry)):
        yield Finding(
            f"kv-transfer-config: {entry['kv_connector']} has no kv_role",
            server.key_place(option, "kv_connector"),
            f"Expected one of {', '.join(_ROLES)}.",
            severity=ERROR if entry is server.kv else WARNING,
        )
    if role is not None and role not in _ROLES:
        yield Finding(
            f"kv-transfer-config: kv_role is {_shown(role)}, expected one of {', '.join(_ROLES)}",
            server.key_place(option, "kv_role"),
        )
    port = entry.get("kv_port")
    if port is not None and "$" not in str(port):
        number = integer(port)
        if number is None or not 0 < number <= 65535:
            yield Finding(
                f"kv-transfer-config: kv_port is {_shown(port)}, expected a port from 1 to 65535",
                server.key_place(option, "kv_port"),
            )


def _speculative_values(server: Server) -> Iterator[Finding]:
    option = "--speculative-config"
    config = server.command.mapping(option)
    tokens = config.get("num_speculative_tokens")
    if tokens is not None and (integer(tokens) is None or (integer(tokens) or 0) < 1):
        yield Finding(
            f"speculative-config: num_speculative_tokens is {_shown(tokens)}, expected at least 1",
            server.key_place(option, "num_speculative_tokens"),
        )
    method = config.get("method")
    known = [word for word in options.options()["--spec-method"].choices if word != "None"]
    if isinstance(method, str) and method not in (*known, "ngram_npu"):
        close = [word for word in known if one_away(method, word)]
        yield Finding(
            f"speculative-config: vLLM {options.version()} does not know the method {method!r}",
            server.key_place(option, "method"),
            f"Did you mean '{close[0]}'?" if close else "Check it against your vLLM.",
            severity=ERROR if close else WARNING,
        )


@rule("MN116", WARNING, "Dynamic EPLB without its variable")
def dynamic_eplb(fleet: Fleet) -> Iterator[Finding]:
    """vllm-ascend asserts at start that `DYNAMIC_EPLB` (or `EXPERT_MAP_RECORD`) is true in the
    environment when `dynamic_eplb` is on."""
    for server in fleet.commands:
        config = server.command.mapping("--additional-config")
        nested = config.get("eplb_config")
        value = nested.get("dynamic_eplb") if isinstance(nested, dict) else None
        if str(value).lower() != "true":
            continue
        env = server.process.env
        on = ("true", "1")
        if str(env.get("DYNAMIC_EPLB", "")).lower() in on or (
            str(env.get("EXPERT_MAP_RECORD", "")).lower() in on
        ):
            continue
        yield Finding(
            "dynamic_eplb is on, but the environment does not have DYNAMIC_EPLB: true",
            server.key_place("--additional-config", "dynamic_eplb"),
            "Add DYNAMIC_EPLB: true to the node's environment.",
        )
