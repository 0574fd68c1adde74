"""The command that compares two variants: by starts that the test makes up, and by real ones."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ci.compare import compare, trial
from ci.compare.pair import Started
from steps.core.case.build import load_case
from steps.core.errors import CaseError, UsageError
from steps.core.node.products import pin
from steps.core.node.wishes import CONFIGS
from steps.core.plan.products import KNOWN, Product
from steps.core.record import outcome
from steps.core.record.rundir import RunDir
from tests.core.waiting import alive, eventually

Words = Callable[..., int]
NOISE = (1.0, 1.01, 0.99, 1.005, 0.995)


def made_up(speeds: tuple[float, float]) -> Callable[..., Started]:
    """Starts without a fleet: each variant's throughput, with a little noise."""
    count = 0

    def start(case: Path, number: int, words: object, directory: Path) -> Started:
        nonlocal count
        count += 1
        speed = speeds[number] * NOISE[count % 5]
        return Started(number, {"chat output_throughput": (speed, speed)})

    return start


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Words:
    def run(speeds: tuple[float, float], *more: str, start: object = None) -> int:
        monkeypatch.setattr(trial, "start", start or made_up(speeds))
        setting = () if "--b-set" in more else ("--b-set", "env_common.OMP_NUM_THREADS=8")
        home = ("--dir", str(tmp_path / "out"))
        return compare.main(["quickstart.yaml", *setting, *home, *more])

    return run


def told(tmp_path: Path) -> dict[str, object]:
    return json.loads((tmp_path / "out" / "compare.json").read_text())


@pytest.mark.parametrize(
    ("speeds", "code", "finding"),
    [((100, 90), 1, "worse"), ((100, 100), 0, "no_worse"), ((100, 120), 0, "no_worse")],
)
def test_exit_codes(
    words: Words, speeds: tuple[float, float], code: int, finding: str, tmp_path: Path
) -> None:
    assert words(speeds) == code
    assert told(tmp_path)["finding"] == finding


def test_a_budget_is_kept_and_nothing_is_claimed(
    words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial.Purse, "pay", lambda purse, *_: purse.spent.append(10.0))
    assert words((100, 90), "--budget", "45") == 3
    assert told(tmp_path)["device_minutes"] == 40
    assert "cannot tell within the budget" in capsys.readouterr().out


def test_what_the_infrastructure_fails_is_made_again(words: Words, tmp_path: Path) -> None:
    start = made_up((100, 90))
    lost = iter([True, False, True])

    def sometimes(*given: object) -> Started | None:
        return None if next(lost, False) else start(*given)

    assert words((0, 0), start=sometimes) == 1
    starts = told(tmp_path)["starts"]
    assert isinstance(starts, list)
    assert [one["variant"] for one in starts[:4]] == [0, 1, 1, 0]


def test_what_an_interrupt_leaves_is_kept(words: Words, tmp_path: Path) -> None:
    start, count = made_up((100, 90)), itertools.count()

    def stopped(*given: object) -> Started:
        if next(count) == 5:
            raise KeyboardInterrupt
        return start(*given)

    assert words((0, 0), start=stopped) == 130
    starts = told(tmp_path)["starts"]
    assert isinstance(starts, list)
    assert (len(starts), told(tmp_path)["finding"]) == (5, "unknown")


def test_infrastructure_that_fails_always_ends_it(words: Words) -> None:
    assert words((0, 0), start=lambda *_: None) == 3


def test_a_variant_that_crashes_is_worse(words: Words, tmp_path: Path) -> None:
    def start(case: Path, number: int, *_: object) -> Started:
        return (
            Started(number, failure="crash") if number else Started(0, {"chat tpot_mean_ms": (9,)})
        )

    assert words((0, 0), start=start) == 1


@pytest.mark.parametrize(
    "more",
    [
        ("--metric", "speed"),
        ("--metric", "none output_throughput"),
        ("--b-set", "nonsense"),
        ("--b-set", "deployment.7.server_cmd=x"),
        ("--b-set", "no.such=1"),
        ("--b-set", "num_nodes+= 1"),
        ("--b-set", "test_name.a.b=1"),
        ("--b-set", "num_nodes=two"),
    ],
)
def test_what_cannot_be_compared_is_refused(words: Words, more: tuple[str, ...]) -> None:
    assert words((100, 100), *more) == 2


