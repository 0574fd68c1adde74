"""Files that cost far more than their size, or that no code expects: one entry a kind.

Enters: nothing. Leaves: name -> the file's bytes, each at most 1 MB. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from steps.lint.examples import PARALLEL, ROUTING, SPLIT

MB = 1 << 20
_COMMAND = "      --max-num-seqs 32\n"


def _flags(words: str, text: str = PARALLEL) -> str:
    return text.replace(_COMMAND, f"{_COMMAND}      {words}\n", 1)


def _escaped(count: int) -> str:
    start = PARALLEL.index("server_cmd: >")
    end = PARALLEL.index("  - server_cmd", start)
    words = "\\u0041 " * count
    return f'{PARALLEL[:start]}server_cmd: "vllm serve m {words}"\n{PARALLEL[end:]}'


def _routing(old: str, new: str) -> str:
    assert old in ROUTING
    return ROUTING.replace(old, new, 1)


def _env(lines: str) -> str:
    return PARALLEL.replace("env_common:\n", f"env_common:\n{lines}", 1)


def _nodes(count: int, words: str = "", extra: str = "") -> str:
    entry = f"  - server_cmd: vllm serve m --port 8080 {words}\n"
    head = f"model: m\nnum_nodes: {count}\nnpu_per_node: 8\n{extra}deployment:\n"
    return head + entry * count + "benchmarks: {}\n"


def _many(form: str, size: int = MB - 4096) -> str:
    """``form`` with growing numbers in it, until there are ``size`` characters."""
    return "".join(form.format(n) for n in range(size // len(form.format(10**5))))


def _ranks(nodes: int, local: int, variables: int = 0) -> str:
    own = ", ".join(f"V{n}: '${{DP_RANK}}'" for n in range(variables))
    config = "".join(
        f"  - {{port_start: 7000, dp_rpc_port: 12321, dp_size: {nodes * local}, "
        f"dp_size_local: {local}, dp_rank_start: {node * local}}}\n"
        for node in range(nodes)
    )
    template = (
        "  - {server_cmd_template: [--port, '${PORT}', --data-parallel-rank, '${DP_RANK}']}\n"
    )
    return (
        f"model: m\nnum_nodes: {nodes}\nnpu_per_node: 16\n"
        f"env_common: {{{own}}}\n"
        "routing: {type: generic_dp, groups: {worker: [0]}}\n"
        f"config:\n{config}templates:\n{template * nodes}benchmarks: {{}}\n"
    )


def _aliases(count: int) -> str:
    word = "x" * 60_000
    return f"model: &a {word}\nb: [{', '.join(['*a'] * count)}]\ndeployment: []\n"


def _merge_chain(width: int, length: int) -> str:
    keys = ", ".join(f"k{n}: 1" for n in range(width))
    chain = "".join(f"a{n}: &a{n} {{<<: *a{n - 1}, b{n}: 1}}\n" for n in range(1, length))
    return f"a0: &a0 {{{keys}}}\n{chain}{PARALLEL}"


def _merge_lists(width: int, length: int) -> str:
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(100)) + "}"]
    for n in range(1, length):
        lines.append(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}], b{n}: 1}}")
    return "\n".join(lines) + "\n" + PARALLEL


_DOUBLING = "".join(f"  V{n}: $V{n + 1}$V{n + 1}\n" for n in range(40)) + "  V40: xxxx\n"
_CHAIN = "".join(f"  V{n}: $V{n + 1}\n" for n in range(3000)) + "  V3000: x\n"
_JSON = "--additional-config '{}'"

TEXTS: dict[str, Callable[[], str]] = {
    # Words and values of a command
    "empty word": lambda: _flags("''"),
    "empty words everywhere": lambda: _flags("'' " * 3000),
    "empty value": lambda: _flags("--max-num-batched-tokens '' --kv-transfer-config ''"),
    "big number": lambda: _flags(f"--max-model-len {'9' * 400}"),
    "big float": lambda: _flags(
        f"--gpu-memory-utilization {'9' * 400} --max-model-len 1.{'9' * 500}k"
    ),
    "infinite": lambda: _flags("--gpu-memory-utilization inf --swap-space nan"),
    "big nnodes": lambda: _flags(f"--nnodes {10**17}"),
    "big nnodes, few nodes": lambda: _flags("--nnodes 100000000"),
    "big data parallel": lambda: _flags("--data-parallel-size 100000000"),
    "big group": lambda: _nodes(1, "--data-parallel-size 100000000 --data-parallel-size-local 1"),
    "big local": lambda: _flags("--data-parallel-size-local 900000000"),
    "big start rank": lambda: _flags("--data-parallel-start-rank 999999999"),
    "negative sizes": lambda: _flags(
        "--data-parallel-size -5 --tensor-parallel-size -1 --nnodes -3"
    ),
    "superscript port": lambda: _flags("--master-port ² --data-parallel-rpc-port ³ --port ٣"),
    "big port": lambda: _flags(f"--port {10**300} --master-port {10**30}"),
    "deep json": lambda: _flags(_JSON.replace("{}", '{"a":' * 3000 + "1" + "}" * 3000)),
    "deep json list": lambda: _flags(_JSON.replace("{}", "[" * 60_000)),
    "json infinity": lambda: _flags(
        '--kv-transfer-config \'{"kv_port": Infinity, "kv_role": 1e999}\''
    ),
    "json big number": lambda: _flags(f"--kv-transfer-config '{{\"kv_port\": {'9' * 4000}}}'"),
    "json big text number": lambda: _flags(
        f'--kv-transfer-config \'{{"kv_port": "{"9" * 4300}"}}\''
    ),
    "json odd": lambda: _flags(
        '--kv-transfer-config \'{"kv_connector_extra_config": {"connectors": [1, {}, []], '
        '"prefill": [], "decode": {"dp_size": null}}, "kv_connector": {}, "kv_role": []}\' '
        '--speculative-config \'{"num_speculative_tokens": [], "method": {}}\' '
        '--compilation-config \'{"cudagraph_capture_sizes": [true, null], "cudagraph_mode": 5}\''
    ),
    "json keys": lambda: _flags(_JSON.replace("{}", "{" + _many('"k{}":1,', 120_000) + '"z":1}')),
    "unknown options": lambda: _flags(_many("--opt-{} 1 ", 28_000)),
    "20,000 options": lambda: _flags(_many("--opt-{} 1 ", 300_000)),
    "options of a template": lambda: _routing(
        "      - --max-model-len\n",
        _many("      - --opt-{}\n", 700_000) + "      - --max-model-len\n",
    ),
    "same option": lambda: _flags("--seed 1 " * 2000),
    "long option": lambda: _flags("--" + "a" * 120_000),
    "long word": lambda: _flags("x" * 900_000),
    "abbreviations": lambda: _flags("--max-num-s 1 " * 2000),
    "stray words": lambda: _flags(_many("w{} ", 20_000)),
    "escaped words": lambda: _escaped(2000),
    "100,000 escaped words": lambda: _escaped(100_000),
    # Numbers of the dialects
    "many nodes said": lambda: PARALLEL.replace("num_nodes: 2", "num_nodes: 999999999"),
    "huge sizes": lambda: _routing("tp_size: 8", f"tp_size: {10**70}\n    pp_size: {10**70}"),
    "wide rank": lambda: _routing(
        "tp_size: 8", "tp_size: 65000\n    pp_size: 65000\n    cp_size: 65000"
    ),
    "many ranks": lambda: _ranks(64, 1000),
    "largest fleet": lambda: _ranks(256, 16),
    "most words of ranks": lambda: _ranks(256, 16, 40),
    "most words of nodes": lambda: _nodes(
        1024, "", "env_common:\n" + "".join(f"  V{n}: $HOME\n" for n in range(185))
    ),
    "most repairs": lambda: _nodes(
        1024,
        "--max-num-s 1 --max-model-l 8 --max-num-b 5 --tensor-parallel-s 1 --pipeline-parallel-s 1",
        "env_common:\n" + "".join(f"  V{n}: $HOME\n" for n in range(175)),
    ),
    "large nodes": lambda: _nodes(1024, "--headless --data-parallel-size 4096"),
    "one group": lambda: _nodes(1024, "--data-parallel-size 65536 --data-parallel-size-local 1"),
    "huge groups": lambda: _nodes(1024, "--data-parallel-size 999999999 --nnodes 999999999"),
    "large environment": lambda: _nodes(1024, "", "env_common:\n" + _many("  V{}: 1\n", 700_000)),
    "large pool": lambda: _routing(
        "routing:\n",
        "kv_pool: {type: mooncake, config: {" + _many("k{}: 1, ", 200_000) + "}}\nrouting:\n",
    ),
    "sexagesimal": lambda: f"num_nodes: 1{':1' * 500_000}\n",
    "octal, dates, bases": lambda: PARALLEL.replace("num_nodes: 2", "num_nodes: 0777").replace(
        "npu_per_node: 16", f"npu_per_node: 0b{'1' * 900_000}"
    ),
    "not a number": lambda: PARALLEL.replace("request_rate: 0", "request_rate: .nan").replace(
        "baseline: 1800", "baseline: .inf"
    ),
    "long duration": lambda: PARALLEL + f"timeouts: {{load: '1{' ' * 900_000}x'}}\n",
    "long gate": lambda: PARALLEL.replace(
        "    baseline: 1800\n", f"    gates: ['ttft_p99_ms <= 1{' ' * 900_000}x']\n"
    ),
    # Variables
    "variables double": lambda: _env(_DOUBLING),
    "variables in a chain": lambda: _env(_CHAIN),
    "unknown variables": lambda: _env(_many("  A{0}: $B{0}\n", 300_000)),
    "one variable often": lambda: _env(f"  A: {'x' * 100_000}\n  B: {'$A' * 50_000}\n"),
    # YAML
    "set as a key": lambda: "? !!set ''\n: 1\n" + PARALLEL,
    "list as a key": lambda: "? !!seq x\n: 1\n? [1]\n: 2\n" + PARALLEL,
    "odd keys": lambda: (
        "1: a\n.nan: b\ntrue: c\n~: d\n2024-01-01: e\n!!binary aGk=: f\n" + PARALLEL
    ),
    "unknown keys": lambda: PARALLEL + _many("unknown_{}: 1\n"),
    "4,000 unknown keys": lambda: PARALLEL + _many("mdoel_{}: 1\n", 60_000),
    "near keys": lambda: PARALLEL + _many("benchmark{}: 1\n", 100_000),
    "unknown keys on one line": lambda: (
        "{model: m, deployment: [], " + _many("k{}: 1, ", 300_000) + "}"
    ),
    "unknown keys of a node": lambda: PARALLEL.replace(
        "  - server_cmd", "  - " + _many("k{}: 1\n    ", 400_000) + "server_cmd", 1
    ),
    "long key": lambda: f"? {'k' * 900_000}\n: {{a: 1, b: [1, 2]}}\n" + PARALLEL,
    "same keys": lambda: "model: x\n" * 100_000,
    "many values": lambda: "a: [" + "1," * 500_000 + "]",
    "many entries": lambda: "model: m\nnum_nodes: 1\ndeployment:\n" + "- 1\n" * 15_000,
    "many node entries": lambda: _nodes(9000),
    "many hosts": lambda: PARALLEL + "cluster_hosts:\n" + "- a\n" * 30_000,
    "many indices": lambda: SPLIT.replace("[0]", "[" + "7," * 30_000 + "]", 1),
    "many benchmarks": lambda: PARALLEL.replace(
        "benchmarks:\n", "benchmarks:\n" + _many("  b{}: {{case_type: perf, x: 1}}\n", 300_000)
    ),
    "right benchmarks": lambda: PARALLEL.replace(
        "benchmarks:\n",
        "benchmarks:\n"
        + _many("  b{}_TTFT5: {{case_type: performance, dataset_path: a/b}}\n", 400_000),
    ),
    "deep flow": lambda: "a: " + "[" * 900_000,
    "deep mappings": lambda: "{a: " * 200_000,
    "deep block": lambda: "- " * 400_000,
    "deep merges": lambda: (
        "? [&a0 {x: 1}, "
        + ", ".join(f"&a{n} {{<<: *a{n - 1}}}" for n in range(1, 5000))
        + "]\n: 1\nb: {<<: *a4999}\n"
    ),
    "merge chain": lambda: _merge_chain(1000, 1000),
    "merge lists": lambda: _merge_lists(30, 30),
    "merge itself": lambda: "a: &a {<<: *a}\nb: &b {<<: [*b]}\n" + PARALLEL,
    "aliases of long text": lambda: _aliases(5000),
    "aliases": lambda: (
        "a0: &a0 [x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    ),
    "ignores": lambda: PARALLEL + "# multinode: ignore[MN101] why\n" * 25_000,
    "open ignores": lambda: PARALLEL + "# x" + "# multinode: ignore[" * 45_000 + "\n",
    "blank ignore": lambda: PARALLEL + f"# multinode: ignore[MN101]{' ' * 900_000}x\n",
    "tags": lambda: "a: !!python/object/apply:os.system ['true']\n" + PARALLEL,
    "documents": lambda: f"{PARALLEL}---\n" * 200,
    "comments": lambda: PARALLEL + "# x\n" * 240_000,
    "blank lines": lambda: PARALLEL + "\n" * 1_000_000,
    "long blanks": lambda: PARALLEL + " " * 1_000_000,
    "tabs": lambda: "\t" * 1_000_000,
    "quotes": lambda: PARALLEL + "x: '" + "''" * 400_000,
    "anchors": lambda: "".join(f"a{n}: &a{n} 1\n" for n in range(60_000)),
    "empty": lambda: "",
    "only a comment": lambda: "# nothing\n",
    "NUL": lambda: PARALLEL + 'x: "\\0"\ny: \0\n',
    "surrogate": lambda: PARALLEL + 'x: "\\ud800"\n',
    "returns": lambda: PARALLEL.replace("\n", "\r"),
    "line separators": lambda: PARALLEL.replace("\n      --", "\u2028      --"),
}
BYTES: dict[str, Callable[[], bytes]] = {
    "UTF-16": lambda: PARALLEL.encode("utf-16"),
    "BOMs": lambda: b"\xef\xbb\xbf" * 3 + PARALLEL.encode(),
    "zeros": lambda: bytes(MB),
    "not text": lambda: bytes(range(256)) * 4096,
    "too large": lambda: b"a: 1\n" * 300_000,
}


def files() -> dict[str, bytes]:
    """Every hostile file."""
    made = {name: make().encode() for name, make in TEXTS.items()}
    return {**made, **{name: make() for name, make in BYTES.items()}}
