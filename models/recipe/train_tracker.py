"""Train the memory tracker on clips, with the detector's image encoder frozen.

Transformers' own video path handles one clip at a time, so `unroll` re-assembles the model's parts for a batch of
tracks; `FusedNeck` trains the linear part of the neck as one small convolution and is written back exactly.
    python -m models.recipe.train_tracker --encoder detector.pt --minutes 25 --out tracker.pt
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoModel

from models.recipe import clips
from models.recipe.loop import Average, Clock, Means, descend, schedule
from models.recipe.losses import dice
from models.recipe.net import Shape, build_detector, fan_in_init, to_pixels, tracker_config
from models.recipe.scenes import MIN_PIXELS

Features = list[Tensor]  # one frame's levels: [B,16,4g,4g], [B,32,2g,2g], [B,C,g,g]


def build_tracker(shape: Shape) -> Sam3TrackerVideoModel:
    """A fresh tracker without a vision encoder; embeddings that transformers zeroes start small instead."""
    model: Any = Sam3TrackerVideoModel(tracker_config(shape), remove_vision_encoder=True)
    fan_in_init(model)
    with torch.no_grad():
        for block in model.memory_encoder.memory_fuser.layers:
            block.scale.fill_(0.1)
        for p in (
            model.memory_temporal_positional_encoding,
            model.no_object_pointer,
            model.occlusion_spatial_embedding_parameter,
        ):
            p.normal_(std=0.1)
        model.shared_image_embedding.positional_embedding.copy_(
            model.prompt_encoder.shared_embedding.positional_embedding
        )
    return model


class FusedNeck(nn.Module):
    """`Sam3FPNLayer`'s 1x1 and 3x3 and the decoder's conv_s0/s1 are linear in a row: one 3x3 per level instead."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        v, c = shape.vit, shape.tracker
        self.up0 = nn.Sequential(
            nn.ConvTranspose2d(v, v // 2, 2, 2), nn.GELU(), nn.ConvTranspose2d(v // 2, v // 4, 2, 2)
        )
        self.up1 = nn.ConvTranspose2d(v, v // 2, 2, 2)
        self.c0 = nn.Conv2d(v // 4, c // 8, 3, padding=1)
        self.c1 = nn.Conv2d(v // 2, c // 4, 3, padding=1)
        self.c2 = nn.Conv2d(v, c, 3, padding=1)

    def forward(self, x: Tensor) -> Features:
        """Image tokens as a map [B,V,g,g] -> the three levels the mask decoder takes."""
        return [self.c0(self.up0(x)), self.c1(self.up1(x)), self.c2(x)]

    @torch.no_grad()
    def export(self, neck: Sam3VisionNeck, tracker: Sam3TrackerVideoModel) -> None:
        """Write the same function into transformers' neck and the decoder's level projections."""
        layers = neck.fpn_layers
        for theirs, mine in (
            (layers[0].scale_layers[0], self.up0[0]),
            (layers[0].scale_layers[2], self.up0[2]),
            (layers[1].scale_layers[0], self.up1),
        ):
            theirs.load_state_dict(mine.state_dict())
        decoder = tracker.mask_decoder
        for layer, conv, project in (
            (layers[0], self.c0, decoder.conv_s0),
            (layers[1], self.c1, decoder.conv_s1),
            (layers[2], self.c2, None),
        ):
            out, inside = conv.weight.shape[:2]
            for p in (layer.proj1, layer.proj2):
                p.weight.zero_()
                p.bias.zero_()
            layer.proj1.weight[:, :, 0, 0] = torch.eye(layer.proj1.weight.shape[0], inside)
            layer.proj2.weight[:out, :inside] = conv.weight
            layer.proj2.bias[:out] = conv.bias
            if project is not None:
                project.weight[:, :, 0, 0] = torch.eye(out, project.weight.shape[1])
                project.bias.zero_()
        for p in layers[3].parameters():
            p.zero_()


@torch.no_grad()
def unfuse(neck: Any, shape: Shape) -> FusedNeck:
    """The `FusedNeck` that `export` wrote into a neck, to continue training from a folder."""
    fused, layers = FusedNeck(shape), neck.fpn_layers
    for theirs, mine in (
        (layers[0].scale_layers[0], fused.up0[0]),
        (layers[0].scale_layers[2], fused.up0[2]),
        (layers[1].scale_layers[0], fused.up1),
    ):
        mine.load_state_dict(theirs.state_dict())
    for layer, conv in zip(layers, (fused.c0, fused.c1, fused.c2), strict=False):
        out, inside = conv.weight.shape[:2]
        conv.load_state_dict({"weight": layer.proj2.weight[:out, :inside], "bias": layer.proj2.bias[:out]})
    return fused


def _flat(x: Tensor) -> Tensor:
    """[B,C,h,w] -> [hw,B,C]."""
    return x.flatten(2).permute(2, 0, 1)


class Unroll:
    """Runs the tracker over a clip for a batch of tracks, as transformers' video path does for one."""

    def __init__(self, model: Sam3TrackerVideoModel, neck: Sam3VisionNeck, shape: Shape) -> None:
        self.model, self.shape = model, shape
        size = (1, shape.tracker, shape.grid, shape.grid)
        self.position = _flat(neck.position_encoding(size, torch.device("cpu"), torch.float32))

    def decode(
        self, pixels: Tensor, levels: Features, mask: Tensor | None = None, multimask: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mask decoder without clicks -> mask logits, predicted IoU, mask tokens, object score logits."""
        m, n = self.model, len(pixels)
        if mask is not None and mask.shape[-2:] != tuple(m.prompt_encoder.mask_input_size):
            mask = F.interpolate(
                mask.float(),
                size=m.prompt_encoder.mask_input_size,
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
        sparse, dense = m.prompt_encoder(torch.zeros(n, 1, 1, 2), -torch.ones(n, 1, 1, dtype=torch.int32), None, mask)
        out: tuple[Tensor, Tensor, Tensor, Tensor] = m.mask_decoder(
            image_embeddings=pixels,
            image_positional_embeddings=m.get_image_wide_positional_embeddings().repeat(n, 1, 1, 1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=levels,
        )
        return out

    def remember(self, pixels: Tensor, mask: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Memory [hw,B,64] and its position encoding from mask logits [B,1,S,S] and object scores [B,1,1]."""
        memory, position = self.model._encode_new_memory(_flat(pixels), mask, score, False)
        return memory.float(), position

    def attend(self, t: int, pixels: Tensor, memories: list[tuple[Tensor, Tensor]], pointers: list[Tensor]) -> Tensor:
        """Current pixels conditioned on the first frame's and the last frames' memories and object pointers."""
        m, s, n = self.model, self.shape, len(pixels)
        bank = [(0, memories[0])] + [(k, memories[t - k]) for k in range(s.memories - 1, 0, -1) if t - k >= 1]
        chosen = [(t, pointers[0])] + [(k, pointers[t - k]) for k in range(1, s.pointers) if t - k >= 1]
        tokens, token_positions = m._process_object_pointers(
            [k for k, _ in chosen], [p for _, p in chosen], s.pointers, n, s.tracker, pixels.device
        )
        out = m.memory_attention(
            current_vision_features=_flat(pixels),
            current_vision_position_embeddings=self.position.expand(-1, n, -1),
            memory=torch.cat([x for _, (x, _) in bank] + [tokens]),
            memory_posision_embeddings=torch.cat(
                [p + m.memory_temporal_positional_encoding[k - 1] for k, (_, p) in bank] + [token_positions]
            ),
            num_object_pointer_tokens=len(tokens),
        )
        seen: Tensor = out.reshape(n, s.grid**2, s.tracker).transpose(1, 2).reshape(n, s.tracker, s.grid, s.grid)
        return seen

    def __call__(
        self, frames: list[Features], first: Tensor, seen: Tensor | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """First mask [B,1,S,S] -> its object score [B], and (logits [B,4g,4g], score [B], IoU [B]) per later frame.

        seen [T,B]: true visibility, teacher-forced in training; without it the predicted object score decides.
        """
        m, size = self.model, first.shape[-2:]
        start = frames[0]
        _, iou, tokens, score = self.decode(start[2], start[:2], m.mask_downsample(first), multimask=True)
        best = iou.argmax(-1)[:, :, None, None].expand(-1, -1, 1, tokens.shape[-1])
        pointers = [m.object_pointer_proj(tokens.gather(2, best)[:, 0, 0])]
        memories = [self.remember(start[2], first * 20 - 10, torch.full((len(first), 1, 1), 10.0))]
        outs = []
        for t, levels in enumerate(frames[1:], start=1):
            pixels = self.attend(t, levels[2], memories, pointers)
            logits, iou, tokens, visible = self.decode(pixels, levels[:2])
            low, there = logits[:, 0, 0], visible[:, 0, 0]
            outs.append((low, there, iou[:, 0, 0]))
            shown = (seen[t] if seen is not None else there > 0).float()[:, None]
            pointers.append(shown * m.object_pointer_proj(tokens[:, 0, 0]) + (1 - shown) * m.no_object_pointer)
            kept = low if seen is not None else torch.where(shown[..., None] > 0, low, torch.full_like(low, -1024.0))
            high = F.interpolate(kept[:, None], size=size, mode="bilinear", align_corners=False)
            memories.append(self.remember(levels[2], high, (shown * 20 - 10)[..., None]))
        return score[:, 0, 0], outs


# ------------------------------------------------------------------------------------------------ data
@dataclass
class Tracks:
    """Clips and tracks: images [N,T,S,S,3], clip [B], masks [B,T,S,S], low [B,T,4g,4g], start [B,1,S,S]."""

    images: Tensor
    clip: Tensor
    masks: Tensor
    low: Tensor
    start: Tensor


def _like_a_detection(rng: np.random.Generator, mask: NDArray[np.bool_], low: int) -> NDArray[np.float32]:
    """The first mask as a detector would give it: through a coarse grid, its edge off by up to a cell."""
    size = mask.shape[0]
    coarse = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=(low, low), mode="area")
    fine = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)[0, 0].numpy()
    guess = (fine > rng.uniform(0.25, 0.75)).astype(np.float32)
    return guess if guess.any() else mask.astype(np.float32)


def sample_tracks(
    rng: np.random.Generator, count: int, frames: int, each: int, shape: Shape, staged_share: float = 0.0
) -> Tracks:
    """`count` clips with up to `each` tracks; only things clearly visible in the first frame are followed."""
    images: list[NDArray[Any]] = []
    masks: list[NDArray[np.bool_]] = []
    owner: list[int] = []
    while len(images) < count:
        pictures, ids = clips.training_clip(rng, frames, shape.image, staged_share)
        clear = [int(i) for i in np.unique(ids[0]) if i and (ids[0] == i).sum() >= 3 * MIN_PIXELS]
        if not clear:
            continue
        hidden_later = [i for i in clear if any((ids[t] == i).sum() < MIN_PIXELS for t in range(1, frames))]
        picked = rng.permutation(clear)[:each].tolist()
        if hidden_later and hidden_later[0] not in picked:
            picked[0] = hidden_later[0]
        masks += [ids == i for i in picked]
        owner += [len(images)] * len(picked)
        images.append(pictures)
    truth = np.stack(masks)
    low = F.interpolate(torch.from_numpy(truth).float(), size=(4 * shape.grid,) * 2, mode="area")
    start = np.stack(
        [_like_a_detection(rng, m[0], 4 * shape.grid) if rng.random() < 0.7 else m[0].astype(np.float32) for m in truth]
    )
    return Tracks(
        torch.from_numpy(np.stack(images)),
        torch.tensor(owner),
        torch.from_numpy(truth),
        low,
        torch.from_numpy(start)[:, None],
    )


class Clips(IterableDataset[Tracks]):
    """An endless stream of clip batches, lengths from `frames` at random; `seed` names the stream."""

    def __init__(
        self, seed: int, count: int, frames: tuple[int, int], each: int, shape: Shape, staged_share: float
    ) -> None:
        self.seed, self.count, self.frames, self.each, self.shape = seed, count, frames, each, shape
        self.staged_share = staged_share

    def __iter__(self) -> Iterator[Tracks]:
        rng = np.random.default_rng([self.seed, 2])
        while True:
            frames = int(rng.integers(self.frames[0], self.frames[1] + 1))
            yield sample_tracks(rng, self.count, frames, self.each, self.shape, self.staged_share)


def features(backbone: nn.Module, neck: nn.Module, images: Tensor, shape: Shape) -> list[Tensor]:
    """Frozen image tokens through the neck: images [N,T,S,S,3] -> three levels [N,T,...]."""
    n, frames = images.shape[:2]
    with torch.no_grad():
        tokens = backbone(to_pixels(images.flatten(0, 1))).last_hidden_state
    levels: Features = neck(tokens.transpose(1, 2).reshape(n * frames, -1, shape.grid, shape.grid))
    return [level.reshape(n, frames, *level.shape[1:]) for level in levels]


# ------------------------------------------------------------------------------------------------ loss and evaluation
def tracking_loss(
    first_score: Tensor, outs: list[tuple[Tensor, Tensor, Tensor]], low: Tensor, seen: Tensor
) -> dict[str, Tensor]:
    """Mask BCE and dice where the thing is visible, visibility BCE, and the error of the predicted IoU (L1)."""
    terms = {k: torch.zeros(()) for k in ("bce", "dice", "there", "iou")}
    terms["there"] = 0.5 * F.softplus(-first_score).mean()
    for t, (logits, there, iou) in enumerate(outs, start=1):
        v, target = seen[t].float(), low[:, t]
        share = v / v.sum().clamp(min=1)
        small = (0.03 / target.mean((1, 2)).clamp(min=1e-3)).clamp(
            0.5, 4
        )  # small things would vanish in a mean over the frame
        terms["bce"] = (
            terms["bce"]
            + 5
            * (F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2)) * share * small).sum()
        )
        terms["dice"] = terms["dice"] + 1.5 * (dice(logits, target) * share).sum()
        terms["there"] = terms["there"] + 0.5 * F.binary_cross_entropy_with_logits(there, v)
        with torch.no_grad():
            a, b = logits > 0, target > 0.5
            true_iou = (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)
        terms["iou"] = terms["iou"] + 0.2 * ((iou - true_iou).abs() * share).sum()
    return {k: v / len(outs) for k, v in terms.items()}


def _iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


@torch.no_grad()
def evaluate(
    unroll: Unroll, backbone: nn.Module, neck: nn.Module, batches: list[Tracks], shape: Shape
) -> dict[str, float | list[float]]:
    """Mean IoU over visible frames; the same for copying the first or the last true mask; visibility accuracy."""
    scores: dict[str, list[float]] = {"miou": [], "copy_first": [], "copy_last": []}
    by_frame: dict[int, list[float]] = {}
    right = []
    for tracks in batches:
        levels = features(backbone, neck, tracks.images, shape)
        frames = [[level[tracks.clip, t] for level in levels] for t in range(tracks.images.shape[1])]
        for t, (logits, there, _) in enumerate(unroll(frames, tracks.start)[1], start=1):
            guess = (
                F.interpolate(logits[:, None], size=tracks.masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
                > 0
            )
            for b, truth in enumerate(tracks.masks[:, t]):
                seen = bool(truth.sum() >= MIN_PIXELS)
                right.append(bool(there[b] > 0) == seen)
                if seen:
                    scores["miou"].append(_iou(guess[b] & (there[b] > 0), truth))
                    scores["copy_first"].append(_iou(tracks.masks[b, 0], truth))
                    scores["copy_last"].append(_iou(tracks.masks[b, t - 1], truth))
                    by_frame.setdefault(t, []).append(scores["miou"][-1])
    means: dict[str, float | list[float]] = {k: round(float(np.mean(v)), 3) for k, v in scores.items()}
    return means | {
        "visible": round(float(np.mean(right)), 3),
        "by_frame": [round(float(np.mean(by_frame[t])), 2) for t in sorted(by_frame)],
    }


# ------------------------------------------------------------------------------------------------ loop
def clip_losses(
    unroll: Unroll, backbone: nn.Module, neck: FusedNeck, tracks: Tracks, shape: Shape, bfloat16: bool
) -> dict[str, Tensor]:
    """Loss terms of one batch of clips; the network runs in bfloat16 where asked, the losses in float32."""
    seen = (tracks.masks.sum((2, 3)) >= MIN_PIXELS).T
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        levels = features(backbone, neck, tracks.images, shape)
        frames = [[level[tracks.clip, t] for level in levels] for t in range(tracks.images.shape[1])]
        first, outs = unroll(frames, tracks.start, seen)
    plain = [(low.float(), there.float(), iou.float()) for low, there, iou in outs]
    return tracking_loss(first.float(), plain, tracks.low, seen)


def _start(args: argparse.Namespace, shape: Shape) -> tuple[Sam3TrackerVideoModel, FusedNeck]:
    """A fresh or resumed tracker in training mode."""
    model, neck = build_tracker(shape), FusedNeck(shape)
    if args.resume:
        saved = torch.load(args.resume)
        model.load_state_dict(saved["tracker"])
        neck.load_state_dict(saved["neck"])
    model.train()
    return model, neck


def train(args: argparse.Namespace) -> None:
    """Train to a wall-clock budget; the averaged weights are in `args.out`, refreshed every few minutes."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    shape = Shape()
    detector = build_detector(shape)
    detector.load_state_dict(torch.load(args.encoder)["model"])
    backbone = detector.vision_encoder.backbone.eval().requires_grad_(False)
    model, neck = _start(args, shape)
    unroll = Unroll(model, Sam3VisionNeck(tracker_config(shape).vision_config), shape)
    named = [*model.named_parameters(), *neck.named_parameters()]
    params = [p for n, p in named if "conv_s" not in n and "shared" not in n]
    matrices, vectors = [p for p in params if p.dim() > 1], [p for p in params if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), fused=True)
    average = Average(params, keep=0.99, slowness=10)
    rng = np.random.default_rng([99, 3])
    held_out = [sample_tracks(rng, 4, 10, 2, shape) for _ in range(5)]
    data = Clips(args.seed, args.clips, (max(3, args.frames - 3), args.frames), args.each, shape, args.staged)
    stream = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    means, clock, step = Means(), Clock(args.minutes), 0
    while clock.progress < 1:
        parts = clip_losses(unroll, backbone, neck, next(stream), shape, args.bfloat16)
        rate = args.rate * schedule(step, args.warmup, clock.progress)
        norm = descend(torch.stack(list(parts.values())).sum(), optimizer, params, rate, clip=1.0)
        step += 1
        average.follow(step)
        means.add(parts)
        if clock.due("print", 30):
            print(f"step {step} t {clock.elapsed:.0f}s norm {norm:.1f} {means}", flush=True)
        if clock.due("save", args.save_seconds):
            with average:
                torch.save({"tracker": model.state_dict(), "neck": neck.state_dict()}, args.out)
    with average:
        torch.save({"tracker": model.state_dict(), "neck": neck.state_dict()}, args.out)
        print(f"step {step} {evaluate(unroll, backbone, neck, held_out, shape)}", flush=True)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="detector checkpoint whose image encoder is used")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--resume", default="")
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="a quarter faster where AMX is"
    )
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--each", type=int, default=2)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--staged", type=float, default=0.35, help="share of clips with shuffled line-ups and hands")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--save-seconds", type=float, default=240)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
