"""Takes credentials out of addresses of cameras and receivers, wherever makers hide them, before anybody sees them."""

from __future__ import annotations

import re
from urllib.parse import unquote

_NAMES = r"[\w.-]*(?:passw|pwd|pass|user|usr|login|token|secret|key|sig|auth|credential|policy)[\w.-]*"
_PAIR = re.compile(rf"(?P<name>{_NAMES}?)=(?P<value>.*?)(?=[/&;?#,\s]|[_.]\w+=|$)", re.IGNORECASE)
"""``password=x`` in a query or, as many recorders have it, in the path: ``/user=a_password=b_channel=1``."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(/+)(.*)$", re.DOTALL)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:@/?#]*)(?::\d*)?")


def redact(uri: str) -> str:
    """``uri`` without user, password and secret values: fit for logs, errors, ids and pages.

    Made for addresses that are wrong too: a password with a bare ``/``, ``?`` or ``#`` ends at the last ``@`` all the
    same.
    """
    scheme, slashes, rest = _split(uri)
    if not scheme:
        return uri
    credentials, rest = _userinfo(rest)
    shown = _PAIR.sub(lambda m: f"{m['name']}=***" if m["value"] else m[0], rest)
    return f"{scheme}:{slashes}{'***@' if credentials else ''}{shown}"


def secrets_of(uri: str) -> frozenset[str]:
    """Everything that :func:`redact` hides of ``uri``, as written and decoded."""
    _, _, rest = _split(uri)
    credentials, rest = _userinfo(rest)
    found = [credentials, *credentials.split(":", 1), *(m["value"] for m in _PAIR.finditer(rest))]
    return frozenset(form for text in found if text for form in (text, unquote(text)))


def is_ambiguous(uri: str) -> bool:
    """Whether a password holds a bare ``/``, ``?`` or ``#``, so that what stands for the host is none."""
    return _HOST.fullmatch(_place(_split(uri)[2]).rpartition("@")[2]) is None


def scrub(text: str, secrets: frozenset[str], otherwise: str) -> str:
    """``text``, or ``otherwise`` if it holds one of ``secrets``."""
    return otherwise if any(secret in text for secret in secrets) else text


def _split(uri: str) -> tuple[str, str, str]:
    found = _SCHEME.match(uri)
    return (found[1], found[2], found[3]) if found is not None else ("", "", "")


def _place(rest: str) -> str:
    return re.split(r"[/?#]", rest, maxsplit=1)[0]


def _userinfo(rest: str) -> tuple[str, str]:
    """``user:password`` and what follows; the first is empty without them. In doubt, more is hidden."""
    place, at = _place(rest), rest.rfind("@")
    if at < 0:
        return "", rest
    is_plain_path = "@" not in place and ":" not in rest[:at] and _HOST.fullmatch(place) is not None
    return ("", rest) if is_plain_path else (rest[:at], rest[at + 1 :])
