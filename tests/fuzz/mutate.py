# ruff: noqa: E501
"""Cases of both dialects with a few things made hostile: their tree, their words, their bytes.

Enters: a number. Leaves: the bytes of a file, the same for the same number.
Touches nothing.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import random
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from steps.core.case.source import Loader
from steps.lint.examples import PARALLEL, ROUTING, SPLIT

_POOL = """\
kv_pool:
  type: mooncake
  master_port: 50051
  config: {global_segment_size: 1073741824, device_name: ""}
"""
_OURS = """\
timeouts: {load: 45m, bench: 3600}
proxy: {script: proxy.py, args: [--x, "1"]}
cluster_hosts: [10.0.0.1, 10.0.0.2]
special_dependencies: {transformers: 4.57.1}
lint: {ignore: {MN302: a reason}}
engine: vllm
"""
BASES = (PARALLEL, SPLIT, ROUTING, PARALLEL + _OURS, ROUTING + _POOL + _OURS)
PROFILE = """\
image: quay.io/ascend/vllm-ascend:v0.11.0
namespace: tests
device: {resource: huawei.com/ascend-1980, per_node: 16}
cpu: 4
memory: 10Gi
mounts: [{path: /a, host_path: /b}, {path: /c, claim: x, read_only: true}]
tolerations: [{key: a, operator: Equal, value: b, effect: NoExecute, tolerationSeconds: 5}]
node_selector: {a: b}
grace: 60s
env: {A: 1}
secret_env: {B: x/y}
paths: {PATH: [/opt]}
budgets: {pulling: 5m}
keep_for: 12h
x-note: any
"""
MATRIX = """\
a3:
  - {name: quick, case: quickstart.yaml, size: 2}
  - {name: large, config_file_path: DeepSeek-V3.yaml, size: 4}
