"""Documentation of what the schema, the case builder and the resolver report.

Most are found by ``steps.core``; here they only get a page.
"""

from __future__ import annotations

from collections.abc import Iterator

from steps.core.case import unknown
from steps.core.errors import Severity
from steps.lint.examples import parallel, routing, split
from steps.lint.fleet import Fleet
from steps.lint.registry import Example, Finding, Rule, register, rule

_ENTRIES: tuple[tuple[str, str, str, tuple[Example, ...]], ...] = (
    (
        "MN001",
        "Not YAML",
        "The text cannot be read as one YAML document: broken quotes or indentation, a tab, a key "
        "given twice in one mapping (PyYAML would silently keep the last), absurd nesting, or more "
        "values than any case has, which aliases and merge keys can make of a short text.",
        (parallel(("num_nodes: 2", "num_nodes: 2\nnum_nodes: 2")),),
    ),
    ("MN002", "Not readable", "There is no such file, it may not be read, or it is too large.", ()),
    (
        "MN003",
        "Not a case",
        "The document is not a mapping, or neither `deployment` nor `routing` is in it.",
        (parallel(("deployment:", "deploymnt:")),),
    ),
    (
        "MN004",
        "Required key missing",
        "A key that the harness cannot do without is not there.",
        (parallel(("npu_per_node: 16\n", "")),),
    ),
    (
        "MN005",
        "Unknown key",
        "Nobody reads this key where it stands: it is misspelled or indented wrongly, belongs to "
        "the other dialect, or was left over from looking for a mistake (`_MARKER`, "
        "`debug_...`). A field of a benchmark that stands beside the benchmark does nothing at "
        "all.",
        (
            parallel(("    baseline: 1800\n    threshold: 0.97\n", "  baseline: 1800\n")),
            parallel(("num_nodes:", "test_nme: example\nnum_nodes:")),
            parallel(("num_nodes:", "debug_sleep: 600\nnum_nodes:")),
            parallel(("benchmarks:\n", "smoke:\n  case_type: accuracy\nbenchmarks:\n")),
        ),
    ),
    (
        "MN006",
        "Wrong type",
        "The value has another type than the field takes.",
        (parallel(("npu_per_node: 16", "npu_per_node: sixteen")),),
    ),
    (
        "MN007",
        "Value not allowed",
        "The value has the right type but is not one of those allowed, or out of range.",
        (parallel(("case_type: accuracy", "case_type: accurracy")),),
    ),
    (
        "MN009",
        "More problems than are shown",
        "Of each file 200 problems are shown, errors first. Mend some, and ask again.",
        (),
    ),
    (
        "MN010",
        "Counts disagree",
        "`deployment`, `config`, `templates` and `cluster_hosts` have one entry a node, as many "
        "as `num_nodes` says.",
        (parallel(("num_nodes: 2", "num_nodes: 3")),),
    ),
    (
        "MN011",
        "Host listed twice",
        "Each node has an address of its own.",
        (parallel(("num_nodes: 2", "cluster_hosts: [10.0.0.1, 10.0.0.1]\nnum_nodes: 2")),),
    ),
    (
        "MN012",
        "Node index wrong",
        "Nodes count from 0 to `num_nodes` - 1, each has one entry, in order.",
        (split(("decoder_host_index: [1]", "decoder_host_index: [2]")),),
    ),
    (
        "MN013",
        "Open quote",
        "A quote in a command is never closed, so that the rest of it is one word.",
        (split(("'{\"enable_cpu_binding\": true}'", '\'{"enable_cpu_binding": true}')),),
    ),
    (
        "MN014",
        "Empty command",
        "A node needs a `vllm serve` command.",
        (),
    ),
    (
        "MN015",
        "Not a vllm command",
        "A server command starts with `vllm serve MODEL`; no shell runs it, so there is no `&&`, "
        "no `cd`, no redirection.",
        (
            parallel(("vllm serve demo/moe\n      --host", "bash run.sh demo/moe\n      --host")),
            parallel(("vllm serve", "export VLLM_USE_V1=1 && vllm serve")),
            parallel(("vllm serve", "cd /opt; vllm serve")),
        ),
    ),
    (
        "MN016",
        "Ranks or ports out of range",
        "`dp_rank_start + dp_size_local` is at most `dp_size`; the ports of all ranks are at most "
        "65535; a fleet is no larger than any that exists.",
        (routing(("dp_rank_start: 0\n    tp_size: 4", "dp_rank_start: 2\n    tp_size: 4")),),
    ),
    (
        "MN017",
        "Node with two roles",
        "A node is a prefiller or a decoder, and listed once.",
        (split(("decoder_host_index: [1]", "decoder_host_index: [0, 1]")),),
    ),
    (
        "MN018",
        "Key of another pool",
        "`master_port` and `metrics_port` belong to mooncake, `meta_service_port` and "
        "`config_store_port` to memcache.",
        (
            routing(
                ("routing:\n", "kv_pool: {type: mooncake, meta_service_port: 5000}\nrouting:\n")
            ),
        ),
    ),
    (
        "MN019",
        "Gate not readable",
        "A gate is `metric op value` with a metric the harness measures; `gate: none` needs a "
        "`reason`.",
        (parallel(("    baseline: 1800", "    gates: [tpot <= 50]\n    baseline: 1800")),),
    ),
    (
        "MN020",
        "Variable nobody defines",
        "A command or a value uses `$NAME`, and neither the node's environment, nor the harness, "
        "nor the image is known to define it. Upstream would pass the text `$NAME` on. In a list "
        "of directories, such as `LD_LIBRARY_PATH`, it is left out, and this is a warning unless "
        "the name is near a known one.",
        (
            parallel(("--port $SERVER_PORT", "--port $SERVE_PORT")),
            parallel(("HCCL_BUFFSIZE: 1024", "PATH: /opt/bin:$SITE_TOOLS:$PATH")),
        ),
    ),
    (
        "MN021",
        "No API server where one is needed",
        "Benchmarks go to node 0, and under prefill/decode to a proxy over the servers of both "
        "roles; headless nodes have no server.",
        (split(("--host 0.0.0.0", "--headless")),),
    ),
    (
        "MN022",
        "Cluster of another size",
        "The cluster has another number of nodes than the case wants.",
        (),
    ),
)

