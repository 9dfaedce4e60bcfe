"""Work for the device while the host is busy: handed over bit by bit, whenever the host is about to wait. Torch."""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import TypeVar

import torch

from pipeline.telemetry import LOGGER

T = TypeVar("T")


class Ahead:
    """One piece of work, the next batch's features say, launched in steps between the steps of other work.

    A device does what it is given in order. Who asks it for a result and then plans for some milliseconds leaves it
    idle unless there is something in its queue; who fills the queue first waits for all that. So each wait, after it
    has asked, adds one step (:meth:`step`), and each turn of the other work (a frame, say) is allowed its share of
    steps: then the work is done when its turn comes, and none of the turns goes without.

    What fails here is dropped: who needs the result does the work in place, and meets the error there.
    """

    def __init__(self) -> None:
        self._work: Generator[None, None, None] | None = None
        self._num_steps = self._num_turns = self._steps = self._turns = 0
        self._has_failed = False

    def begin(self, work: Generator[None, None, None], num_steps: int, num_turns: int) -> None:
        """Take on ``work``, after what is left of the one before; nothing of it is launched yet.

        Args:
            work: each ``next`` launches a step and returns at once.
            num_steps: how many there are.
            num_turns: over how many turns to spread them.
        """
        self.finish()
        self._work = work
        self._num_steps, self._num_turns, self._steps, self._turns = num_steps, num_turns, 0, 0

    def turn(self) -> None:
        """Another turn begins: what was due in the one before comes first."""
        while self._is_due:
            self._advance()
        self._turns += 1

    def step(self) -> None:
        """Launch one step, if one is due."""
        if self._is_due:
            self._advance()

    def finish(self) -> None:
        """Launch all that is left."""
        while self._work is not None:
            self._advance()

    @property
    def _is_due(self) -> bool:
        return self._work is not None and self._steps * self._num_turns < self._turns * self._num_steps

    def _advance(self) -> None:
        assert self._work is not None
        self._steps += 1
        try:
            # As a detector runs, whoever it is that waits: what was compiled in one mode is compiled again in another.
            with torch.inference_mode(False), torch.no_grad():
                next(self._work)
        except StopIteration:
            self._work = None
        except Exception as error:
            LOGGER.log(
                logging.DEBUG if self._has_failed else logging.WARNING,
                "work ahead failed, and from now on whenever this happens is done in place: %s",
                str(error).partition("\n")[0] or type(error).__name__,
            )
            self._work, self._has_failed = None, True


def result_of(work: Generator[None, None, T]) -> T:
    """What work in steps returns, all of them done at once."""
    while True:
        try:
            next(work)
        except StopIteration as finished:
            found: T = finished.value
            return found
