"""The form of a case, in both dialects, and the check of a case against it.

Enters: a parsed :class:`Source`. Leaves: every problem its form has, with
file, line, found, expected. Touches nothing.

``FIELDS`` below is the single source: cerberus checks with it, the reference
page and the editors' JSON Schema are made from it. The dialects are those of
the upstream harness (vllm-ascend, tests/e2e/nightly/multi_node); fields marked
``ours`` are multinode's additions, all optional.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

from cerberus import TypeDefinition, Validator
from cerberus.errors import UNKNOWN_FIELD, ValidationError

from steps.core.errors import Problem
from steps.core.yamlsource import DataPath, Source

#: The phases of a run that have a budget, in their order.
PHASES = (
    "join",
    "preflight",
    "install",
    "pool",
    "load",
    "probe",
    "bench",
    "proof",
    "stop",
    "collect",
)
DURATION = r"^\d+(\.\d+)?\s*(s|m|h)?$"
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "repetition_penalty",
    "ignore_eos",
)

Field = dict[str, Any]


def _field(kind: Any, doc: str, *, ours: bool = False, **rules: Any) -> Field:
    """One cerberus rule set with the sentence that documents it."""
    return {"type": kind, "meta": {"doc": doc, "ours": ours}, **rules}


def _environment(doc: str) -> Field:
    return _field(
        "dict",
        doc,
        nullable=True,
        keysrules={"type": "string", "regex": r"^[A-Za-z_][A-Za-z0-9_]*$"},
        valuesrules={"type": ["string", "number", "boolean"], "nullable": True},
    )


def _index(doc: str) -> Field:
    return _field("strict_integer", doc, min=0)


def _count(doc: str, **rules: Any) -> Field:
    return _field("strict_integer", doc, min=1, **rules)


def _port(doc: str, **rules: Any) -> Field:
    return _field("strict_integer", doc, min=1, max=65535, **rules)


def _indices(doc: str) -> Field:
    return _field("list", doc, schema=_index("A node index."))


_NUMBER = ["number", "numeric_string"]
_WHOLE = ["strict_integer", "whole_string"]
_SWITCH = ["boolean", "switch_string"]

BENCHMARK: Field = {
    "case_type": _field(
        "string",
        "What is measured.",
        required=True,
        allowed=["performance", "accuracy"],
    ),
    "dataset_path": _field("string", "Hub id of the data set, resolved in ModelScope's cache."),
    "dataset_path_local": _field("string", "Directory or file of the data set on the leader."),
    "request_conf": _field(
        "string", "AISBench request configuration, such as `vllm_api_stream_chat`."
    ),
    "dataset_conf": _field(
        "string", "AISBench data set configuration, such as `gsm8k/gsm8k_gen_0_shot_cot_str_perf`."
    ),
    "num_prompts": _field(_WHOLE, "Requests to send; absent: the whole data set.", min_value=1),
    "max_out_len": _field(_WHOLE, "Output tokens asked of each request.", min_value=1),
    "batch_size": _field(_WHOLE, "Most requests in flight at once.", min_value=1),
    "request_rate": _field(_NUMBER, "Requests/s (Poisson); 0: no limit.", min_value=0),
    "baseline": _field(
        _NUMBER,
        "Expected output token throughput (tokens/s), or score. "
        "0 and 1 gate nothing on a performance benchmark.",
    ),
    "threshold": _field(
        _NUMBER,
        "performance: least share of the baseline (default 0.97); "
        "accuracy: widest distance from the baseline.",
        min_value=0,
    ),
    "temperature": _field(_NUMBER, "Sampling temperature; 0 for performance, 0.6 for accuracy."),
    "top_p": _field(_NUMBER, "Nucleus sampling."),
    "top_k": _field(_NUMBER, "Top-k sampling."),
    "min_p": _field(_NUMBER, "Min-p sampling."),
    "seed": _field(_NUMBER, "Seed of the sampling.", nullable=True),
    "presence_penalty": _field(_NUMBER, "Presence penalty."),
    "repetition_penalty": _field(_NUMBER, "Repetition penalty."),
    "thinking": _field(_SWITCH, "Ask the chat template for thinking."),
    "ignore_eos": _field(_SWITCH, "Generate exactly `max_out_len` tokens."),
    "no_pred": _field(_SWITCH, "Do not keep predictions."),
    "trust_remote_code": _field(_SWITCH, "Let the tokenizer run code of its own."),
    "tpot_threshold": _field(
        _NUMBER, "Widest mean time per output token in ms; 0: not judged.", min_value=0
    ),
    "ttft_threshold": _field(
        _NUMBER, "Widest mean time to the first token in ms; 0: not judged.", min_value=0
    ),
    "input_throughput_threshold": _field(
        _NUMBER, "Read by later upstream harnesses; not judged here.", min_value=0
    ),
    "model_path": _field(
        "string", "Tokenizer directory, where it is not the model's.", empty=False
    ),
    "gates": _field(
        "list",
        "Further conditions, `metric op value`, such as `ttft_p99_ms <= 2000` or "
        "`output_throughput >= 0.97 * baseline`.",
        ours=True,
        schema={"type": "string", "empty": False},
    ),
    "gate": _field(
        "string", "`none`: gates nothing, with a `reason`.", ours=True, allowed=["none"]
    ),
    "reason": _field("string", "Why `gate: none`.", ours=True, empty=False),
    "repeat": _count("How often to measure; the median counts.", ours=True, max=20),
    "confirm": _field(
        "strict_integer",
        "How often to measure again, on the warm fleet, before a performance miss counts "
        "(default 2; 0: never). The median of all measurements is judged.",
        ours=True,
        min=0,
        max=20,
    ),
}

_COMMON: Field = {
    "test_name": _field("string", "Free name, used in reports."),
    "model": _field("string", "Hub id or path of the weights.", required=True, empty=False),
    "num_nodes": _count("Nodes of the fleet.", required=True, max=4096),
    "npu_per_node": _field(
        "strict_integer", "Devices of each node.", required=True, min=0, max=1024
    ),
    "env_common": _environment("Environment of every node's processes."),
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
        "Budget of each phase: seconds, or text such as `45m`.",
        ours=True,
        keysrules={"type": "string", "allowed": list(PHASES)},
        valuesrules={"type": ["number", "string"], "regex": DURATION, "min_value": 0.001},
    ),
    "proxy": _field(
        ["string", "dict"],
        "What stands in front of a prefill/decode fleet: `vllm-router`, `script`, or a mapping "
        "with `script`, `args` or `command`.",
        ours=True,
    ),
    "dp_load_balancing": _field("string", "Read by later upstream harnesses; not used here."),
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
                    "strict_integer", "Nodes that hold one rank together.", min=-1
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
    "kv_pool": _field(
        "dict",
        "KV cache pool that runs on node 0 before any rank.",
        nullable=True,
        schema={
            "type": _field(
                "string", "Which pool.", required=True, allowed=["mooncake", "memcache"]
            ),
            "master_port": _port("mooncake: port of the master."),
            "metrics_port": _port("mooncake: port of its metrics."),
            "meta_service_port": _port("memcache: port of the MetaService."),
            "config_store_port": _port("memcache: port of the config store."),
            "config": _field("dict", "Content of the pool's configuration file.", nullable=True),
        },
    ),
}

FIELDS: dict[str, Field] = {"deployment": DEPLOYMENT, "routing": ROUTING}

#: Numbers of the routing dialect that upstream reads with ``int``, so that they may be quoted.
_QUOTABLE = ("num_nodes", "npu_per_node", "config", "routing", "kv_pool")


def plain_numbers(source: Source) -> Source:
    """The case with quoted whole numbers as numbers, where upstream takes both."""
    data = source.data
    if not isinstance(data, dict) or dialect_of(data) != "routing":
        return source
    made = {
        key: _plain_numbers(value, _rules_at(ROUTING, (key,)) or {}) if key in _QUOTABLE else value
        for key, value in data.items()
    }
    return dataclasses.replace(source, data=made)


def _plain_numbers(value: Any, rules: Field) -> Any:
    inner = rules.get("schema")
    if isinstance(value, dict) and isinstance(inner, dict):
        return {key: _plain_numbers(item, inner.get(key) or {}) for key, item in value.items()}
    if isinstance(value, list) and isinstance(inner, dict):
        return [_plain_numbers(item, inner) for item in value]
    whole = rules.get("type") == "strict_integer" and isinstance(value, str)
    return int(value) if whole and re.fullmatch(r"\s*[0-9]{1,9}\s*", value) else value


#: Every form a file of ours can have: the two dialects, and what other nouns add.
FORMS: dict[str, Field] = dict(FIELDS)


class _CaseValidator(Validator):  # type: ignore[misc]
    """Cerberus with the number types that authors really write."""

    types_mapping: ClassVar[dict[str, Any]] = {
        **{name: kind for name, kind in Validator.types_mapping.items() if name != "number"},
        "strict_integer": TypeDefinition("strict_integer", (int,), (bool,)),
    }

    def _validate_type_number(self, value: Any) -> bool:
        """A number that JSON can hold."""
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e30
        )

    def _validate_type_numeric_string(self, value: Any) -> bool:
        return isinstance(value, str) and bool(
            re.fullmatch(r"-?[0-9]{1,30}(\.[0-9]+)?", value.strip())
        )

    def _validate_type_whole_string(self, value: Any) -> bool:
        return isinstance(value, str) and bool(re.fullmatch(r"[0-9]{1,18}", value.strip()))

    def _validate_type_switch_string(self, value: Any) -> bool:
        return isinstance(value, str) and value.lower() in ("true", "false")

    def _validate_min_value(self, minimum: float, field: str, value: Any) -> None:
        """{'type': 'number'}"""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return
        if not number >= minimum or number == float("inf"):
            self._error(field, f"expected a number of at least {minimum:g}")


@cache
def _validator(dialect: str) -> _CaseValidator:
    return _CaseValidator(FORMS[dialect])


def dialect_of(data: Mapping[Any, Any]) -> str | None:
    """``deployment`` or ``routing`` by the keys at the top; None when neither shows."""
    if "deployment" in data and "routing" not in data:
        return "deployment"
    if any(key in data for key in ("routing", "config", "templates")):
        return "routing"
    if "deployment" in data or "disaggregated_prefill" in data:
        return "deployment"
    return None


def check(source: Source) -> list[Problem]:
    """Every problem of the case's form.

    Returns:
        Problems MN003 (form of the document) to MN009, unsorted.
    """
    data = source.data
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {_kind(data)}"
        return [
            Problem(
                "MN003",
                f"found {found} at the top, expected a mapping with model, num_nodes, ...",
                source.place(),
                "See configs/quickstart.yaml for the form of a case.",
            )
        ]
    dialect = dialect_of(data)
    if dialect is None:
        close = difflib.get_close_matches("deployment", [str(k) for k in data], 1, 0.75)
        wrong = f"found {close[0]!r}; " if close else ""
        return [
            Problem(
                "MN003",
                f"{wrong}neither 'deployment' nor 'routing' is there, expected one of them",
                source.place(*close) if close else source.place(),
                f"Did you mean 'deployment' for {close[0]!r}?"
                if close
                else "A case lists its nodes under 'deployment', or under 'config' and "
                "'templates' with 'routing'.",
            )
        ]
    return list(_check_known(source, data, dialect))


def check_form(source: Source, form: str) -> list[Problem]:
    """Every problem of a file that is no case, such as a cluster profile.

    Args:
        form: a key of ``FORMS``.
    """
    if not isinstance(source.data, dict):
        found = "nothing" if source.data is None else f"a {_kind(source.data)}"
        message = f"found {found} at the top, expected a mapping"
        return [Problem("MN003", message, source.place(), f"A {form} is a mapping of keys.")]
    return list(_check_known(source, source.data, form))


def _check_known(source: Source, data: Mapping[Any, Any], dialect: str) -> Iterator[Problem]:
    holders = {key for key in data if key not in FORMS[dialect] and _holds_anchor(source, key)}
    odd: list[Problem] = []
    kept = {key: value for key, value in data.items() if key not in holders}
    document = _text_keys(source, kept, (), odd)
    yield from odd
    validator = _validator(dialect)
    validator.validate(_without_the_obvious(document), normalize=False)
    seen: set[tuple[DataPath, str]] = set()
    for error in _flatten(validator._errors):
        path = tuple(error.document_path)
        if error.rule is None and not _is_mistake(source, dialect, path):
            continue
        problem = _explain(source, path, error, dialect)
        if (path, problem.message) not in seen:
            seen.add((path, problem.message))
            yield problem


def unread(source: Source) -> Iterator[DataPath]:
    """Keys of a case that later upstream harnesses read and nobody here.

    An error would refuse cases that run. The linter says that they are not read.
    """
    dialect = dialect_of(source.data) if isinstance(source.data, dict) else None
    if dialect is not None:
        yield from _unread(source, dialect, source.data, ())


def _unread(source: Source, dialect: str, value: Any, path: DataPath) -> Iterator[DataPath]:
    if isinstance(value, list):
        for at, inner in enumerate(value):
            if isinstance(inner, dict):
                yield from _unread(source, dialect, inner, (*path, at))
    elif isinstance(value, dict):
        known = _known_at(dialect, tuple(0 if isinstance(part, int) else part for part in path))
        for key, inner in value.items():
            where = (*path, key)
            if known and key not in known:
                if path or not _holds_anchor(source, key):
                    yield where
            elif isinstance(inner, (dict, list)) and key not in ("envs", "server_cmd_template"):
                yield from _unread(source, dialect, inner, where)


@cache
def _known_at(dialect: str, path: DataPath) -> frozenset[str]:
    return frozenset(known_keys(dialect, path))


def _is_mistake(source: Source, dialect: str, path: DataPath) -> bool:
    """Whether an unknown key is more than what a later upstream harness reads.

    A file that is no case has no keys but ours, and a role that nobody knows has no nodes.
    """
    key = str(path[-1])
    if dialect not in FIELDS or path[:2] == ("routing", "groups"):
        return True
    in_benchmark = path[:1] == ("benchmarks",) and len(path) == 3
    if in_benchmark and key.endswith(_LATER) and not _close(dialect, path, 0.9):
        return False
    return key not in LATER


#: Keys that later upstream harnesses read and nobody here, by what their cases have (to 0.30).
LATER = frozenset(
    {
        "acceptance_rate",
        "api_keyword_args",
        "chat_prompts",
        "expected_response",
        "reasoning_effort",
        "test_content",
    }
)
#: Ends of fields that later upstream harnesses have, near some field that is here.
_LATER = ("_threshold", "_baseline", "_path", "_conf", "_args", "_kwargs")


def _without_the_obvious(document: Mapping[Any, Any]) -> dict[Any, Any]:
    """The document with its many environments and argument lists left out where they are right.

    They are most of a case, and cerberus takes its time with each of their values.
    """
    light = {
        key: {} if str(key).startswith("env_") and _is_environment(value) else value
        for key, value in document.items()
    }
    for key in ("deployment", "templates"):
        entries = light.get(key)
        if isinstance(entries, list):
            light[key] = [_light_entry(entry) for entry in entries]
    return light


def _light_entry(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    light = dict(entry)
    if _is_environment(entry.get("envs")):
        light["envs"] = {}
    words = entry.get("server_cmd_template")
    if isinstance(words, list) and all(isinstance(word, (str, int, float)) for word in words):
        light["server_cmd_template"] = []
    return light


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and _NAME.match(name)
        and (text is None or isinstance(text, (str, int, float)))
        for name, text in value.items()
    )


_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


def _text_keys(source: Source, value: Any, path: DataPath, odd: list[Problem]) -> Any:
    """``value`` without keys that are no text; a problem for each of them."""
    if isinstance(value, list):
        return [_text_keys(source, inner, (*path, at), odd) for at, inner in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        where = (*path, key)
        if isinstance(key, str):
            kept[key] = _text_keys(source, inner, where, odd)
            continue
        name = ".".join(str(part) for part in where)
        message = f"{name}: found the key {_show(key)}, expected text"
        odd.append(
            Problem("MN005", message, source.place(*where), "Quote it, or remove it.", field=name)
        )
    return kept


def _holds_anchor(source: Source, key: Any) -> bool:
    """A key that is not ours but only holds a YAML anchor for others is no mistake."""
    line = source.place(key).line
    text = source.lines[line - 1] if line <= len(source.lines) else ""
    return bool(re.search(r":\s*&[\w-]+\s*(#.*)?$", text)) or str(key).startswith(("x-", "."))


def _flatten(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    for error in errors:
        if error.is_group_error and error.child_errors:
            yield from _flatten(error.child_errors)
        else:
            yield error


def _explain(source: Source, path: DataPath, error: ValidationError, dialect: str) -> Problem:
    name = ".".join(str(part) for part in path) or "the document"
    place = source.place(*path)
    value = error.value
    rule = error.rule
    field = name
    if rule == "required":
        parent = ".".join(str(part) for part in path[:-1]) or "the case"
        return Problem(
            "MN004",
            f"{parent}: required key '{path[-1]}' is missing",
            source.place(*path[:-1]),
            _doc(dialect, path),
            field=field,
        )
    if error.code == UNKNOWN_FIELD.code:
        return Problem(
            "MN005",
            f"{name}: unknown key",
            place,
            _suggest(source, dialect, path),
            field=field,
        )
    if path[:-1] == ("benchmarks",) and path[-1] in BENCHMARK:
        hint = f"'{path[-1]}' belongs under the name of a benchmark; check its indentation."
        return Problem("MN005", f"{name}: is no benchmark", place, hint, field=field)
    if rule in ("type", "nullable"):
        expected = _expected(error.constraint if rule == "type" else None, error)
        return Problem(
            "MN006",
            f"{name}: found {_show(value)}, expected {expected}",
            place,
            _doc(dialect, path),
            field=field,
        )
    return Problem(
        "MN007",
        f"{name}: {_rule_text(rule or 'form', value, error)}",
        place,
        _doc(dialect, path),
        field=field,
    )


def _rule_text(rule: str, value: Any, error: ValidationError) -> str:
    constraint = error.constraint
    if rule == "allowed":
        close = difflib.get_close_matches(str(value), [str(item) for item in constraint], 1)
        tail = f"; did you mean '{close[0]}'?" if close else ""
        return f"found {_show(value)}, expected one of {', '.join(map(str, constraint))}{tail}"
    if rule == "min":
        return f"found {_show(value)}, expected at least {constraint}"
    if rule == "max":
        return f"found {_show(value)}, expected at most {constraint}"
    if rule == "empty":
        return "is empty, expected something"
    if rule == "regex":
        return f"found {_show(value)}, which does not have the expected form {constraint}"
    if rule in ("keysrules", "valuesrules"):
        return f"found {_show(value)}"
    info = error.info[0] if error.info else rule
    return f"found {_show(value)}, {info}"


_TYPE_WORDS = {
    "string": "text",
    "dict": "a mapping",
    "list": "a list",
    "strict_integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def _expected(constraint: Any, error: ValidationError) -> str:
    if constraint is None:
        return "a value"
    kinds = constraint if isinstance(constraint, (list, tuple)) else [constraint]
    words = [_TYPE_WORDS[kind] for kind in kinds if kind in _TYPE_WORDS]
    return " or ".join(words)


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "boolean", int: "number"}
    return names.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return f"a {_kind(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _doc(dialect: str, path: DataPath) -> str:
    rules = _rules_at(FORMS[dialect], path)
    return str(rules.get("meta", {}).get("doc", "")) if rules else ""


def _rules_at(schema: Field, path: DataPath) -> Field | None:
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
    rules = _rules_at(FORMS[dialect], path)
    inner = (rules or {}).get("schema")
    if not isinstance(inner, dict) or isinstance(inner.get("type"), (str, list)):
        return []
    return [str(key) for key in inner]


def _close(dialect: str, path: DataPath, ratio: float) -> str:
    """The key that may stand here and is spelled nearly so; empty when there is none."""
    close = difflib.get_close_matches(str(path[-1]), known_keys(dialect, path[:-1]), 1, ratio)
    return close[0] if close else ""


def _suggest(source: Source, dialect: str, path: DataPath) -> str:
    here = known_keys(dialect, path[:-1])
    known = f"Remove it. Known here: {', '.join(sorted(here))}." if here else "Remove it."
    return _meant(source, dialect, path) or known


def _meant(source: Source, dialect: str, path: DataPath) -> str:
    """What an unknown key was probably meant to be; empty when that cannot be told."""
    key = str(path[-1])
    close = _close(dialect, path, 0.7)
    if close:
        return f"Did you mean '{close}'?"
    if dialect not in FIELDS:
        return ""
    if key in known_keys(dialect, ()):
        return f"'{key}' belongs at the top of the case; check its indentation."
    if key in BENCHMARK:
        return f"'{key}' belongs under a name in 'benchmarks'; check its indentation."
    if _looks_like_benchmark(source, path):
        if path[:1] == ("benchmarks",):
            return f"'{key}' looks like a benchmark: it belongs beside '{path[1]}', not in it."
        return f"'{key}' looks like a benchmark: it belongs in 'benchmarks'."
    inside = [
        name
        for name in ("deployment", "config", "templates", "routing", "disaggregated_prefill")
        if key in known_keys(dialect, (name, 0)) or key in known_keys(dialect, (name,))
    ]
    if inside:
        return f"'{key}' belongs in '{inside[0]}'; check its indentation."
    other = "routing" if dialect == "deployment" else "deployment"
    if not path[:-1] and key in FIELDS[other]:
        return f"'{key}' belongs to the {other} dialect; this case is written in the {dialect} one."
    return ""


def _looks_like_benchmark(source: Source, path: DataPath) -> bool:
    value = source.data
    for part in path:
        value = value[part]
    return isinstance(value, dict) and "case_type" in value
