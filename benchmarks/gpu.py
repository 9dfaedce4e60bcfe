"""``python -m benchmarks.gpu``: frames/s of our modes and of transformers' ``Sam3VideoModel`` at full size on one GPU.

1/5/20/50 objects x 1/4 phrases, random weights (speed does not depend on them), 1008 px, bfloat16, the same frames and
objects for everyone, in turns; see :mod:`benchmarks.reference` for what is forced and what is paid. Printed for each:
frames/s, how many times the reference's, the share of the arithmetic floor (what the card would need for the
multiplications alone), peak memory, and what the card does of large matrix products just then: the same card is not as
fast on every day. Ends before ten minutes on any card: a case is begun only if, going by the one
before it, it is done in ``--minutes``; those left out are named. What was measured before on such a card stays in the
table: it can be filled in several goes (``--cases``). ``--compile`` measures ours compiled.

Needs torch, transformers, NumPy, OpenCV, pydantic and pycocotools; no PyAV, decord or Ray. ``--size tiny --device cpu``
checks it anywhere. ``--one-frame 5 --device cpu`` runs ours alone, 5 objects on a single full-size frame after a first
one, for the memory it takes (minutes of a CPU, 4 GB); ``gpu_one_frame.json`` has the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import InMemory, Reference, full_config, random_model, tiny_config
from configs.schema import Config, TrackerConfig
from pipeline.bench import Models, Subject, device_name, load_models, modes, peak_mb, stopwatch
from pipeline.bench_scene import Scene, synthetic_prompts

CASES = [(objects, prompts) for objects in (1, 5, 20, 50) for prompts in (1, 4)]
BLOCK, WARM_UP = 4, 20
REFERENCE = "reference"
RESULTS = Path(__file__).parent / "results"
ENCODER_TFLOP, PHRASE_TFLOP = 5.83, 0.42
"""Per frame, by formula (2 x multiply-adds): image encoder with both necks; detection per phrase."""
OBJECT_TFLOP = (0.97, 1.31)
"""Per object and frame, mask decoder and memory encoder included: with 7 and with 10 frame memories."""
PEAK_TFLOPS = {"H200": 790.0, "H100": 790.0, "A100": 260.0, "L4": 100.0}
"""Dense bfloat16 matrix products that were seen on such a card, 10^12/s; ``--peak-tflops`` for others."""


def floor_tflop(objects: int, prompts: int) -> tuple[float, float]:
    """Arithmetic of one frame in exact mode, before and after four conditioning memories are there."""
    low, high = (ENCODER_TFLOP + PHRASE_TFLOP * prompts + per * objects for per in OBJECT_TFLOP)
    return low, high


def build(size: str, device: torch.device, dtype: torch.dtype, *, compiles: bool = False) -> tuple[Any, Models]:
    """A random model and ours on its weights; ``compiles`` ours, not the reference."""
    config = full_config() if size == "full" else tiny_config(112, 50)
    model = random_model(config, device, dtype)
    checkpoint: Any = InMemory(model)
    return model, load_models(checkpoint, settings(compiles=compiles), device, dtype)


def settings(*, compiles: bool = False) -> Config:
    """Everything found is kept, as in the reference without its ``kernels`` package."""
    detector = {"nms_iou": 1.0, "fill_hole_area_px": 0}
    return Config.model_validate({"detector": detector, "device": {"compile": compiles}})


def like_the_reference() -> TrackerConfig:
    """The reference's defaults where ours differ."""
    return TrackerConfig(recondition_with="tracked", fill_hole_area_px=0)


