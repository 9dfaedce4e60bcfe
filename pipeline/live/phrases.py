"""The phrases of a running camera: they come and go, the objects of the others keep theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.types import Detections, Int16Array, Prompts

MAX_SLOTS = 256
"""Phrases remembered per camera; the slot that was left longest ago is used again."""


class PhraseTable:
    """Gives each phrase of one camera a slot, which is the ``prompt_id`` its tracker knows.

    The detector numbers the phrases of its current :class:`Prompts`; a slot keeps its number for as long as the phrase
    is wanted, whatever is added or removed beside it.
    """

    def __init__(self) -> None:
        self.slots: list[str] = []
        """Phrase by ``prompt_id``; slots no longer in use keep their last phrase."""
        self._active: list[int] = []
        self._left: list[int] = []
        """Slots out of use, the one left longest ago first."""
        self.prompts = Prompts((), np.zeros((0, 1, 1), np.float32), np.zeros((0, 1), bool))

    @property
    def wanted(self) -> tuple[str, ...]:
        """The phrases looked for now."""
        return tuple(self.slots[slot] for slot in self._active)

    @property
    def retired(self) -> list[int]:
        """Slots whose objects are not shown."""
        return list(self._left)

    def change(self, prompts: Prompts) -> None:
        """Look for these phrases from now on."""
        wanted = prompts.phrases[: prompts.num_wanted]
        before = {self.slots[slot]: slot for slot in self._active}
        self._left += [slot for phrase, slot in before.items() if phrase not in wanted]
        self._active = [before[p] if p in before else self._allot(p) for p in wanted]
        self.prompts = prompts

    def _allot(self, phrase: str) -> int:
        if len(self.slots) < MAX_SLOTS or not self._left:
            self.slots.append(phrase)
            return len(self.slots) - 1
        slot = self._left.pop(0)
        self.slots[slot] = phrase
        return slot

    def to_slots(self, found: Detections) -> Detections:
        """The same detections, with slots instead of positions in the current prompts."""
        slots: Int16Array = np.array(self._active or [0], np.int16)
        return Detections(found.xyxy, found.score, slots[found.prompt_id], found.mask_logits)

    def state(self) -> dict[str, list[str] | list[int]]:
        """As JSON values, without embeddings."""
        return {"slots": self.slots, "active": self._active, "left": self._left}

    def restore(self, slots: Sequence[str], active: Sequence[int], left: Sequence[int]) -> None:
        """Continue from :meth:`state`; call :meth:`change` with the encoded phrases next."""
        self.slots, self._active, self._left = list(slots), list(active), list(left)
