"""Every place that asks whether a run is rehearsed, taken the other way.

``PLACES`` names the test of each; a place that is not in it fails here. What is too small, or would
take too long, for a whole run is tested below, on plans that are not rehearsed.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ci import replay
from ci import run as ci_run
from ci.backends import hosts, local
from ci.backends.hosts.inventory import Host
from ci.backends.hosts.session import Session
from steps import bench, prove, proxy, resolve, wait
from steps.bench_drivers import client_program
from steps.core.errors import InfraError, UsageError
from steps.core.node import http, identify
from steps.core.node.http import Answer
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.node.wishes import Wishes
from steps.core.plan import budgets, clusters, resolver
from steps.core.plan.cluster import STAND_IN_ROUTER, Cluster, Rehearsal, loopback_nodes
from steps.core.plan.plan import Plan, from_json
from steps.core.plan.proxies import KINDS, choose
from steps.core.record.events import EventLog
from steps.core.record.rundir import RunDir
from steps.core.redaction import Redactor
from steps.core.vllm import kvports
from tests.core.cases import SPLIT, case_of, cluster_of, plan_of
from tests.faults.rehearse import ROOT, Outcome
from tests.realpath import fleet

#: Where it is asked (file and function), and the test that is not rehearsed.
PLACES = {
    "times.compare": "test_checks.py::test_a_check_fails",
    "go.Go._aim": "test_steps_alone.py::test_a_row_on_engines",
    "carry.carry": "test_over_ssh.py::test_a_commit_of_a_repository_here_travels",
    "init.Crew.__init__": "test_over_ssh.py::test_a_commit_of_a_repository_here_travels",
    "cluster.Cluster.installs": "test_products.py::test_two_nodes_run_the_commit",
    "cluster.Cluster.skipped": "test_products.py::test_two_nodes_run_the_commit",
    "plan.Plan.installs": "test_local.py::test_a_worker_s_install_that_fails",
    "install.left_out": "test_products.py::test_two_nodes_run_the_commit",
    "sizing.beside": "test_fronts.py::test_only_a_run_of_the_same_kind_is_laid_beside",
    "sizing._asked": "test_fronts.py::test_only_a_run_of_the_same_kind_is_laid_beside",
    "budgets.of": "test_the_case_s_own_budgets_count",
    "bundle.make": "test_a_bundle_without_stand_ins",
    "wishes.Wishes.check_faults": "test_commands.py::test_a_wrong_command_line_of_a_run",
    "wishes.wishes_of": "test_commands.py::test_a_wrong_command_line_of_a_run",
    "clusters.local": "test_what_a_run_says_of_itself",
    "init.cluster_of": "test_hosts_get_no_stand_ins",
    "init.problems": "test_local.py::test_what_preflight_finds",
    "client_program.ask": "test_an_endpoint_has_a_minute_for_one_answer",
    "init._material": "test_local.py::test_a_fleet_passes_and_its_gates_are_judged",
    "bench._await_deaths": "test_a_dying_server_gets_its_time",
    "bench._watch_health": "test_health_is_watched_with_real_patience",
    "pictures._loaded": "test_checks.py::test_a_check_fails",
    "pictures.image": "test_checks.py::test_a_check_fails",
    "pictures.judge": "test_checks.py::test_a_check_fails",
    "identify.at_home": "test_a_node_adds_what_it_knows_of_itself",
    "junit.xml": "test_what_a_run_says_of_itself",
    "local.make_plan": "test_without_an_engine_nothing_is_started",
    "local._kept_router": "test_only_a_rehearsal_takes_the_rehearsals_own_proxy",
    "local._profile": "test_without_an_engine_nothing_is_started",
    "manifest.cluster": "test_pods_get_no_stand_ins_but_a_workdir_and_devices",
    "manifest._resources": "test_pods_get_no_stand_ins_but_a_workdir_and_devices",
    "plan.Plan.rehearsed": "test_what_a_run_says_of_itself",
    "preflight._bound": "test_ports.py::test_where_the_command_says_it_listens",
    "preflight.models": "test_local.py::test_what_preflight_finds",
    "identity.versions": "test_local.py::test_versions_are_the_engines_and_differences_are_shown",
    "proxy.late": "test_only_a_rehearsal_holds_a_real_router_back",
    "prove.judge": "test_a_handoff_over_files_is_judged",
    "proxies.choose": "test_nothing_stands_in_for_a_script",
    "proxies.encoders": "test_several.py::test_encoders_sit_behind_a_proxy",
    "resolver._Resolver.plan": "test_what_a_run_says_of_itself",
    "resolver._Resolver._encoders": "test_several.py::test_encoders_sit_behind_a_proxy",
    "render.order": "test_a_bundle_without_stand_ins",
    "replay.options": "test_a_run_is_replayed",
    "replay.compared": "test_a_run_is_replayed",
    "resolve._far": "test_a_plan_for_hosts",
    "drivers.Driver.load": "test_a_real_load_is_the_case_s_own_and_is_judged",
    "drivers.Driver.small": "test_a_real_load_is_the_case_s_own_and_is_judged",
    "drivers.Driver.skips_gates": "test_a_real_load_is_the_case_s_own_and_is_judged",
    "drivers.Driver.judges": "test_a_real_load_is_the_case_s_own_and_is_judged",
    "drivers.chosen": "test_a_real_load_is_the_case_s_own_and_is_judged",
    "resolver._Resolver._benchmark": "test_a_real_load_is_the_case_s_own_and_is_judged",
    "wishes.Wishes.of_case": "test_only_a_case_of_stand_ins_rehearses_unasked",
    "run._place": "test_only_a_case_of_stand_ins_rehearses_unasked",
    "scope.Scope.around": "test_local.py::test_a_kv_pool",
    "session.Session._check": "test_no_stand_ins_are_no_reason_to_refuse_a_place",
    "noderun.stage": "test_checks.py::test_every_check_is_made_and_nothing_is_skipped",
    "start._cluster": "test_by_hand.py::test_a_fleet_passes",
    "summary.headline": "test_what_a_run_says_of_itself",
    "summary.markdown": "test_what_a_run_says_of_itself",
    "summary._survived": "test_what_a_run_says_of_itself",
    "summary._phases": "test_what_a_run_says_of_itself",
    "upstream._hardware": "test_what_a_run_says_of_itself",
    "texts.chat_completion": "test_checks.py::test_every_check_is_made_and_nothing_is_skipped",
    "compare.Starts.conclude": "test_compare.py::test_a_rehearsed_comparison_says_so",
    "trial.rehearsed": "test_compare.py::test_a_rehearsed_comparison_says_so",
    "bisect.run": "test_bisect.py::test_nights_of_the_history_shorten_the_search",
    "nights.comparable": "test_bisect.py::test_nights_of_the_history_shorten_the_search",
    "backend.run": "test_on_k8s.py::test_a_fleet_passes_without_the_tag",
    "hunt._not_at_all": "test_hunt.py::test_the_first_red_night_after_a_good_one_is_searched",
    "trend._measured": "test_local.py::test_what_counts_goes_into_the_history",
    "trend.text": "test_local.py::test_what_counts_goes_into_the_history",
    "wait.completion": "test_a_completion_is_asked_for_with_real_patience",
}


def places() -> Iterator[tuple[str, str]]:
    """Where the code asks, as a name and as a place to look at."""
    for folder in ("steps", "ci", "k8s"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            stem = path.stem.strip("_")
            for name, line in _asking(ast.parse(path.read_text()), ()):
                yield f"{stem}.{name}", f"{path.relative_to(ROOT)}:{line}"


def _asking(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        inside = (*inside, node.name)
    tests = [
        part
        for part in (getattr(node, "test", None), *getattr(node, "ifs", ()))
        if isinstance(part, ast.expr)
    ]
    if isinstance(node, ast.BoolOp | ast.Compare):
        tests.append(node)
    if any(re.search(r"rehears", ast.unparse(test)) for test in tests):
        yield ".".join(inside), tests[0].lineno
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Assert):
            yield from _asking(child, inside)


def test_every_place_that_asks_has_a_test():
    found = dict(places())
    assert len(found) > 30
    new = {name: where for name, where in found.items() if name not in PLACES}
    assert new == {}, "write a test that is not rehearsed, and name it in PLACES"
    assert set(PLACES) - set(found) == set(), "they do not ask any more: take them out of PLACES"
    for name in set(PLACES.values()):
        file, _, test = name.rpartition("::")
        texts = [p.read_text() for p in (ROOT / "tests").rglob(file or Path(__file__).name)]
        assert any(f"def {test}" in text for text in texts), name


# Whole runs


def read(found: Outcome, name: str) -> str:
    """A file at the top of the run directory."""
    [path] = found.path.glob(name)
    return path.read_text()


def test_what_a_run_says_of_itself(tmp_path):
    found = fleet.local(tmp_path, fleet.case(2), "--bench", "smoke")
    assert found.code == 0, found.output
    summary = read(found, "summary.md")
    assert "# ✅ PASS: realpath 2 in" in summary
    assert "NPU-minutes |" in summary
    for words in ("rehears", "Stand-ins", "changed nothing"):
        assert words not in summary
    junit = read(found, "junit.xml")
    assert 'name="rehearsed" value="False"' in junit
    assert 'name="soc" value="local"' in junit
    assert json.loads(read(found, "results-*.json"))["hardware"] == "local"
    plan = read(found, "plan.json")
    assert "REHEARSAL_" not in plan
    assert not any("rehears" in note for note in found.plan["notes"])
    assert found.plan["cluster"]["rehearsal"] is None
    assert not any(
        "rehearsal" in p for paths in found.plan["cluster"]["paths"].values() for p in paths
    )


def test_a_run_is_replayed(tmp_path):
    first = fleet.local(tmp_path, fleet.case(1), "--bench", "smoke", draw=True)
    words = list(replay.options(loaded(first), first.path / "case.yaml"))
    assert words[:2] == ["--on", "local"]
    assert "--rehearse" not in words
    done = subprocess.run(
        [sys.executable, "-m", "ci.replay", str(first.path), "--run-dir", str(tmp_path / "again")],
        cwd=ROOT,
        env=fleet.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The plan is the same, but for the run id." in done.stdout
    then = json.loads((first.path / "plan.json").read_text())
    then["cluster"]["python"] = "/elsewhere/python"
    (first.path / "plan.json").write_text(json.dumps(then))
    said = list(replay.compared(RunDir(first.path), RunDir(tmp_path / "again")))
    assert any("/elsewhere/python" in line for line in said), said


def loaded(found: Outcome) -> Plan:
    """The run's plan."""
    return from_json((found.path / "plan.json").read_text())