def yardstick_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """10^12/s of square matrix products, now."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    watch, count = stopwatch(device), 10
    for _ in range(3):
        a @ b
    watch.wait()
    started = time.perf_counter()
    for _ in range(count):
        a @ b
    watch.wait()
    return 2 * side**3 * count / (time.perf_counter() - started) / 1e12


class Contest:
    """Everyone on one scene. Memory is measured one contestant at a time, speed in turns."""

    def __init__(self, model: Any, models: Models, objects: int, prompts: int, num_frames: int) -> None:
        self.scene = Scene(objects, prompts, models.mask_side)
        self._device = models.device
        self._watch = stopwatch(models.device)
        phrases = synthetic_prompts(prompts, models.text_width)
        batch = settings().detector.batch_frames
        self.reference = Reference(model, self.scene, WARM_UP + num_frames + 2 * BLOCK, stopwatch(models.device))
        self.contestants: dict[str, Any] = {REFERENCE: self.reference} | {
            mode: Subject(
                models.detector, models.parts, self.scene, phrases, tracker, batch, mode, stopwatch(models.device)
            )
            for mode, tracker in modes(like_the_reference()).items()
        }
        self.peak_mb: dict[str, float] = {}

    def warm_up(self, count: int) -> None:
        """Fill the memories, and note what each needs for it."""
        for name, one in self.contestants.items():
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            one.advance(count)
            self._watch.wait()
            self.peak_mb[name] = peak_mb(self._device)

    def seconds(self, num_blocks: int) -> dict[str, list[float]]:
        """Seconds per frame and block of everyone."""
        spent: dict[str, list[float]] = {name: [] for name in self.contestants}
        for _ in range(num_blocks):
            for name, one in self.contestants.items():
                self._watch.wait()
                started = time.perf_counter()
                done = one.advance(BLOCK)
                self._watch.wait()
                spent[name].append((time.perf_counter() - started) / BLOCK)
                assert all(len(self._ids(d)) == self.scene.objects for d in done), f"{name} lost an object"
        return spent

    @staticmethod
    def _ids(done: Any) -> Any:
        return done if isinstance(done, dict) else done[1].track_id

    def parts(self) -> dict[str, dict[str, float]]:
        """Milliseconds per frame by part of the work, over one block with a wait after every part."""
        found = {}
        for name, one in self.contestants.items():
            one.watch.is_on = True
            one.advance(BLOCK)
            one.watch.is_on = False
            found[name] = {part: 1e3 * s / BLOCK for part, s in one.watch.seconds.items()}
        return found


def measure(
    model: Any, models: Models, case: tuple[int, int], num_frames: int, peak_tflops: float | None
) -> list[dict[str, Any]]:
    """One row per contestant."""
    objects, prompts = case
    card = yardstick_tflops(models.device, next(model.parameters()).dtype)
    contest = Contest(model, models, objects, prompts, num_frames)
    contest.warm_up(WARM_UP)
    spent = contest.seconds(max(1, num_frames // BLOCK))
    parts = contest.parts()
    contest.reference.close()
    low, high = floor_tflop(objects, prompts)
    rows = []
    for name, seconds in spent.items():
        frame_s = statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(spent[REFERENCE], seconds, strict=True))
        # The floor is that of exact arithmetic; adaptive mode may well need less than it.
        share = low / peak_tflops / frame_s if peak_tflops else None
        rows.append(
            {
                "objects": objects,
                "prompts": prompts,
                "name": name,
                "on": date.today().isoformat(),
                "fps": 1 / frame_s,
                "ratio": ratio,
                "floor_tflop": [low, high],
                "share_of_floor": share,
                "peak_mb": contest.peak_mb[name],
                "card_tflops": card,
                "part_ms": parts[name],
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    columns = ("objects", "phrases", "", "frames/s", "/ reference", "of the floor", "peak MB", "card, TFLOP/s")
    lines = [f"| {' | '.join(columns)} |", "|--" * len(columns) + "|"]
    for row in rows:
        share = "" if row["share_of_floor"] is None else f"{row['share_of_floor']:.0%}"
        cells = (row["objects"], row["prompts"], row["name"], f"{row['fps']:.1f}", f"{row['ratio']:.2f}x", share)
        card = f"{row['card_tflops']:.3g}" if "card_tflops" in row else ""
        lines.append("| " + " | ".join((*map(str, cells), f"{row['peak_mb']:.0f}", card)) + " |")
    return "\n".join(lines)


def one_frame(models: Models, objects: int) -> dict[str, Any]:
    """Ours alone: a first frame on which everyone is born, then one that is tracked; seconds and peak memory."""
    scene = Scene(objects, 1, models.mask_side)
    phrases = synthetic_prompts(1, models.text_width)
    subject = Subject(
        models.detector, models.parts, scene, phrases, TrackerConfig(), 1, "one", stopwatch(models.device)
    )
    subject.watch.is_on = True
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        [(_, low)] = subject.advance(1)
        seconds.append(time.perf_counter() - started)
        assert len(low.track_id) == objects
    return {
        "objects": objects,
        "first_frame_s": seconds[0],
        "tracked_frame_s": seconds[1],
        "part_s": subject.watch.seconds,
        "peak_mb": peak_mb(models.device),
        "state_mb": subject.tracker.num_state_bytes / 1e6,
    }


class Deadline:
    """Which cases can still be done in time, going by the one before: the first ones pay for warming up."""

    def __init__(self, minutes: float) -> None:
        self._started, self._limit_s = time.perf_counter(), 60 * minutes
        self._per_tflop_s = 0.0

    @property
    def spent_s(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._started

    def allows(self, case: tuple[int, int]) -> bool:
        """Whether a case of this arithmetic would end in time."""
        return self.spent_s + self._per_tflop_s * floor_tflop(*case)[1] < self._limit_s

    def note(self, case: tuple[int, int], seconds: float) -> None:
        """What a case took."""
        self._per_tflop_s = seconds / floor_tflop(*case)[1]


def _peak_of(device: torch.device) -> float | None:
    name = device_name(device)
    return next((peak for card, peak in PEAK_TFLOPS.items() if card in name), None)


def main() -> None:
    """The whole table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=("full", "tiny"), default="full")
    options.add_argument("--device", default="cuda")
    options.add_argument("--dtype", choices=("bfloat16", "float32"), default=None)
    options.add_argument("--frames", type=int, default=24, help="counted per case")
    options.add_argument("--cases", nargs="+", metavar="KxP", help="objects x phrases, as 5x1 20x4; else all")
    options.add_argument("--minutes", type=float, default=9.0, help="everything is done by then")
    options.add_argument("--peak-tflops", type=float, default=None)
    options.add_argument("--compile", action="store_true", help="torch.compile ours")
    options.add_argument("--one-frame", type=int, metavar="OBJECTS", help="only this: one frame, for its memory")
    options.add_argument("-o", "--out", type=Path, default=RESULTS)
    given = options.parse_args()
    deadline = Deadline(given.minutes)
    device = torch.device(given.device)
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    model, models = build(given.size, device, dtype, compiles=given.compile)
    compiled = ", compiled" if given.compile else ""
    where = f"{device_name(device)}, {given.size}, {dtype}, torch {torch.__version__}{compiled}"
    if given.one_frame:
        _write_one(one_frame(models, given.one_frame), given.out, where)
        return
    peak, rows, left_out = given.peak_tflops or _peak_of(device), list[dict[str, Any]](), list[str]()
    for case in [_case(text) for text in given.cases or []] or CASES:
        if not deadline.allows(case):
            left_out.append(f"{case[0]} objects, {case[1]} phrases")
            continue
        began = deadline.spent_s
        rows += measure(model, models, case, given.frames, peak)
        deadline.note(case, deadline.spent_s - began)
        gc.collect()
        print(table(rows[-len(models_of(rows)) :]), f"\n{deadline.spent_s:.0f} s so far", flush=True)
        _write(rows, left_out, given.out / f"gpu{'_compiled' * given.compile}", where)
    print(table(rows), *(f"left out, not to be done in time: {case}" for case in left_out), sep="\n")


