"""Train the detector on fresh scenes, one thread, to a wall-clock budget.

Two stages. `names`: the image encoder alone learns to name colours and shapes of its tokens; nothing can learn to ask
for shapes before the encoder can tell them apart. `phrases`: everything together on phrases and box exemplars.
    python -m models.recipe.train_detector names --minutes 25 --start OLD_FOLDER --out names.pt
    python -m models.recipe.train_detector phrases --minutes 55 --resume names.pt --out detector.pt
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import Sam3LiteTextModel

from models.recipe import scenes
from models.recipe.loop import Average, Clock, Means, descend, schedule
from models.recipe.losses import detection_loss, to_cxcywh
from models.recipe.net import (
    Phrases,
    Shape,
    TokenHeads,
    build_detector,
    detect,
    resampled,
    to_pixels,
    training_mode,
    warm_start,
)
from models.recipe.staged import staged_scene
from models.recipe.vocabulary import EXEMPLAR_TEXT, N_COLOURS, N_SHAPES, phrase


@dataclass
class Batch:
    """B scenes and their P prompts, ready for the model."""

    images: Tensor  # uint8 [B,S,S,3]
    names: Tensor  # area shares [B,N,colours+shapes]
    ltrb: Tensor  # [B,N,4]
    covered: Tensor  # [B,N]
    owner: Tensor  # [P]
    texts: list[str]
    boxes: list[Tensor]  # per prompt [n,4] xyxy
    masked: Tensor  # prompts with masks [M]
    masks: list[Tensor]
    exemplars: tuple[Tensor, Tensor]  # prompt indices [E], boxes [E,4] cxcywh


def token_targets(items: list[scenes.Scene], grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each image token covers: name shares [B,N,K], distances to the thing's box [B,N,4], weight [B,N]."""
    names = np.zeros((len(items), grid, grid, N_COLOURS + N_SHAPES), np.float32)
    ltrb = np.zeros((len(items), grid, grid, 4), np.float32)
    covered = np.zeros((len(items), grid, grid), np.float32)
    centre = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    x, y = np.meshgrid(centre, centre)
    for b, item in enumerate(items):
        if not item.things:
            continue
        share = scenes.soft_masks(item, grid)
        for mask, thing in zip(share, item.things, strict=True):
            names[b, :, :, thing.colour] += mask
            names[b, :, :, N_COLOURS + thing.shape] += mask
        box = item.boxes[share.argmax(0)]
        covered[b] = share.max(0)
        ltrb[b] = 4 * np.stack([x - box[..., 0], y - box[..., 1], box[..., 2] - x, box[..., 3] - y], -1)
    return tuple(
        torch.from_numpy(a.reshape(len(items), grid * grid, *a.shape[3:])) for a in (names.clip(0, 1), ltrb, covered)
    )  # type: ignore[return-value]


def _scene(rng: np.random.Generator, size: int, staged_share: float) -> scenes.Scene:
    return staged_scene(rng, size) if rng.random() < staged_share else scenes.sample_scene(rng, size=size)


def compose(
    rng: np.random.Generator,
    count: int,
    shape: Shape,
    exemplar_share: float,
    prompts: bool = True,
    staged_share: float = 0.0,
) -> Batch:
    """`count` fresh scenes, some of them staged, with three prompts each; a share of all but the first is a box."""
    items = [_scene(rng, shape.image, staged_share) for _ in range(count)]
    names, ltrb, covered = token_targets(items, shape.grid)
    owner: list[int] = []
    texts: list[str] = []
    boxes, masks, shown = list[Tensor](), list[Tensor](), list[Tensor]()
    masked, who = list[int](), list[int]()
    for b, item in enumerate(items if prompts else []):
        drawn = int(rng.integers(2))
        for k, query in enumerate(scenes.sample_queries(rng, item)):
            hits, text = item.find(query), phrase(rng, query)
            if k and item.things and rng.random() < exemplar_share:
                crowd = np.array([len(item.like(i)) for i in range(len(item.things))], float)
                example = int(rng.choice(len(crowd), p=crowd**2 / (crowd**2).sum()))  # mostly one with others like it
                hits, text = item.like(example), EXEMPLAR_TEXT
                jitter = rng.normal(0, 0.04, 4) * np.tile(item.boxes[example][2:] - item.boxes[example][:2], 2)
                who.append(len(texts))
                shown.append(to_cxcywh(torch.from_numpy((item.boxes[example] + jitter).clip(0, 1).astype(np.float32))))
            if k == drawn:
                masked.append(len(texts))
                masks.append(torch.from_numpy(scenes.soft_masks(item, 4 * shape.grid)[hits]))
            owner.append(b)
            texts.append(text)
            boxes.append(torch.from_numpy(item.boxes[hits]))
    return Batch(
        images=torch.from_numpy(np.stack([i.image for i in items])),
        names=names,
        ltrb=ltrb,
        covered=covered,
        owner=torch.tensor(owner, dtype=torch.long),
        texts=texts,
        boxes=boxes,
        masked=torch.tensor(masked, dtype=torch.long),
        masks=masks,
        exemplars=(torch.tensor(who, dtype=torch.long), torch.stack(shown) if shown else torch.zeros(0, 4)),
    )


