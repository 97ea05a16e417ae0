"""Claims: read along a path, and checked for what every token must hold."""

from collections.abc import Mapping
from typing import Any

from tenants.scopes import SCOPES
from tenants.tokens.envelope import refused

_MAX_TEXT = 256

Claims = Mapping[str, Any]


def claim(claims: Claims, path: str) -> Any:
    """The claim of that name, or the value along the path ``a.b.c`` of nested ones; None if there is none.

    Names with dots in them, as in ``https://example.com/project``, go before paths.
    """
    if path in claims:
        return claims[path]
    value: Any = claims
    for step in path.split("."):
        if not isinstance(value, dict) or step not in value:
            return None
        value = value[step]
    return value


def text_claim(claims: Claims, path: str) -> str:
    """The claim as text that can be stored; raises `InvalidCredential` for any other."""
    value = claim(claims, path)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise refused(f"its claim {path!r} is not printable text of 1 to {_MAX_TEXT} characters")
    return value


def scopes_claim(claims: Claims, path: str, default: frozenset[str]) -> frozenset[str]:
    """Torpor's own scopes among those of the claim, a list or words; the default where there is no claim."""
    value = claim(claims, path)
    if value is None:
        return default
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise refused(f"its claim {path!r} is neither text nor a list of texts")
    return SCOPES & frozenset(words)


def check_times(claims: Claims, now: float, leeway_s: float) -> float:
    """When the token expires, in unix seconds; raises `InvalidCredential` where that has come to pass.

    ``exp`` is required, ``nbf`` and ``iat`` must not be in the future (RFC 7519, section 4.1).
    """
    expires_at = _time(claims, "exp")
    if expires_at is None:
        raise refused("it has no exp")
    if now >= expires_at + leeway_s:
        raise refused("it has expired", reason="expired")
    for name in ("nbf", "iat"):
        begins = _time(claims, name)
        if begins is not None and begins > now + leeway_s:
            raise refused(f"it is not valid yet: its {name} is in the future")
    return expires_at


def _time(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise refused(f"its {name} is not a number of seconds")
    return float(value)
