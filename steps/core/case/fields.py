"""The form of a case, in all dialects.

Enters: nothing. Leaves: ``FIELDS``, rule sets with a sentence for each key, and
look-ups in them. Touches nothing.

It is the single source: ``steps.core.case.check`` checks with it, the reference page
and the editors' JSON Schema are made from it. The dialects are those of
the upstream harness (vllm-ascend, tests/e2e/common); fields marked
``ours`` are multinode's additions, all optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steps.core.case.asked import BENCHMARK, MAX_NODES, MAX_RANKS, Field, checks
from steps.core.case.asked import count as _count
from steps.core.case.asked import field as _field
from steps.core.case.source import DataPath, Source

#: The phases of a run that have a budget, in their order, and after them what else has one.
PHASES = (
    "join",
    "preflight",
    "install",
    "pool",
    "load",
    "probe",
    "checks",
    "bench",
    "proof",
    "stop",
    "collect",
    "request",
)
DURATION = r"^\d+(\.\d+)?\s*(s|m|h)?$"


def _environment(doc: str) -> Field:
    return _field(
        "dict",
        doc,
        nullable=True,
        keysrules={"type": "string", "regex": r"^[A-Za-z_][A-Za-z0-9_]*$"},
        valuesrules={"type": ["string", "number", "boolean"], "nullable": True},
    )


def _index(doc: str) -> Field:
    return _field("strict_integer", doc, min=0, max=MAX_RANKS - 1)


def _port(doc: str, **rules: Any) -> Field:
    return _field("strict_integer", doc, min=1, max=65535, **rules)


def _indices(doc: str) -> Field:
    return _field("list", doc, schema=_index("A node index."))


def _texts(doc: str) -> Field:
    text = {"type": "string", "empty": False}
    return _field("list", doc, ours=True, schema=text, maxlength=100)


#: What a case may name as its ``proxy``; each is an entry of ``steps.core.plan.proxies``.
PROXIES = ("vllm-router", "script")

_COMMON: Field = {
    "test_name": _field("string", "Free name, used in reports."),
    "model": _field("string", "Hub id or path of the weights.", required=True, empty=False),
    "num_nodes": _count("Nodes of the fleet.", required=True, max=MAX_NODES),
    "npu_per_node": _field(
        "strict_integer", "Devices of each node.", required=True, min=0, max=1024
    ),
    "env_common": _environment("Environment of every node's processes."),
    "inherit": _field(
        "list",
        "Secrets of this machine's environment that local engines get all the same, by name.",
        ours=True,
        schema={"type": "string", "regex": r"^[A-Za-z_][A-Za-z0-9_]*$"},
    ),
    "cluster_hosts": _field(
        "list",
        "Addresses of the nodes in order, for plain hosts.",
        nullable=True,
        schema={"type": "string", "empty": False},
    ),
    "special_dependencies": _field(
        "dict",
        "Python packages installed on each node before start: `{package: version}`.",
        nullable=True,
        keysrules={"type": "string", "regex": r"^[A-Za-z0-9][A-Za-z0-9._\-\[\]]*$"},
        valuesrules={"type": ["string", "number"]},
    ),
    "benchmarks": _field(
        "dict",
        "What to measure, by name, in order; may be empty.",
        required=True,
        nullable=True,
        keysrules={"type": "string", "regex": r"^[^/\\\x00-\x1f]{1,100}$"},
        valuesrules={"type": "dict", "schema": BENCHMARK, "nullable": True},
    ),
    "timeouts": _field(
        "dict",
        "Budget of each phase: seconds, or text such as `45m`. `request`: how long one request of "
        "a benchmark may be silent while others are answered.",
        ours=True,
        keysrules={"type": "string", "allowed": list(PHASES)},
        valuesrules={"type": ["number", "string"], "regex": DURATION, "min_value": 0.001},
    ),
    "proxy": _field(
        ["string", "dict"],
        f"What stands in front of a prefill/decode fleet: {', '.join(f'`{p}`' for p in PROXIES)}, "
        "or a mapping with `script`, `args` or `command`.",
        ours=True,
    ),
    "dp_load_balancing": _field(
        "string",
        "`internal`: the deployment dialect; `external`: the routing dialect. It agrees with the "
        "keys of the case.",
    ),
    **checks("chat_prompts", nullable=False),
    "engine": _field("string", "Label of the engine, for reports.", ours=True),
    "rehearse": _field(
        "boolean",
        "The case has no real weights: it is always rehearsed (default false).",
        ours=True,
    ),
    "proof": _field(
        "boolean",
        "Check after the benchmarks that every side and rank served requests (default true).",
        ours=True,
    ),
    "variants": _field(
        "dict",
        "What `compare` compares when nothing else is said, by name; each changes the case.",
        ours=True,
        maxlength=100,
        keysrules={"type": "string", "regex": r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,59}$"},
        valuesrules=_field(
            "dict",
            "A variant; empty: the case as it stands.",
            nullable=True,
            schema={
                "set": _texts("Changes: `PATH=VALUE`, or `PATH+=MORE TEXT`."),
                "products": _texts("Products under test, `NAME=REF`, as `--product` takes them."),
                "image": _field("string", "Image of every node.", ours=True, empty=False),
                "gates": _texts(
                    "`metric op share * variant(NAME)`, such as "
                    "`output_throughput >= 0.97 * variant(v1)`."
                ),
            },
        ),
    ),
    "lint": _field(
        "dict",
        "Settings of the linter.",
        ours=True,
        schema={
            "ignore": {
                "type": "dict",
                "keysrules": {"type": "string", "regex": r"^MN\d{3}$"},
                "valuesrules": {"type": "string", "empty": False},
            }
        },
    ),
}

_KV_POOL = _field(
    "dict",
    "KV cache pool that runs on node 0 before any rank.",
    nullable=True,
    schema={
        "type": _field("string", "Which pool.", required=True, allowed=["mooncake", "memcache"]),
        "master_port": _port("mooncake: port of the master."),
        "metrics_port": _port("mooncake: port of its metrics."),
        "meta_service_port": _port("memcache: port of the MetaService."),
        "config_store_port": _port("memcache: port of the config store."),
        "config": _field("dict", "Content of the pool's configuration file.", nullable=True),
    },
)

DEPLOYMENT: Field = {
    **_COMMON,
    "disaggregated_prefill": _field(
        "dict",
        "Prefill/decode split.",
        nullable=True,
        schema={
            "enabled": _field("boolean", "Whether the fleet is split.", required=True),
            "prefiller_host_index": _indices("Nodes that prefill."),
            "decoder_host_index": _indices("Nodes that decode."),
        },
    ),
    "deployment": _field(
        "list",
        "One entry a node, in order.",
        required=True,
        schema={
            "type": "dict",
            "schema": {
                "name": _field(["string", "number"], "Free text."),
                "envs": _environment("Environment of this node's processes, over `env_common`."),
                "server_cmd": _field(
                    "string",
                    "The node's whole `vllm serve` command; `$NAME` comes from its environment.",
                    required=True,
                ),
                "local_index": _index("Old form: the node's index."),
                "master_index": _index("Old form: index of the node whose address is MASTER_IP."),
                "headless": _field(
                    "boolean", "Old form: not used; a node is headless by `--headless`."
                ),
                "env_extend": _environment("Old form: environment over `envs`."),
            },
        },
    ),
}

ROUTING: Field = {
    **_COMMON,
    "routing": _field(
        "dict",
        "Roles of the nodes.",
        required=True,
        schema={
            "type": _field(
                "string",
                "The kind of fleet: `disaggregated_prefill`, or `generic_dp` (no split).",
                required=True,
                allowed=["disaggregated_prefill", "generic_dp"],
            ),
            "groups": _field(
                "dict",
                "Node indices of each role.",
                required=True,
                schema={
                    "prefiller": _indices("Nodes that prefill."),
                    "decoder": _indices("Nodes that decode."),
                    "worker": _indices("Nodes of a fleet without a split (generic_dp)."),
                },
            ),
            "proxy_node_index": _index("Node of the proxy; it runs on node 0 here."),
            "proxy_host": _field("string", "Address of the proxy; node 0's here."),
            "proxy_port": _port("Port of the proxy; 1999 here."),
            "proxy_script": _field("string", "Proxy script; see `proxy`."),
        },
    ),
    "config": _field(
        "list",
        "Ports, sizes and ranks of each node.",
        required=True,
        schema={
            "type": "dict",
            "schema": {
                "node_index": _index("The node; absent: the position in the list."),
                "host": _field("string", "Address its ranks bind; `${HOST}` in templates."),
                "dp_group": _field(["string", "number"], "Label of its group; not used."),
                "node_group": _field(
                    "strict_integer",
                    "Nodes that hold one rank together.",
                    min=-1,
                    max=MAX_RANKS - 1,
                ),
                "port_start": _port("API port of the node's first rank.", required=True),
                "dp_rpc_port": _port("Port where the ranks of a group meet.", required=True),
                "dp_size": _count("Ranks of the group (default 1)."),
                "dp_size_local": _field(
                    "strict_integer", "Ranks on this node (default 1).", min=0, max=1024
                ),
                "dp_rank_start": _index("First global rank on this node (default 0)."),
                "tp_size": _count("Tensor parallel size (default 1)."),
                "cp_size": _count("Context parallel size (default 1)."),
                "sp_size": _count("Sequence parallel size (default 1)."),
                "pp_size": _count("Pipeline parallel size (default 1)."),
                "dp_address": _field(
                    "string", "Address of the group's master; may use `${NODE_0_IP}`.", empty=False
                ),
            },
        },
    ),
    "templates": _field(
        "list",
        "Environment and arguments of each node's ranks.",
        required=True,
        schema={
            "type": "dict",
            "schema": {
                "node_index": _index("The node; absent: the position in the list."),
                "name": _field(["string", "number"], "Free text."),
                "envs": _environment("Environment of this node's ranks, over `env_common`."),
                "server_cmd_template": _field(
                    "list",
                    "Arguments after `vllm serve <model>`; `${NAME}` is filled for each rank.",
                    required=True,
                    schema={"type": ["string", "number", "boolean"]},
                ),
            },
        },
    ),
    "env_prefill": _environment("Anchor only."),
    "env_decode": _environment("Anchor only."),
    "kv_pool": _KV_POOL,
}

_WORDS = {"type": ["string", "number", "boolean"]}
#: What stands for one server of its own, in ``test_cases``.
SINGLE: Field = {
    "name": _field(
        "string", "Name of the case, in reports and for `--only`.", required=True, empty=False
    ),
    "model": _COMMON["model"],
    "envs": {
        **_environment("Environment of the case's processes."),
        "required": True,
        # Upstream passes on what nobody can read, such as a name with a dash.
        "keysrules": {"type": "string", "regex": r"^[^=\s\x00]+$"},
    },
    "server_cmd": _field(
        "list",
        "Arguments after `vllm serve <model>`; `$NAME` comes from `envs`.",
        nullable=True,
        schema=_WORDS,
    ),
    "server_cmd_extra": _field(
        "list", "Arguments behind those; the later of two wins.", nullable=True, schema=_WORDS
    ),
    "service_mode": _field(
        "string",
        "`epd`: encoders, servers that prefill and decode, and a proxy, all on one node.",
        allowed=["openai", "epd"],
    ),
    "epd_server_cmds": _field(
        "list",
        "Arguments of each server behind `vllm serve`; the i-th has device i.",
        schema=_field("list", "Arguments of one server.", schema=_WORDS),
    ),
    "epd_proxy_args": _field("list", "Arguments of the proxy.", schema=_WORDS),
    "npu_per_node": _field(
        "strict_integer",
        "Devices of the node; absent: as many as the servers say.",
        ours=True,
        min=0,
        max=1024,
    ),
    **{
        key: _COMMON[key]
        for key in ("inherit", "special_dependencies", "timeouts", "engine", "rehearse")
    },
    **{key: _COMMON[key] for key in ("cluster_hosts", "proof", "variants", "lint")},
    "benchmarks": {**_COMMON["benchmarks"], "required": False},
    "kv_pool": _KV_POOL,
    **checks("prompts", nullable=True),
}
#: A file of such cases; what else is at its top holds anchors.
SEVERAL: Field = {
    "test_cases": _field(
        "list",
        "Cases of one server each, one after another.",
        required=True,
        empty=False,
        schema=_field("dict", "A case."),
    ),
}

FIELDS: dict[str, Field] = {"deployment": DEPLOYMENT, "routing": ROUTING, "single": SINGLE}

#: Every form a file of ours can have: the dialects, and what other nouns add.
FORMS: dict[str, Field] = {**FIELDS, "several": SEVERAL}


#: Keys of benchmarks that upstream's own cases have and nobody reads, here or there (to 0.30).
LATER = frozenset(
    {"bos_token_id", "do_sample", "enable_thinking", "eos_token_id", "transformers_version"}
)
#: Keys of cases that older releases, or branches of upstream, read.
OLD = frozenset(
    [
        "_DEBUG_MARKER",
        "generic_dp",
        "layerwise",
        "ranktable_gen_path",
        "ranktable_path",
        "runner_configs",
        "variables",
        "versions",
    ]
)
#: Value of ``dp_load_balancing`` -> the dialect it means, and the keys of that.
BALANCING = {
    "internal": ("deployment", ("deployment",)),
    "external": ("routing", ("routing", "config", "templates")),
}


def balanced(data: Mapping[Any, Any]) -> tuple[str, tuple[str, ...]] | None:
    """What ``dp_load_balancing`` means; None when it is not there, or means nothing."""
    return BALANCING.get(str(data.get("dp_load_balancing")).lower())


def is_several(data: Any) -> bool:
    """Whether a file holds several cases, or means to."""
    return isinstance(data, dict) and "test_cases" in data


def dialect_of(source: Source) -> str | None:
    """``single`` inside a file of several cases; else ``deployment`` or ``routing`` by the keys at
    the top; None when neither shows.
    """
    data: Mapping[Any, Any] = source.data
    if source.only:
        return "single"
    chosen = balanced(data)
    if chosen and any(key in data for key in chosen[1]):
        return chosen[0]
    if "deployment" in data and "routing" not in data:
        return "deployment"
    if any(key in data for key in ("routing", "config", "templates")):
        return "routing"
    if "deployment" in data or "disaggregated_prefill" in data:
        return "deployment"
    return None


def rules_at(schema: Field, path: DataPath) -> Field | None:
    """The rule set of the value at ``path``; None when the form has none."""
    rules: Any = {"schema": schema}
    for part in path:
        inner = rules.get("schema")
        if isinstance(inner, dict) and isinstance(part, int) and "type" in inner:
            rules = inner
        elif isinstance(inner, dict) and part in inner:
            rules = inner[part]
        elif "valuesrules" in rules:
            rules = rules["valuesrules"]
        else:
            return None
    return rules if isinstance(rules, dict) else None


def known_keys(dialect: str, path: DataPath) -> list[str]:
    """The keys that may stand in the mapping at ``path``; empty when any may."""
    rules = rules_at(FORMS[dialect], path)
    inner = (rules or {}).get("schema")
    if not isinstance(inner, dict) or isinstance(inner.get("type"), (str, list)):
        return []
    return [str(key) for key in inner]


def doc(dialect: str, path: DataPath) -> str:
    """The sentence that documents the value at ``path``; empty when there is none."""
    rules = rules_at(FORMS[dialect], path)
    return str(rules.get("meta", {}).get("doc", "")) if rules else ""


def misplaced(dialect: str, path: DataPath) -> str:
    """What to do about a key of the case among variables."""
    key = str(path[-1])
    among = len(path) > 1 and path[-2] == "envs" and key in known_keys(dialect, ())
    return f"'{key}' belongs to the case; check its indentation." if among else ""


class Valid(set[Any]):
    """The forms that cerberus need not look at: a test does, it takes most of a check's time."""

    def __contains__(self, form: object) -> bool:
        return True
