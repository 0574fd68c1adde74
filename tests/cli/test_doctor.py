"""doctor: what is lacking is said with what to do; the exit code only speaks for one backend."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from ci import doctor
from steps.core.plan import direct

FOREIGN = ("KUBECONFIG", "KUBECONFIG_B64", "MULTINODE_CONTROL_PORT", "SSH_AUTH_SOCK")


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing but Python: no tools, keys, kubeconfig or cache."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path / "cache"))
    for name in (*FOREIGN, *direct.PROXIES, *direct.EXEMPTING):
        monkeypatch.delenv(name, raising=False)


def looks(*backends: str) -> dict[str, doctor.Look]:
    return {entry.name: entry for entry in doctor.look(backends or doctor.BACKENDS)}


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_everything_is_looked_at_and_exit_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    for backend in doctor.BACKENDS:
        assert f"{backend}: c" in out
    assert "local: cannot be used here; lacks engine" in out
    assert "-> Install vLLM" in out


@pytest.mark.parametrize(("backend", "code"), [("rehearsal", 0), ("local", 3), ("k8s", 3)])
def test_the_exit_code_speaks_for_one_backend(
    backend: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--for", backend]) == code
    out = capsys.readouterr().out
    assert ("can be used" if code == 0 else "cannot be used here") in out.splitlines()[-1]


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--for", "local", "--format", "json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["usable"] == {"local": False}
    (engine,) = (entry for entry in told["looks"] if entry["name"] == "engine")
    assert engine["ok"] is False
    assert all("local" in entry["backends"] for entry in told["looks"])


def test_what_is_put_there_is_found(tmp_path: Path) -> None:
    assert not looks()["engine"].ok
    for program in ("vllm", "py-spy", "vllm-router", "ais_bench"):
        put(tmp_path / "bin" / program)
    put(tmp_path / ".ssh" / "id_ed25519")
    found = looks()
    for name in ("engine", "py-spy", "vllm-router", "AISBench", "SSH keys"):
        assert found[name].ok, found[name]
    assert found["engine"].found == str(tmp_path / "bin" / "vllm")


@pytest.mark.parametrize(
    ("says", "ok", "found"),
    [
        ("OpenSSH_9.2p1 Debian-2, OpenSSL 3.0.19", True, "OpenSSH_9.2p1 Debian-2, OpenSSL 3.0.19"),
        ("OpenSSH_7.4p1, OpenSSL 1.0.2k-fips", False, "OpenSSH_7.4p1, OpenSSL 1.0.2k-fips"),
        ("", False, "not on PATH"),
    ],
    ids=["fit", "old", "none"],
)
def test_the_version_of_ssh(tmp_path: Path, says: str, ok: bool, found: str) -> None:
    if says:
        put(tmp_path / "bin" / "ssh")
        (tmp_path / "bin" / "ssh").write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    told = looks("hosts")["ssh"]
    assert (told.ok, told.found, told.must) == (ok, found, True)
    assert told.needed == "OpenSSH 7.6 or newer"


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_importable", lambda name: name not in ("kubernetes", "rich"))
    monkeypatch.setattr(doctor.sys, "prefix", "/usr")
    found = looks()
    assert (found["kubernetes"].ok, found["kubernetes"].mark) == (False, "LACKS")
    assert found["packages of the runner side"].found == "no rich"
    assert found["packages of the node side"].ok


@pytest.mark.parametrize("prefix", ["/home/me/multinode/.nox/doctor", ""])
def test_what_a_session_installs_by_itself_is_not_lacking(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_importable", lambda name: name not in ("kubernetes", "rich"))
    if prefix:
        monkeypatch.setattr(doctor.sys, "prefix", prefix)
    else:
        put(tmp_path / "bin" / "nox")
    put(tmp_path / ".kube" / "config")
    put(tmp_path / ".ssh" / "id_ed25519")
    put(tmp_path / "bin" / "ssh")
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\necho OpenSSH_9.2 >&2\n")
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    lacking = [line.split()[:2] for line in out.splitlines() if line.lower().startswith("lacks")]
    assert [words for words in lacking if words[1] != "cores"] == [
        ["lacks", "py-spy"],
        ["LACKS", "engine"],
    ]
    assert "found no rich; nox installs what is not there" in out
    assert "found not here; installed at its first use (500 MB)" in out
    assert "k8s: can be used" in out and "hosts: can be used" in out


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, "none"),
        ({"NO_PROXY": "localhost"}, "none; exempt by NO_PROXY=localhost"),
        (
            {"http_proxy": "http://me:sesame@proxy.corp:3128", "ALL_PROXY": "socks5://s:1"},
            "http_proxy=http://me:<redacted>@proxy.corp:3128, ALL_PROXY=socks5://s:1; "
            "exempt: every address of a fleet",
        ),
        (
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".corp", "no_proxy": "10.0.0.0/8"},
            "HTTPS_PROXY=http://p:1; exempt by no_proxy=10.0.0.0/8, NO_PROXY=.corp, and every "
            "address of a fleet",
        ),
    ],
)
def test_the_proxy_variables_are_shown(
    env: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = looks("k8s")["proxy variables"]
    assert (found.ok, found.found) == (True, told)


def test_little_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_bytes", lambda path: 1000)
    assert not looks("rehearsal")["disk"].ok


def test_a_machine_without_loopback_addresses_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from steps.core.errors import InfraError

    def none(port: int) -> str:
        raise InfraError("no loopback address", "macOS needs an alias.")

    monkeypatch.setattr(doctor.clusters, "free_network", none)
    found = looks("rehearsal")["loopback network"]
    assert (found.ok, found.found, found.todo) == (
        False,
        "no loopback address",
        "macOS needs an alias.",
    )


def test_an_api_server_that_is_away_is_said_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    server = f"http://127.0.0.1:{port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": server}}],
        "users": [{"name": "a", "user": {"token": "t"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    found = looks("k8s")
    assert found["kubeconfig"].found == str(tmp_path / "config")
    assert not found["API server"].ok
    assert "no answer" in found["API server"].found
