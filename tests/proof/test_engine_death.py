"""An engine killed under its API server: the death is the cause, not the requests it failed."""

from __future__ import annotations

from tests.conformance.life import engines
from tests.real.cases import case, performance
from tests.real.fleet import running


def test_the_death_is_the_cause_and_not_the_failed_requests(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REHEARSAL_TPOT_MS", "300")
    path = case(tmp_path, "smollm2", performance("perf", 8, 16), tiny=True)
    with running(path, tmp_path, "--rehearse", "--bench", "smoke") as run:
        run.under_load()
        engines(run.pid("server"))[0].kill()
        verdict = run.wait().verdict
    assert (run.process.returncode, verdict["verdict"]) == (1, "crash"), verdict["cause"]
    cause = run.record()["cause"]
    assert (cause["process"], cause["exit_code"]) == ("server", 0)
    assert "an engine process died under its API server" in cause["reason"]
