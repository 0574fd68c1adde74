"""Fixtures of the Kubernetes tests: one double a test, cleaned up by leaving its block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from . import fleet
from .double import KubeDouble, Timing

QUICK = Timing(backoff=1.0, remove=0.05)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of ``nox -s e2e_k8s``."""
    group = parser.getgroup("kubernetes")
    group.addoption("--real", action="store_true", help="test on the kubeconfig's cluster")
    group.addoption("--image", default="python:3.11-slim", help="an image with Python 3.10+")
    group.addoption("--namespace", default="", help="default: the kubeconfig's")


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeDouble]:
    """A cluster of one node with short back-offs."""
    with KubeDouble(tmp_path / "kube", timing=QUICK) as double:
        yield double


@dataclass(frozen=True)
class Passed:
    """A run that is over."""

    done: fleet.Done
    requests: list[tuple[str, str]]
    left: list[str]


@pytest.fixture(scope="session")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Passed:
    """One run that passes, with the rights of our Role alone, of a case that asks for stand-ins
    itself; several tests look at it."""
    root = tmp_path_factory.mktemp("passed")
    role = yaml.safe_load((fleet.ROOT / "k8s" / "role.yaml").read_text())
    with KubeDouble(root / "kube", timing=QUICK) as double:
        double.add_token("ci", "ci", role, double.namespace)
        env, case = fleet.environment(double, "ci"), f"rehearse: true\n{fleet.CASE}"
        with fleet.start(double, root / "user", case=case, rehearse=False, env=env) as started:
            done = started.finish()
        return Passed(done, list(double.api.requests), fleet.leftovers(double))


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[fleet.Place]:
    """A cluster to test on: the double, or with ``--real`` the kubeconfig's."""
    if request.config.getoption("--real", default=False):
        image = request.config.getoption("--image")
        yield fleet.real(image, request.config.getoption("--namespace"), tmp_path)
        return
    with KubeDouble(tmp_path / "kube", timing=QUICK) as double:
        yield fleet.Place(fleet.environment(double), fleet.PROFILE, double.namespace, tmp_path)
