"""No secret leaves a run: names and shapes x forms x sinks, and nothing else is hidden.

The engine says every secret in every form; then each file and each word of the run is looked at,
of its report, of ``validate`` and ``resolve``, and of a case that is refused.
"""

from __future__ import annotations

import html
import json
import shlex
import subprocess
import sys
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci import run as ci_run
from steps.core.record.rundir import RunDir
from steps.core.redaction import MASK
from tests.faults.rehearse import ROOT
from tests.realpath.fleet import Nodes, case, environment, local, written

#: Where a secret stands -> names, with what is put around the part that may be seen nowhere.
RUNNER = {
    "GITHUB_TOKEN": "{}",
    "AWS_SECRET_ACCESS_KEY": "{}/+x=y",
    "AWS_ACCESS_KEY_ID": "AKIA{}",
    "KUBECONFIG_B64": "YXBp{}==",
    "REDIS_PASSWORD": 'a"{}',
    "SSH_PASSPHRASE": "it's {}",
    "CI_JOB_PWD": "{}\\n\\\\",
    "DB_PASS": "<{}>&",
    "DOCKER_AUTH_CONFIG": '{{"auths": {{"r.example": {{"auth": "{}"}}}}}}',
    "DATABASE_URL": "postgres://u:{}@db.example/x",
    "TEAMS_WEBHOOK_URL": "https://hooks.example/{}",
    "SIGNING_KEY": "$({})`",
    "npm_token": "%{}%20",
    "SENTRY_DSN": "https://{}@sentry.example/1",
    "LATIN_SECRET": "b\udcff{}\udcfe",
    "PRIVATE_KEY_PEM": "-----BEGIN PRIVATE KEY-----\nMII{}\n-----END PRIVATE KEY-----",
    "WORDS_PASSWORD": "three small words {}",
    "PROXY_CREDENTIALS": "u:{}",
    "GITLAB_PAT": "glpat-{}",
    "SESSION_COOKIE": "s={}; p",
}
CASE = {
    "HF_TOKEN": "hf_{}",
    "MODELSCOPE_API_TOKEN": 'b"{}"',
    "MY_API_KEY": "'{}'",
    "apiKey": "k:{}#x",
    "ACCESS_KEY": "ümlaut-{}",
    "VAULT_SECRET": "\u5bc6{}\U0001f511",
    "MY_CREDENTIAL": "[{}]",
    "MINIO_SECRET_KEY": "*{}&",
    "SMTP_PASSWD": "!{}",
    "S3_AUTH": "{}: - x",
    "CACHE_URL": "redis://u:{}@127.0.0.1/0",
    "SOCKS": "socks5://u:{}@127.0.0.1",
    "FEISHU_WEBHOOK": "w|{}",
    "GITHUB_PAT": "github_pat_{}",
}
OPTIONS = {
    "--api_key": ("a{}'\"", "sk {}", "{}"),
    "--hf-token": ("\\{}",),
}
#: What the engine alone knows of: a shape gives it away.
LOOSE = {
    "Authorization: Bearer {}": "{}",
    "X-Api-Key: {}": "{}",
    '{{"password": "{}"}}': "{}",
    "amqp://u:{}@mq": "{}",
    "token github_pat_{}-abcd is bad": "{}",
    "key AKIA{} is bad": "{}",
}
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": json.dumps,
    "xml": lambda text: html.escape(text, quote=True),
    "yaml": lambda text: yaml.safe_dump({"said": text}, width=20),
    "shell": shlex.quote,
    "repr": repr,
    "percent": lambda text: urllib.parse.quote(text, safe="", errors="surrogateescape"),
}


def cores() -> Iterator[str]:
    """Texts that no form changes and nobody writes by chance."""
    number = 0
    while True:
        number += 1
        yield f"ZQ{number:02}XWKJV7RPTGBN"[:16]


