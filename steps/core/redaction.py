"""Secrets out of everything that leaves a process.

Enters: values and text, known secrets. Leaves: the same with secrets replaced by ``<redacted>``.
Touches nothing; :func:`here` looks at the environment once.

Values are masked while they are values: by key and by option, texts only. Text is searched for
every learned secret in all forms in which programs write it, and for what looks like a secret.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html.entities
import itertools
import os.path
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, TypeVar

from steps.core import settings

MASK = "<redacted>"
Any_ = TypeVar("Any_")

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_SECRET = re.compile(
    r"TOKEN(_B64|_VALUE|_\d+)?$|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY"
    r"|PRIVATE_?KEY|_KEY(_DATA|_B64|_PEM)?$|_(PASS|PWD|PAT|DSN|AUTH|AUTHS|COOKIE)$"
    r"|^(AUTH|AUTHS|COOKIE)$|AUTH_CONFIG|AUTHORIZATION|KUBECONFIG_(B64|DATA)|DATABASE_UR[LI]"
    r"|WEBHOOK|CONNECTION_STRING"
)
#: Counts of tokens, signs of a tokenizer, switches, and places or names of secrets are none.
_HARMLESS = re.compile(
    r"TIKTOKEN|^(MAX|MIN|NUM|N|TOTAL)_.*TOKEN$"
    r"|(^|_)(MAX|MIN|NUM|N|TOTAL|PER|INPUT|OUTPUT|PROMPT|COMPLETION|FIRST|NEXT|LAST|NEW|EOS|BOS|PAD"
    r"|UNK|CLS|SEP|MASK|STOP|START|END|SPECIAL|IMAGE|VIDEO|AUDIO|VISION|DRAFT|CACHED|BATCHED)_TOKEN"
    r"|_(PATH|FILE|DIR)$|(?<!DATABASE)(?<!WEBHOOK)_UR[LI]$|DISABLE|PULL_SECRET"
    r"|SECRET_(NAME|REF|ENV)|(^|_)(PUBLIC|PRIMARY|SORT|CACHE|FOREIGN|PREFIX|GROUP|HOST)_KEY"
    r"|(ALLOW|PRESERVE)_CREDENTIALS"
)
#: What stands under such a name and hides nothing: a switch, a variable, a tokenizer's sign.
_PLAIN = re.compile(
    r"(?i)\s*|[01]|true|false|none|null|yes|no|on|off|auto|\$\w+|\$?\{[\w.]+\}|</?\|?\w*\|?>"
    r"|<redacted>"
)
#: What stands so in a program, which a traceback shows.
_CODE = re.compile(r"[A-Za-z_][\w.]*[(\[{].*|[A-Za-z_.]+[])},:]*|\$\(.*")
#: Too common to be searched for: short words, numbers and addresses, words of ours.
_COMMON = re.compile(
    r"[a-z]{1,7}(-\d{1,2})?|[A-Z][a-z]{1,6}|[A-Z]{1,7}|[\d.,:_+-]{1,11}|(\d+\.){3}\d+(:\d+)?"
    r"|(?i:password|changeme|localhost|disabled|prefiller|completion|benchmark|preflight"
    r"|no-verdict|functional|accuracy|performance|interrupted)"
)
_LEAST = 6
#: What of a secret of many words is one by itself.
_APART, _PART = re.compile(r"[\s\"',{}]+"), re.compile(r"(?=.*[A-Za-z])(?=.*\d)(?!.*://).{12,}")
#: Fields of ours whose values name something.
_NAMING = frozenset({
    "name", "kind", "phase", "verdict", "role", "side", "group", "process", "run", "case_name",
    "case_type", "driver", "backend",
})  # fmt: skip
#: No command is longer.
_COMMAND = 1 << 17
#: The options that take several words.
_SEVERAL = frozenset({"API_KEY"})


@lru_cache(4096)
def is_secret_name(name: str) -> bool:
    """Whether a variable, a key or an option of this name holds a secret."""
    words = "_".join(word for word in _WORDS.split(name) if word).upper()
    return bool(_SECRET.search(words)) and not _HARMLESS.search(words)


# What looks like a secret

_STEMS = (
    "token", "secret", "password", "passwd", "passphrase", "_pass", "_pwd", "key", "auth",
    "credential", "credentials", "cookie", "dsn", "webhook_url", "database_url",
)  # fmt: skip
_QUOTED = r"(?P<quote>\\{0,8}[\"'])(?P<value>(?:(?!(?P=quote))(?:\\.|[^\n])){1,4096})"
_VALUE = rf"(?:{_QUOTED}|(?![='\"\\])(?P<bare>[^\s'\",;&<>]{{1,4096}}))"
_SHAPES = {
    "hf_": r"[\w-]{20,}",
    "gh[pousr]_": r"[\w-]{20,}",
    "github_pat_": r"[\w-]{20,}",
    "glpat-": r"[\w-]{20,}",
    "sk-": r"[\w-]{20,}",
    "xox[abeprs]-": r"[\w-]{10,}",
    "A[KS]IA": r"[A-Z0-9]{16}",
    "AIza": r"[\w-]{35}",
    "eyJ": r"[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}",
}
_SHAPE = "|".join(rf"{start}(?<![\w-]{start}){rest}" for start, rest in _SHAPES.items())


def _stems(sign: str) -> str:
    """A sign behind a telling name; a pattern that begins with a sign is found fast."""
    return f"(?P<sign>{sign})(?i:{'|'.join(f'(?<={stem}{sign})' for stem in _STEMS)})"


_PAIR = rf"\s{{0,9}}[:=]\s{{0,9}}[bu]?{_QUOTED}"
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"://[^\s/:@'\"<>]{0,256}:(?P<value>[^\s/'\"<>]{1,512})(?=@)",
        r"(?:uthorization|UTHORIZATION)[\\'\"]{0,9}\s{0,9}[:=]\s{0,9}[\\'\"]{0,9}"
        r"(?i:bearer|basic|token)\s{1,9}(?P<value>[^\s'\"\\]{1,4096})",
        r"earer (?P<value>[\w.~+/=-]{20,4096})",
        rf"--(?P<name>[A-Za-z][\w-]{{0,64}})(?:=|\s{{1,9}}|\\{{0,8}}[\"'],\s{{1,9}})"
        rf"(?!\\{{0,8}}[\"']?-){_VALUE}",
        _stems("=") + _VALUE,
        _stems(":") + r"\s{1,9}" + _VALUE,
        _stems('"') + _PAIR,
        _stems("'") + _PAIR,
        _stems(r"\\") + r"\\{0,7}[\"']" + _PAIR,
        rf"(?P<value>{_SHAPE})(?![\w-])",
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?P<value>[^-]{1,65536})-----END ",
    )
)
#: A line of YAML: a key and its value, which another file would not show so.
_YAML = re.compile(
    r"(?m)(?<![\w.-])(?P<name>[A-Za-z_][\w.-]{1,64})[\"']?:[ \t]+"
    r"(?P<value>\"(?:\\.|[^\"\\\n])*\"|'(?:''|[^'\n])*'|[^\s#|>&*!'\"{\[][^\n,}#]*)"
)
#: One of these is in small letters in whatever holds a secret, once its quotes are away.
_SIGNS = (
    "secret", "passw", "passphrase", "credential", "key", "pwd", "dsn", "auth", "cookie", "earer",
    "kubeconfig", "webhook", "database", "connection", "hf_", "ghp_", "gho_", "ghu_", "ghs_",
    "ghr_", "github_pat_", "glpat-", "sk-", "xox", "akia", "asia", "aiza", "eyj",
)  # fmt: skip
_MORE_SIGNS = tuple(
    map(re.compile, (r"token(?!s|iz)", r"pass(?![a-z])", r"pat(?![a-z])", r"://\S{0,999}@"))
)
_NAME_BEFORE = re.compile(r"[\w.-]*\Z")
_HEADER = re.compile(r"(?i)(x|api|set|private)-[\w-]+|cookie")


def _may_hold(text: str) -> bool:
    """Whether taking a command apart can show a secret; most hold none, and it takes its time."""
    low = text.lower().replace('"', "").replace("'", "").replace("\\", "")
    return any(sign in low for sign in _SIGNS) or any(sign.search(low) for sign in _MORE_SIGNS)


def _found(match: re.Match[str]) -> str:
    """The group of a match that is a secret; empty when there is none."""
    groups = match.groupdict()
    name = _name(match)
    if name is not None and not is_secret_name(name):
        return ""
    if groups.get("sign") == ":" and not _HEADER.fullmatch(name or ""):
        return ""
    group = "value" if groups["value"] is not None else "bare"
    if group == "bare" and groups.get("sign") == "=" and _CODE.fullmatch(match[group]):
        variable = (name or "").rpartition(".")[2].isupper()  # of an environment, as a rule
        return group if variable and match[group].isidentifier() else ""
    return "" if _PLAIN.fullmatch(match[group].strip("\"' ")) else group


def _name(match: re.Match[str]) -> str | None:
    """Under which name a match stands, as far as it has one."""
    if "sign" not in match.groupdict():
        return match.groupdict().get("name")
    end = match.start("sign")
    before = _NAME_BEFORE.search(match.string[max(0, end - 64) : end])
    return before[0] if before else ""


def _masked(match: re.Match[str]) -> str:
    group = _found(match)
    if not group:
        return match[0]
    begin = match.start()
    start, end = (at - begin for at in match.span(group))
    return f"{match[0][:start]}{MASK}{match[0][end:]}"


# All forms of a secret

_UNCHANGED = frozenset("-._~")
_LETTERS = dict(zip("\0\a\b\t\n\v\f\r\x1b", "0abtnvfre", strict=True))


@cache
def _form(char: str) -> str:
    """A pattern of one character of a secret, as any program may have written it."""
    if char.isascii() and (char.isalnum() or char in _UNCHANGED):
        return re.escape(char)
    code = ord(char)
    lone = "surrogateescape" if 0xDC80 <= code <= 0xDCFF else "surrogatepass"
    octets = char.encode("utf-8", lone)
    units = char.encode("utf-16-be", "surrogatepass")
    pairs = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
    entity = {"'": "apos"}.get(char) or html.entities.codepoint2name.get(code, "nothing")
    forms = [
        f"&(?:amp;){{0,5}}(?:#0{{0,6}}{code}|#x0{{0,6}}{code:x}|{entity});",
        "".join(f"%(?:25){{0,5}}{octet:02x}" for octet in octets),
        r"\\{0,8}".join(f"u{pair}" for pair in pairs),
        f"U{code:08x}",
        r"\\{0,8}".join(f"x{octet:02x}" for octet in octets),
    ]
    forms += [f"x{code:02x}"] if code < 0x100 else []
    forms += [_LETTERS[char]] if char in _LETTERS else []
    signs = {"&": "&(?:amp;){0,5}", "%": "%(?:25){0,5}"}
    forms += [signs.get(char, re.escape(char))]
    return rf"(?i:\\{{0,8}}(?:{'|'.join(forms)}))"


#: YAML goes on in the next line after an escape.
_FOLD = r"(?:\\{1,8}(?:\n|n(?=[ \t]))[ \t]{0,80})?"


#: One sign of what a shell, YAML, JSON and a page make of quotes, backslashes and spaces.
_NOISE = (
    r"(?i:[\s'\"\\+]|(?<=\\)[nrtabfve0]|&(?:amp;){0,5}(?:#0{0,6}(?:39|34|92|32|9|10|11|12|13)"
    r"|#x0{0,6}(?:27|22|5c|20|9|a|b|c|d)|apos|quot|bsol|tab|newline);"
    r"|%(?:25){0,5}(?:27|22|5c|20|09|0[abcd])|(?:u00|x|U000000)(?:27|22|5c|20|09|0[abcd]))"
)


def _kind(char: str) -> str:
    """Characters of one kind that follow each other are one repetition.

    Each by itself could be read in many ways, and several such beside each other in more ways
    than one lives to see tried.
    """
    if char in "'\"\\" or (char.isascii() and char.isspace()):
        return "noise"
    return "plain" if char.isascii() and char.isprintable() else "odd"


def _part(kind: str, chars: str) -> str:
    """A pattern of a run of one kind."""
    if kind == "noise":
        return f"{_NOISE}{{1,{80 * len(chars)}}}"
    forms = "".join(
        _form(char) + ("" if char.isalnum() and char.isascii() else _FOLD) for char in chars
    )
    if kind == "odd":
        return f"(?:{forms}|[\ufffd?]{{{len(chars)},{4 * len(chars)}}})"
    return forms


def _written(text: str, more: bool = False) -> str:
    """A pattern of a part of a secret; ``more`` of the secret follows."""
    runs = itertools.groupby(text, _kind)
    form = "".join(_part(kind, "".join(chars)) for kind, chars in runs)
    return form if more else form.removesuffix(_FOLD)


def _tree(words: Sequence[str]) -> str:
    """One pattern of all words: what several begin with is read once, the longest wins."""
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(word[:1], []).append(word)
    over = groups.pop("", None) is not None
    parts = []
    for group in groups.values():
        head = os.path.commonprefix(group)  # noqa: RUF071 (of words)
        rest = [word[len(head) :] for word in group]
        parts.append(re.escape(head) + (_tree(rest) if any(rest) else ""))
    return f"(?:{'|'.join(parts)}){'?' if over else ''}"


class _Matcher:
    """Finds secrets in a text by the longest part of each that no form changes."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._around: dict[str, list[tuple[re.Pattern[str], int, re.Pattern[str]]]] = {}
        #: Those of which every sign may be changed.
        self._odd: list[re.Pattern[str]] = []
        for secret in secrets:
            core = max(re.findall(r"[A-Za-z0-9._~-]*", secret), key=len)
            before, _, after = secret.partition(core) if core else ("", "", secret)
            first, last = _written(before, more=True), _written(after)
            if core:
                place = re.compile(rf"(?:{first})\Z"), 40 * len(before), re.compile(last)
                self._around.setdefault(core, []).append(place)
            else:
                self._odd.append(re.compile(last))
        self._cores = re.compile(_tree(sorted(self._around)) if self._around else r"(?!)")

    def sub(self, text: str) -> str:
        """The text with ``MASK`` for each secret."""
        parts: list[str] = []
        done = at = 0
        while core := self._cores.search(text, at):
            at = core.start() + 1
            for start, end in self._spans(text, core):
                if end > done:
                    parts += [text[done:start], MASK] if start >= done else []
                    done = at = end
        text = "".join([*parts, text[done:]]) if done else text
        for pattern in self._odd:
            text = pattern.sub(MASK, text)
        return text

    def _spans(self, text: str, core: re.Match[str]) -> Iterator[tuple[int, int]]:
        """Where the secrets stand of which this is the core."""
        begin = core.start()
        for length in range(len(core[0]), 0, -1):
            for before, reach, after in self._around.get(core[0][:length], ()):
                first = before.search(text[max(0, begin - reach) : begin])
                last = after.match(text, begin + length)
                if first and last:
                    yield begin - len(first[0]), last.end()