class Scenes(IterableDataset[Batch]):
    """An endless stream of batches; `seed` names the stream."""

    def __init__(
        self, seed: int, count: int, shape: Shape, exemplar_share: float, prompts: bool, staged_share: float
    ) -> None:
        self.seed, self._drawn = seed, (count, shape, exemplar_share, prompts, staged_share)

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, 1])
        while True:
            yield compose(rng, *self._drawn)


def token_loss(heads: TokenHeads, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of the names and L1 of the boxes that image tokens read."""
    names, ltrb = heads(tokens)
    off = ((ltrb - batch.ltrb).abs().sum(-1) * batch.covered).sum() / batch.covered.sum().clamp(min=1)
    return {
        "names": F.binary_cross_entropy_with_logits(names, batch.names, reduction="none").sum(-1).mean(),
        "ltrb": off,
    }


@torch.no_grad()
def name_accuracy(
    model: Sam3LiteTextModel, heads: TokenHeads, shape: Shape, count: int = 96, seed: int = 4242
) -> tuple[float, float]:
    """Share of held-out things whose colour and whose shape the tokens name rightly: the gate between the stages."""
    rng, right = np.random.default_rng([seed, 0]), []
    for _ in range(count // 12):
        items = [scenes.sample_scene(rng, size=shape.image) for _ in range(12)]
        votes = heads(model.vision_encoder.backbone(to_pixels(np.stack([i.image for i in items]))).last_hidden_state)[
            0
        ].sigmoid()
        for item, vote in zip(items, votes, strict=True):
            for mask, thing in zip(torch.from_numpy(scenes.soft_masks(item, shape.grid)), item.things, strict=True):
                v = (vote * mask.reshape(-1, 1)).sum(0)
                right.append((int(v[:N_COLOURS].argmax()) == thing.colour, int(v[N_COLOURS:].argmax()) == thing.shape))
    colour, form = np.mean(right, 0)
    return float(colour), float(form)


def parameter_groups(model: Sam3LiteTextModel, heads: TokenHeads, stage: str, vit_scale: float) -> list[dict[str, Any]]:
    """AdamW groups: no weight decay on vectors, embeddings and anchors; the image encoder at its own rate."""
    backbone = model.vision_encoder.backbone
    if stage == "names":
        named = list(backbone.named_parameters(prefix="backbone"))
    else:  # the last FPN level and the pooled text projection are never used by the detector
        named = [
            (n, p)
            for n, p in model.named_parameters()
            if "fpn_layers.3" not in n and "text_encoder.projection" not in n
        ]
    named = [(n, p) for n, p in (*named, *heads.named_parameters(prefix="heads")) if p.requires_grad]
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, p in named:
        decays = p.dim() > 1 and "embed" not in name and "reference" not in name
        groups.setdefault((decays, "backbone" in name and stage != "names"), []).append(p)
    return [
        {"params": ps, "weight_decay": 0.05 if d else 0.0, "scale": vit_scale if v else 1.0}
        for (d, v), ps in groups.items()
    ]


def _start(args: argparse.Namespace, shape: Shape) -> tuple[Sam3LiteTextModel, TokenHeads]:
    """A fresh, warm-started or resumed model in training mode."""
    model, heads = build_detector(shape), TokenHeads(shape)
    if args.start:
        warm_start(model, Path(args.start))
    if args.resume:
        saved = torch.load(args.resume)
        model.load_state_dict(resampled(saved["model"], shape.grid))
        heads.load_state_dict(saved["heads"])
    training_mode(model)
    model.vision_encoder.backbone.requires_grad_(args.vit_scale > 0)
    if args.only:
        for name, parameter in (*model.named_parameters(), *heads.named_parameters()):
            parameter.requires_grad_(name.startswith(args.only))
    return model, heads


def names_losses(model: Sam3LiteTextModel, heads: TokenHeads, batch: Batch) -> dict[str, Tensor]:
    """First stage: the image encoder alone."""
    return token_loss(heads, model.vision_encoder.backbone(to_pixels(batch.images)).last_hidden_state, batch)


def phrases_losses(
    model: Sam3LiteTextModel,
    heads: TokenHeads,
    batch: Batch,
    phrases: Phrases,
    token_weight: float,
    with_masks: bool,
    negatives: float = 0.5,
) -> dict[str, Tensor]:
    """Second stage: detection on every prompt, masks on one prompt per image, the first stage's loss as a helper."""
    vision = model.vision_encoder(to_pixels(batch.images))
    masked = batch.masked if with_masks else batch.masked[:0]
    found = detect(model, vision, batch.owner, *phrases(batch.texts), masked, batch.exemplars)
    parts = detection_loss(found, batch.boxes, masked, batch.masks, negatives)
    helper = token_loss(heads, vision.last_hidden_state, batch)
    return parts | {name: token_weight * value for name, value in helper.items()}


def train(args: argparse.Namespace) -> None:
    """Run one stage and leave the averaged weights in `args.out`, refreshed every few minutes."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    shape, names_only = Shape(), args.stage == "names"
    model, heads = _start(args, shape)
    groups = parameter_groups(model, heads, args.stage, args.vit_scale)
    params = [p for g in groups for p in g["params"]]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), fused=True)
    average = Average(params, keep=0.998, slowness=20)
    data = Scenes(args.seed, args.batch, shape, args.exemplars, not names_only, args.staged)
    stream = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=12))
    phrases, means, clock, step = Phrases(), Means(), Clock(args.minutes), 0
    while clock.progress < 1:
        batch = next(stream)
        if names_only:
            parts = names_losses(model, heads, batch)
        else:
            with_masks = step % args.mask_every == 0
            parts = phrases_losses(model, heads, batch, phrases, args.token_weight, with_masks, args.negatives)
        rate = args.rate * schedule(step, args.warmup, clock.progress)
        norm = descend(torch.stack(list(parts.values())).sum(), optimizer, params, rate, args.clip)
        step += 1
        average.follow(step)
        means.add(parts)
        if clock.due("print", 30):
            print(f"step {step} images {step * args.batch} t {clock.elapsed:.0f}s norm {norm:.1f} {means}", flush=True)
        if clock.due("save", args.save_seconds):
            with average:
                _save(model, heads, shape, Path(args.out))
    with average:
        _save(model, heads, shape, Path(args.out))


def _save(model: Sam3LiteTextModel, heads: TokenHeads, shape: Shape, path: Path) -> None:
    """Write a checkpoint and say how well the image tokens name held-out things."""
    torch.save({"model": model.state_dict(), "heads": heads.state_dict()}, path)
    model.eval()
    colour, form = name_accuracy(model, heads, shape)
    training_mode(model)
    print(f"SAVED {path}; named rightly: colour {colour:.3f} shape {form:.3f}", flush=True)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["names", "phrases"])
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--start", default="", help="older detector folder to warm-start from")
    parser.add_argument("--resume", default="", help="checkpoint of an earlier run or stage")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1.1e-3)
    parser.add_argument("--vit-scale", type=float, default=0.7, help="rate of the image encoder; 0 freezes it")
    parser.add_argument("--only", default="", metavar="PART", help="everything but this part of the model rests")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--clip", type=float, default=2.0)
    parser.add_argument("--token-weight", type=float, default=0.7)
    parser.add_argument(
        "--exemplars", type=float, default=0.35, help="share of prompts, the first of a picture apart, that are a box"
    )
    parser.add_argument("--negatives", type=float, default=0.5, help="weight of scores of what is not asked for")
    parser.add_argument("--staged", type=float, default=0.4, help="share of pictures with line-ups, boards and hands")
    parser.add_argument("--mask-every", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-seconds", type=float, default=180)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
