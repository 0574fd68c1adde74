"""Secrets out of text, values and files; ordinary text stays as it is."""

from __future__ import annotations

import html
import json
import re
import shlex
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from steps.core import redaction
from steps.core.case import masked
from steps.core.record.cleaning import clean
from steps.core.record.records import Cause
from steps.core.redaction import MASK, Redactor, is_secret_name

SECRET = "correct-horse-battery"
ONE = Redactor([SECRET])


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "MODELSCOPE_API_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD",
        "OPENAI_API_KEY", "apikey", "MY_ACCESS_KEY", "KUBECONFIG_B64", "token", "password",
        "SIGNING_KEY", "SSH_PASSPHRASE", "JOB_PWD", "DB_PASS", "DOCKER_AUTH_CONFIG", "DATABASE_URL",
        "TEAMS_WEBHOOK_URL", "apiKey", "X-Api-Key", "hf-token", "client-key-data", "SENTRY_DSN",
        "HF_TOKEN_2", "ssl-keyfile-password",
    ],
)  # fmt: skip
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)
    assert ONE.value({name: "anything"}) == {name: MASK}


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens", "output_tokens", "TOKENIZERS_PARALLELISM", "MAX_NUM_BATCHED_TOKENS",
        "tokens", "STOP_TOKEN_IDS", "HF_TOKEN_PATH", "PATH", "AUTHOR", "KEYBOARD", "tokenizer",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN", "MAX_TOKEN", "OMP_MAX_TOKEN", "eos_token", "tiktoken",
        "long-prefill-token-threshold", "num_speculative_token", "PWD", "OLDPWD", "PASS",
        "allow-credentials", "secretName", "PUBLIC_KEY", "SSH_AUTH_SOCK", "SERVICE_URL",
    ],
)  # fmt: skip
def test_ordinary_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"the {SECRET}!", f"the {MASK}!"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {MASK}"),
        ('"authorization": "Bearer abcdef"', f'"authorization": "Bearer {MASK}"'),
        (
            "pip install https://me:pw@pypi.example/x",
            f"pip install https://me:{MASK}@pypi.example/x",
        ),
        ("vllm serve m --api-key abc --port 1", f"vllm serve m --api-key {MASK} --port 1"),
        ("vllm serve m --api-key=abc", f"vllm serve m --api-key={MASK}"),
        ("['--api-key', 'abc', '--port']", f"['--api-key', '{MASK}', '--port']"),
        ("serve m --api-key abc | tee log", f"serve m --api-key {MASK} | tee log"),
        ('{"api_key": "abc", "x": 1}', f'{{"api_key": "{MASK}", "x": 1}}'),
        ("api_key='abc', model=''", f"api_key='{MASK}', model=''"),
        ('["--hf-token", "abc"]', f'["--hf-token", "{MASK}"]'),
        ("use hf_abcdefghijklmnopqrstuvwxyz now", f"use {MASK} now"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123", MASK),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", MASK),
        ("--api_key abc1 --hf_token=abc2", f"--api_key {MASK} --hf_token={MASK}"),
        ("--api-key 'a b' --port 1", f"--api-key '{MASK}' --port 1"),
        ("redis://u:p@h/0 socks5://u:p@h", f"redis://u:{MASK}@h/0 socks5://u:{MASK}@h"),
        ("redis://:p@h", f"redis://:{MASK}@h"),
        ("github_pat_" + "a1" * 20, MASK),
        ("glpat-" + "a1" * 10, MASK),
        ("AKIAIOSFODNN7EXAMPLE", MASK),
        ("X-Api-Key: abc", f"X-Api-Key: {MASK}"),
        ('{"password": "a\\"b", "n": 1}', f'{{"password": "{MASK}", "n": 1}}'),
        ('"{\\"password\\": \\"ab\\"}"', f'"{{\\"password\\": \\"{MASK}\\"}}"'),
        ("{'api_key': ['k'], 'hf_token': 'x'}", f"{{'api_key': ['k'], 'hf_token': '{MASK}'}}"),
        ("export HF_TOKEN=abc1 N=1", f"export HF_TOKEN={MASK} N=1"),
    ],
)
def test_secrets_in_text(text: str, clean: str) -> None:
    assert ONE.text(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        '{"max_tokens": 512, "prompt_tokens": 7, "total_tokens": 12}',
        "tokens/s: 1234.5, Output Token Throughput",
        "http://127.0.0.1:8080/v1 and user@host:22",
        "--api-key --port 8000",
        "api_key: str = '', api_key=\"\", 'api_key': None",
        "vllm serve m --tokenizer-mode auto --token-file /run/x",
        "the task-sk-1 of disk-abcdefghijklmnopqrstuvwxyz",
        "engine hf_overrides, ghost, eyJ",
        "Authorization failed: no bearer given",
        "error: '--api-key' given twice",
        "tiktoken==0.14.0, sk-learn, MAX_TOKEN=131072, eos_token='<|im_end|>'",
        "    client = OpenAI(api_key=self.api_key, token=secrets.token_hex(16))",
        '"eos_token": "</s>", "api_key": null, "hf_token": "", "token": true, "key": "value"',
        '["--allow-credentials", "--no-allow-credentials"]',
        "api_key=None, hf_token=None, VLLM_API_KEY=$VLLM_API_KEY",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert ONE.text(text) == text


@given(st.text("abcdefghij \n:-_/=.,'\"0123456789", max_size=200))
def test_text_without_secrets_stays(text: str) -> None:
    assert Redactor(["zzzzzzzz"]).text(text) == text


#: Signs that every form writes in another way.
ODD = (
    "a\"b\\c'd e1",
    "$(x)`1`;&|",
    "<t0p>&amp;",
    "100%sure+1",
    "ümläut-\U0001f511-1",
    "密码密码密码密码",
    "tab\tand\x1bctl-1",
    "b\udcffyte-\udcfe1",
    "three words 4-all",
    "lead{ing}: # 1",
)
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": json.dumps,
    "json-utf8": lambda text: json.dumps(text, ensure_ascii=False),
    "xml": lambda text: html.escape(text, quote=True),
    "yaml": lambda text: yaml.safe_dump({"k": text}, width=12),
    "yaml-utf8": lambda text: yaml.safe_dump({"k": text}, allow_unicode=True, default_style="'"),
    "shell": shlex.quote,
    "repr": repr,
    "ascii": ascii,
    "percent": lambda text: quote(text, safe="", errors="surrogateescape"),
    "form": lambda text: quote_plus(text, errors="surrogateescape"),
    "bytes": lambda text: repr(text.encode("utf-8", "surrogateescape")),
}