# Where a run goes, and what it finds there


def test_only_a_case_of_stand_ins_rehearses_unasked():
    for place in ("local", "hosts", "k8s", ""):
        asked = ci_run.choose(case_of("rehearse: true\n" + SPLIT), Wishes(place=place))
        assert (asked.place, asked.rehearsal) == (place or "local", Rehearsal())
        real = ci_run.choose(case_of(SPLIT), Wishes(place=place or "hosts"))
        assert (real.place, real.rehearsal) == (place or "hosts", None)
    faulty = Wishes(place="k8s", stand_ins=Rehearsal(faults=("crash@1:load",)))
    assert ci_run.choose(case_of("rehearse: true\n" + SPLIT), faulty).rehearsal
    with pytest.raises(UsageError, match="--fault works in a rehearsal only"):
        ci_run.choose(case_of(SPLIT), faulty)
    asked = ci_run.choose(case_of(SPLIT), Wishes(hosts="10.0.0.1,10.0.0.2"))
    assert asked.place == "hosts"


def test_without_an_engine_nothing_is_started(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path))
    request = SimpleNamespace(case=case_of(SPLIT), wishes=Wishes(), run="run-1")
    with pytest.raises(InfraError, match="no `vllm` on PATH"):
        local.make_plan(request)  # type: ignore[arg-type]


