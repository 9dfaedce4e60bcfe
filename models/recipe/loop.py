"""What both training loops share: a wall-clock budget, the rate over it, running means of losses, averaged weights."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LONGEST_STEP_S = 60
"""A longer silence was no step: the process was stopped, or the machine asleep."""


class Clock:
    """A budget of minutes of running, and things to do every so many seconds of it; a stopped process does not age."""

    def __init__(self, minutes: float) -> None:
        self._seen, self._elapsed = time.time(), 0.0
        self._seconds = 60 * minutes
        self._last: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start, without those stopped."""
        now = time.time()
        gap, self._seen = now - self._seen, now
        self._elapsed += gap if gap < _LONGEST_STEP_S else 0
        return self._elapsed

    @property
    def progress(self) -> float:
        """Share of the budget that is spent; 1 and above when it is over."""
        return self.elapsed / self._seconds

    def due(self, task: str, seconds: float) -> bool:
        """Whether `task` was last due at least `seconds` ago."""
        if self.elapsed - self._last.get(task, 0.0) < seconds:
            return False
        self._last[task] = self.elapsed
        return True


def schedule(step: int, warmup: int, progress: float) -> float:
    """Linear warm-up, then a cosine over the wall clock down to 1 % of the rate."""
    return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class Means:
    """Running means of named losses."""

    def __init__(self, keep: float = 0.97) -> None:
        self._keep, self._values = keep, dict[str, float]()

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Take in one step's losses."""
        for name, value in parts.items():
            v = float(value.detach())
            self._values[name] = self._keep * self._values.get(name, v) + (1 - self._keep) * v

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in self._values.items())


class Average:
    """An exponential moving average of parameters, evaluated and saved in place of the live ones."""

    def __init__(self, params: Sequence[Tensor], keep: float, slowness: int) -> None:
        self._params, self._keep, self._slowness = list(params), keep, slowness
        self._average = [p.detach().clone() for p in self._params]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the live weights; faster in the first steps."""
        keep = min(self._keep, (1 + step) / (self._slowness + step))
        for slow, fast in zip(self._average, self._params, strict=True):
            slow.lerp_(fast, 1 - keep)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    def _swap(self) -> None:
        for p, a in zip(self._params, self._average, strict=True):
            p.data, a.data = a.data, p.data


def descend(
    loss: Tensor, optimizer: torch.optim.Optimizer, params: Sequence[Tensor], rate: float, clip: float
) -> float:
    """One optimizer step at `rate` x each group's scale, skipped where the gradient is not finite -> gradient norm."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = float(torch.nn.utils.clip_grad_norm_(params, clip))
    groups: list[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        group["lr"] = rate * group.get("scale", 1.0)
    if math.isfinite(norm):
        optimizer.step()
    return norm
