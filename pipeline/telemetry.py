"""Where the time went, and logging that names the stream."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

LOGGER = logging.getLogger("masklet")


@dataclass(slots=True)
class StageTimes:
    """Wall-clock seconds per stage; two of them merge with ``+``."""

    seconds: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside the ``with`` block to this stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Pass ``items`` on and add the time spent waiting for each to this stage."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def __add__(self, other: StageTimes) -> StageTimes:
        return StageTimes(self.seconds + other.seconds)

    def rounded(self) -> dict[str, float]:
        """Seconds by stage, to milliseconds, largest first."""
        return {name: round(s, 3) for name, s in self.seconds.most_common()}


def setup_logging(level: str) -> None:
    """Send masklet's log to stderr as plain lines at this level; other libraries only speak up on warnings.

    Raises:
        ValueError: an unknown level name.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(level.upper())
