"""Nothing stands here that nothing reaches; no package is declared that nothing imports."""

from __future__ import annotations

import configparser

import pytest

from tests.core.cases import ROOT
from tests.core.test_house import ROOMS, imports, modules

#: What something outside of our Python calls or reads by its name -> what that is.
REACHED = {
    "EndElementHandler": "expat",
    "StartDoctypeDeclHandler": "expat",
    "StartElementHandler": "expat",
    "MetaService": "the KV pool's command line",
    "connection_lost": "asyncio",
    "connection_made": "asyncio",
    "data_received": "asyncio",
    "connection_pool_maxsize": "kubernetes",
    "document_error_tree": "cerberus",
    "schema_error_tree": "cerberus",
    "frame": "signal",
    "statuses": "people who read a history",
    "text_of": "the tests of the rules, which share their examples",
    "readable": "io",
    "readinto": "io",
    "trust_env": "requests",
}
#: What is found by a part of its name: rehearsed faults, rules of cerberus.
FOUND = ["_crash", "_exit0", "_kill9", "_oom", "_hang", "_fork_away", "_ignore_term"]
CERBERUS = ["_validate_*"]
#: What registers a function, which is then reached by its key.
REGISTERS = ["@rule", "@rule(*)", "@task", "@task(*)"]


def test_nothing_is_dead() -> None:
    vulture = pytest.importorskip("vulture")
    found = vulture.Vulture(ignore_names=[*FOUND, *CERBERUS], ignore_decorators=REGISTERS)
    found.scavenge([str(ROOT / room) for room in (*ROOMS, "tasks.py")])
    unused = {item.name: item for item in found.get_unused_code(min_confidence=60)}
    dead = [
        f"{item.filename}:{item.first_lineno}: {item.typ} {name}"
        for name, item in unused.items()
        if name not in REACHED
    ]
    assert not dead, "\n".join(dead)
    stale = REACHED.keys() - unused.keys()
    assert not stale, f"used now, or gone; take it out of REACHED: {sorted(stale)}"


def test_every_package_of_the_node_side_is_imported() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    names = {"pyyaml": "yaml", "junit-xml": "junit_xml"}
    declared = {
        "".join(char if char.isalnum() or char in "-_" else " " for char in line).split()[0].lower()
        for line in setup["options"]["install_requires"].split("\n")
        if line
    }
    used = {module.split(".")[0] for path in modules(*ROOMS) for module in imports(path)}
    unused = {name for name in declared if names.get(name, name) not in used}
    assert not unused