def test_hosts_get_no_stand_ins():
    host = SimpleNamespace(address="10.0.0.1", interface="eth0")
    request = SimpleNamespace(wishes=Wishes(), run="run-1")
    inventory = SimpleNamespace(hosts=[host], directory="/tmp")
    found = hosts.cluster_of(request, inventory)  # type: ignore[arg-type]
    assert (found.name, found.paths, found.rehearsal) == ("hosts", {}, None)


def test_no_stand_ins_are_no_reason_to_refuse_a_place_where_nothing_starts():
    request = SimpleNamespace(wishes=Wishes())
    made: Any = Session(request, 0, Host("10.0.0.1"), None, "/x/run", "", None, print)  # type: ignore[arg-type]
    hello = {"python": [3, 11, 0], "missing": [], "noexec": True, "time": 5.0, "machine": []}
    made._check(hello, 5.0, 5.0)
    request.wishes = Wishes().rehearsed()
    with pytest.raises(InfraError, match="is mounted noexec, and stand-ins"):
        made._check(hello, 5.0, 5.0)


def test_a_node_adds_what_it_knows_of_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("MULTINODE_AIS_BENCH", "/x/ais_bench")
    monkeypatch.setenv("WORKSPACE", str(tmp_path))
    given = Cluster("lab", "hosts", loopback_nodes(2, "71.9"), router="/y/router")
    found = identify.at_home(given, case_of(SPLIT))
    assert (found.ais_bench, found.router, found.workdir) == (
        "/x/ais_bench",
        "/y/router",
        str(tmp_path),
    )
    assert found.known["WORKSPACE"] == str(tmp_path)


