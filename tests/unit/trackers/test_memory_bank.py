from __future__ import annotations

import numpy as np
import pytest
import torch

from trackers.memory_bank import MemoryBank, Reading

RECENT, CONDITIONING, POINTERS = 6, 4, 15


def _frame(count: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory and pointer that carry their step and row."""
    value = 100.0 * step + torch.arange(count)
    return value[:, None, None].expand(count, 2, 64).to(torch.bfloat16), value[:, None].expand(count, 8)


def _bank(steps: int, conditioning: dict[int, list[int]] | None = None, count: int = 2) -> MemoryBank:
    """``count`` objects born on step 0 and written until ``steps - 1``; ``conditioning``: step -> rows."""
    bank = MemoryBank(RECENT, CONDITIONING, POINTERS)
    bank.append(0, *_frame(count, 0))
    for step in range(1, steps):
        rows = np.isin(np.arange(count), (conditioning or {}).get(step, []))
        bank.write(step, *_frame(count, step), rows)
    return bank


def _read(bank: MemoryBank, step: int) -> dict[int, Reading]:
    """One reading per row."""
    return {int(reading.rows[0]): reading for reading in bank.read(step, max_rows=1)}


def _expected(step: int, born: int, conditioning: list[int]) -> tuple[list[int], list[int]]:
    """Ages of memories (0: conditioning) and pointers, from SAM3's selection written down naively."""
    selected = sorted([born, *conditioning])[-CONDITIONING:]
    memories = [0] * len(selected)
    memories += [step - t for t in range(step - RECENT, step) if t >= born and t not in selected]
    pointers = [step - t for t in selected]
    pointers += [step - t for t in range(step - POINTERS, step) if t >= born and t not in selected]
    return sorted(memories), sorted(pointers)


@pytest.mark.parametrize("step", [1, 2, 5, 6, 7, 8, 15, 16, 17, 40])
@pytest.mark.parametrize("conditioning", [[], [4], [3, 4, 5, 6, 7], [8, 16, 24, 32], list(range(1, 40))])
def test_reads_what_attention_can_reach(step: int, conditioning: list[int]) -> None:
    past = [t for t in conditioning if t < step]
    reading = _read(_bank(step, {t: [1] for t in past}), step)[1]
    memories, pointers = _expected(step, 0, past)
    assert sorted(reading.memory_age[0].tolist()) == memories
    assert sorted(reading.pointer_age[0].tolist()) == pointers


def test_reads_the_tensors_of_those_frames() -> None:
    reading = _read(_bank(20, {8: [0], 13: [0]}), 20)[1]
    recent = reading.memory_age[0] > 0
    steps = ((reading.memory[0, :, 0, 0].float() - 1) / 100).round()
    assert (20 - steps[torch.from_numpy(recent)]).tolist() == reading.memory_age[0][recent].tolist()
    pointer_steps = (reading.pointer[0, :, 0] - 1) / 100
    assert (20 - pointer_steps).tolist() == reading.pointer_age[0].tolist()


def test_groups_objects_with_equally_many_memories() -> None:
    bank = _bank(10, {2: [0], 9: [1]}, count=3)
    bank.append(10, *_frame(2, 10))
    bank.write(11, *_frame(5, 11), np.zeros(5, bool))
    readings = list(bank.read(12, max_rows=10))
    assert sorted(reading.rows.tolist() for reading in readings) == [[0], [1, 2], [3, 4]]
    assert sorted(r.rows.tolist() for r in bank.read(12, max_rows=1)) == [[0], [1], [2], [3], [4]]


def test_bytes_do_not_depend_on_time() -> None:
    assert _bank(3).num_bytes == _bank(300, {t: [0] for t in range(0, 300, 7)}).num_bytes


def test_forgets_rows() -> None:
    bank = _bank(9, {4: [2]}, count=3)
    kept = _read(bank, 9)[2]
    bank.keep(np.array([True, False, True]))
    assert len(bank) == 2
    again = _read(bank, 9)[1]
    assert torch.equal(again.memory, kept.memory)
    assert again.pointer_age.tolist() == kept.pointer_age.tolist()


def test_all_rows_may_go_and_others_come() -> None:
    bank = _bank(5)
    bank.keep(np.zeros(2, bool))
    assert list(bank.read(6, 4)) == []
    bank.append(6, *_frame(1, 6))
    assert _read(bank, 7)[0].memory_age.tolist() == [[0]]
