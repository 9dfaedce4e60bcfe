"""``uv run python -m benchmarks.against_transformers``: our modes against transformers' ``Sam3VideoModel``.

One process, one thread, one set of random weights (four ViT layers, 224 px), the same frames, phrases and objects; the
contestants take turns on blocks of eight frames, so that other programs slow all alike. A ratio is the reference's
seconds for a block by ours; the median over the blocks counts. All compute is paid on both sides and only values are
forced (:mod:`benchmarks.reference`). Decoding and rendering to run lengths are left out: the reference's model does
neither.

On every frame both must track exactly K objects and agree on ids and masks. In exact mode the masks that the networks
themselves gave, before they were forced, are compared too, while the references's memories are chosen alike (up to
the fourth reconditioning; after it the reference reads pointers of all conditioning frames ever, a known fault).

Printed beside the ratios: frames/s, the highest memory of a block above what the process had before it, and growth:
of what is remembered (over the second half of the warm-up) and of time (later blocks by earlier ones).

The last case has 3,000 frames of history. Nobody computes it: the reference gets the entries that its own code would
have stored (tensors shared, see ``Reference.pretend``), ours runs its bookkeeping and memory bank with idle networks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.plot import write_plot
from benchmarks.reference import InMemory, Reference, pretend_ours, random_model, tiny_config
from configs.schema import Config, TrackerConfig
from pipeline.bench import Models, Subject, load_models, modes, rss_mb
from pipeline.bench_scene import Scene, Stopwatch, synthetic_prompts

BLOCK = 8
REFERENCE = "reference"
RESULTS = Path(__file__).parent / "results"
_SAME_LOGITS = 1e-3
_LAST_ALIKE = 64
"""Frames in which the reference has no more than four conditioning frames."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    name: str
    objects: int
    prompts: int
    warm_up: int
    """Frames that are tracked but not counted."""
    frames: int
    """Frames that count."""
    history: int = 0
    """Frame at which counting begins, if it is after the warm-up; what lies between is pretended."""


CASES = (
    Case("1 object", 1, 1, 24, 64),
    Case("4 objects, 4 phrases", 4, 4, 24, 48),
    Case("16 objects", 16, 1, 24, 48),
    Case("64 objects", 64, 1, 16, 24),
    Case("16 objects, frames 2,900-3,000", 16, 1, 24, 48, 2904),
)

GOALS = {
    case.name: {"exact": exact, "adaptive": adaptive}
    for case, (exact, adaptive) in zip(
        CASES, ((1.15, 1.3), (1.3, 1.6), (1.3, 2.5), (2.0, 5.0), (1.5, 3.0)), strict=True
    )
}
"""At least so many times the reference's speed."""


class Turns:
    """The reference and our modes on one scene, block by block."""

    def __init__(self, model: Any, models: Models, case: Case, tracker: TrackerConfig) -> None:
        self.case = case
        self.scene = Scene(case.objects, case.prompts, models.mask_side)
        prompts = synthetic_prompts(case.prompts, models.text_width)
        self.watches = {name: Stopwatch(time.perf_counter) for name in (REFERENCE, *modes(tracker))}
        last = max(case.history, case.warm_up) + case.frames
        self.reference = Reference(model, self.scene, last, self.watches[REFERENCE])
        self.ours = {
            mode: Subject(models.detector, models.parts, self.scene, prompts, config, 4, mode, self.watches[mode])
            for mode, config in modes(tracker).items()
        }
        self.difference = 0.0
        """Largest, between mask logits of the reference's and of the exact mode's networks."""

    def block(self, count: int = BLOCK) -> dict[str, Spent]:
        """What each needs for the next ``count`` frames."""
        t = self.reference.next_frame
        theirs, spent = _timed(lambda: self.reference.advance(count))
        seconds = {REFERENCE: spent}
        for mode, subject in self.ours.items():
            tracked, seconds[mode] = _timed(lambda subject=subject: subject.advance(count))
            for number, ((_, low), reference) in enumerate(zip(tracked, theirs, strict=True)):
                self._check(mode, t + number, low, reference)
        if t + count <= _LAST_ALIKE and self.ours["exact"].tracker.raw:
            self._compare_raw()
        return seconds

    def _check(self, mode: str, t: int, low: Any, reference: dict[int, torch.Tensor]) -> None:
        assert (low.track_id - 1).tolist() == list(reference), f"{mode}, frame {t}: other ids"
        for row, theirs in enumerate(reference.values()):
            assert torch.equal(low.logits[row] > 0, theirs > 0), f"{mode}, frame {t}: other masks"

    def _compare_raw(self) -> None:
        for row, ours in self.ours["exact"].tracker.raw.items():
            self.difference = max(self.difference, (ours - self.reference.raw[row]).abs().max().item())
        assert self.difference <= _SAME_LOGITS, f"networks differ by {self.difference}"

    def state_mb(self) -> dict[str, float]:
        """What everyone remembers of the objects."""
        ours = {mode: subject.tracker.num_state_bytes for mode, subject in self.ours.items()}
        return {name: size / 1e6 for name, size in ({REFERENCE: self.reference.num_state_bytes()} | ours).items()}

    def pretend(self) -> None:
        """Go on at the frame where counting begins."""
        if self.case.history > self.case.warm_up:
            self.reference.pretend(self.case.history)
            for subject in self.ours.values():
                pretend_ours(subject, self.case.history)


