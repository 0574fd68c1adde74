"""The KV cache pool of a case.

Enters: the value of ``kv_pool``. Leaves: a :class:`KvPool`, and what is wrong with it.
Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steps.core.case import content
from steps.core.case.case import KvPool

#: Takes a rule, a message, a hint and the words of a YAML path.
Report = Callable[..., None]
#: Characters of a pool's configuration on all nodes together.
MAX_POOL = 8 << 20


def build(entry: Any, nodes: int, problem: Report) -> KvPool | None:
    """The pool of a case whose form is right; ``problem`` is told what is wrong with it."""
    if not entry:
        return None
    kind = entry["type"]
    mine = {
        "mooncake": ("master_port", "metrics_port"),
        "memcache": ("meta_service_port", "config_store_port"),
    }
    for owner, keys in mine.items():
        for key in keys:
            if owner != kind and key in entry:
                problem("MN018", f"belongs to {owner}, found type {kind}", "", "kv_pool", key)
    defaults = {
        "master_port": 50051,
        "metrics_port": 9003,
        "meta_service_port": 5000,
        "config_store_port": 6000,
    }
    ports = {key: entry.get(key, defaults[key]) for key in mine[kind]}
    if len({*ports.values()}) < len(ports):
        first, second = ports
        message = f"is {ports[second]}, and so is {first}"
        problem("MN018", message, "Each has a port of its own.", "kv_pool", second)
    config = entry.get("config") or {}
    for part in ("meta", "local") if kind == "memcache" else ():
        where = ("kv_pool", "config", part)
        if part not in config:
            hint = "Give the lines of its file, as a mapping."
            problem("MN004", f"required key '{part}' is missing", hint, *where)
        elif not isinstance(config[part], dict):
            problem("MN006", f"found {config[part]!r:.80}, expected a mapping", "", *where)
    if nodes * len(str(config)) > MAX_POOL:
        found = f"{len(str(config)):,} characters of config on each node"
        problem("MN016", f"found {found}", "No fleet is so large; correct it.", "kv_pool")
    content.plain(config, problem, "kv_pool", "config")
    return KvPool(kind, ports, config)
