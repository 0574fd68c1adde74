"""Products on a node: real git, real pip, a package of the tests' own that is "built"."""

from __future__ import annotations

import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.core.errors import InfraError, UsageError
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.node.products import carry, checkout, identity, pin, place, placed, rules
from steps.core.plan import clusters
from steps.core.plan.products import Product, read
from steps.core.record.events import EventLog
from steps.core.record.rundir import RunDir
from tests.core.cases import SPLIT, case_of, cluster_of, resolve

BACKEND = """
import base64, hashlib, os, pathlib, time, zipfile
def get_requires_for_build_editable(config_settings=None): return []
def get_requires_for_build_wheel(config_settings=None): return []
def _make(folder, editable):
    here = pathlib.Path.cwd()
    source = (here / "csrc" / "kernel.c").read_text()
    with open(os.environ["BUILDS"], "a") as log: log.write(source.strip() + "\\n")
    if "slow" in source: time.sleep(300)
    if "broken" in source: raise SystemExit("error: expected ';' before '}' token")
    (here / "demo" / "native.txt").write_text(source)
    needs = (here / "requirements.txt").read_text().split()
    info = here / "demo.egg-info"; info.mkdir(exist_ok=True)
    (info / "requires.txt").write_text("\\n".join(needs) + "\\n\\n[dev]\\nnever==9\\n")
    name = "demo-1.0-py3-none-any.whl"
    meta = "Metadata-Version: 2.1\\nName: demo\\nVersion: 1.0\\n"
    meta += "".join(f"Requires-Dist: {need}\\n" for need in needs)
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as out:
        if editable: out.writestr("demo.pth", str(here))
        else: [out.write(p, f"demo/{p.name}") for p in (here / "demo").iterdir() if p.is_file()]
        out.writestr("demo-1.0.dist-info/METADATA", meta)
        tag = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        out.writestr("demo-1.0.dist-info/WHEEL", tag)
        out.writestr("demo-1.0.dist-info/RECORD", "")
    return name
def build_editable(folder, *more): return _make(folder, True)
def build_wheel(folder, *more): return _make(folder, False)
"""
FILES = {
    "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'backend'\n"
    "backend-path = ['.']\n",
    "backend.py": BACKEND,
    ".gitignore": "native.txt\n*.egg-info/\n__pycache__/\n",
    "demo/__init__.py": "",
    "csrc/kernel.c": "one\n",
    "requirements.txt": "dep==1.0\n",
}


