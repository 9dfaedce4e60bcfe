"""Measure a model folder on held-out scenes and clips and print the tables of the model card.

python -m models.recipe.evaluate                 # detection, memory tracker, whole pipeline
python -m models.recipe.evaluate --only detection --images 100
"""

import argparse
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from configs.load import load_config
from models.recipe.losses import to_cxcywh, to_xyxy
from models.recipe.net import Phrases, Tiny, detect, load, to_pixels
from models.recipe.scenes import Rng, Scene, absent_queries, sample_scene, sized
from models.recipe.vocabulary import ANY, EXEMPLAR_TEXT, N_COLOURS, Query, phrase
from pipeline.torch_masks import within_boxes

Mask = NDArray[np.bool_]
HELD_OUT_SEED = 20_000  # training draws from streams [seed, 1] and [seed, 2]; these never meet them
IMAGES = 500
NMS_IOU = 0.5


@dataclass(frozen=True)
class Question:
    """One prompt of one scene: what is typed or boxed, which things are right, and under which row it is counted."""

    scene: int
    text: str
    right: tuple[int, ...]
    kind: str
    query: Query
    box: tuple[float, float, float, float] | None = None  # xyxy 0-1
    boxed: int = ANY


@dataclass(frozen=True)
class Answer:
    """Detections above the lowest threshold, best first: scores [k], masks [k,S,S]."""

    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]