@pytest.mark.parametrize("outer", ["plain", "json", "xml", "shell", "repr"])
@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_found_in_every_form(form: str, outer: str) -> None:
    """Also in a form within a form; nothing of it is left, and nothing else is gone."""
    for secret in ODD:
        redactor = Redactor([secret])
        said = FORMS[outer](f"before {FORMS[form](secret)} behind")
        clean = redactor.text(said)
        assert MASK in clean, said
        assert clean.index("before ") < clean.index(MASK) < clean.index(" behind"), (said, clean)
        left = re.sub(r"before|behind|\bk\b|\bb'|\\\\n|&\w+;|&#\w+;", "", clean.replace(MASK, ""))
        assert not re.search(r"\w{2,}", left), (said, clean)


def test_many_secrets_are_one_look(tmp_path: Path) -> None:
    """Time grows with the text, not with secrets times text."""
    line = "INFO 11-25 loggers.py:123] Avg prompt throughput: 123.4 tokens/s, max_tokens=512\n"
    text = line * 20_000

    def seconds(count: int) -> float:
        redactor = Redactor(f"{n:03}-s3cret-{n * 7919:07}" for n in range(count))
        redactor.text("")
        began = time.thread_time()
        assert redactor.text(text) == text
        return time.thread_time() - began

    assert seconds(1000) < max(6 * seconds(10), 1.0)


def test_all_words_of_an_option_that_takes_several() -> None:
    argv = ["vllm", "serve", "m", "--api-key", "K1", "K2", "--hf_token=x", "--port", "1"]
    hidden = [*argv[:4], MASK, MASK, f"--hf_token={MASK}", *argv[7:]]
    assert ONE.value(argv) == hidden
    redactor = Redactor()
    redactor.study({"server_cmd": "vllm serve m --api-key first-key1 'second key1' --port 1"})
    assert redactor.text("{'api_key': ['first-key1', 'second key1']}") == (
        f"{{'api_key': ['{MASK}', '{MASK}']}}"
    )


