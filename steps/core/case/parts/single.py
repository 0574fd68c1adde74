"""A case of ``test_cases``: the servers of one node.

Enters: a case whose form is right. Leaves: its node, with words of one server, or of several
(``service_mode: epd``), and what is wrong with them. Touches nothing.

Meanings are upstream's (vllm-ascend 0.30, tests/e2e/common/single_node).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from steps.core.case.case import CaseNode, ProxySpec
from steps.core.case.shellwords import Word

if TYPE_CHECKING:
    from steps.core.case.source import Source

#: Takes a rule, a message, a hint and the words of a YAML path.
Report = Callable[..., None]
#: Variables that hold a port, and the word for a free one.
PORT_WORDS = ("SERVER_PORT", "ENCODE_PORT", "PD_PORT", "PROXY_PORT")
DEFAULT_PORT = "DEFAULT_PORT"
#: What a proxy of encoders, and servers behind them, runs with; over the case's own.
_EPD_ENV = {
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
}
#: Options that multiply devices.
_SIZES = {
    "--tensor-parallel-size": "tensor",
    "-tp": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "-pp": "pipeline",
    "--prefill-context-parallel-size": "context",
    "-pcp": "context",
    "--data-parallel-size": "data",
    "-dp": "data",
    "--data-parallel-size-local": "local",
    "-dpl": "local",
}
#: Indices of the devices that a server may take; the node has those before them too.
_VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
#: No node has more devices.
MOST = 1024


def nodes(source: Source, problem: Report) -> tuple[CaseNode, ...]:
    """The one node of a case."""
    data = source.data
    envs = {key: str(value) for key, value in (data.get("envs") or {}).items()}
    for name in PORT_WORDS:
        text = envs.get(name, DEFAULT_PORT)
        if text != DEFAULT_PORT and not (text.isdecimal() and 0 < int(text[:9]) <= 65535):
            message = f"found {text!r:.60}, expected a port, or {DEFAULT_PORT} for a free one"
            problem("MN007", message, "", "envs", name)
    epd = data.get("service_mode") == "epd"
    keys = ("epd_server_cmds", "epd_proxy_args") if epd else ("server_cmd",)
    for key in keys:
        if key not in data or (epd and not data[key]):
            found = "is empty" if key in data else "is missing"
            problem("MN004", f"{found}, expected the words of a command", "", key)
            return ()
    other = "server_cmd" if epd else "epd_server_cmds"
    if data.get(other):
        hint = "Keep one: 'service_mode: epd' starts epd_server_cmds, all else server_cmd."
        problem("MN018", "is not read in this service_mode", hint, other)
    paths: dict[str, tuple[Any, ...]] = {"node": (), "envs": ("envs",), "command": keys[:1]}
    if epd:
        _check_encoders(data, problem)
        envs |= _EPD_ENV
        at = source.place()
        commands = [
            (Word("vllm", at), Word("serve", at), *_words(source, words, "epd_server_cmds", i))
            for i, words in enumerate(data["epd_server_cmds"])
        ]
    else:
        at, model = source.place("server_cmd"), source.place("model")
        head = (Word("vllm", at), Word("serve", at), Word(data["model"], model))
        own = _words(source, data["server_cmd"], "server_cmd")
        extra = _words(source, data.get("server_cmd_extra"), "server_cmd_extra")
        commands = [(*head, *own, *extra)]
    return (CaseNode(0, envs, commands[0], paths, more=tuple(commands[1:])),)


def _check_encoders(data: Mapping[str, Any], problem: Report) -> None:
    """What upstream asks of the servers and of their proxy."""
    commands = [(("epd_server_cmds", at), it) for at, it in enumerate(data["epd_server_cmds"])]
    for path, words in [*commands, (("epd_proxy_args",), data["epd_proxy_args"])]:
        texts = [str(word) for word in words]
        if "--port" not in texts[:-1]:
            message = "has no '--port', expected it and a port as two words"
            problem("MN004", message, "Nobody finds it otherwise.", *path)
    asked = {"test_content": ["completion"], **data}["test_content"] or ()
    for kind in sorted({"completion", "messages", "spec_decode_acceptance"} & {*asked}):
        message = f"asks for {kind}, but the proxy of encoders only serves chat completions"
        hint = "Take it out" if "test_content" in data else "Write 'test_content: []'"
        problem("MN023", message, f"{hint}; absent it means completion.", "test_content")


def devices(nodes: tuple[CaseNode, ...]) -> int:
    """Devices that the servers of a node take: the file does not say how many there are.

    No parser of vLLM's whole command line is needed for that; the linter has one, and compares.
    """
    servers = [command for node in nodes for command in node.commands]
    if len(servers) > 1:
        return len(servers)
    sizes: dict[str, int] = {}
    texts = [word.text for command in servers for word in command]
    for at, text in enumerate(texts):
        name, _, glued = text.partition("=")
        known = _SIZES.get(name.replace("_", "-"))
        value = glued or (texts[at + 1] if at + 1 < len(texts) else "")
        if known and value.isdecimal():
            sizes[known] = int(value[:6])
    local = sizes.pop("local", None)
    if local is not None:
        sizes["data"] = local
    seen = [part.strip() for node in nodes for part in node.envs.get(_VISIBLE, "").split(",")]
    there = [int(part[:6]) + 1 for part in seen if part.isdecimal()]
    return min(max(math.prod(sizes.values()), *there, 1), MOST)


def proxy(data: Mapping[str, Any]) -> ProxySpec:
    """What stands in front of the servers of ``service_mode: epd``; nothing else has one."""
    if data.get("service_mode") != "epd":
        return ProxySpec()
    return ProxySpec("epd", args=tuple(map(str, data.get("epd_proxy_args") or ())))


def _words(source: Source, items: Any, *path: Any) -> Iterator[Word]:
    for at, item in enumerate(items or ()):
        yield Word(str(item), source.place(*path, at))