class Table:
    """Every secret with its core."""

    def __init__(self) -> None:
        made = cores()
        self.cores: list[str] = []

        def fill(shape: str) -> str:
            self.cores.append(next(made))
            return shape.format(self.cores[-1])

        self.runner = {name: fill(shape) for name, shape in RUNNER.items()}
        self.case = {name: fill(shape) for name, shape in CASE.items()}
        self.options = {name: [fill(shape) for shape in shapes] for name, shapes in OPTIONS.items()}
        words = [word for values in self.options.values() for word in values]
        self.known = [*self.runner.values(), *self.case.values(), *words]
        self.loose = [fill(shape) for shape in LOOSE]

    def said(self) -> bytes:
        """What the engine says: all of it in all forms, on lines that look like errors."""
        lines = [f"ERROR {form(text)}" for text in self.known for form in FORMS.values()]
        # The forms within one another: a command in JSON in a log.
        lines += [f"ERROR {json.dumps([shlex.quote(text)])}" for text in self.known]
        lines += self.loose
        return "\n".join([*lines, ""]).encode("utf-8", "surrogateescape")

    def leaks(self, where: str, raw: bytes) -> Iterator[str]:
        """What of the table a sink holds."""
        text = raw.decode("utf-8", "replace")
        yield from (f"{where}: {core}" for core in self.cores if core in text)


def readable(path: Path) -> None:
    """Raises when a file is broken."""
    text = path.read_text(errors="surrogateescape")
    if path.suffix == ".json":
        json.loads(text)
    elif path.suffix == ".jsonl":
        [json.loads(line) for line in text.splitlines()]
    elif path.suffix == ".yaml":
        yaml.safe_load(text)
    elif path.suffix == ".xml":
        ET.fromstring(text)


def files(path: Path) -> list[Path]:
    return [entry for entry in path.rglob("*") if entry.is_file() and not entry.is_symlink()]