def test_values_keep_their_keys_numbers_and_names() -> None:
    redactor = Redactor()
    plan = {
        "name": "server-long-9", "processes": [{"name": "server-long-9", "baseline": 987654321012}]
    }  # fmt: skip
    redactor.study(plan)
    redactor.study({"A_PASSWORD": "987654321012", "B_PASSWORD": "server-long-9", "C_PWD": "123456"})
    assert redactor.value(plan) == plan
    assert redactor.value({"server-long-9": "server-long-9 and 987654321012"}) == {
        "server-long-9": f"server-long-9 and {MASK}"
    }
    assert redactor.value({"C_PWD": "123456", "n": "123456"}) == {"C_PWD": MASK, "n": "123456"}
    assert redactor.unsearched == ["B_PASSWORD", "C_PWD"]


def test_dataclasses_stay_what_they_are() -> None:
    cause = Cause("exit", "crash", f"it said {SECRET}", evidence=(f"x {SECRET}",), node=1)
    clean = ONE.value(cause)
    assert clean == replace(cause, reason=f"it said {MASK}", evidence=(f"x {MASK}",))


def test_a_json_file_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"baseline": 987654321012, "token": "x1", "note": "987654321012 \\" x"}\n')
    assert clean(path, Redactor(["987654321012"]))
    assert json.loads(path.read_text()) == {
        "baseline": 987654321012, "token": MASK, "note": f'{MASK} " x'
    }  # fmt: skip
    lines = tmp_path / "events.jsonl"
    lines.write_text('{"a": "se\\"cret1"}\nse"cret1 torn {\n')
    assert clean(lines, Redactor(['se"cret1']))
    assert lines.read_text() == f'{{"a": "{MASK}"}}\n{MASK} torn {{\n'


def test_a_yaml_file_stays_one_line_by_line() -> None:
    text = textwrap.dedent(
        """\
        # the key s3'cret-value
        env: &e {HF_TOKEN: 'it''s', "N": 12, list: [a, "s3'cret-value"]}
        same: *e
        REDIS_PASSWORD: 123456
        baseline: 123456
        folded: 'one
          s3''cret-value two'
        cmd: >
          vllm serve --api-key K1 K2
          --x s3'cret-value
        s3'cret-value: 1
        """
    )
    clean = masked.mask(text, Redactor(["s3'cret-value", "987654321"]))
    assert len(clean.splitlines()) == len(text.splitlines())
    data = yaml.safe_load(clean)
    assert data["env"] == {"HF_TOKEN": MASK, "N": 12, "list": ["a", MASK]} == data["same"]
    assert (data["REDIS_PASSWORD"], data["baseline"]) == (MASK, 123456)
    assert data["folded"] == f"one {MASK} two"
    assert data["s3'cret-value"] == 1
    assert f"# the key {MASK}" in clean
    assert masked.mask(clean, Redactor()) == clean


def test_short_values_are_left() -> None:
    assert Redactor(["abc", ""]).text("abcdef") == "abcdef"


def test_the_longer_secret_first() -> None:
    assert Redactor(["s3cret", "s3cret-longer"]).text("a s3cret-longer b") == f"a {MASK} b"
    assert Redactor(["l0nger", 's3cret "l0nger']).text('a s3cret "l0nger b') == f"a {MASK} b"


def test_of_an_environment() -> None:
    env = {"HF_TOKEN": "tok-en-123", "MAX_TOKENS": "128000", "HOME": "/home/user"}
    redactor = Redactor(["run-token"])
    redactor.study(env)
    assert redactor.text("tok-en-123 128000 /home/user run-token") == (
        f"{MASK} 128000 /home/user {MASK}"
    )


def test_values() -> None:
    value = {
        "argv": ["vllm", "--api-key", "abc", "de", "--port", "80"],
        "env": {"HF_TOKEN": "x", "N": "1"},
        "n": 1,
        "none": None,
        "deep": [{"password": "p", "text": SECRET}],
        "token": "",
    }
    assert ONE.value(value) == {
        "argv": ["vllm", "--api-key", MASK, MASK, "--port", "80"],
        "env": {"HF_TOKEN": MASK, "N": "1"},
        "n": 1,
        "none": None,
        "deep": [{"password": MASK, "text": MASK}],
        "token": "",
    }
    assert json.dumps(ONE.value(value))


