"""`mooncake_master`, stood in for: gflags command line, its ports on the node's own address,
metrics.
"""

from __future__ import annotations

import re
import sys
from typing import NoReturn

from rehearsal.base.settings import read
from rehearsal.handoff.pool import Pool

_BY_TYPE = {
    "int32": "port rpc_port metrics_port http_metadata_server_port max_threads rpc_thread_num "
    "v minloglevel max_log_size",
    "int64": "rpc_conn_timeout_seconds put_start_discard_timeout_sec "
    "put_start_release_timeout_sec client_ttl stderrthreshold",
    "uint64": "default_kv_lease_ttl default_kv_soft_pin_ttl quota_bytes global_file_segment_size",
    "double": "eviction_ratio eviction_high_watermark_ratio",
    "bool": "enable_gc enable_ha enable_metric_reporting enable_http_metadata_server "
    "allow_evict_soft_pinned_objects rpc_enable_tcp_no_delay enable_disk_eviction "
    "enable_offload logtostderr alsologtostderr",
    "string": "etcd_endpoints cluster_id root_fs_dir rpc_address rpc_interface memory_allocator "
    "http_metadata_server_host config_path log_dir",
}
FLAGS = {name: kind for kind, names in _BY_TYPE.items() for name in names.split()}
SHAPES = {
    "int32": r"-?\d+",
    "int64": r"-?\d+",
    "uint64": r"\d+",
    "double": r"-?\d*\.?\d+(e-?\d+)?",
    "bool": r"true|false|t|f|y|n|yes|no|1|0",
    "string": r".*",
}


def parse(arguments: list[str]) -> dict[str, str]:
    """Flags by name. Raises ValueError with gflags' words."""
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        item = rest.pop(0)
        shape = re.fullmatch(r"--?([A-Za-z][\w-]*)(?:=(.*))?", item, re.DOTALL)
        if not shape:
            continue  # gflags leaves what is no flag to the program, and the master ignores it
        name, value = shape[1].replace("-", "_"), shape[2]
        if name not in FLAGS and name.startswith("no") and FLAGS.get(name[2:]) == "bool":
            name, value = name[2:], "false"
        if name not in FLAGS:
            raise ValueError(f"unknown command line flag '{name}'")
        if value is None:
            if FLAGS[name] == "bool":
                value = "true"
            elif rest:
                value = rest.pop(0)
            else:
                raise ValueError(f"flag '{item}' is missing its argument")
        if not re.fullmatch(SHAPES[FLAGS[name]], value, re.IGNORECASE | re.DOTALL):
            raise ValueError(f"illegal value '{value}' specified for {FLAGS[name]} flag '{name}'")
        values[name] = value
    return values


def main() -> NoReturn:
    """Entry of `rehearsal/bin/mooncake_master`."""
    settings = read("pool")
    try:
        flags = parse(sys.argv[1:])
    except ValueError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(1)
    host = flags.get("rpc_address", "0.0.0.0")
    ports = [(host, int(flags.get("rpc_port", flags.get("port", "50051"))))]
    if flags.get("enable_http_metadata_server", "").lower() in ("true", "t", "1", "y", "yes"):
        ports.append(
            (
                flags.get("http_metadata_server_host", "0.0.0.0"),
                int(flags.get("http_metadata_server_port", "8080")),
            )
        )
    Pool(
        settings, "Master service", ports, ("0.0.0.0", int(flags.get("metrics_port", "9003")))
    ).run()
