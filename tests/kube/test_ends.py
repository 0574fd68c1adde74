"""Ends on the double, by the clock: nobody waits for one that is known to be gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from . import fleet
from .double import KubeDouble

pytest.importorskip("kubernetes")
pytestmark = [pytest.mark.timeout(240), pytest.mark.timing]


def orders(root: Path, count: int) -> list[list[dict[str, object]]]:
    """The documents of several runs by hand of one case."""
    from k8s import manifest, render
    from steps.core.case.build import load_case
    from steps.core.node.wishes import Wishes
    from steps.core.plan.cluster import Rehearsal
    from steps.core.plan.profile import load_profile

    root.mkdir()
    for name, content in (("case.yaml", fleet.CASE), ("lab.yaml", fleet.PROFILE)):
        (root / name).write_text(content)
    case, profile = load_case(root / "case.yaml"), load_profile(root / "lab.yaml")
    asked = Wishes(case=str(root / "case.yaml"), rehearsal=Rehearsal())
    made = [
        render.order(case, profile, asked, f"20261125-16000{i}-abcde{i}", "rec", output="events")
        for i in range(count)
    ]
    return [manifest.documents(order) for order in made]


def ended(kube: KubeDouble, root: Path, documents: list[dict[str, object]]) -> tuple[float, object]:
    """One run whose leader finds its server's port taken: seconds from that cause to the worker's
    end, and the worker's cause."""
    from unittest import mock

    from k8s import cleanup, fetch, manifest
    from k8s.api import client

    with mock.patch.dict("os.environ", fleet.environment(kube), clear=True):
        api = client.connect()
    meta: dict[str, str] = documents[-1]["metadata"]  # type: ignore[assignment]
    names = manifest.Names(meta["name"], "rec")
    for document in documents:
        kube.create(document)
    with socket.socket() as stranger:

        def address() -> str:
            found = {p["metadata"]["name"]: p["status"].get("podIP", "") for p in kube.pods()}
            return str(found.get(names.pod(0), ""))

        fleet.await_(address, 30)
        stranger.bind((address(), 8080))
        stranger.listen()
        # As far apart as two machines: the worker hears late of the plan, and then of its end.
        fleet.await_(lambda: fleet.said(kube, 0, '"joined"'), 60)
        worker = fleet.program(kube, 1)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(worker, signal.SIGCONT)
        fleet.await_(lambda: fleet.ready(kube) == 2, 150)
    pods, deadline = {i: names.pod(i) for i in (0, 1)}, time.monotonic() + 60
    results = fetch.everything(api, "rec", pods, root, "python3", lambda: deadline)
    cleanup.remove(api, names, "", 9, 60)
    events = (root / "node-0" / "events.jsonl").read_text().splitlines()
    told = [e["time"] for e in map(json.loads, events) if e["what"] == "cause"]
    record = json.loads((root / "node-1" / "record.json").read_text())
    return results[1].done["at"] - told[0], record["cause"]["node"]


def test_a_leader_that_fails_early_ends_the_worker_with_its_cause_every_time(
    kube: KubeDouble, tmp_path: Path
) -> None:
    found = [
        ended(kube, tmp_path / f"run-{i}", documents)
        for i, documents in enumerate(orders(tmp_path / "user", 2))
    ]
    assert [cause for _, cause in found] == [0] * 2
    assert max(seconds for seconds, _ in found) <= 20, found  # 2 on an idle machine, once 142


def test_a_leader_whose_program_is_killed_keeps_nobody_waiting(
    kube: KubeDouble, tmp_path: Path
) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "20") as started:
        started.until("started server")
        time.sleep(0.5)
        os.kill(fleet.program(kube, 0), signal.SIGKILL)
        began = time.monotonic()
        done = started.finish()
    assert (done.code, done.verdict["cause"]["node"]) == (3, 0), done.text
    assert time.monotonic() - began < 16  # 6 on an idle machine
    assert (done.run_dir / "node-1" / "record.json").exists()
    assert fleet.leftovers(kube) == []


def test_the_third_ctrl_c_deletes_at_once(kube: KubeDouble, tmp_path: Path) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "60") as started:
        started.until("started server")
        os.kill(fleet.program(kube, 1), signal.SIGSTOP)
        for _ in range(3):
            time.sleep(1)
            started.signal(signal.SIGINT)
        began = time.monotonic()
        fleet.await_(lambda: any(method == "DELETE" for method, _ in kube.api.requests))
        assert time.monotonic() - began < 3
        done = started.finish()
    assert done.code == 130, done.text
    assert fleet.leftovers(kube) == []


def test_deletion_is_given_longer_after_an_outage(
    kube: KubeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    from k8s import cleanup
    from k8s.api import client
    from k8s.manifest import Names

    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig()))
    api = client.connect()
    finalised = {"kind": "ConfigMap", "apiVersion": "v1", "data": {}}
    finalised["metadata"] = {"name": "odd", "labels": {"multinode/run": "r"}}
    kube.create(finalised)
    monkeypatch.setattr(cleanup, "AFTERMATH", 2.0)
    began = time.monotonic()
    assert cleanup.remove(api, Names("mn-x", "rec"), "r", 0, 0.3) == ["configmaps/odd"]
    assert time.monotonic() - began < 1.5
    kube.fault("503", times=1)
    began = time.monotonic()
    assert cleanup.remove(api, Names("mn-x", "rec"), "r", 0, 0.3) == ["configmaps/odd"]
    assert 1.5 < time.monotonic() - began < 6