def command(*words: str, **env: str) -> bytes:
    """What a command writes, on both streams."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.stdout, words
    return done.stdout


def telling(table: Table, tmp: Path) -> dict[str, Any]:
    """A case with the secrets in it, whose engine says all of them and dies."""
    (tmp / "said").write_bytes(table.said())
    data = case(1, benchmarks={})
    data["env_common"] |= table.case
    data["deployment"][0]["envs"] = {"TEST_ENGINE": f"says={tmp / 'said'} crash=load load=0"}
    options = [
        word for name, values in table.options.items() for word in (name, *map(shlex.quote, values))
    ]
    data["deployment"][0]["server_cmd"] += " " + " ".join(options)
    return data


def test_no_secret_leaves_a_run(tmp_path: Path) -> None:
    table = Table()
    assert len(table.cores) >= 40
    assert len(FORMS) == 7
    data = telling(table, tmp_path)
    found = local(tmp_path, data, "--verbose", draw=True, **table.runner)
    assert found.code == 1, found.output[-3000:]
    env = environment(tmp_path, **table.runner)
    leaks = list(table.leaks("console", found.output.encode()))
    for name in ("steps.report", "steps.report --format json", "ci.report.html"):
        module, *more = name.split()
        at = [str(found.path)] if module.startswith("ci") else ["--run-dir", str(found.path)]
        leaks += table.leaks(name, command("-m", module, *at, *more, **env))
    path = str(written(tmp_path, data))
    for style in ("text", "json", "github", "sarif", "junit"):
        leaks += table.leaks(
            f"validate {style}", command("-m", "steps.validate", "--format", style, path, **env)
        )
    for style in ("text", "json"):
        out = command("-m", "steps.resolve", "--case", path, "--format", style, **env)
        leaks += table.leaks(f"resolve {style}", out)
    for file in files(found.path):
        leaks += table.leaks(str(file.relative_to(found.path)), file.read_bytes())
        readable(file)
    assert not leaks, "\n".join(leaks)
    assert MASK in (found.path / "node-0" / "server.log").read_text(errors="replace")
    assert found.verdict["cause"]["process"] == "server"


def test_no_secret_is_left_by_a_node_by_hand(tmp_path: Path) -> None:
    table = Table()
    fleet = Nodes(tmp_path, telling(table, tmp_path), **table.runner)
    assert fleet.codes() == [1], fleet.text
    leaks = list(table.leaks("console", fleet.text.encode()))
    for file in files(fleet.dirs[0]):
        leaks += table.leaks(str(file.relative_to(tmp_path)), file.read_bytes())
        readable(file)
    assert not leaks, "\n".join(leaks)


def test_what_a_killed_node_left_is_cleaned_by_the_runner(tmp_path: Path) -> None:
    for name in ("node-0", "node-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "server.log").write_text("use github_pat_" + "a1" * 20)
    (tmp_path / "node-0" / "record.json").write_text("{}")
    ci_run.clean(RunDir(tmp_path))
    assert MASK in (tmp_path / "node-1" / "server.log").read_text()
    assert MASK not in (tmp_path / "node-0" / "server.log").read_text()  # it did that itself


def test_a_repair_shows_no_secret(tmp_path: Path) -> None:
    table = Table()
    data = telling(table, tmp_path)
    path = written(tmp_path, data)
    path.write_text(path.read_text().replace("--served-model-name", "--served_model_nam"))
    out = command("-m", "steps.fix", "--dry-run", str(path), **environment(tmp_path))
    assert b"+- server_cmd" in out, out.decode()
    assert not list(table.leaks("fix", out)), out.decode()


@pytest.mark.parametrize("broken", ["field", "yaml", "value"])
def test_no_secret_leaves_a_refused_case(broken: str, tmp_path: Path) -> None:
    table = Table()
    data = telling(table, tmp_path)
    if broken == "field":
        data |= {f"x{n}": text for n, text in enumerate(table.case.values())}
    if broken == "value":
        data["deployment"][0]["envs"] |= {"HF_TOKEN": [table.case["HF_TOKEN"]]}
        data["num_nodes"] = table.case["MY_API_KEY"]
    path = written(tmp_path, data)
    if broken == "yaml":
        path.write_text(path.read_text() + "nodes: [1, {\n")
    run, env = tmp_path / "run", environment(tmp_path, GITHUB_ACTIONS="true", **table.runner)
    leaks = list(
        table.leaks(
            "run", command("-m", "ci.run", str(path), "--on", "local", "--run-dir", str(run), **env)
        )
    )
    for style in ("text", "json", "github", "sarif", "junit"):
        words = ("-m", "steps.validate", "--format", style, str(path))
        leaks += table.leaks(f"validate {style}", command(*words, **env))
    leaks += table.leaks("resolve", command("-m", "steps.resolve", "--case", str(path), **env))
    assert (run / "report.html").is_file()
    for file in files(run):
        leaks += table.leaks(str(file.relative_to(run)), file.read_bytes())
        if broken != "yaml" or file.suffix != ".yaml":
            readable(file)
    assert not leaks, "\n".join(leaks)


def test_a_run_without_secrets_has_no_mask(tmp_path: Path) -> None:
    """Words and numbers that a password may be, and counts, are no reason to hide anything."""
    data = case(1)
    data["env_common"] |= {"OMP_MAX_TOKEN": 131072, "VLLM_MAX_TOKENS": "4096"}
    data["benchmarks"]["chat"]["baseline"] = 123456
    data["benchmarks"]["chat"]["gates"] = ["success_ratio == 1"]
    words = {
        "REDIS_PASSWORD": "123456",
        "DB_PASS": "server",
        "OTHER_TOKEN": "crash",
        "A_PWD": "pass",
    }
    found = local(tmp_path, data, "--bench", "smoke", draw=True, **words)
    assert found.code == 0, found.output[-3000:]
    for file in files(found.path):
        assert MASK not in file.read_text(errors="replace"), file
        readable(file)
    assert MASK not in found.output
    said = [e["text"] for e in found.events if "too short" in str(e.get("text"))]
    assert len(said) == 1, said
    assert "DB_PASS" in said[0]
    assert "REDIS_PASSWORD" in said[0]


def test_engines_get_no_secret_of_the_runner(tmp_path: Path) -> None:
    """What no case names stays out; what one names comes in, and what was left out is said."""
    seen = tmp_path / "seen"
    data = case(1, benchmarks={}, inherit=["AWS_SECRET_ACCESS_KEY"])
    data["deployment"][0]["envs"] = {"TEST_ENGINE": f"environment={seen} crash=load load=0"}
    names = ("KUBECONFIG_B64", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN")
    found = local(tmp_path, data, **{name: f"value-of-{name}" for name in names}, PLAIN="kept")
    env = json.loads(seen.read_text())
    assert env["PLAIN"] == "kept"
    assert env["AWS_SECRET_ACCESS_KEY"] == "value-of-AWS_SECRET_ACCESS_KEY"
    assert not {"KUBECONFIG_B64", "GITHUB_TOKEN"} & set(env)
    said = [e["text"] for e in found.events if "GITHUB_TOKEN" in str(e.get("text"))]
    assert len(said) == 1, said
    assert "KUBECONFIG_B64" in said[0]
    assert "AWS_SECRET" not in said[0]
