"""What memory attention can still read of the past, for all objects of a stream, and nothing else.

Per object: the ``num_maskmem - 1`` most recent frame memories, the ``max_cond_frame_num`` newest conditioning ones, and
the object pointers of the last ``max_object_pointers_in_encoder - 1`` frames and of those conditioning frames.
All past conditioning frames lie before the current one, so "the closest" of SAM3's selection are the newest.
Rings of fixed size: bytes depend on the number of live objects only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.device_memory import upload
from pipeline.types import BoolArray, Int64Array

_EMPTY = -1


@dataclass(frozen=True, slots=True)
class Reading:
    """Memories of G objects that hold equally many, so that they form one batch without padding."""

    rows: Int64Array
    """``(G,)`` rows of the bank."""
    memory: torch.Tensor
    """``(G, F, S, 64)`` frame memories of F frames, S positions each."""
    memory_age: Int64Array
    """``(G, F)`` frames ago; 0 for a conditioning frame, whatever its age."""
    pointer: torch.Tensor
    """``(G, P, C)`` object pointers."""
    pointer_age: Int64Array
    """``(G, P)`` frames ago."""


class MemoryBank:
    """Frame memories and object pointers of M objects, one row each."""

    def __init__(self, num_recent: int, num_conditioning: int, num_pointers: int) -> None:
        self._num_conditioning = num_conditioning
        self._num_recent, self._num_pointers = num_recent, num_pointers
        self.memory_step = np.zeros((0, num_conditioning + num_recent), np.int64)
        """Step of each memory slot, or -1. First the conditioning slots, then a ring of recent frames."""
        self.pointer_step = np.zeros((0, num_conditioning + num_pointers), np.int64)
        self.memory = torch.zeros(0)
        """``(M, slots, S, 64)``; without a shape of its own until the first object."""
        self.pointer = torch.zeros(0)
        """``(M, slots, C)``"""

    def __len__(self) -> int:
        return len(self.memory_step)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        arrays = self.memory_step.nbytes + self.pointer_step.nbytes
        return arrays + sum(t.numel() * t.element_size() for t in (self.memory, self.pointer))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything, by name."""
        steps = {"memory_step": self.memory_step, "pointer_step": self.pointer_step}
        return {name: torch.from_numpy(s) for name, s in steps.items()} | {
            "memory": self.memory.contiguous(),
            "pointer": self.pointer.contiguous(),
        }

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what :meth:`tensors` returned."""
        self.memory, self.pointer = tensors["memory"], tensors["pointer"]
        self.memory_step, self.pointer_step = (tensors[n].cpu().numpy() for n in ("memory_step", "pointer_step"))

    def append(self, step: int, memory: torch.Tensor, pointer: torch.Tensor) -> None:
        """New objects with their first memory ``(K, S, 64)`` and pointer ``(K, C)``: a conditioning frame."""
        new = MemoryBank(self._num_recent, self._num_conditioning, self._num_pointers)
        count = len(memory)
        new.memory_step = np.full((count, self.memory_step.shape[1]), _EMPTY, np.int64)
        new.pointer_step = np.full((count, self.pointer_step.shape[1]), _EMPTY, np.int64)
        new.memory = memory.new_zeros((count, self.memory_step.shape[1], *memory.shape[1:]))
        new.pointer = pointer.new_zeros((count, self.pointer_step.shape[1], *pointer.shape[1:]))
        new.write(step, memory, pointer, np.ones(count, bool))
        if len(self) == 0:
            self.memory, self.pointer = new.memory, new.pointer
        else:
            self.memory = torch.cat([self.memory, new.memory])
            self.pointer = torch.cat([self.pointer, new.pointer])
        self.memory_step = np.concatenate([self.memory_step, new.memory_step])
        self.pointer_step = np.concatenate([self.pointer_step, new.pointer_step])

    def write(
        self,
        step: int,
        memory: torch.Tensor,
        pointer: torch.Tensor,
        conditioning: BoolArray,
        rows: Int64Array | None = None,
    ) -> None:
        """Frame ``step`` of all or ``rows``: memory ``(G, S, 64)``, pointer ``(G, C)``, and whose conditions."""
        rows = np.arange(len(self)) if rows is None else rows
        at = upload(rows, memory.device)
        slot = self._num_conditioning + step % self._num_recent
        self.memory[at, slot] = memory.to(self.memory.dtype)
        self.memory_step[rows, slot] = step
        slot = self._num_conditioning + step % self._num_pointers
        self.pointer[at, slot] = pointer.to(self.pointer.dtype)
        self.pointer_step[rows, slot] = step
        if conditioning.any():
            chosen = upload(np.flatnonzero(conditioning), memory.device)
            self._write_conditioning(step, rows[conditioning], memory[chosen], pointer[chosen])

    def _write_conditioning(self, step: int, rows: Int64Array, memory: torch.Tensor, pointer: torch.Tensor) -> None:
        slots = self.memory_step[rows, : self._num_conditioning].argmin(1)
        self.memory_step[rows, slots] = step
        self.pointer_step[rows, slots] = step
        at, to = upload(rows, memory.device), upload(slots, memory.device)
        self.memory[at, to] = memory.to(self.memory.dtype)
        self.pointer[at, to] = pointer.to(self.pointer.dtype)

    def keep(self, rows: BoolArray) -> None:
        """Forget all other rows."""
        if rows.all():
            return
        at = upload(np.flatnonzero(rows), self.memory.device)
        self.memory, self.pointer = self.memory[at], self.pointer[at]
        self.memory_step, self.pointer_step = self.memory_step[rows], self.pointer_step[rows]

    def read(self, step: int, max_rows: int, rows: Int64Array | None = None) -> Iterator[Reading]:
        """What frame ``step`` can attend to: batches of at most ``max_rows`` objects with equally many memories.

        Only of ``rows``, if they are given. Where frames were left out, what is in a ring but older than the ring is
        long is not read: it has no temporal encoding.

        A conditioning frame is read once, as such, although the ring of recent frames holds it too; once four newer
        ones displaced it, it is a recent frame again (SAM3's "unselected conditioning frames").
        """
        rows = np.arange(len(self)) if rows is None else rows
        memory_age, pointer_age = self._ages(step, self.memory_step), self._ages(step, self.pointer_step)
        counts = np.stack([(memory_age != _EMPTY).sum(1), (pointer_age != _EMPTY).sum(1)], axis=1)
        memory_age[:, : self._num_conditioning][memory_age[:, : self._num_conditioning] != _EMPTY] = 0
        for count in np.unique(counts[rows], axis=0):
            group = rows[(counts[rows] == count).all(1)]
            for start in range(0, len(group), max_rows):
                yield self._gather(group[start : start + max_rows], memory_age, pointer_age)

    def _ages(self, step: int, steps: Int64Array) -> Int64Array:
        """Frames ago per slot; -1 where there is nothing to read, or where a conditioning slot has it already."""
        conditioning, recent = np.split(steps, [self._num_conditioning], axis=1)
        doubled = (recent[:, :, None] == conditioning[:, None]).any(2)
        readable = steps != _EMPTY
        readable[:, self._num_conditioning :] &= ~doubled & (step - recent <= recent.shape[1])
        return np.where(readable, step - steps, _EMPTY)

    def _gather(self, rows: Int64Array, memory_age: Int64Array, pointer_age: Int64Array) -> Reading:
        memory, age = _pick(self.memory, rows, memory_age[rows])
        pointer, pointer_age = _pick(self.pointer, rows, pointer_age[rows])
        return Reading(rows, memory, age, pointer, pointer_age)


def _pick(store: torch.Tensor, rows: Int64Array, age: Int64Array) -> tuple[torch.Tensor, Int64Array]:
    """Readable slots of these rows, ``(G, F, ...)``, and their ages ``(G, F)``; each row has equally many."""
    group, slots = np.nonzero(age != _EMPTY)
    flat = upload(rows[group] * store.shape[1] + slots, store.device)
    picked = store.flatten(0, 1).index_select(0, flat)
    return picked.unflatten(0, (len(rows), -1)), age[group, slots].reshape(len(rows), -1)
