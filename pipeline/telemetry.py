"""Where the time went, and logging that names the stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

LOGGER = logging.getLogger("masklet")

STARTED_S = time.time()
"""When this process began, as good as: this module comes with the first ones."""


@dataclass(slots=True)
class StageTimes:
    """Wall-clock seconds per stage; two of them merge with ``+``."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside the ``with`` block to this stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add time that was measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

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
        names = [*self.seconds, *(n for n in other.seconds if n not in self.seconds)]
        return StageTimes({n: self.seconds.get(n, 0.0) + other.seconds.get(n, 0.0) for n in names})

    def rounded(self) -> dict[str, float]:
        """Seconds by stage, to milliseconds, largest first."""
        longest_first = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {name: round(s, 3) for name, s in longest_first}


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
