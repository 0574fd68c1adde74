"""Break one thing in our correct cases, 500 times in 20 ways; how often does the linter find it?

    python benchmarks/lint_mutants.py [--count 500] [--seed 1] [--show]

Prints, for each kind of mutation, the mutants made, those found at all, and
those found by the right rule; exits with 1 below 95 % by the right rule. A
mutant is found when a problem appears that the unbroken case does not have.
Mutations are text edits, made without the linter's own parser.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from steps.validate import validate

TARGET = 0.95
Edit = Callable[[str, random.Random], str | None]


@dataclass(frozen=True)
class Kind:
    """A kind of mutation and the rules of which one must find it."""

    name: str
    rules: tuple[str, ...]
    edit: Edit


def _pick(pattern: str, text: str, rng: random.Random) -> re.Match[str] | None:
    found = [
        match
        for match in re.finditer(pattern, text, re.MULTILINE)
        if "#" not in text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    ]
    return rng.choice(found) if found else None


def _swap(text: str, match: re.Match[str], new: str, group: int = 0) -> str:
    return text[: match.start(group)] + new + text[match.end(group) :]


def _replacing(pattern: str, new: Callable[[str, random.Random], str], group: int = 1) -> Edit:
    """An edit that replaces one group of one match of ``pattern``."""

    def edit(text: str, rng: random.Random) -> str | None:
        match = _pick(pattern, text, rng)
        return None if match is None else _swap(text, match, new(match[group], rng), group)

    return edit


def _letter(word: str, rng: random.Random) -> str:
    """One letter of the word exchanged, doubled or lost, not at its beginning."""
    at = rng.randrange(len(word) // 2, len(word) - 1)
    kind = rng.choice(("drop", "swap", "other"))
    if kind == "drop":
        return word[:at] + word[at + 1 :]
    if kind == "swap" and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + ("z" if word[at] != "z" else "q") + word[at + 1 :]


def _double(number: str, rng: random.Random) -> str:
    return str(int(number) * 2)


def _other_number(number: str, rng: random.Random) -> str:
    return str(rng.choice([n for n in (1, 2, 3, 4, 6, 8, 16, 32) if n != int(number)]))


_FLAG = (
    r"(?<![\w-])--(max-num-seqs|max-model-len|tensor-parallel-size|gpu-memory-utilization|seed|"
    r"enable-expert-parallel|trust-remote-code|max-num-batched-tokens|data-parallel-size|"
    r"quantization)(?=[\s])"
)


def _repeat(text: str, rng: random.Random) -> str | None:
    """A number flag a second time, with another value."""
    match = _pick(
        r"^( +)--(max-num-seqs|max-model-len|max-num-batched-tokens|seed) (\d+)$", text, rng
    )
    if match:
        return _swap(text, match, f"{match[0]}\n{match[1]}--{match[2]} {int(match[3]) + 7}")
    match = _pick(
        r'^( +)- --(max-num-seqs|max-model-len|max-num-batched-tokens|seed)\n +- "(\d+)"$',
        text,
        rng,
    )
    if match:
        again = f'{match[1]}- --{match[2]}\n{match[1]}- "{int(match[3]) + 7}"'
        return _swap(text, match, f"{match[0]}\n{again}")
    return None


def _glue(text: str, rng: random.Random) -> str | None:
    match = _pick(r'^( +)- (--[a-z-]+)\n +- "?([\w.]+)"?$', text, rng)
    if match:
        return _swap(text, match, f"{match[1]}- {match[2]} {match[3]}")
    match = _pick(r"^( +)(--[a-z-]+) ([\w.]+)\n +(--[a-z-]+)", text, rng)
    if match:
        return _swap(text, match, f"{match[1]}{match[2]} {match[3]}{match[4]}")
    return None


def _no_value(text: str, rng: random.Random) -> str | None:
    match = _pick(r"^ +--[a-z-]+( [\w.$]+)\n +--", text, rng)
    if match:
        return _swap(text, match, "", 1)
    match = _pick(r'^ +- --[a-z-]+\n( +- "?[\w.]+"?\n) +- --', text, rng)
    return _swap(text, match, "", 1) if match else None


def _outdent(text: str, rng: random.Random) -> str | None:
    """A benchmark's field two spaces too far left."""
    start = text.index("benchmarks:")
    match = _pick(r"^    (max_out_len|batch_size|num_prompts|dataset_conf): .*$", text[start:], rng)
    if match is None:
        return None
    line = text[start + match.start() : start + match.end()]
    rest = text[:start] + text[start:].replace(line + "\n", "", 1)
    return rest.rstrip("\n") + "\n" + line[2:] + "\n"


