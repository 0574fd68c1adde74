"""No proxy of the environment stands between the programs of one fleet.

Enters: an environment, the fleet's addresses. Leaves: the environment with these
addresses exempt, whatever ``NO_PROXY`` said before. Touches nothing.

Single addresses and names, since not every library understands ranges; both
spellings, since some read only one. Package indexes and hubs keep their proxy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

EXEMPTING = ("no_proxy", "NO_PROXY")
#: What sends a program's requests to a proxy.
PROXIES = tuple(
    spelt(f"{scheme}_proxy")
    for scheme in ("http", "https", "all", "ws", "wss")
    for spelt in (str.lower, str.upper)
)
HERE = ("localhost", "127.0.0.1", "::1")


def exempt(env: Mapping[str, str], hosts: Iterable[str]) -> dict[str, str]:
    """``env`` in which nobody asks a proxy for one of ``hosts`` or for this machine."""
    if not any(env.get(name) for name in PROXIES):
        return dict(env)
    given = [part.strip() for name in EXEMPTING for part in env.get(name, "").split(",")]
    if "*" in given:  # no proxy for anything, which not every library understands
        return {name: value for name, value in env.items() if name not in PROXIES}
    bare = [host.strip("[]") for host in hosts]
    text = ",".join(filter(None, dict.fromkeys([*given, *bare, *HERE])))
    return {**env, **dict.fromkeys(EXEMPTING, text)}