def git(where: Path, *words: str) -> str:
    identity_ = ("-c", "user.name=t", "-c", "user.email=t@t")
    argv = ["git", "-C", str(where), *identity_, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def commit(where: Path, files: Mapping[str, str] | None = None) -> str:
    for name, text in (files or {}).items():
        (where / name).write_text(text)
    git(where, "add", "--all")
    git(where, "commit", "--quiet", "--allow-empty", "-m", "state")
    return git(where, "rev-parse", "HEAD")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    where = tmp_path / "source"
    for name, text in FILES.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(text)
    git(where, "init", "--quiet", "-b", "main")
    commit(where)
    return where


class Machine:
    """A machine with an environment of its own, on which runs install products."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.builds = tmp, tmp / "builds.txt"
        self.python = tmp / "env" / "bin" / "python"
        self.links = tmp / "links"
        self.links.mkdir()
        for version in ("1.0", "2.0"):
            with zipfile.ZipFile(self.links / f"dep-{version}-py3-none-any.whl", "w") as out:
                info = f"dep-{version}.dist-info"
                meta = f"Metadata-Version: 2.1\nName: dep\nVersion: {version}\n"
                out.writestr(f"{info}/METADATA", meta)
                wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
                out.writestr(f"{info}/WHEEL", wheel)
                out.writestr(f"{info}/RECORD", "")

    def install(self, product: Product, backend: str = "local") -> NodeRun:
        """One run's installation; what it holds is let go, as at the end of its program."""
        if not self.python.exists():
            words = ["-m", "venv", "--without-pip", "--system-site-packages", "--symlinks"]
            subprocess.run([sys.executable, *words, str(self.tmp / "env")], check=True)
        case = case_of(SPLIT)
        cluster = replace(
            cluster_of(case.num_nodes), products=(pin.pin(product),), python=str(self.python),
            backend=backend, rehearsal=None, env={"BUILDS": str(self.builds)},
        )  # fmt: skip
        plan = resolve(case, cluster)
        run_dir = RunDir(self.tmp / f"run-{len(list(self.tmp.glob('run-*')))}").make()
        run = NodeRun(plan, 0, run_dir, EventLog(None, "run-1", 0))
        try:
            place.install(run)
            identity.check(run)
        finally:
            for handle in place._HELD:
                handle.close()
            place._HELD.clear()
        return run

    def built(self) -> list[str]:
        return self.builds.read_text().split() if self.builds.exists() else []

    def version(self, name: str) -> str:
        look = f"import importlib.metadata as m; print(m.version({name!r}))"
        argv = [str(self.python), "-c", look]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    made = Machine(tmp_path)
    yield made


def demo(machine: Machine, source: Path, ref: str = "main", **more: Any) -> Product:
    options = ("--no-index", "--no-build-isolation", "--find-links", str(machine.links))
    more = {"module": "demo", **more}
    return replace(read(f"demo={source}@{ref}"), options=options, **more)


def done(run: NodeRun) -> placed.Placed:
    return placed.read(run.run_dir, 0)["demo"]


def failed(machine: Machine, product: Product, **more: str) -> Any:
    with pytest.raises(StepFailed) as found:
        machine.install(product, **more)
    return found.value.cause


@pytest.mark.timeout(240)
def test_only_native_files_are_built_again_and_back_is_as_good_as_forth(
    machine: Machine, source: Path
) -> None:
    first = git(source, "rev-parse", "HEAD")
    python = commit(source, {"demo/__init__.py": "#\n"})
    second = commit(source, {"csrc/kernel.c": "two\n", "requirements.txt": "dep==2.0\n"})
    bad = commit(source, {"csrc/kernel.c": "broken\n"})
    assert done(machine.install(demo(machine, source, first))).done == "built"
    assert (machine.built(), machine.version("dep")) == (["one"], "1.0")
    run = machine.install(demo(machine, source, python))
    assert (done(run).done, done(run).commit) == ("checked out, nothing to build", python)
    assert done(machine.install(demo(machine, source, second))).done == "built"
    assert (machine.built(), machine.version("dep")) == (["one", "two"], "2.0")
    cause = failed(machine, demo(machine, source, bad))
    assert (cause.verdict, cause.kind) == ("startup", "install")
    assert "does not build" in cause.reason and "by the rule 'build'" in cause.reason
    # What failed left nothing that the next one meets; its dependencies go back too.
    run = machine.install(demo(machine, source, first))
    assert "taken up again" in done(run).done and machine.version("dep") == "1.0"
    assert machine.built() == ["one", "two", "broken"]
    where = Path(done(run).checkout)
    assert (where / "demo" / "native.txt").read_text() == "one\n"
    assert run.versions == {} and identity.versions(run)["demo-commit"] == first


@pytest.mark.timeout(120)
def test_a_wheel_of_a_commit_is_built_once_and_what_does_not_import_is_the_product_s(
    machine: Machine, source: Path
) -> None:
    run = machine.install(demo(machine, source, install="pip"))
    assert "demo-1.0" in done(run).done
    machine.install(demo(machine, source, install="pip"))
    assert machine.built() == ["one"]
    (source / "demo" / "__init__.py").write_text("import nothing_of_the_kind\n")
    commit(source)
    cause = failed(machine, demo(machine, source, install="pip"))
    assert cause.verdict == "startup" and "by the rule 'import'" in cause.reason
    assert any("nothing_of_the_kind" in line for line in cause.evidence)


@pytest.mark.timeout(120)
def test_versions_of_an_index_and_a_build_that_takes_too_long(
    machine: Machine, source: Path
) -> None:
    dep = replace(demo(machine, source), name="dep", module="", source="pip", install="pip")
    machine.install(replace(dep, ref="2.0"))
    machine.install(replace(dep, ref="1.0"))
    assert machine.version("dep") == "1.0"
    cause = failed(machine, replace(dep, ref="3.0"))
    assert cause.verdict == "config" and "by the rule 'version'" in cause.reason
    commit(source, {"csrc/kernel.c": "slow\n"})
    cause = failed(machine, demo(machine, source, seconds=3.0))
    assert cause.verdict == "infra" and "by the rule 'time'" in cause.reason


@pytest.mark.timeout(120)
def test_the_image_s_checkout_is_moved_as_it_was_built_and_changes_of_yours_are_not_lost(
    machine: Machine, source: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "image"
    git(tmp_path, "clone", "--quiet", str(source), str(theirs))
    second = commit(source, {"demo/__init__.py": "#\n"})
    product = demo(machine, source, second, checkout=str(theirs), module="")
    run = machine.install(product)
    assert done(run).done == "checked out, nothing to build" and done(run).checkout == str(theirs)
    assert git(theirs, "rev-parse", "HEAD") == second and machine.built() == []
    (theirs / "backend.py").write_text("mine")
    cause = failed(machine, product)
    assert cause.verdict == "infra" and "by the rule 'dirty'" in cause.reason
    assert (theirs / "backend.py").read_text() == "mine"
    machine.install(product, backend="k8s")  # a pod's own, which nobody has changed on purpose
    assert (theirs / "backend.py").read_text() != "mine"


def test_two_runs_on_a_machine_do_not_move_each_other_s_product(
    machine: Machine, source: Path
) -> None:
    product = demo(machine, source, module="", install="none")
    wanted = replace(product, install="editable", native="never", checkout=str(source))
    home = machine.tmp / "cache" / "products" / "hosts" / socket.gethostname()
    home.mkdir(parents=True)
    with (home / "demo.lock").open("w") as other:
        import fcntl

        other.write("another state")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_SH)
        cause = failed(machine, wanted)
        assert cause.verdict == "infra" and "by the rule 'in use'" in cause.reason
        # What runs from its files has some of its own; later steps find them too.
        run = machine.install(replace(product, paths={"PATH": ("demo",)}))
        again = NodeRun(run.plan, 0, run.run_dir, EventLog(None, "run-1", 0), step="serve")
        path = again.supervisor.environment(again.me.processes[0])["PATH"]
        assert path.startswith(f"{done(run).checkout}/demo:")


def test_a_commit_that_is_nowhere_and_a_repository_that_is_gone(
    machine: Machine, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = demo(machine, source, install="none", module="")
    nowhere = replace(product, repository=source.as_uri(), ref="1" * 40, commit="1" * 40)
    cause = failed(machine, nowhere)
    assert cause.verdict == "config" and "by the rule 'reference'" in cause.reason
    (source / "moved").mkdir()
    absent = pin.pin(replace(read(f"demo=dir:{source / 'moved'}"), install="none"))
    (source / "moved").rmdir()
    monkeypatch.setattr(pin, "pin", lambda one: one)
    cause = failed(machine, absent)
    assert cause.verdict == "infra" and "by the rule 'absent'" in cause.reason
    gone = replace(nowhere, repository=f"{source.as_uri()}-gone")
    cause = failed(machine, gone)
    assert cause.verdict == "infra" and "by the rule 'git'" in cause.reason


# What travels


def unpacked(entries: Any, root: Path) -> None:
    for entry in entries:
        path = root / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entry.content)


def test_what_travels_is_installed_there(
    machine: Machine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(source, "rev-parse", "HEAD")
    (source / "demo" / "__init__.py").write_text("CHANGED = 1\n")
    (source / "demo" / "native.txt").write_text("what git ignores")
    products = (
        pin.pin(demo(machine, source, install="none", module="")),
        pin.pin(replace(read(f"mine=dir:{source}"), install="none")),
    )
    there, entries = carry.carry(products)
    assert [one.repository for one in there] == ["products/demo.git", "products/mine.git"]
    assert carry.carry(products, rehearsed=True) == (products, ())
    with pytest.raises(UsageError, match="do not travel"):
        carry.carry(products, most=100)
    monkeypatch.setattr(clusters, "ROOT", tmp_path / "node")
    unpacked(entries, tmp_path / "node")
    monkeypatch.setattr(pin, "pin", lambda one: one)
    run = machine.install(there[0], backend="hosts")
    assert done(run).commit == head
    run = machine.install(there[1], backend="hosts")
    mine = placed.read(run.run_dir, 0)["mine"]
    assert mine.commit == f"{head}-dirty"
    assert (Path(mine.checkout) / "demo" / "__init__.py").read_text() == "CHANGED = 1\n"
    assert not (Path(mine.checkout) / "demo" / "native.txt").exists()
    # The same files are the same commit, so that builds of them are known again.
    assert carry.carry(products)[0] == there


def test_submodules_do_not_travel_into_a_build(source: Path) -> None:
    git(source, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(source), "sub")
    commit(source)
    product = pin.pin(read(f"demo={source}@main"))
    with pytest.raises(UsageError, match="submodules do not travel: sub"):
        carry.carry([product])
    assert carry.carry([replace(product, native="never")])[1]


# Looked up


def test_references_that_mean_nothing_say_what_to_do(source: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    commit(source)
    git(tmp_path, "clone", "--quiet", "--depth", "1", source.as_uri(), str(shallow))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other-1-py3-none-any.whl").write_text("x")
    (tmp_path / "demo-1-py3-none-any.whl").write_text("no archive")
    for word, hint in {
        f"demo={source}@nothing": "git branch -a",
        f"demo={shallow}@HEAD~1": "git fetch --unshallow",
        f"demo={tmp_path}/absent@main": "git checkout",
        f"demo={tmp_path}/empty@main": "git checkout",
        f"demo={source.as_uri()}@nothing": "40 digits",
        f"demo={source.as_uri()}@pr/7": "pr/NUMBER",
        f"demo={source.as_uri()}-gone@main": "ls-remote",
        f"demo=wheel:{tmp_path}/absent.whl": "NAME-VERSION",
        f"demo=wheel:{tmp_path}/other-1-py3-none-any.whl": "right product",
        f"demo=wheel:{tmp_path}/demo-1-py3-none-any.whl": "again",
        f"demo=dir:{tmp_path}/absent": "checkout",
        f"demo=dir:{tmp_path}/empty": "install: none",
    }.items():
        with pytest.raises(UsageError) as refused:
            pin.pin(read(word))
        assert hint in refused.value.hint, word


def test_a_reference_is_looked_up_on_its_server(source: Path) -> None:
    head = git(source, "rev-parse", "HEAD")
    git(source, "tag", "-a", "-m", "it", "v1")
    git(source, "update-ref", "refs/pull/7/head", head)
    for ref in ("main", "v1", "pr/7", "refs/heads/main"):
        assert pin.pin(read(f"demo={source.as_uri()}@{ref}")).commit == head
    git(source, "branch", "v2")
    commit(source)
    git(source, "tag", "v2")
    with pytest.raises(UsageError, match="is a branch and a tag"):
        pin.pin(read(f"demo={source.as_uri()}@v2"))


def test_a_server_that_does_not_answer_is_infra() -> None:
    with pytest.raises(InfraError) as failed_:
        pin.pin(read("demo=git://127.0.0.1:1/x@main"))
    assert "ls-remote" in failed_.value.hint


# Rules


@pytest.mark.parametrize(
    ("stage", "output", "rule", "verdict"),
    [
        ("build", "x.cpp:3: error: expected ';'", "build", "startup"),
        ("build", "c++: fatal error: Killed signal terminated program cc1plus", "memory", "infra"),
        ("build", "OSError: [Errno 28] No space left on device", "disk", "infra"),
        ("build", "fatal: unable to access 'https://h/': ...", "network", "infra"),
        ("build", "WARNING: Retrying (Retry(total=4)) after: Connection reset\nx.c: error:",
         "build", "startup"),
        ("pip", "Retrying (Retry(total=0)) after\nERROR: No matching distribution found for x",
         "network", "infra"),
        ("pip", "ERROR: No matching distribution found for other==2", "index", "infra"),
        ("pip", "ERROR: No matching distribution found for demo==2", "version", "config"),
        ("pip", "error: externally-managed-environment", "rights", "infra"),
        ("git", "fatal: remote error: upload-pack: not our ref 11", "reference", "config"),
        ("git", "ssh: connect to host h port 22: Connection refused", "git", "infra"),
        ("import", "ModuleNotFoundError: No module named 'x'", "import", "startup"),
        ("import", "ImportError: libascend_hal.so: cannot open shared object file", "libraries",
         "infra"),
    ],
)  # fmt: skip
def test_the_rule_that_decides(stage: str, output: str, rule: str, verdict: str) -> None:
    found = rules.decide(stage, output, "demo")
    assert (found.name, found.verdict) == (rule, verdict)
    assert found.hint


def test_every_stage_has_a_last_rule_and_long_output_is_read_quickly() -> None:
    for stage in ("git", "build", "pip", "import"):
        assert rules.decide(stage, "").name
        for begin in ("Retrying (Retry(", "HTTP error ", "libtorch_npu", "unable to access "):
            assert rules.decide(stage, begin * 100_000).name


def test_builds_are_bounded(machine: Machine, source: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(checkout, "KEPT", 1)
    kept = machine.tmp / "kept"
    bench = place.bench_of(machine.install(demo(machine, source, install="none", module="")))
    (source / "native.txt").write_text("built")
    build = checkout.Build(replace(bench, product=demo(machine, source)), source, True, kept)
    for key in ("a", "b"):
        build._keep(key)
    assert [path.name for path in kept.iterdir()] == ["b.tar"]
