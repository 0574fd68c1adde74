"""The KV cache pool of a fleet: its process on node 0, and what every server is told of it.

Enters: the case's pool. Leaves: a process, files, variables. Touches nothing.

Commands, file names and keys follow the upstream harness (vllm-ascend,
multi_node) and the pools' own documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steps.core.case.case import KvPool
from steps.core.case.numbers import dumps
from steps.core.plan.cluster import Cluster, url_host
from steps.core.plan.plan import LEADER, Probe, Process

_TOOLKIT = "/usr/local/Ascend/ascend-toolkit/latest/python/site-packages"
#: Where the toolkit keeps the libraries of Mooncake's master.
_LIBRARIES = (f"{_TOOLKIT}/mooncake", _TOOLKIT)


@dataclass(frozen=True)
class Told:
    """What the servers of a node are told of the pool.

    Attributes:
        files: name -> content of files in the node's directory.
        env: further environment of the servers.
        paths: variable -> the file whose path it is.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)


def process(pool: KvPool, cluster: Cluster, env: Mapping[str, str]) -> Process:
    """The pool's process."""
    paths = cluster.paths
    if pool.type == "mooncake":
        argv: tuple[str, ...] = (
            "mooncake_master",
            "--port",
            str(pool.ports["master_port"]),
            "--metrics_port",
            str(pool.ports["metrics_port"]),
            "--eviction_high_watermark_ratio",
            "0.9",
            "--eviction_ratio",
            "0.1",
            "--default_kv_lease_ttl",
            "11000",
        )
        ports, files = [pool.ports["master_port"]], {}
        libraries = (*_LIBRARIES, *cluster.paths.get("LD_LIBRARY_PATH", ()))
        paths = {**cluster.paths, "LD_LIBRARY_PATH": libraries}
    else:
        script = "from memcache_hybrid import MetaService; MetaService.main()"
        argv = (cluster.python, "-c", script)
        ports, files = list(pool.ports.values()), {"MMC_META_CONFIG_PATH": "mmc-meta.conf"}
    leader = url_host(cluster.nodes[LEADER].address)
    urls = [f"tcp://{leader}:{port}" for port in ports]
    return Process(
        name="pool",
        kind="pool",
        argv=argv,
        env=env,
        paths=paths,
        files=files,
        probe=Probe("tcp", urls[0], tuple(urls[1:])),
        grace=10.0,
    )


def told(pool: KvPool, config: Mapping[str, Any], leader: str, index: int) -> Told:
    """What the servers of node ``index`` are told.

    Args:
        config: the pool's own, without variables.
        leader: node 0's address as a URL has it.
    """
    if pool.type == "mooncake":
        master = f"{leader}:{pool.ports['master_port']}"
        content = {**config, "master_server_address": master}
        return Told(
            {"mooncake.json": dumps(content, indent=2, sort_keys=True) + "\n"},
            {"MOONCAKE_MASTER": master},
            {"MOONCAKE_CONFIG_PATH": "mooncake.json"},
        )
    meta_url = f"tcp://{leader}:{pool.ports['meta_service_port']}"
    store_url = f"tcp://{leader}:{pool.ports['config_store_port']}"
    meta = {
        **_mapping(config.get("meta")),
        "ock.mmc.meta_service_url": meta_url,
        "ock.mmc.meta_service.config_store_url": store_url,
    }
    local = {
        **_mapping(config.get("local")),
        "ock.mmc.meta_service_url": meta_url,
        "ock.mmc.local_service.config_store_url": store_url,
    }
    files = {"mmc-local.conf": _properties(local)}
    if index == LEADER:
        files["mmc-meta.conf"] = _properties(meta)
    return Told(files, {}, {"MMC_LOCAL_CONFIG_PATH": "mmc-local.conf"})


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _properties(values: Mapping[str, Any]) -> str:
    lines = (f"{key} = {_plain(value)}\n" for key, value in sorted(values.items()))
    return "".join(lines)


def _plain(value: Any) -> str:
    """Memcache knows no ``True``."""
    return str(value).lower() if isinstance(value, bool) else str(value)
