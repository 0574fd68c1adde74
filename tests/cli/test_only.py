"""``--only NAME``: whatever takes a case takes one of a file of several."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path

import pytest

import tasks
from ci.backends.hosts import check
from steps import validate
from steps.core import door
from steps.core.case.build import load_case
from steps.core.errors import UsageError
from steps.core.plan import clusters
from tests.core.test_several import SEVERAL

#: Every module of the product that is a command.
COMMANDS = sorted(
    ".".join(path.relative_to(clusters.ROOT).with_suffix("").parts)
    for room in ("ci", "k8s", "steps")
    for path in (clusters.ROOT / room).rglob("*.py")
    if "\nmain = " in path.read_text(encoding="utf-8")
)
#: It looks at the run of a whole entry of the nightly.
WHOLE = "ci.nightly.hunt"
HOSTS = SEVERAL.replace("envs:\n      <<", "cluster_hosts: [10.0.0.1]\n    envs:\n      <<")


def options(module: str) -> set[str]:
    """What a command takes, by the names of its values."""
    main = importlib.import_module(module).main
    assert isinstance(main, door.Verb)
    return {action.dest for action in main.parser()._actions}


@pytest.mark.parametrize("module", [name for name in COMMANDS if name != WHOLE])
def test_a_command_that_takes_a_case_takes_one_of_several(module: str) -> None:
    taken = options(module)
    assert "only" in taken or "case" not in taken


@pytest.mark.parametrize("name", sorted(tasks.namespace.task_names))
def test_a_task_that_takes_a_case_takes_one_of_several(name: str) -> None:
    taken = {argument.name for argument in tasks.namespace[name].get_arguments()}
    assert "only" in taken or "case" not in taken


def test_hosts_are_those_of_the_case_that_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "several.yaml"
    path.write_text(HOSTS, encoding="utf-8")
    assert load_case(path, only="first").cluster_hosts == ("10.0.0.1",)
    given = Namespace(hosts="", case=str(path), only="first")
    assert [host.address for host in check._inventory(given).hosts] == ["10.0.0.1"]
    with pytest.raises(UsageError, match="nothing says which hosts"):
        check._inventory(Namespace(hosts="", case=str(path), only="second"))
    with pytest.raises(UsageError, match="holds 2 cases: first, second"):
        check._inventory(Namespace(hosts="", case=str(path), only=""))


def test_one_of_several_is_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "several.yaml"
    path.write_text(SEVERAL.replace("model: demo/other", "modell: demo/other"), encoding="utf-8")
    assert validate.main([str(path), "--only", "first"]) == 0
    assert validate.main([str(path), "--only", "second"]) == 2
    assert "MN005" in capsys.readouterr().out
    assert validate.main([str(path), str(path), "--only", "second"]) == 2
    assert "--only" in capsys.readouterr().err
