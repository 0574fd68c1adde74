"""`--kv-transfer-config`: the JSON, checked as vLLM checks it, and what a handoff needs to know of
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FIELDS = {
    "kv_connector",
    "engine_id",
    "kv_buffer_device",
    "kv_buffer_size",
    "kv_role",
    "kv_rank",
    "kv_parallel_size",
    "kv_ip",
    "kv_port",
    "kv_connector_extra_config",
    "kv_connector_module_path",
    "enable_permute_local_kv",
    "kv_load_failure_policy",
}
ROLES = ("kv_producer", "kv_consumer", "kv_both")
HANDOFF = {
    "NixlConnector",
    "MooncakeConnector",
    "MooncakeConnectorV1",
    "MooncakeHybridConnector",
    "MooncakeLayerwiseConnector",
    "P2pNcclConnector",
    "MoRIIOConnector",
}
"""Connectors that speak `kv_transfer_params`."""
STORES = {
    "ExampleConnector",
    "SharedStorageConnector",
    "ExampleHiddenStatesConnector",
    "AscendStoreConnector",
    "MooncakeConnectorStoreV1",
    "LMCacheConnectorV1",
    "LMCacheMPConnector",
    "LMCacheAscendConnector",
    "OffloadingConnector",
    "CPUOffloadingConnector",
    "DecodeBenchConnector",
    "FlexKVConnectorV1",
    "UCMConnector",
}
"""Connectors without a handoff between two servers."""


@dataclass(frozen=True)
class KvConfig:
    """What a server was told about KV transfer, as far as its handoff depends on it."""

    connector: str
    role: str
    port: int | None
    engine_id: str | None
    decode_tp: int | None
    unknown: tuple[str, ...]

    @property
    def hands_off(self) -> bool:
        """Whether the connector speaks `kv_transfer_params`."""
        return self.connector in HANDOFF


def check_fields(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Field and message of everything vLLM's validation refuses; pure."""
    found = [
        (name, "Unexpected keyword argument [type=unexpected_keyword_argument]")
        for name in config
        if name not in FIELDS
    ]
    role = config.get("kv_role")
    if role is not None and role not in ROLES:
        found.append(
            ("", f"Value error, Unsupported kv_role: {role}. Supported roles are {list(ROLES)}")
        )
    if config.get("kv_connector") is not None and role is None:
        found.append(
            (
                "",
                "Value error, Please specify kv_role when kv_connector is set, supported roles "
                f"are {list(ROLES)}",
            )
        )
    for name in ("kv_port", "kv_rank", "kv_parallel_size"):
        value = config.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            continue
        if not (isinstance(value, str) and value.strip().lstrip("-").isdecimal()):
            found.append(
                (
                    name,
                    "Input should be a valid integer, unable to parse string as an integer "
                    f"[type=int_parsing, input_value={value!r}]",
                )
            )
    for name in ("engine_id", "kv_connector"):
        if config.get(name) is not None and not isinstance(config[name], str):
            found.append(
                (
                    name,
                    "Input should be a valid string [type=string_type, "
                    f"input_value={config[name]!r}]",
                )
            )
    extra = config.get("kv_connector_extra_config", {})
    if not isinstance(extra, dict):
        found.append(
            (
                "kv_connector_extra_config",
                f"Input should be a valid dictionary [type=dict_type, input_value={extra!r}]",
            )
        )
    return found


def conflict(config: dict[str, Any], tp: int, dp: int) -> str:
    """Why vllm-ascend refuses the sizes an engine was told of itself; empty: it does not."""
    role, extra = config.get("kv_role"), config.get("kv_connector_extra_config") or {}
    sizes = (("tensor", "tp_size", tp), ("data", "dp_size", dp))
    for side, other in (("prefill", "kv_consumer"), ("decode", "kv_producer")):
        told: Any = extra.get(side)
        for kind, key, real in sizes if role != other and isinstance(told, dict) else ():
            if told.get(key, real) != real:
                return (
                    f"KV transfer '{side}' config has a conflicting {kind} parallel size. "
                    f"Expected {real}, but got {told[key]}."
                )
    return ""


def read_config(config: dict[str, Any] | None) -> KvConfig | None:
    """What a handoff needs, found also inside a MultiConnector. Expects a config that passed
    `check_fields`.
    """
    if not config or not config.get("kv_connector"):
        return None
    parts = _flatten(config)
    known = HANDOFF | STORES | {"MultiConnector"}
    unknown = tuple(
        str(part.get("kv_connector"))
        for part in parts
        if part.get("kv_connector") not in known and not part.get("kv_connector_module_path")
    )
    chosen = next(
        (part for part in parts if part.get("kv_connector") in HANDOFF),
        parts[-1] if len(parts) == 1 else parts[1],
    )

    def first(name: str) -> Any:
        return next((part[name] for part in (chosen, config) if part.get(name) is not None), None)

    extra = {
        **(config.get("kv_connector_extra_config") or {}),
        **(chosen.get("kv_connector_extra_config") or {}),
    }
    port = first("kv_port")
    told = extra.get("decode")
    width = str(told.get("tp_size", "")) if isinstance(told, dict) else ""
    return KvConfig(
        connector=str(chosen.get("kv_connector")),
        role=str(first("kv_role") or "kv_both"),
        port=None if port is None else int(port),
        engine_id=first("engine_id"),
        decode_tp=int(width) if width.isdecimal() else None,
        unknown=unknown,
    )


def _flatten(config: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [config]
    for inner in (config.get("kv_connector_extra_config") or {}).get("connectors") or []:
        if isinstance(inner, dict):
            parts.extend(_flatten(inner))
    return parts