@dataclass
class Tally:
    """Counts of one row of the table."""

    hits: int = 0
    extra: int = 0
    missed: int = 0
    prompts: int = 0
    good: list[bool] = field(default_factory=list)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall over all prompts of the row."""
        return 2 * self.hits / max(2 * self.hits + self.extra + self.missed, 1)

    @property
    def rate(self) -> float:
        """Share of yes-no outcomes that were right; nan without any."""
        return float(np.mean(self.good)) if self.good else float("nan")


# ------------------------------------------------------------------------------------------------ questions
def held_out_scenes(count: int, held_out: bool) -> list[Scene]:
    """Seeded scenes with rivals beside things[0]; with `held_out` things[0] is a colour-shape pair never trained."""
    return [
        sample_scene(np.random.default_rng([HELD_OUT_SEED + i, int(held_out)]), held_out=held_out, rivals=True)
        for i in range(count)
    ]


def _present(rng: Rng, scene: Scene, held_out: bool) -> list[tuple[str, Query]]:
    """Phrases for things[0]: its pair always, then one of the looser wordings."""
    first = scene.things[0]
    pair = Query(first.colour, first.shape)
    loose = {
        "colour": Query(colour=first.colour),
        "shape": Query(shape=first.shape),
        "anything": Query(),
        "sized pair": sized(rng, scene, pair),
    }
    name = str(rng.choice(list(loose), p=[0.35, 0.35, 0.1, 0.2]))
    rows = [("pair", pair)]
    if not held_out and (name != "sized pair" or loose[name].size):
        rows.append((name, loose[name]))
    return rows


def _absent(rng: Rng, scene: Scene, held_out: bool) -> Iterator[tuple[str, Query]]:
    """One phrase of each near-miss kind."""
    if held_out:
        options = [q for qs in absent_queries(scene, held_out=True).values() for q in qs if q.held_out]
        near = [q for q in options if any(t.colour == q.colour or t.shape == q.shape for t in scene.things)]
        if near:
            yield "absent: never trained", near[int(rng.integers(len(near)))]
        return
    yield "absent: unknown noun", Query(colour=int(rng.integers(-1, N_COLOURS)), unknown=True)
    options_by_kind = absent_queries(scene, held_out=False)
    for kind in ("absent colour", "absent shape", "right colour, wrong shape", "right shape, wrong colour"):
        options = options_by_kind[kind]
        if options:
            yield f"absent: {kind.removeprefix('absent ')}", options[int(rng.integers(len(options)))]


def questions(scenes: Sequence[Scene], held_out: bool, seed: int = 7) -> list[Question]:
    """All prompts about these scenes: present, absent, and a box exemplar where the boxed thing has others like it."""
    rng, out = np.random.default_rng([seed, int(held_out)]), []
    for i, scene in enumerate(scenes):
        for kind, query in (*_present(rng, scene, held_out), *_absent(rng, scene, held_out)):
            out.append(Question(i, phrase(rng, query), tuple(scene.find(query)), kind, query))
        example = next((k for k in range(len(scene.things)) if len(scene.like(k)) > 1), None)
        if example is not None:
            box = tuple(float(v) for v in scene.boxes[example])
            out.append(Question(i, EXEMPLAR_TEXT, tuple(scene.like(example)), "exemplar", Query(), box, example))  # type: ignore[arg-type]
    return out


# ------------------------------------------------------------------------------------------------ answers
def _suppress(scores: NDArray[np.float32], masks: Mask, limit: float) -> list[int]:
    """Greedy mask NMS: indices kept, best first."""
    kept: list[int] = []
    for i in np.argsort(-scores):
        if all((masks[i] & masks[k]).sum() <= limit * max((masks[i] | masks[k]).sum(), 1) for k in kept):
            kept.append(int(i))
    return kept


@torch.no_grad()
def answer(
    tiny: Tiny, scenes: Sequence[Scene], asked: Sequence[Question], floor: float = 0.05, batch: int = 10
) -> list[Answer]:
    """Run the detector on every question, images shared by their questions; masks confined as `masklet` does it."""
    margin = load_config().detector.mask_margin
    phrases, by_scene, out = Phrases(), defaultdict[int, list[int]](list), dict[int, Answer]()
    for j, q in enumerate(asked):
        by_scene[q.scene].append(j)
    for start in range(0, len(scenes), batch):
        block = range(start, min(start + batch, len(scenes)))
        order = [j for i in block for j in by_scene[i]]
        if not order:
            continue
        owner = torch.tensor([asked[j].scene - start for j in order])
        boxed = [k for k, j in enumerate(order) if asked[j].box is not None]
        boxes = to_cxcywh(torch.tensor([asked[order[k]].box for k in boxed])) if boxed else torch.zeros(0, 4)
        vision = tiny.detector.vision_encoder(to_pixels(np.stack([scenes[i].image for i in block])))
        found = detect(
            tiny.detector,
            vision,
            owner,
            *phrases([asked[j].text for j in order]),
            None,
            (torch.tensor(boxed, dtype=torch.long), boxes),
        )
        assert found.masks is not None
        scores = found.logits[-1].sigmoid() * found.presence[-1].sigmoid().reshape(len(order), 1)
        for k, j in enumerate(order):
            keep = (scores[k] > floor).nonzero().flatten()
            size = scenes[0].ids.shape
            drawn = found.masks[k, keep]
            if margin is not None:
                drawn = within_boxes(drawn, to_xyxy(found.boxes[-1, k, keep]), margin)
            masks = (
                (F.interpolate(drawn[None], size=size, mode="bilinear")[0] > 0).numpy()
                if len(keep)
                else np.zeros((0, *size), bool)
            )
            s = scores[k, keep].numpy()
            kept = _suppress(s, masks, NMS_IOU)
            out[j] = Answer(s[kept], masks[kept])
    return [out[j] for j in range(len(asked))]


def _truth(scene: Scene, index: int) -> Mask:
    mask: Mask = scene.ids == index + 1
    return mask


def pair_up(scene: Scene, right: Sequence[int], answer: Answer, threshold: float) -> list[int]:
    """For each detection above the threshold, best first: the right thing it covers at IoU 0.5, or ANY."""
    left, out = list(right), []
    for mask in answer.masks[answer.scores > threshold]:
        ious = {i: float((mask & _truth(scene, i)).sum() / (mask | _truth(scene, i)).sum()) for i in left}
        best = max(ious, key=lambda i: ious[i], default=ANY)
        hit = best != ANY and ious[best] >= 0.5
        out.append(best if hit else ANY)
        if hit:
            left.remove(best)
    return out


def tally(
    scenes: Sequence[Scene], asked: Sequence[Question], answers: Sequence[Answer], threshold: float
) -> dict[str, Tally]:
    """All rows of the detection table. An exemplar's own box does not count, neither for nor against."""
    rows: dict[str, Tally] = defaultdict(Tally)
    for q, a in zip(asked, answers, strict=True):
        row, scene = rows[q.kind], scenes[q.scene]
        row.prompts += 1
        pairs = pair_up(scene, q.right, a, threshold)
        if not q.right:
            row.good.append(not pairs)
            continue
        wanted = [i for i in q.right if i != q.boxed]
        hits = sum(p in wanted for p in pairs)
        for r in (row, rows["present"]) if q.box is None else (row,):
            r.hits += hits
            r.extra += sum(p == ANY for p in pairs)
            r.missed += len(wanted) - hits
        if q.kind == "pair":
            _top_mask(scene, q, a, rows)
            for i in wanted:
                extent = scene.things[i].extent()
                rows[
                    f"recall of pairs, extent {'<8%' if extent < 0.08 else '8-16%' if extent < 0.16 else '>16%'}"
                ].good.append(i in pairs)
    return rows