@pytest.mark.parametrize(
    "option", ["--margin=nan", "--margin=-5", "--budget=nan", "--budget=-1", "--budget=0",
               "--starts=2", "--repeats=0", "--budget=inf"],
)  # fmt: skip
def test_a_number_that_no_comparison_would_refuse_is_refused(
    words: Words, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        words((100, 100), option)
    assert ended.value.code == 2
    name, _, value = option.partition("=")
    assert f"argument {name}: found '{value}', expected a number of at least" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_equal_variants_are_refused(words: Words) -> None:
    same = ("--a-set", "env_common.OMP_NUM_THREADS=8")
    assert words((100, 100), *same) == 2


def test_a_directory_in_use_is_refused(words: Words, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert words((100, 100)) == 2


def test_settings_are_carried_out(tmp_path: Path) -> None:
    settings = ("deployment.0.server_cmd+= --seed 3", "env_common.X='07'", "model=other/model")
    target = tmp_path / "B.yaml"
    trial.write(Path("configs/quickstart.yaml"), settings, 3, target)
    case = load_case(target)
    assert [word.text for word in case.nodes[0].command][-2:] == ["--seed", "3"]
    assert case.nodes[1].envs["X"] == "07"
    assert case.model == "other/model"
    assert case.benchmarks[0].repeat == 3


def test_a_case_that_is_wrong_is_named_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("num_nodes: two\n")
    with pytest.raises(CaseError, match=r"x\.yaml"):
        trial.write(tmp_path / "x.yaml", (), 1, tmp_path / "A.yaml")
    with pytest.raises(UsageError, match="no setting"):
        trial.write(Path("configs/quickstart.yaml"), ("x",), 1, tmp_path / "A.yaml")


def test_signatures_leave_out_what_differs_from_run_to_run() -> None:
    def verdict(reason: str) -> dict[str, object]:
        cause = {"reason": reason, "phase": "load", "process": "server"}
        return {"verdict": "crash", "cause": cause}

    first = trial.signature(verdict("exit code 1 after 12.5 s, pid 4711 at 0x7ffe"))
    assert first == trial.signature(verdict("exit code 1 after 9.1 s, pid 99 at 0x1"))
    assert first != trial.signature(verdict("killed by a signal"))


VARIANTS = """
variants:
  v1: {}
  v2:
    set: ["env_common.VLLM_USE_V2=1"]
    gates: ["output_throughput >= 0.97 * variant(v1)", "ttft_p99_ms <= 1.5 * variant(v1)"]
  v3:
    image: image:3
    products: [vllm-ascend=pr/12]
    gates: ["output_throughput >= 1.10*variant(v2)"]
"""


@pytest.mark.parametrize(
    ("speeds", "code"),
    [
        ({"v1": 100, "v2": 98.5, "v3": 120}, 0),  # worse, by less than the gate allows
        ({"v1": 100, "v2": 98.5, "v3": 105}, 1),  # better, by less than the gate asks
        ({"v1": 100, "v2": 94, "v3": 120}, 1),
    ],
)
def test_variants_of_a_case_are_held_against_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float], code: int
) -> None:
    given, count = {}, itertools.count()

    def start(case: Path, number: int, words: list[str], directory: Path) -> Started:
        given[directory.parent.name, case.stem] = (words, load_case(case).nodes[0].envs)
        speed = speeds[case.stem] * (1 + 0.002 * (next(count) % 3 - 1))
        values = {"chat output_throughput": (speed,), "chat ttft_p99_ms": (1 / speed,)}
        return Started(number, {**values, "chat tpot_mean_ms": (speed,)})

    monkeypatch.setattr(pin, "pin", lambda product: replace(product, commit="5" * 40))
    monkeypatch.setattr(trial, "start", start)
    case = tmp_path / "case.yaml"
    case.write_text((CONFIGS / "quickstart.yaml").read_text() + VARIANTS)
    argv = [str(case), "--dir", str(tmp_path / "out"), "--on", "k8s"]
    assert compare.main(argv) == code
    words, envs = given["v2-against-v1", "v2"]
    assert (words, envs["VLLM_USE_V2"]) == (["--on", "k8s"], "1")
    assert "VLLM_USE_V2" not in given["v2-against-v1", "v1"][1]
    words, envs = given["v3-against-v2", "v3"]
    place = f"vllm-ascend={KNOWN['vllm-ascend'].repository}@{'5' * 40}"
    assert words[2:] == ["--product", place, "--image", "image:3"]
    content = json.loads((tmp_path / "out" / "v3-against-v2" / "compare.json").read_text())
    assert [one["name"] for one in content["metrics"]] == ["failures", "chat output_throughput"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("env_common.VLLM_USE_V2=1", "deployment.9.x=1", "deployment.9"),
        ("env_common.VLLM_USE_V2=1", "nothing", "no setting"),
        ("env_common.VLLM_USE_V2=1", "env_common.X={[", "no value of YAML"),
        ("variant(v2)", "variant(v9)", "expected another variant: v1, v2"),
        ("variant(v2)", "variant(v3)", "expected another variant: v1, v2"),
        ("1.10*variant(v2)", "3", "expected 'metric op share"),
        (">= 1.10", "<= 1.10", "more is better"),
        ("output_throughput >= 1.10", "speed >= 1.10", "unknown metric 'speed'"),
        ("1.10*", "0*", "share above 0"),
        ("  v1: {}", "  -v1: {}", "MN"),
        ("  v1: {}", "  v1: {sets: [a=1]}", "MN"),
    ],
)
def test_variants_that_fit_not_are_refused_when_the_case_is_read(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    case = tmp_path / "case.yaml"
    case.write_text((CONFIGS / "quickstart.yaml").read_text() + VARIANTS.replace(old, new))
    with pytest.raises(CaseError) as found:
        load_case(case)
    assert words in str(found.value)


def test_references_and_images_are_products_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def start(case: Path, number: int, words: list[str], directory: Path) -> Started:
        given[number] = words
        return Started(number, {"chat output_throughput": (100.0 - 20 * number + next(small),)})

    small = itertools.cycle((0.1, 0.2, 0.3))
    looked = []

    def pin_now(product: Product) -> Product:
        looked.append(product.ref)
        return replace(product, commit=f"{len(looked)}" * 40) if product.repository else product

    monkeypatch.setattr(trial, "start", start)
    monkeypatch.setattr(pin, "pin", pin_now)
    argv = ["quickstart.yaml", "--a", "v0.30.0", "--b", "main", "--b", "vllm=pip:0.33"]
    argv += ["--b", "image=new", "--dir", str(tmp_path / "out"), "--on", "k8s"]
    assert compare.main(argv) == 1
    place = f"vllm-ascend={KNOWN['vllm-ascend'].repository}@"
    assert given[0] == ["--on", "k8s", "--product", place + "1" * 40]
    assert given[1][2:6] == ["--product", "vllm=pip:0.33", "--product", place + "3" * 40]
    assert given[1][6:] == ["--image", "new"]
    assert looked == ["v0.30.0", "0.33", "main"]  # once: a branch may move while they take turns


def test_a_reference_that_is_not_there_is_said_before_anything_starts(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q", tmp_path / "r"], check=True)
    assert words((100, 100), "--b", f"vllm={tmp_path}/r@nowhere") == 2
    told = capsys.readouterr()
    assert "has no commit 'nowhere'" in told.err
    assert "runs in" not in told.out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_start_whose_child_knows_none_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It dies with a code that is not "interrupted", which was taken for the infrastructure's."""
    ready, child = tmp_path / "ready", tmp_path / "child"
    child.write_text(f"#!/bin/sh\necho $$ > {ready}.new && mv {ready}.new {ready}\nexec sleep 60\n")
    child.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(child))

    def stop() -> None:
        eventually(ready.is_file)
        os.kill(os.getpid(), number)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(KeyboardInterrupt):
        trial.start(tmp_path / "A.yaml", 0, [], tmp_path / "01-A")
    stopping.join()
    assert not alive(int(ready.read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("measured", [0, 1])
def test_a_signal_between_starts_interrupts(
    words: Words, number: signal.Signals, measured: int, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, left = made_up((100, 100)), [True] * measured

    def start(*given: object) -> Started:
        if not left:
            os.kill(os.getpid(), number)
        left.pop()
        return usual(*given)

    before = signal.getsignal(number)
    assert words((0, 0), start=start) == 130
    assert signal.getsignal(number) == before
    told = capsys.readouterr().out
    assert "budget" not in told
    assert ("cannot tell so soon" in told) is bool(measured)


def test_a_rehearsed_comparison_says_so(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = made_up((100, 100))

    def rehearsed(case: Path, number: int, words: object, directory: Path) -> Started:
        directory.mkdir(exist_ok=True)
        RunDir(directory).verdict.write_text(json.dumps({"rehearsed": asked}))
        return replace(start(case, number, words, directory), run=directory.name)

    for asked in (True, False):
        assert words((0, 0), "--dir", str(tmp_path / str(asked)), start=rehearsed) == 0
        assert ("says nothing of a product" in capsys.readouterr().out) is asked


def test_of_a_metric_of_one_benchmark_only_that_is_measured(words: Words, tmp_path: Path) -> None:
    assert words((100, 90), "--metric", "chat output_throughput") == 1
    assert [one.name for one in load_case(tmp_path / "out" / "A.yaml").benchmarks] == ["chat"]
    metrics = told(tmp_path)["metrics"]
    assert isinstance(metrics, list)
    assert [one["name"] for one in metrics] == ["failures", "chat output_throughput"]


def test_a_metric_that_the_case_does_not_measure_is_said_after_one_start(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing measured would be "no worse" otherwise."""
    assert words((100, 90), "--metric", "accuracy") == 2
    assert "does not measure accuracy" in capsys.readouterr().err


SEVERAL = """
test_cases:
  - name: one
    model: org/tiny
    envs: {SERVER_PORT: DEFAULT_PORT}
    server_cmd: [--max-num-seqs, "1"]
  - name: two
    model: org/tiny
    envs: {SERVER_PORT: DEFAULT_PORT}
    server_cmd: [--max-num-seqs, "2"]
"""


def test_of_several_cases_one_is_changed_and_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def start(case: Path, number: int, words: tuple[str, ...], directory: Path) -> Started:
        given.append((case, words))
        return Started(number, {"chat output_throughput": (100.0,)})

    monkeypatch.setattr(trial, "start", start)
    case = tmp_path / "several.yaml"
    case.write_text(SEVERAL)
    argv = [str(case), "--b-set", "model=org/other", "--dir", str(tmp_path / "out")]
    assert compare.main([*argv, "--on", "local"]) == 2  # which of them?
    assert compare.main([*argv, "--on", "local", "--only", "two"]) == 0
    path, words = given[1]
    assert words == ["--only", "two", "--on", "local"]
    assert load_case(path, only="two").model == "org/other"
    assert load_case(path, only="one").model == "org/tiny"


def test_two_real_starts_of_a_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTINODE_HISTORY", str(tmp_path / "history"))
    case = tmp_path / "A.yaml"
    trial.write(Path("configs/quickstart.yaml"), (), 2, case)
    good = trial.start(case, 0, ["--load-seconds", "0.2"], tmp_path / "01-A")
    assert good is not None
    assert len(good.values["chat output_throughput"]) == 2
    assert not (tmp_path / "history").exists()  # a changed case is none of the case's nights
    costs(tmp_path / "01-A")
    fault = ["--load-seconds", "0.2", "--fault", "crash@1:load"]
    bad = trial.start(case, 1, fault, tmp_path / "02-B")
    assert bad is not None
    assert bad.failure.startswith("startup load server")
    with pytest.raises(UsageError, match="was refused"):
        trial.start(case, 0, ["--fault", "nonsense"], tmp_path / "03-A")


def costs(directory: Path) -> None:
    """A start costs what its report says; by the clock and its plan where there are no records."""
    purse, over = trial.Purse(9.0), outcome.read(RunDir(directory))
    purse.pay(directory, 6000)
    assert 0 < purse.total == over.spent.total < 60
    for record in directory.glob("node-*/record.json"):
        record.unlink()
    purse.pay(directory, 60)
    assert purse.spent[1] == sum(node.devices for node in over.plan.nodes) == 4
    purse.pay(directory / "nothing", 60)
    assert purse.spent[2] == 1
    assert purse.affords is (purse.total + max(purse.spent) <= 9)