@dataclass(frozen=True)
class Spent:
    """On one block of frames."""

    wall_s: float
    cpu_s: float
    working_mb: float | None
    """Highest resident memory above what the process had before; ``None`` where the system does not tell."""


def _timed(work: Any) -> tuple[Any, Spent]:
    before_mb = rss_mb() if _forget_peak() else None
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return done, Spent(wall, cpu, None if before_mb is None else max(_peak_mb() - before_mb, 0.0))


def _forget_peak() -> bool:
    """Have the kernel measure peak memory anew (Linux); false where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_mb() -> float:
    """Highest resident memory since :func:`_forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def measure(model: Any, models: Models, case: Case, tracker: TrackerConfig, block: int = BLOCK) -> dict[str, Any]:
    """One case: times, ratios, parts and memory."""
    turns = Turns(model, models, case, tracker)
    began_mb, state = rss_mb(), []
    for start in range(0, case.warm_up, block):
        turns.block(min(block, case.warm_up - start))
        state.append((turns.reference.next_frame, turns.state_mb()))
    turns.pretend()
    for watch in turns.watches.values():
        watch.is_on = True
    blocks = [turns.block(block) for _ in range(case.frames // block)]
    turns.reference.close()
    (t1, early), (t2, late) = state[len(state) // 2 - 1], state[-1]
    slope = {name: 1000 * (late[name] - early[name]) / (t2 - t1) if t2 > t1 else None for name in late}
    return {
        "case": case.name,
        "objects": case.objects,
        "prompts": case.prompts,
        "counted_frames": [turns.reference.next_frame - case.frames, turns.reference.next_frame],
        "largest_difference_of_raw_logits": turns.difference,
        "state_mb": late,
        "rss_grew_mb": rss_mb() - began_mb,
        "contestants": {
            name: _contestant(name, blocks, turns.watches[name], block) | {"state_mb_per_1000_frames": slope[name]}
            for name in turns.watches
        },
    }


def _contestant(name: str, blocks: Sequence[dict[str, Any]], watch: Stopwatch, block: int) -> dict[str, Any]:
    own: list[Spent] = [b[name] for b in blocks]
    wall, cpu = [b.wall_s for b in own], [b.cpu_s for b in own]
    working = [b.working_mb for b in own if b.working_mb is not None]
    frames = block * len(blocks)
    half = len(blocks) // 2
    return {
        "fps": block / statistics.median(wall),
        "peak_working_mb": max(working, default=None),
        "wall_ms": 1e3 * statistics.median(wall) / block,
        "cpu_ms": 1e3 * statistics.median(cpu) / block,
        "ratio_wall": statistics.median(b[REFERENCE].wall_s / b[name].wall_s for b in blocks),
        "ratio_cpu": statistics.median(b[REFERENCE].cpu_s / b[name].cpu_s for b in blocks),
        "ratio_of_totals": sum(b[REFERENCE].wall_s for b in blocks) / sum(wall),
        "second_half_by_first": statistics.median(wall[half:]) / statistics.median(wall[:half]) if half else None,
        "part_ms": {part: 1e3 * s / frames for part, s in sorted(watch.seconds.items(), key=lambda i: -i[1])},
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    names = [n for n in results[0]["contestants"] if n != REFERENCE]
    head = ["", "reference ms", *(f"{n} ms" for n in names), *(f"{n} / reference" for n in names), "wanted"]
    lines = ["| " + " | ".join(head) + " |", "|" + "--|" * len(head)]
    for result in results:
        by = result["contestants"]
        wanted = GOALS[result["case"]]
        goals = ", ".join(f"{wanted[n]:g}x" for n in names)
        cells = [result["case"], *(f"{by[n]['wall_ms']:.0f}" for n in (REFERENCE, *names))]
        cells += [f"**{by[n]['ratio_wall']:.2f}x** (CPU {by[n]['ratio_cpu']:.2f}x)" for n in names] + [goals]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_costs(results), "", *_parts(results)])


def _costs(results: Sequence[dict[str, Any]]) -> list[str]:
    """Speed and memory of everyone, and how both change in the course of the frames."""
    head = ("", "", "frames/s", "peak working MB", "state MB per 1,000 frames", "later half / earlier half, time")
    lines = ["| " + " | ".join(head) + " |", "|" + "--|" * len(head)]
    for result in results:
        for name, one in result["contestants"].items():
            numbers = (one["peak_working_mb"], one["state_mb_per_1000_frames"])
            cells = [f"{one['fps']:.1f}", *("-" if n is None else f"{n:.1f}" for n in numbers)]
            later = one["second_half_by_first"]
            cells.append("-" if later is None else f"{later:.2f}")
            lines.append("| " + " | ".join([result["case"], name, *cells]) + " |")
    return lines


def _parts(results: Sequence[dict[str, Any]]) -> list[str]:
    """Milliseconds per frame by part of the work, of everyone."""
    parts = ("image encoder", "detection", "neck", "attention", "memory", "plan")
    lines = ["| ms per frame | | " + " | ".join(parts) + " |", "|--|--|" + "--|" * len(parts)]
    for result in results:
        for name, one in result["contestants"].items():
            cells = [f"{one['part_ms'].get(part, 0):.1f}" for part in parts]
            lines.append("| " + " | ".join([result["case"], name, *cells]) + " |")
    return lines


def main() -> None:
    """The whole table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--image-size", type=int, default=224, help="a multiple of 112")
    options.add_argument("--cases", default="1,2,3,4,5", help="which rows, by number")
    options.add_argument("-o", "--out", type=Path, default=RESULTS)
    given = options.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    results = []
    for number in given.cases.split(","):
        case = CASES[int(number) - 1]
        model, models = build(given.image_size, case)
        results.append(measure(model, models, case, like_the_reference()))
        _write(results, given.out, given.image_size)
        print(table(results[-1:]), f"\n{time.perf_counter() - started:.0f} s so far\n", flush=True)


def _write(results: list[dict[str, Any]], out: Path, image_size: int) -> None:
    """All files; after every case, so that an interruption leaves what is done."""
    names = [case.name for case in CASES]
    ordered = sorted(results, key=lambda r: names.index(r["case"]))
    out.mkdir(parents=True, exist_ok=True)
    command = "`python -m benchmarks.against_transformers`"
    text = f"{command}: {image_size} px, torch {torch.__version__}, one thread, wall-clock medians"
    (out / "against_transformers.json").write_text(json.dumps(ordered, indent=1) + "\n")
    (out / "against_transformers.md").write_text(f"{text}\n\n{table(ordered)}\n")
    write_plot(ordered, out / "against_transformers.png")


def build(image_size: int, case: Case) -> tuple[Any, Models]:
    """A random model with a query for every object, and ours on the same weights."""
    model = random_model(tiny_config(image_size, max(20, case.objects)), torch.device("cpu"), torch.float32)
    config = Config.model_validate({"detector": {"nms_iou": 1.0, "fill_hole_area_px": 0}})
    checkpoint: Any = InMemory(model)
    return model, load_models(checkpoint, config, torch.device("cpu"), torch.float32)


def like_the_reference() -> TrackerConfig:
    """The reference's defaults where ours differ: the tracked mask is what becomes memory; nothing is filled."""
    return TrackerConfig(recondition_with="tracked", fill_hole_area_px=0)


if __name__ == "__main__":
    main()