def _write_one(result: dict[str, Any], out: Path, where: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"where": where} | result, indent=1)
    (out / "gpu_one_frame.json").write_text(text + "\n")
    print(text)


def models_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The contestants."""
    return list(dict.fromkeys(row["name"] for row in rows))


def _case(text: str) -> tuple[int, int]:
    objects, prompts = text.split("x")
    return int(objects), int(prompts)


def with_earlier(rows: Sequence[dict[str, Any]], out: Path, where: str) -> list[dict[str, Any]]:
    """These rows, and those of other cases that ``out`` has of the same card, size and versions, in order."""
    known = json.loads(out.read_text()) if out.exists() else {}
    new = {_case_of(row) for row in rows}
    kept = [row for row in known.get("rows", []) if known["where"] == where and _case_of(row) not in new]
    return sorted([*kept, *rows], key=_case_of)  # stable: contestants stay as they are


def _case_of(row: dict[str, Any]) -> tuple[int, int]:
    return row["objects"], row["prompts"]


def _write(rows: Sequence[dict[str, Any]], left_out: Sequence[str], out: Path, where: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = with_earlier(rows, out.with_suffix(".json"), where)
    found = {"where": where, "rows": rows, "left_out": left_out}
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(f"`python -m benchmarks.gpu`: {where}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