def test_a_plan_for_hosts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "case.yaml"
    path.write_text(SPLIT)
    words = ["--case", str(path), "--hosts", "10.0.0.1,10.0.0.2", "--format", "json"]
    assert resolve.main(words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [node["address"] for node in plan["nodes"]] == ["10.0.0.1", "10.0.0.2"]
    assert plan["cluster"]["backend"] == "hosts"
    assert resolve.main([*words[:3], "10.0.0.1"]) == 2


def test_nothing_stands_in_for_a_script():
    for name in ("auto", "script"):
        assert choose(name, "proxy.py", cluster_of(2)) == (KINDS["script"], "")
    assert choose("vllm-router", "proxy.py", cluster_of(2)) == (KINDS["vllm-router"], "")
    assert clusters.local(case_of(SPLIT), network="71.9").router == ""


def test_only_a_rehearsal_takes_the_rehearsals_own_proxy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path))
    given = Cluster("lab", "k8s", loopback_nodes(2, "71.9"), router="/not/here/vllm-router")
    assert identify.at_home(given, case_of(SPLIT)).router == given.router
    given = replace(given, rehearsal=Rehearsal())
    assert identify.at_home(given, case_of(SPLIT)).router == STAND_IN_ROUTER
    for place in ("vllm-router", "other-router"):
        (tmp_path / place).write_text("#!/bin/sh\n")
        (tmp_path / place).chmod(0o755)
    given = replace(given, router="")
    assert identify.at_home(given, case_of(SPLIT)).router == ""
    given = replace(given, router=str(tmp_path / "other-router"))
    assert identify.at_home(given, case_of(SPLIT)).router == given.router


def test_only_a_rehearsal_holds_a_real_router_back():
    def late(router: str, rehearsal: Rehearsal | None) -> bool:
        case = case_of(SPLIT + "proxy:\n  kind: vllm-router\n")
        cluster = replace(cluster_of(2), rehearsal=rehearsal, router=router)
        return proxy.late(resolver.resolve(case, cluster, resolver.Options("run-1")))

    assert late("/envs/bin/vllm-router", Rehearsal())
    assert not late(STAND_IN_ROUTER, Rehearsal())
    assert not late("/envs/bin/vllm-router", None)


@pytest.mark.parametrize(
    ("kind", "script", "words"),
    [
        ("vllm-router", "", "stands in for vllm-router,"),
        ("auto", "", "stands in for proxy.py,"),
        ("auto", "/x/proxy.py", ""),
        ("command", "", ""),
    ],
)
def test_what_stands_in_for_a_proxy_is_said(kind, script, words):
    made = Cluster("r", "local", loopback_nodes(2, "71.9"), rehearsal=Rehearsal())
    made = replace(made, proxy_script=script)
    for router, actor in ((STAND_IN_ROUTER, "the rehearsal's own proxy "), ("", "vllm-router ")):
        note = choose(kind, "proxy.py", replace(made, router=router))[1]
        told = words and not (kind == "vllm-router" and not router)
        assert (actor + words in note) if told else note == ""


def test_the_case_s_own_budgets_count():
    case = case_of(SPLIT + "timeouts: {load: 77}\n")
    found = budgets.of(case, cluster_of(2), {"bench": 5.0}, "aisbench")
    assert (found["load"].seconds, found["bench"].seconds) == (77, 5)
    assert found["join"] == budgets.BUDGETS["join"]
    assert budgets.of(case, cluster_of(2), {}, "aisbench")["bench"] == budgets.BUDGETS["bench"]


def test_a_real_load_is_the_case_s_own_and_is_judged():
    text = SPLIT.replace("num_prompts: 64", "num_prompts: 6400")
    assert text != SPLIT
    [entry] = plan_of(text, proxy_script="/w/proxy.py").benchmarks
    assert (entry.driver, entry.benchmark.num_prompts) == ("aisbench", 6400)
    assert (entry.scaled, entry.skip_gates) == ("", "")
    assert entry.judged == ("success_ratio",)
    [entry] = plan_of(SPLIT, rehearsed=True, proxy_script="/w/proxy.py").benchmarks
    assert "acceptance_rate_pos_0" in entry.judged


def test_a_bundle_without_stand_ins(tmp_path):
    from k8s import bundle
    from tests.kube.test_manifest import order

    assert bundle.make(False).size < bundle.make(True).size
    assert order(tmp_path).bundle.size < order(tmp_path, rehearse=True).bundle.size


