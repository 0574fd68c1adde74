"""Whatever is done to a case, the harness answers with a plan or with a CaseError."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.core.case.build import build_case
from steps.core.case.case import Case
from steps.core.case.fields import FIELDS
from steps.core.case.source import parse_yaml
from steps.core.errors import CaseError
from steps.core.plan.cluster import Cluster
from steps.core.plan.plan import Plan, from_json, to_json
from steps.core.plan.resolver import Options, resolve
from steps.validate import neutral_cluster
from tests.core.cases import CONFIGS, DIALECTS, cluster_of

TEXTS = {**DIALECTS, **{path.stem: path.read_text(encoding="utf-8") for path in CONFIGS}}
KNOWN = neutral_cluster(1).known
DATA = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
#: Other things in braces are for the linter to complain of.
VARIABLE = re.compile(r"\$(\{[A-Za-z_]\w*\}|[A-Za-z_])")
KEYS = sorted(
    {key for fields in FIELDS.values() for key in fields}
    | set(FIELDS["deployment"]["deployment"]["schema"]["schema"])
    | set(FIELDS["routing"]["config"]["schema"]["schema"])
    | {"args", "command", "script", "kind", "reason", "gates", "ignore", "SERVER_PORT"}
)
ODD = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 2, 3, 7, 65535, 65536, 10**9, 10**18, 10**70, 1.5, -0.0, 1e308,
        float("inf"), float("nan"), "", " ", "0", "²", "٣", "-5", "1e5", "9" * 400, "$", "$NOBODY",
        "${NOBODY}", "${", "$LOCAL_IP", "${PORT}", "'", '"', "\\", "vllm serve m", "vllm serve",
        "vllm serve m --port 99999999", "vllm serve m --port $X -dp 1000000000 --headless",
        "vllm serve m -dp -4 --kv-transfer-config '{\"kv_port\": 1e999}'",
        "vllm serve m -dp 3 -tp 1000000000 --kv-transfer-config '{\"kv_port\": 5}'",
        "vllm serve m --kv-transfer-config " + "[" * 3000, "vllm serve m --host ::1 --port ²",
        "none", "vllm-router", "script", "a.py", "command", [], {}, [[]], [None], [{}], {"": None},
        {1: 2, "a": 3}, {None: None}, ["--port", 1, True], "ttft_mean_ms <= 1", ["accuracy >= 1"],
        "1h", "0s", "9e99h", "99999999999h",
        yaml.safe_load("2026-01-01"), b"\x00\xff", "\x7f\u2028",
    ]
)  # fmt: skip


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested data."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from paths_of(inner, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A case's data after a few changes."""
    data = copy.deepcopy(DATA[draw(st.sampled_from(sorted(DATA)))])
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths_of(data))))
        parent = data
        for part in path[:-1]:
            parent = parent[part]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "insert", "swap"]))
        if kind == "replace":
            parent[path[-1]] = draw(ODD)
        elif kind == "remove":
            del parent[path[-1]]
        elif kind == "insert" and isinstance(parent, dict):
            parent[draw(st.sampled_from(KEYS) | st.text(max_size=4) | st.integers())] = draw(ODD)
        elif kind == "swap":
            other = data
            source = draw(st.sampled_from(list(paths_of(data)))) if data else ()
            for part in source:
                other = other[part]
            parent[path[-1]] = copy.deepcopy(other)
        if not data:
            break
    return data


def attempt(text: str, rehearsed: bool, driver: str = "") -> tuple[Case, Cluster, Plan] | None:
    """A plan, or None when the case was refused with at least one problem."""
    try:
        case = build_case(parse_yaml(text, "f.yaml"))
        cluster = cluster_of(case.num_nodes, rehearsed=rehearsed, known=KNOWN)
        return case, cluster, resolve(case, cluster, Options("run", driver))
    except CaseError as error:
        assert error.problems
        lines = len(text.splitlines()) + 1
        for problem in error.problems:
            assert re.fullmatch(r"MN\d{3}", problem.rule)
            assert problem.message
            assert 1 <= problem.place.line <= lines
        return None


def hold(plan: Plan) -> None:
    """What is true of every plan."""
    text = to_json(plan)
    again = from_json(text)
    assert to_json(again) == text
    assert again.fingerprint() == plan.fingerprint()
    assert "NaN" not in text
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    for node in plan.nodes:
        for process in node.processes:
            words = [*process.argv, *process.env.values(), *process.api]
            assert process.argv
            assert not [w for w in words if VARIABLE.search(w)], process.name
            assert not [w for w in words if "\0" in w]


@given(mutated(), st.booleans(), st.sampled_from(["", "smoke", "aisbench", "none"]))
def test_a_mutated_case_plans_or_is_refused(data: Any, rehearsed: bool, driver: str) -> None:
    found = attempt(yaml.safe_dump(data, sort_keys=False), rehearsed, driver)
    if found:
        hold(found[2])


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_variable_that_nobody_defines_is_in_no_process(name: str) -> None:
    """The proxy's environment is its node's: what is empty in the servers' was left in it."""
    data = yaml.safe_load(TEXTS[name])
    places = [data.get("env_common"), *(each.get("envs") for each in data.get("templates", ()))]
    for envs in filter(None, places):
        for key in envs:
            before, envs[key] = envs[key], "$NOBODY"
            found = attempt(yaml.safe_dump(data, sort_keys=False), True)
            envs[key] = before
            if found:
                hold(found[2])


@settings(max_examples=40)
@given(st.sampled_from(sorted(TEXTS)), st.data())
def test_torn_text_plans_or_is_refused(name: str, data: st.DataObject) -> None:
    text = TEXTS[name]
    at = data.draw(st.integers(0, len(text)))
    width = data.draw(st.integers(0, 40))
    put = data.draw(
        st.text(max_size=3) | st.sampled_from(["\t", "'", ": ", "- ", "\n", "*a", "&a "])
    )
    found = attempt(text[:at] + put + text[at + width :], True)
    if found:
        hold(found[2])


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_case_plans_and_is_deterministic(name: str) -> None:
    for rehearsed in (False, True):
        found = attempt(TEXTS[name], rehearsed)
        assert found, name
        case, cluster, plan = found
        hold(plan)
        twice = attempt(TEXTS[name], rehearsed)
        assert twice
        assert to_json(twice[2]) == to_json(plan)
        other = resolve(case, cluster, Options("another"))
        assert other.fingerprint() == plan.fingerprint()
        assert to_json(other).replace('"run": "another"', '"run": "run"') == to_json(plan)
        assert from_json(to_json(plan)).nodes[0].processes == plan.nodes[0].processes