def _line_out(pattern: str) -> Edit:
    def edit(text: str, rng: random.Random) -> str | None:
        match = _pick(pattern, text, rng)
        return None if match is None else _swap(text, match, "")

    return edit


def _deeper(text: str, rng: random.Random) -> str | None:
    """kv_port into kv_connector_extra_config, where nobody reads it."""
    match = _pick(r'"kv_port": "(\d+)",\s', text, rng)
    if match is None:
        return None
    port = match[1]
    cut = text[: match.start()] + text[match.end() :]
    inner = '"kv_connector_extra_config": {'
    at = cut.find(inner, match.start())
    if at < 0:
        return None
    return cut[: at + len(inner)] + f'"kv_port": "{port}", ' + cut[at + len(inner) :]


def _engine_id(text: str, rng: random.Random) -> str | None:
    ids = re.findall(r'"engine_id": "([^"]+)"', text)
    if len(set(ids)) < 2:
        return None
    return text.replace(f'"engine_id": "{ids[1]}"', f'"engine_id": "{ids[0]}"')


def _role(text: str, rng: random.Random) -> str | None:
    match = _pick(r'"kv_role": "(kv_producer|kv_consumer)"', text, rng)
    if match is None:
        return None
    return _swap(text, match, "kv_consumer" if match[1] == "kv_producer" else "kv_producer", 1)


def _master(text: str, rng: random.Random) -> str | None:
    """A follower or a leader that joins somebody else."""
    choices = []
    match = _pick(r"--data-parallel-address \$MASTER_IP", text, rng)
    if match:
        choices.append(_swap(text, match, "--data-parallel-address $LOCAL_IP"))
    match = _pick(r"dp_address: \$\{NODE_1_IP\}", text, rng)
    if match:
        choices.append(_swap(text, match, "dp_address: ${NODE_0_IP}"))
    return rng.choice(choices) if choices else None


def _connector(text: str, rng: random.Random) -> str | None:
    match = _pick(r'"(MooncakeConnectorV1)"', text, rng)
    return _swap(text, match, "MooncakeLayerwiseConnector", 1) if match else None


def _gate(text: str, rng: random.Random) -> str | None:
    """A gate that gates something becomes a baseline that does not."""
    match = _pick(r"^    gates:\n(?:      - .*\n)+|^    gate: none\n    reason: .*\n", text, rng)
    if match is None or "warms up" in match[0]:
        return None
    return _swap(text, match, f"    baseline: {rng.choice((0, 1))}\n")


def _short_model(text: str, rng: random.Random) -> str | None:
    """A model length that the benchmarks do not fit in."""
    lengths = re.findall(r'max-model-len\s+-? ?"?(\d+)', text)
    if not lengths or not re.search(r"-in\d{4}|max_out_len: \d{4}", text):
        return None
    return re.sub(r'(max-model-len\s+-? ?"?)\d+', lambda m: f"{m[1]}1024", text)


def _kv_port(text: str, rng: random.Random) -> str | None:
    match = _pick(r'"kv_port": "(\d+)"', text, rng)
    ports = re.findall(r"(?:SERVER_PORT|port_start): (\d+)", text)
    if match is None or not ports:
        return None
    if "--headless" in text[text.rfind("server_cmd", 0, match.start()) : match.start()]:
        return None  # no API server on that host: not a mistake
    return _swap(text, match, str(int(ports[0]) - rng.choice((0, 1))), 1)