# Values

Leaf = Callable[[str, str, bool], str]


def _walk(value: Any, leaf: Leaf, name: str = "") -> Any:
    """A value with every text in it as ``leaf(text, name, whether its name tells)`` has it."""
    if type(value) is str:
        telling = bool(name) and is_secret_name(name) and not _PLAIN.fullmatch(value)
        return leaf(value, name, telling)
    if isinstance(value, Mapping):
        own = value.get("name")  # Kubernetes: {name: HF_TOKEN, value: ...}
        names = {"value": own} if isinstance(own, str) else {}
        return {key: _walk(inner, leaf, names.get(key, str(key))) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_listed(value, leaf, name)) if type(value) in (list, tuple) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
        return dataclasses.replace(value, **{key: _walk(inner[key], leaf, key) for key in inner})
    return value


def _listed(values: Sequence[Any], leaf: Leaf, name: str) -> Iterator[Any]:
    """The entries of a list, which may be a command."""
    before = ""
    for value in values:
        if type(value) is not str or not value.startswith("-"):
            yield _walk(value, leaf, before or name)
            before = before if before.upper().replace("-", "_") in _SEVERAL else ""
            continue
        option, glued, rest = value.partition("=")
        before = option.lstrip("-")
        tells = len(option) > 2 and is_secret_name(before)
        yield f"{option}={leaf(rest, before, True)}" if tells and rest else leaf(value, name, False)
        before = before if tells and not glued else ""