def _top_mask(scene: Scene, q: Question, a: Answer, rows: dict[str, Tally]) -> None:
    """Among same-colour things, is the best mask on a right one? Counted where it lies on that colour at all."""
    same = [i for i, t in enumerate(scene.things) if t.colour == q.query.colour]
    rows["chance among same-colour rivals"].good += [True] * len(q.right) + [False] * (len(same) - len(q.right))
    if not len(a.scores):
        return
    overlap = [int((a.masks[0] & _truth(scene, i)).sum()) for i in range(len(scene.things))]
    top = int(np.argmax(overlap))
    if overlap[top] and top in same:
        rows["top mask right among same-colour rivals"].good.append(top in q.right)


def oracle(scenes: Sequence[Scene], asked: Sequence[Question], colour_only: bool) -> float:
    """F1 of perfect masks that ignore shape words, or that ignore the phrase altogether, over present phrases."""
    row = Tally()
    for q in asked:
        if not q.right or q.box is not None:
            continue
        things = scenes[q.scene].things
        said = {i for i, t in enumerate(things) if not colour_only or q.query.colour in (ANY, t.colour)}
        row.hits += len(said & set(q.right))
        row.extra += len(said - set(q.right))
        row.missed += len(set(q.right) - said)
    return row.f1


SPLITS = ("trained", "never trained")
MEMORY = "memory tracker"


def detection_table(
    tiny: Tiny, images: int = IMAGES, threshold: float | None = None, splits: Sequence[str] = SPLITS
) -> dict[str, float]:
    """Every detection figure; three fifths of the images show trained pairs, the rest pairs never trained."""
    limit = tiny.config.score_threshold_detection if threshold is None else threshold
    table: dict[str, float] = {}
    for name in splits:
        held_out, count = name == SPLITS[1], images * 3 // 5
        scenes = held_out_scenes(images - count if held_out else count, held_out)
        asked = questions(scenes, held_out)
        rows = tally(scenes, asked, answer(tiny, scenes, asked), limit)
        for kind, row in sorted(rows.items()):
            table[f"{name} | {kind}{'' if row.good else ' F1'}"] = row.rate if row.good else row.f1
        table[f"{name} | oracle that ignores shape words F1"] = oracle(scenes, asked, colour_only=True)
        table[f"{name} | oracle that returns everything F1"] = oracle(scenes, asked, colour_only=False)
    return table


def _table(model: Path, images: int, part: str) -> dict[str, float]:
    """One of ``SPLITS`` or ``MEMORY``, in a process of its own."""
    torch.set_num_threads(1)
    tiny = load(model)
    if part != MEMORY:
        return detection_table(tiny, images, splits=[part])
    from models.recipe.evaluate_tracking import memory_table

    return memory_table(tiny)


def _tables(model: Path, images: int, parts: Sequence[str], workers: int) -> dict[str, dict[str, float]]:
    """The parts' tables, as many at a time as there are workers."""
    tables = defaultdict[str, dict[str, float]](dict)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for part, table in zip(parts, pool.map(partial(_table, model, images), parts), strict=True):
            tables["detection" if part in SPLITS else part] |= table
    return tables


def best_threshold(tiny: Tiny, images: int = 120) -> float:
    """Score threshold with the best F1 plus rejection on scenes of a seed that the table never uses."""
    scenes = [sample_scene(np.random.default_rng([31_000 + i, 5]), rivals=True) for i in range(images)]
    asked = questions(scenes, False, seed=8)
    answers, best = answer(tiny, scenes, asked), (0.0, 0.5)
    for limit in np.arange(0.3, 0.75, 0.025):
        rows = tally(scenes, asked, answers, float(limit))
        rejected = float(np.mean([r.rate for k, r in rows.items() if k.startswith("absent")]))
        best = max(best, (rows["present"].f1 + 0.5 * rejected, float(limit)))
    return best[1]


def print_table(title: str, table: dict[str, float]) -> None:
    """One figure a line."""
    print(f"\n{title}")
    for name, value in table.items():
        print(f"  {name:<68} {value:.3f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/tiny"))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", choices=["detection", "memory", "pipeline"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the pipeline")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    start = time.time()
    if args.only != "pipeline":
        parts = {"detection": SPLITS, "memory": (MEMORY,), None: (*SPLITS, MEMORY)}[args.only]
        figures |= _tables(args.model, args.images, parts, args.workers)
    if args.only in (None, "pipeline"):
        from models.recipe.evaluate_tracking import pipeline_table

        figures["pipeline"] = pipeline_table(args.model, args.clips, args.set, args.workers)
    for title, table in figures.items():
        print_table(title, table)
    print(f"\nmeasured in {time.time() - start:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
