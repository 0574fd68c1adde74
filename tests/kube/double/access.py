"""Who may do what: bearer tokens, their users, and rules in the form of a Role.

Enters: Role documents. Leaves: yes or no. Touches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class User:
    """One token's owner. ``rules`` None: may do everything; ``namespace`` "": the rules hold
    everywhere."""

    name: str
    rules: list[dict[str, Any]] | None = None
    namespace: str = ""
    expired: bool = False
    used: int = field(default=0, repr=False)

    def may(self, verb: str, group: str, resource: str, namespace: str, name: str = "") -> bool:
        if self.rules is None:
            return True
        if self.namespace and namespace != self.namespace:
            return False
        return any(
            _in(verb, rule.get("verbs"))
            and _in(group, rule.get("apiGroups"))
            and _in(resource, rule.get("resources"))
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for rule in self.rules
        )


def _in(value: str, allowed: list[str] | None) -> bool:
    allowed = allowed or []
    return (
        "*" in allowed
        or value in allowed
        or ("/" in value and "*/" + value.split("/")[1] in allowed)
    )