class Redactor:
    """Replaces known secrets and everything that looks like one.

    Args:
        secrets: values to hide. Words and numbers that are too short or too common are hidden
            where their name stands, and are not searched for: that would garble ordinary text.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._learned: dict[str, str] = {}
        self._names: set[str] = set()
        self._matcher: _Matcher | None = None
        self.learn(secrets)

    def learn(self, secrets: Iterable[str], name: str = "") -> None:
        """Hide these values too from now on; ``name`` is where they stand."""
        for secret in secrets:
            # Text comes in lines, so a key of many lines is hidden line by line; others fold words.
            lines = [line.strip() for line in secret.splitlines()]
            pieces = [line for line in lines if not line.startswith("-----")]
            pieces += filter(_PART.fullmatch, _APART.split(secret))
            self._learned.setdefault(secret.strip(), name)
            for piece in filter(self._rare, pieces):
                self._learned.setdefault(piece, "")
        self._matcher = None

    @property
    def learned(self) -> tuple[tuple[str, str], ...]:
        """Every secret, with the name where it stands: what another process is to hide too."""
        return tuple(self._learned.items())

    def study(self, value: Any) -> None:
        """Learn the secrets of a value, such as a case, a plan or an environment.

        Its own names for things are no secrets, whatever a password says.
        """
        studied: set[str] = set()  # ranks share most of their words

        def leaf(text: str, name: str, telling: bool) -> str:
            if telling:
                self.learn([text], name)
            elif name in _NAMING:
                self._names.add(text)
                self._matcher = None
            if text not in studied:
                studied.add(text)
                self._study_text(text)
            return text

        _walk(value, leaf)

    def _study_text(self, text: str) -> None:
        for pattern in _PATTERNS:
            for match in pattern.finditer(text):
                if group := _found(match):
                    self.learn([match[group]], _name(match) or "")
        if " " in text and "--" in text and len(text) < _COMMAND and _may_hold(text):
            with contextlib.suppress(ValueError):
                self.study(shlex.split(text))

    def study_yaml(self, text: str) -> None:
        """Learn the secrets of a file that may be no YAML at all."""
        self._study_text(text)
        for match in _YAML.finditer(text):
            if _found(match):
                self.learn([match["value"].strip("\"' ")], match["name"])

    @property
    def unsearched(self) -> list[str]:
        """Names of secrets that are too short or too common to be searched for."""
        found = {n for v, n in self._learned.items() if not (self._rare(v) or _PLAIN.fullmatch(v))}
        return sorted(found - {""})

    def _rare(self, value: str) -> bool:
        odd = _PLAIN.fullmatch(value) or _COMMON.fullmatch(value) or value in self._names
        return len(value) >= _LEAST and not odd

    def text(self, text: str) -> str:
        """``text`` without secrets."""
        matcher = self._matcher
        if matcher is None:
            matcher = self._matcher = _Matcher(filter(self._rare, self._learned))
        text = matcher.sub(text)
        for pattern in _PATTERNS:
            text = pattern.sub(_masked, text)
        return text

    def unparsed(self, text: str) -> str:
        """What would be YAML without secrets, also those under telling keys."""
        return _YAML.sub(_masked, self.text(text))

    def value(self, value: Any_) -> Any_:
        """A value without secrets, also those under telling keys; names stay."""
        clean = cache(self.text)  # ranks share most of their words

        def leaf(text: str, name: str, telling: bool) -> str:
            if telling:
                return MASK
            return text if name in _NAMING and text in self._names else clean(text)

        found: Any_ = _walk(value, leaf)
        return found


def secret_names(env: Mapping[str, str]) -> list[str]:
    """The variables of an environment that hold secrets."""
    return sorted(name for name in env if is_secret_name(name) and not _PLAIN.fullmatch(env[name]))


@cache
def here() -> Redactor:
    """The redactor of this process: it knows the environment, and learns what the process reads."""
    made = Redactor()
    made.study(settings.inherited())
    return made
