"""Posts rows and events as JSON to an address, at least once, with ids by which the receiver can drop repetitions."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipeline.errors import UsageError
from pipeline.live.events import Event
from pipeline.live.sinks import Item
from pipeline.sources.live_open import basic_authorization
from pipeline.sources.live_redact import is_ambiguous, redact

TIMEOUT_S = 5.0
MAX_TRIES = 6
"""Then the batch is lost and counted; with the backoff that is about half a minute of a dead receiver."""
_FIRST_BACKOFF_S, _BACKOFF_CAP_S = 0.5, 10.0


class WebhookSink:
    """Posts ``{"delivery_id", "items": [...]}``; an item is an event, or a frame with its ``rows``.

    The delivery's id is the same in every try (also as the header ``Idempotency-Key``); items have ids of their own,
    ``event_id`` and ``frame_id``. Server errors, 408 and 429 are tried again; any other refusal loses the batch.
    ``user:password@`` in the address is sent as basic authorization, never as part of a message.

    Raises:
        UsageError: no address to post to.
    """

    wants_pictures = False

    def __init__(self, url: str, *, sleep: Any = time.sleep) -> None:
        self._url, self._authorization = _without_userinfo(url)
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_NoRedirects())

    def write(self, items: Sequence[Item]) -> int:
        """Post one batch; returns how many items were lost."""
        payload = [_payload(item) for item in items if isinstance(item, Event) or len(item.result)]
        if not payload:
            return 0
        delivery = uuid.uuid4().hex
        body = json.dumps({"delivery_id": delivery, "items": payload}, ensure_ascii=False).encode()
        for attempt in range(MAX_TRIES):
            if attempt:
                longest_s = min(_BACKOFF_CAP_S, _FIRST_BACKOFF_S * 2 ** (attempt - 1))
                self._sleep(longest_s * random.uniform(0.5, 1.0))
            status = self._post(body, delivery)
            if 200 <= status < 300:
                return 0
            if 300 <= status < 500 and status not in (408, 429):
                raise OSError(status, f"the receiver refuses: HTTP {status}")
        raise OSError(5, f"no answer after {MAX_TRIES} tries")

    def _post(self, body: bytes, delivery: str) -> int:
        """The answer's status; 0 if there was none."""
        headers = {"Content-Type": "application/json", "User-Agent": "masklet", "Idempotency-Key": delivery}
        if self._authorization:
            headers["Authorization"] = self._authorization
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except (OSError, http.client.HTTPException):
            return 0

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to close."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Rows go to the address that was given and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Refuse."""
        return


def _without_userinfo(url: str) -> tuple[str, str]:
    """The address to post to, and the ``Authorization`` header."""
    todo = "write http(s)://HOST[:PORT]/PATH, and percent-encode special characters of a password"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError("a bad webhook address", redact(url), todo) from None
    if not parts.hostname or is_ambiguous(url) or any(ord(c) < 33 for c in url):
        raise UsageError("a bad webhook address", redact(url), todo)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", parts.query, ""))
    return bare, basic_authorization(parts.username, parts.password)


def _payload(item: Item) -> dict[str, Any]:
    if isinstance(item, Event):
        return item.to_dict()
    result = item.result
    return {
        "type": "frame",
        "frame_id": f"{result.video_id}:{item.session}:{result.index}",
        "stream_id": result.video_id,
        "session": item.session,
        "frame": result.index,
        "pts_s": result.pts_s,
        "wall_s": item.wall_s,
        "rows": item.rows(),
    }