excluded: {GLM-5-W8A8-external-dp: too large}
"""
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 8, 16, 255, 1023, 1024, 1025, 4096, 65535, 65536, 99999, 2**31, 2**63,
    10**18, 10**30, 10**80, -(10**30), 0.5, -0.0, 1e-300, 1e30, 1e308, float("inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "'", "''", '"', '""', "\\", "\\\n", "$", "$A", "${A}", "${A:-b}", "$$", "${}", "$A$A$A",
    "²", "٣", "１", "1_000", "0x10", "0o17", "010", "+5", "-5", "1e5", "1e999", "NaN", "Infinity",
    "inf", "9" * 30, "9" * 400, "9" * 5000, "1." + "9" * 400, "1k", "128K", "9" * 20 + "T", "1 h",
    "30s", "1:30:00", "yes", "no", "null", "~", "true", "None", "2024-01-01", "-", "--", "---", "...",
    "--data-parallel-size", "--nnodes 100000", "-dp", "-dp=5", "--", "--=", "--.", "--a.b.c=d",
    "-O", "-O3", "-O.x", "-cc", "--no-", "--no-enable-x", "{", "}", "[]", "{}", '{"a":', "[" * 200,
    '{"kv_port": 1e999}', '{"kv_port": "99999999999999999999"}', '{"kv_role": []}', "[1, 2]", '"x"',
    '{"kv_connector": {"a": 1}, "kv_port": -1, "kv_connector_extra_config": {"connectors": [null]}}',
    '{"num_speculative_tokens": -1, "method": 5}', '{"cudagraph_capture_sizes": [0, -1, "x", 1e9]}',
    "x" * 300, "x" * 20_000, "a b c", "a\tb", "a\nb", "a\r\nb", "\u2028", "\x85", "\ufeff", "\u200b",
    "é", "日本", "𝟙", "\U0010ffff", "../..", "/", "//", "~/x", "vllm", "serve", "vllm serve",
    "vllm.entrypoints", "&&", "|", ";", "$(x)", "`x`", "#", "# multinode: ignore[MN101] x",
    "%s", "{0}", "{x}", "ttft_p99_ms <= 5", "tpot_mean_ms <= 1e5 * baseline", "<=", "MN101",
    "127.0.0.1", "::1", "[::1]:80", "999.1.1.1", "localhost", "a" * 64 + ".b", "disaggregated_prefill",
)  # fmt: skip
KEYS: tuple[Any, ...] = (
    "", "x", "<<", "=", "~", "model", "models", "num_node", "deployment", "routing", "config",
    "templates", "benchmarks", "envs", "env_common", "server_cmd", "node_index", "dp_size", "case_type",
    "gates", "x-note", ".x", "_MARKER", "k" * 200, "a.b", "$A", "1", 1, 0, -1, 1.5, True, None,
    float("nan"), datetime.date(2024, 1, 1), b"\xff", "\u2028", "é",
)  # fmt: skip
SCRAPS = (
    b"&a ", b"*a", b"<<: *a\n", b"<<: [*a, *a]\n", b"!!set ", b"!!map ", b"!!seq ", b"!!binary ",
    b"!!python/object:os.system ", b"!!int ", b"!!float ", b"!!timestamp ", b"!x ", b"? ", b": ",
    b"- ", b"---\n", b"...\n", b"%YAML 1.1\n", b"\t", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"\xff",
    b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"'", b'"', b"{", b"}", b"[", b"]", b",",
    b"#", b"|\n", b">\n", b">-\n", b"\\", b"\\ud800", b"\\x00", b"\x0b", b"\x1b[31m", b"@", b"`", b"%",
)  # fmt: skip
Tree = Any
Rng = random.Random


def example(number: int, bases: Sequence[str] = BASES) -> bytes:
    """The file of one number, made of one of ``bases``."""
    rng = random.Random(f"multinode {number}")
    text = rng.choice(bases)
    kind = rng.random()  # most have to stay cases, or no rule would ever see them
    edits = WORDS if kind < 0.55 else TREE if kind < 0.85 else ()
    if edits:
        tree = yaml.load(text, Loader=Loader)
        for _ in range(_few(rng)):
            rng.choice(edits)(tree, rng)
        with contextlib.suppress(yaml.YAMLError, TypeError, ValueError):
            text = yaml.dump(tree, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=100)
    raw = text.encode("utf-8", "surrogatepass")
    if kind > 0.85 or rng.random() < 0.1:
        for _ in range(_few(rng)):
            raw = rng.choice(RAW)(raw, rng)
    return raw[: 1 << 20]


def _few(rng: Rng) -> int:
    return rng.choice((1, 1, 1, 2, 2, 3, 5))


def _spots(tree: Tree) -> list[tuple[Any, Any]]:
    """Every (container, key) of the tree."""
    found: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo and len(found) < 5000:
        here = todo.pop()
        pairs = here.items() if isinstance(here, dict) else enumerate(here)
        for key, value in list(pairs):
            found.append((here, key))
            if isinstance(value, (dict, list)):
                todo.append(value)
    return found


def _scalar(rng: Rng) -> Any:
    return rng.choice(
        (
            lambda: rng.choice(NUMBERS),
            lambda: str(rng.choice(NUMBERS)),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice(
                (None, True, False, datetime.date(2024, 1, 1), b"\xff", [], {}, [[]])
            ),
        )
    )()


def _pick(tree: Tree, rng: Rng) -> tuple[Any, Any] | None:
    spots = _spots(tree)
    return rng.choice(spots) if spots else None


def _replace(tree: Tree, rng: Rng) -> None:
    spot = _pick(tree, rng)
    if spot:
        spot[0][spot[1]] = _scalar(rng)


def _number(tree: Tree, rng: Rng) -> None:
    numbers = [(c, k) for c, k in _spots(tree) if isinstance(c[k], (int, float))]
    if numbers:
        container, key = rng.choice(numbers)
        container[key] = rng.choice(NUMBERS)


def _drop(tree: Tree, rng: Rng) -> None:
    spot = _pick(tree, rng)
    if spot:
        del spot[0][spot[1]]


def _wrap(tree: Tree, rng: Rng) -> None:
    spot = _pick(tree, rng)
    if spot:
        value = spot[0][spot[1]]
        for _ in range(rng.choice((1, 1, 2, 70))):
            value = rng.choice(([value], {"a": value}))
        spot[0][spot[1]] = value


def _move(tree: Tree, rng: Rng) -> None:
    source, target = _pick(tree, rng), _pick(tree, rng)
    if source and target:
        target[0][target[1]] = copy.deepcopy(source[0][source[1]])


def _alias(tree: Tree, rng: Rng) -> None:
    """The same object twice: it is written as an anchor and an alias."""
    source, target = _pick(tree, rng), _pick(tree, rng)
    if source and target:
        target[0][target[1]] = source[0][source[1]]


def _repeat(tree: Tree, rng: Rng) -> None:
    lists = [c[k] for c, k in _spots(tree) if isinstance(c[k], list) and c[k]]
    if lists:
        chosen = rng.choice(lists)
        many = rng.choice((2, 2, 3, 10, 100))
        chosen.extend(copy.deepcopy(chosen[rng.randrange(len(chosen))]) for _ in range(many))
        if isinstance(tree, dict) and rng.random() < 0.5:
            tree["num_nodes"] = len(chosen)


def _keys(tree: Tree, rng: Rng) -> None:
    mappings = [tree, *(c[k] for c, k in _spots(tree) if isinstance(c[k], dict))]
    chosen = rng.choice(mappings)
    if isinstance(chosen, dict):
        for n in range(rng.choice((1, 1, 1, 5, 300))):
            key = rng.choice(KEYS) if n == 0 else f"k{n}"
            chosen[key] = _scalar(rng)


def _rename(tree: Tree, rng: Rng) -> None:
    spot = _pick(tree, rng)
    if spot and isinstance(spot[0], dict):
        key = str(spot[1])
        at = rng.randrange(len(key) + 1)
        new = rng.choice((key[:at] + key[at + 1 :], key[:at] + "x" + key[at:], rng.choice(KEYS)))
        spot[0][new] = spot[0].pop(spot[1])


def _commands(tree: Tree) -> list[tuple[Any, Any]]:
    return [(c, k) for c, k in _spots(tree) if k in ("server_cmd", "server_cmd_template")]


def _words(tree: Tree, rng: Rng) -> None:
    """One word of a command: replaced, dropped, doubled, cut in two, or glued to the next."""
    spots = _commands(tree)
    if not spots:
        return
    container, key = rng.choice(spots)
    value = container[key]
    words = value.split(" ") if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        return
    at = rng.randrange(len(words))
    word = str(words[at])
    kind = rng.randrange(8)
    if kind == 0:
        words[at] = str(rng.choice(NUMBERS))
    elif kind == 1:
        words[at] = rng.choice(TEXTS)
    elif kind == 2:
        del words[at]
    elif kind == 3:
        words[at:at] = [word] * rng.choice((1, 2, 50))
    elif kind == 4:
        cut = rng.randrange(len(word) + 1)
        words[at : at + 1] = [word[:cut], word[cut:]]
    elif kind == 5:
        words[at : at + 2] = ["".join(map(str, words[at : at + 2]))]
    elif kind == 6:
        words[at:at] = [
            rng.choice(_OPTIONS),
            rng.choice((rng.choice(TEXTS), str(rng.choice(NUMBERS)))),
        ]
    else:
        words[at] = f"{rng.choice(_OPTIONS)}={rng.choice(TEXTS)}"
    if isinstance(value, str):
        container[key] = " ".join(map(str, words))


_OPTIONS = tuple(
    f"--{name}"
    for name in (
        "data-parallel-size", "data-parallel-size-local", "data-parallel-start-rank",
        "data-parallel-rank", "data-parallel-rpc-port", "data-parallel-address", "nnodes", "node-rank",
        "master-port", "master-addr", "port", "host", "tensor-parallel-size", "pipeline-parallel-size",
        "prefill-context-parallel-size", "max-model-len", "max-num-seqs", "max-num-batched-tokens",
        "gpu-memory-utilization", "kv-transfer-config", "speculative-config", "compilation-config",
        "additional-config", "hf-overrides", "served-model-name", "model", "headless", "quantization",
        "cudagraph-capture-sizes", "spec-tokens", "data-parallel-backend", "seed", "bogus",
    )
)  # fmt: skip


def _environment(tree: Tree, rng: Rng) -> None:
    """Variables that use one another."""
    if not isinstance(tree, dict):
        return
    names = [f"V{n}" for n in range(rng.choice((2, 5, 30, 200)))]
    made = {
        name: "".join(f"${rng.choice(names)}" for _ in range(rng.randrange(4))) for name in names
    }
    before = tree.get("env_common")
    tree["env_common"] = {**before, **made} if isinstance(before, dict) else made


WORDS: tuple[Callable[[Tree, Rng], None], ...] = (_words, _words, _words, _environment, _number)
TREE: tuple[Callable[[Tree, Rng], None], ...] = (
    _replace, _replace, _number, _number, _drop, _wrap, _move, _alias, _repeat, _keys, _rename,
    _words, _words, _words, _environment,
)  # fmt: skip


def _insert(raw: bytes, rng: Rng) -> bytes:
    at = rng.randrange(len(raw) + 1)
    scrap = rng.choice(SCRAPS) * rng.choice((1, 1, 1, 3, 200))
    return raw[:at] + scrap + raw[at:]


def _flip(raw: bytes, rng: Rng) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]


def _cut(raw: bytes, rng: Rng) -> bytes:
    start, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    return raw[:start] + raw[end:] if rng.random() < 0.5 else raw[:end]


def _line(raw: bytes, rng: Rng) -> bytes:
    """A line twice, elsewhere, further in, or with an anchor."""
    lines = raw.split(b"\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    line = lines[at]
    line = rng.choice(
        (line, b"  " + line, line.lstrip(), line + b" &a", line + b" *a", b"#" + line)
    )
    lines.insert(to, line)
    return b"\n".join(lines)


def _slice(raw: bytes, rng: Rng) -> bytes:
    """A piece many times; seldom until the file is as large as a file may be."""
    start = rng.randrange(len(raw) + 1)
    piece = raw[start : start + rng.choice((1, 5, 40, 400))]
    most = rng.choice((10, 100, 1000, 1000, 1000, 200_000)) if rng.random() < 0.2 else 10
    most = min(most, (1 << 20) // max(len(piece), 1))
    return raw[:start] + piece * most + raw[start:]


def _encode(raw: bytes, rng: Rng) -> bytes:
    text = raw.decode("utf-8", "replace")
    return rng.choice(
        (
            lambda: text.encode("utf-16"),
            lambda: text.encode("latin-1", "replace"),
            lambda: text.replace("\n", "\r").encode(),
            lambda: text.replace("\n", "\r\n").encode(),
            lambda: text.replace("\n", "\u2028").encode(),
            lambda: text.replace("  ", "\t").encode(),
        )
    )()


RAW: tuple[Callable[[bytes, Rng], bytes], ...] = (
    _insert, _insert, _insert, _flip, _cut, _line, _line, _slice, _encode,
)  # fmt: skip
