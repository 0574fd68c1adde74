"""Refusals, in the words of a real API server.

Enters: what was asked. Leaves: :class:`ApiError`, which carries an HTTP code and a ``Status``
    body of the
recorded shape. Touches nothing.
"""

from __future__ import annotations

from typing import Any

from .kinds import Kind

DNS_1123_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, "
    "'-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
DNS_1035_LABEL = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start "
    "with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used "
    "for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)


class ApiError(Exception):
    """A refusal: HTTP code, body (a ``Status``, or plain text where the real server answers so),
    extra headers."""

    def __init__(
        self, code: int, body: dict[str, Any] | str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(body if isinstance(body, str) else body.get("message", ""))
        self.code = code
        self.body = body
        self.headers = headers or {}


def status(
    code: int, reason: str, message: str, details: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A ``Status`` body of failure, keys in the recorded order."""
    body: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
    }
    if reason:
        body["reason"] = reason
    if details:
        body["details"] = details
    body["code"] = code
    return body


def _details(name: str, kind: Kind, plural: bool = True) -> dict[str, Any]:
    details: dict[str, Any] = {"name": name} if name else {}
    if kind.group:
        details["group"] = kind.group
    details["kind"] = kind.plural if plural else kind.kind
    return details


def not_found(kind: Kind, name: str) -> ApiError:
    return ApiError(
        404, status(404, "NotFound", f'{kind.qualified} "{name}" not found', _details(name, kind))
    )


def already_exists(kind: Kind, name: str) -> ApiError:
    message = f'{kind.qualified} "{name}" already exists'
    return ApiError(409, status(409, "AlreadyExists", message, _details(name, kind)))


def conflict(kind: Kind, name: str) -> ApiError:
    message = (
        f'Operation cannot be fulfilled on {kind.qualified} "{name}": the object has been '
        "modified; "
        "please apply your changes to the latest version and try again"
    )
    return ApiError(409, status(409, "Conflict", message, _details(name, kind)))


def invalid(kind: Kind, name: str, causes: list[tuple[str, str, str]]) -> ApiError:
    """422; each cause is (reason, message, field)."""
    texts = [f"{field}: {message}" for _, message, field in causes]
    text = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    title = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    details = _details(name, kind, plural=False)
    details["causes"] = [{"reason": r, "message": m, "field": f} for r, m, f in causes]
    return ApiError(422, status(422, "Invalid", f'{title} "{name}" is invalid: {text}', details))


def bad_request(message: str) -> ApiError:
    return ApiError(400, status(400, "BadRequest", message))


def denied(message: str) -> ApiError:
    """What the LWS admission webhook refuses."""
    return ApiError(
        403,
        status(
            403,
            "Forbidden",
            f'admission webhook "vleaderworkerset.kb.io" denied the request: {message}',
        ),
    )


def exceeded_quota(
    kind: Kind, name: str, quota: str, requested: str, used: str, limited: str
) -> ApiError:
    message = (
        f'{kind.qualified} "{name}" is forbidden: exceeded quota: {quota}, '
        f"requested: {requested}, used: {used}, limited: {limited}"
    )
    return ApiError(403, status(403, "Forbidden", message, _details(name, kind)))


def forbidden(
    kind: Kind, verb: str, user: str, namespace: str, name: str, subresource: str = ""
) -> ApiError:
    what = f"{kind.plural}/{subresource}" if subresource else kind.plural
    qualified = f"{what}.{kind.group}" if kind.group else what
    title = f'{qualified} "{name}"' if name else qualified
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = (
        f'{title} is forbidden: User "{user}" cannot {verb} resource "{what}" in API group '
        f'"{kind.group}" {where}'
    )
    return ApiError(403, status(403, "Forbidden", message, _details(name, kind)))


def unauthorized() -> ApiError:
    return ApiError(401, status(401, "Unauthorized", "Unauthorized"))


def expired(version: int, oldest: int) -> dict[str, Any]:
    """The body of a 410: as an ERROR event inside a watch, or as the answer to a list."""
    return status(410, "Expired", f"too old resource version: {version} ({oldest})")


def no_such_resource() -> ApiError:
    return ApiError(
        404, status(404, "NotFound", "the server could not find the requested resource", {})
    )


def page_not_found() -> ApiError:
    """What a group that is not installed answers: plain text."""
    return ApiError(404, "404 page not found\n")


def too_large() -> ApiError:
    return ApiError(
        413, status(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728")
    )