for _code, _title, _text, _fails in _ENTRIES:
    register(Rule(_code, _title, Severity.ERROR, _text, _fails))


@rule(
    "MN008",
    Severity.WARNING,
    "Key of a later harness",
    fails=(
        parallel(("num_nodes:", "acceptance_rate: {baseline: 0.7}\nnum_nodes:")),
        parallel(("num_nodes:", "test_content: [chat_completion]\nnum_nodes:")),
    ),
    passes=(parallel(("num_nodes:", "x-note: any\nnum_nodes:")),),
)
def unread(fleet: Fleet) -> Iterator[Finding]:
    """A key that later upstream harnesses read (`test_content`, `acceptance_rate`) and this one
    does not: what it asks for does not happen here. Any other unknown key is an error (MN005)."""
    for path in unknown.unread(fleet.case.source):
        if path[:1] == ("benchmarks",):
            continue
        name = ".".join(map(str, path))
        yield Finding(
            f"{name}: nobody here reads this key",
            fleet.case.place(*path),
            "Remove it, or keep it for a harness that reads it.",
            field=name,
        )


register(
    Rule(
        "MN199",
        "Ignore without effect",
        Severity.WARNING,
        "`# multinode: ignore[MN123] reason` or an entry of `lint: {ignore: ...}` that ignores "
        "nothing, or that gives no reason.",
        (parallel(("num_nodes: 2", "num_nodes: 2  # multinode: ignore[MN301] was too big")),),
        (
            parallel(
                ("server_cmd: >", "server_cmd: >  # multinode: ignore[MN102] the old name"),
                ("--max-num-seqs", "--max-num-seq"),
            ),
        ),
    )
)
