"""Which addresses may be added from the web page."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.sources.live_open import NETWORK_SCHEMES

_PORTS: dict[str, int] = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


def is_allowed(url: str, patterns: Sequence[str]) -> bool:
    """Whether ``url`` matches one of ``patterns``, part by part: ``rtsp://10.0.0.*/*``, ``http://cam-*:8080/video``.

    Scheme and port must be equal (without one in the pattern, the scheme's own port; ``*``: any); ``*`` in the host
    stands for characters of the host only. Files and webcams never match.
    """
    parts = _parts(url)
    return parts is not None and any(_matches(parts, pattern) for pattern in patterns)


def _parts(url: str) -> SplitResult | None:
    if any(ord(c) < 33 or c == "\\" for c in url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    climbs = ".." in unquote(parts.path).split("/")
    return parts if parts.scheme in NETWORK_SCHEMES and parts.hostname and not climbs else None


def _matches(parts: SplitResult, pattern: str) -> bool:
    scheme, _, rest = pattern.partition("://")
    place, slash, path = rest.partition("/")
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host, port = place, str(_PORTS.get(scheme, 0))
    own_port = str(parts.port or _PORTS.get(parts.scheme, 0))
    return (
        parts.scheme == scheme.lower()
        and fnmatchcase(parts.hostname or "", host.strip("[]").lower())
        and port in ("*", own_port)
        and fnmatchcase(parts.path or "/", "/" + path if slash else "/")
    )