def test_a_file_of_many_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    line = b"INFO generated 128 tokens, max_tokens=512 " + b"x" * 200 + b"\n"
    path.write_bytes(line * 15_000 + b"key " + SECRET.encode() + b" \xff\r\n" + line)
    assert clean(path, ONE)
    assert path.read_bytes() == line * 15_000 + b"key " + MASK.encode() + b" \xff\r\n" + line
    assert not clean(path, ONE)
    assert [p.name for p in tmp_path.iterdir()] == ["server.log"]


@pytest.mark.parametrize("offset", range(-25, 3, 3))
def test_a_secret_over_the_border_of_two_reads_is_seen(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\n" * ((1 << 20) + offset) + SECRET.encode() + b"\n")
    assert clean(path, ONE)
    assert SECRET.encode() not in path.read_bytes()


def test_a_key_of_many_lines_is_hidden_in_files(tmp_path: Path) -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----"
    path = tmp_path / "log"
    path.write_text(f"loaded\n{key}\n")
    assert clean(path, Redactor([key]))
    assert "MIIEv" not in path.read_text()
    assert "kqhki" not in path.read_text()


def test_a_file_that_cannot_be_cleaned_leaves_nothing_beside_it(tmp_path: Path) -> None:
    class Broken(Redactor):
        def text(self, text: str) -> str:
            raise OSError("disk full")

    path = tmp_path / "log"
    path.write_text(f"a {SECRET}\n")
    with pytest.raises(OSError, match="disk full"):
        clean(path, Broken([SECRET]))
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("secret", "unit"),
    [
        ("'" * 8 + "ab" + "'" * 8, "'"),
        ("\\" * 8 + "ab" + "\\" * 8, "\\"),
        ("\\'" * 8 + "ab", "\\'"),
        ("a        b        c", "\n \\ "),
        ("'" * 12, '"'),
        ("é" * 20 + "ab", "?"),
        ("\x01" * 20, "\ufffd"),
    ],
)
def test_no_secret_takes_longer_than_one_lives(secret: str, unit: str) -> None:
    """Before, eight apostrophes in a secret and forty in a text took half a minute."""
    redactor = Redactor([secret])
    redactor.text(("ab" + unit * 400) * 200)
    assert secret not in redactor.text(f"x {secret} y")


#: How a command may write an option and what stands behind it.
WAYS = (
    "x --{name} '{value} y'", 'x --{name} "{value} y"', "x --{name}={value}",
    "x --'{name}' {value}",
    "x --{name} a\\ {value}", 'x --config \'{{"{name}": "{value}"}}\'', "x --url 'a://u:{value}@h'",
    "x --a 'Authorization: Bearer {value}-and-long-enough'", "x --b \"{name}='{value}'\"",
)  # fmt: skip
NAMES = (
    "hf-token", "HF_TOKEN", "tokenValue", "api-key", "apiKey", "secret", "my_pass", "dbPwd",
    "x-pat",
    "dsn", "authorization", "webhook", "connectionString", "databaseUrl", "kubeconfig-b64",
    "set-cookie", "aws-credential", "max-num-batched-tokens", "tokenizer", "path", "port",
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_no_command_is_left_alone_that_holds_a_secret(way, monkeypatch):
    """What is never taken apart teaches nothing when it is."""
    for name in NAMES:
        for value in ("Zq9xkcd77kk", "hf_" + "a1" * 12, "sk-" + "b2" * 12, "AKIA" + "C3" * 8):
            command = way.format(name=name, value=value)
            quick, whole = Redactor(), Redactor()
            quick.study(command)
            with monkeypatch.context() as patch:
                patch.setattr(redaction, "_may_hold", lambda _: True)
                whole.study(command)
            assert quick.learned == whole.learned, command


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("env_common.HF_TOKEN=hf_abc_short", True),
        ("HF_TOKEN=hf_abc_short", True),
        ("token=token_of_that", False),
        ("env.HF_TOKEN=$(cat/run/token)", False),
    ],
)
def test_a_variable_s_value_may_look_like_a_name(text, hidden):
    assert (MASK in Redactor().text(text)) == hidden