KINDS = (
    Kind("flag misspelled", ("MN101", "MN102"), _replacing(_FLAG, _letter)),
    Kind("flag given twice", ("MN108",), _repeat),
    Kind("arguments glued", ("MN103",), _glue),
    Kind("value missing", ("MN105",), _no_value),
    Kind(
        "value of the wrong type",
        ("MN104",),
        _replacing(r"--(?:max-num-seqs|seed|tensor-parallel-size) (\d+)", lambda v, r: f"{v}x"),
    ),
    Kind(
        "JSON broken",
        ("MN110", "MN103"),
        _replacing(r'"(?:kv_role|method|cudagraph_mode)": "\w+"(,)', lambda v, r: ""),
    ),
    Kind(
        "JSON key misspelled",
        ("MN111", "MN406", "MN114"),
        _replacing(
            r'"(kv_connector|kv_role|kv_port|engine_id|kv_connector_extra_config|'
            r'num_speculative_tokens|cudagraph_mode|cudagraph_capture_sizes)":',
            _letter,
        ),
    ),
    Kind("JSON key one level too deep", ("MN112",), _deeper),
    Kind(
        "start rank wrong",
        ("MN201", "MN016"),
        _replacing(r"(?:start-rank |dp_rank_start: )([1-9]\d*|0)$", _other_number),
    ),
    Kind(
        "group size wrong",
        ("MN201", "MN202", "MN406", "MN211", "MN301", "MN016"),
        _replacing(r"(?:--data-parallel-size |dp_size: )(\d+)$", _other_number),
    ),
    Kind("master wrong", ("MN204",), _master),
    Kind(
        "rpc port of one node wrong",
        ("MN203",),
        _replacing(r"--data-parallel-rpc-port (\d+)", lambda v, r: str(int(v) + 10)),
    ),
    Kind(
        "headless lost or start rank lost",
        ("MN207", "MN206"),
        _line_out(r"^ +(--headless|--data-parallel-start-rank [1-9]\d*)\n"),
    ),
    Kind(
        "more devices than there are",
        ("MN301", "MN208"),
        _replacing(r"(?:--tensor-parallel-size |^    tp_size: )(\d+)$", _double),
    ),
    Kind("kv_role exchanged", ("MN401",), _role),
    Kind(
        "handoff size wrong",
        ("MN406",),
        _replacing(r'"(?:dp_size|tp_size)": (\d+)', lambda v, r: str(int(v) * 2 + 1)),
    ),
    Kind("engine id twice", ("MN407",), _engine_id),
    Kind("connector differs", ("MN405",), _connector),
    Kind("KV port meets the API", ("MN408",), _kv_port),
    Kind("model too short for the benchmark", ("MN503",), _short_model),
    Kind("gate that gates nothing", ("MN702",), _gate),
    Kind("benchmark field outdented", ("MN005",), _outdent),
    Kind(
        "environment name misspelled",
        ("MN603",),
        _replacing(
            r"^ +(HCCL_BUFFSIZE|HCCL_CONNECT_TIMEOUT|OMP_NUM_THREADS|OMP_PROC_BIND|"
            r"VLLM_USE_MODELSCOPE|HCCL_OP_EXPANSION_MODE):",
            _letter,
        ),
    ),
    Kind(
        "variable misspelled",
        ("MN020",),
        _replacing(r"\$\{?(SERVER_PORT|MASTER_IP|LOCAL_IP|DP_SIZE|DP_RANK|TP_SIZE)", _letter),
    ),
)


def mutants(
    texts: dict[Path, str], count: int, rng: random.Random
) -> Iterator[tuple[Kind, Path, str]]:
    """``count`` different mutants, the kinds in turn, each of a case it applies to."""
    made: set[tuple[str, str]] = set()
    number, fruitless = 0, 0
    for kind in itertools.cycle(KINDS):
        if number >= count or fruitless >= 1000:
            return
        path = rng.choice(list(texts))
        text = kind.edit(texts[path], rng)
        if text is None or text == texts[path] or (kind.name, text) in made:
            fruitless += 1
            continue
        made.add((kind.name, text))
        number, fruitless = number + 1, 0
        yield kind, path, text


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--count", type=int, default=500)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--show", action="store_true", help="show the mutants that are missed")
    args = options.parse_args(argv)
    root = Path(__file__).resolve().parent.parent / "configs"
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(root.glob("*.yaml"))}
    clean = {path: {(p.rule, p.message) for p in validate([path])} for path in texts}
    total, found, right = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="lint-mutants-") as folder:
        for kind, path, text in mutants(texts, args.count, random.Random(args.seed)):
            file = Path(folder) / path.name
            file.write_text(text, encoding="utf-8")
            new = [p for p in validate([file]) if (p.rule, p.message) not in clean[path]]
            total[kind.name] += 1
            found[kind.name] += bool(new)
            hit = any(problem.rule in kind.rules for problem in new)
            right[kind.name] += hit
            if args.show and not hit:
                print(f"--- {kind.name}: {path.name}: {sorted({p.rule for p in new})}")
                _diff(texts[path], text)
    print(f"{'kind of mutation':36} {'made':>5} {'found':>6} {'right rule':>11}")
    for kind in KINDS:
        name = kind.name
        print(f"{name:36} {total[name]:5} {found[name]:6} {right[name]:11}")
    all_of, all_found, all_right = (sum(c.values()) for c in (total, found, right))
    print(f"{f'all {len(KINDS)} kinds':36} {all_of:5} {all_found:6} {all_right:11}")
    share = all_right / max(all_of, 1)
    print(f"found by the right rule: {share:.1%} (target {TARGET:.0%})")
    return 0 if share >= TARGET and all_of >= args.count else 1


def _diff(old: str, new: str) -> None:
    import difflib

    for line in difflib.unified_diff(old.splitlines(), new.splitlines(), "", "", lineterm="", n=0):
        if not line.startswith(("---", "+++", "@@")):
            print("   ", line)


if __name__ == "__main__":
    sys.exit(main())