def test_pods_get_no_stand_ins_but_a_workdir_and_devices(tmp_path):
    from k8s import manifest
    from tests.kube.fleet import PROFILE
    from tests.kube.test_manifest import lws, order

    profile = f"{PROFILE}device: {{resource: huawei.com/ascend-1980}}\nworkdir: /w\n"
    made = order(tmp_path, profile)
    found = manifest.cluster(made)
    assert (found.workdir, found.rehearsal) == ("/w", None)
    assert not any("rehearsal" in part for parts in found.paths.values() for part in parts)
    assert '"huawei.com/ascend-1980": "2"' in json.dumps(lws(made))


# Patience


@pytest.fixture
def run(tmp_path: Path) -> Iterator[NodeRun]:
    """The leader of a plan that is not rehearsed."""
    plan = plan_of(SPLIT, driver="aisbench", proxy_script="/w/proxy.py")
    run_dir = RunDir(tmp_path / "run").make()
    events = EventLog(run_dir.node(0).make().events, plan.run, 0, Redactor(), [])
    yield NodeRun(plan, 0, run_dir, events)
    events.close()


def test_health_is_watched_with_real_patience(run, monkeypatch):
    seen: list[float] = []

    def look(_probe: object, timeout: float = 0) -> Answer:
        seen.append(timeout)
        return Answer(False, "no answer")

    monkeypatch.setattr(bench, "look", look)
    monkeypatch.setattr(bench, "REAL", bench.Patience(0.001, 7.0, 3, 0.0))
    monkeypatch.setattr(bench, "REHEARSED", bench.Patience(60, 1, 99, 0.0))
    told = threading.Event()
    monkeypatch.setattr(run, "add_cause", lambda cause: (told.set(), found.append(cause)))
    found: list[Any] = []
    over = threading.Event()
    bench._watch_health(run, over)
    assert told.wait(20)
    over.set()
    assert found[0].kind == "health"
    assert "3 health probes in a row" in found[0].reason
    assert set(seen) == {7.0}


def test_a_dying_server_gets_its_time(run, monkeypatch):
    slept: list[float] = []
    now = [0.0]
    monkeypatch.setattr(bench, "look", lambda *_: Answer(False, "HTTP 503"))
    monkeypatch.setattr(run, "sleep", lambda s: (slept.append(s), now.__setitem__(0, now[0] + 1)))
    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    bench._await_deaths(run)
    assert len(slept) == bench.REAL.dying


def test_an_endpoint_has_a_minute_for_one_answer(run, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(
        client_program.http, "ask", lambda *given: asked.append(given) or http.Reply(0, "", "")
    )
    client_program.ask(run, SimpleNamespace(endpoint=run.plan.endpoint))  # type: ignore[arg-type]
    assert asked[0][-1] == client_program.ANSWER_SECONDS > client_program.ANSWER_SECONDS_REHEARSED


def test_a_completion_is_asked_for_with_real_patience(run, monkeypatch):
    limits: list[float] = []

    def ask(*given: Any) -> http.Reply:
        limits.append(given[-1])
        return http.Reply(500, "", "no")

    monkeypatch.setattr(wait.http, "ask", ask)
    monkeypatch.setattr(run, "sleep", lambda _: None)
    with pytest.raises(StepFailed):
        wait.completion(run)
    assert limits == [wait.ATTEMPT_SECONDS_REAL] * wait.ATTEMPTS_REAL
    assert wait.ATTEMPTS_REAL > wait.ATTEMPTS


def test_a_handoff_over_files_is_judged():
    text = SPLIT.replace("MooncakeConnectorV1", "ExampleConnector")
    plan = plan_of(text, proxy_script="/w/proxy.py")
    if not prove._by_files(plan):
        plan = with_files(plan)
    served = [
        prove.Served(node, process, {"0": 2.0}, {"local_compute": 40.0}, True)
        for node, process in plan.servers()
    ]
    judged = {check.name: check.status for check in prove.judge(plan, served)}
    assert judged["handoff"] == "fail"


def with_files(plan: Plan) -> Plan:
    """The plan, its servers with the connector that hands over in files."""
    nodes = tuple(
        replace(
            node,
            processes=tuple(
                replace(p, argv=(*p.argv, kvports.BY_FILES)) if p.kind == "server" else p
                for p in node.processes
            ),
        )
        for node in plan.nodes
    )
    return replace(plan, nodes=nodes)
