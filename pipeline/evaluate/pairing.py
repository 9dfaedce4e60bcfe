"""Which videos and phrases of run and ground truth are compared, and what cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import FormatError
from pipeline.evaluate.labels import FrameLabels, LabelledVideo, Labels
from pipeline.evaluate.overlap import Frames, Kind, apply_roles

ANY_PHRASE = "object"
"""The one phrase of a comparison without regard to phrases."""

Matching = Literal["auto", "match", "ignore"]
"""Whether an object must have the right phrase; ``auto``: if run and ground truth have a phrase in common."""


@dataclass(frozen=True, slots=True)
class VideoPair:
    """A video of the ground truth and its counterpart; ``pred`` is ``None`` where the run has none."""

    gt: LabelledVideo
    pred: LabelledVideo | None

    @property
    def num_frames(self) -> int | None:
        """Frames of the source."""
        return self.gt.num_frames or (self.pred.num_frames if self.pred else None)

    def compared(self, index: int) -> bool:
        """Whether both sides looked at this frame. (A run that stopped early should have.)"""
        sides = [self.gt, *([self.pred] if self.pred and not self.pred.partial else [])]
        return all(side.looked_at is None or index in side.looked_at for side in sides)


def pair_videos(truth: Sequence[LabelledVideo], run: Sequence[LabelledVideo], notes: list[str]) -> list[VideoPair]:
    """Counterparts by video id; two single videos belong together whatever their names.

    Raises:
        FormatError: no video of the ground truth is in the run, or a video is of another size.
    """
    by_id = {v.video_id: v for v in run}
    if len(truth) == len(run) == 1:
        by_id = {truth[0].video_id: run[0]}
    pairs = [VideoPair(v, by_id.get(v.video_id)) for v in truth]
    missing = [p.gt.video_id for p in pairs if p.pred is None]
    if len(missing) == len(pairs):
        raise FormatError(
            "no video of the ground truth is in the run", _names(truth), f"the run has: {_names(run)}; names must match"
        )
    if missing:
        notes.append(f"not in the run, so all their objects count as missed: {', '.join(missing)}")
    extra = sorted({v.video_id for v in by_id.values()} - {p.pred.video_id for p in pairs if p.pred})
    if extra:
        notes.append(f"without ground truth, so left out: {', '.join(extra)}")
    for pair in pairs:
        _check(pair, notes)
    return pairs


def _names(videos: Sequence[LabelledVideo]) -> str:
    names = [v.video_id for v in videos]
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "") if names else "no video"


def _check(pair: VideoPair, notes: list[str]) -> None:
    gt, pred = pair.gt, pair.pred
    if pred is None:
        return
    if gt.size and pred.size and gt.size != pred.size:
        raise FormatError(
            f"the ground truth is {gt.size[1]} x {gt.size[0]}, the run {pred.size[1]} x {pred.size[0]} pixels",
            gt.video_id,
            "use ground truth of the video's own size",
        )
    if pred.partial:
        notes.append(f"{gt.video_id}: the run stopped early; what comes later counts as missed")
    elif pred.looked_at is not None:
        notes.append(
            f"{gt.video_id}: only the {len(pred.looked_at)} of {pred.num_frames} frames that were tracked count"
        )
    elif pred.sparse:
        notes.append(f"{gt.video_id}: not every frame was tracked; on the others all objects count as missed")
    if gt.sparse or gt.looked_at is not None:
        notes.append(f"{gt.video_id}: only frames that have annotations are compared")


class PhraseMap:
    """Phrases as they are compared: as they are but for case and spaces, or all the same."""

    def __init__(self, truth: Sequence[LabelledVideo], run: Sequence[LabelledVideo], matching: Matching) -> None:
        gt, pred = ({_plain(p): p for v in side for p in v.phrases} for side in (truth, run))
        self.ignored = matching == "ignore" or (matching == "auto" and not gt.keys() & pred.keys())
        self._names: Mapping[str, str] = {**pred, **gt}
        self._note = f"no phrase in common (ground truth: {_some(gt)}; run: {_some(pred)}): phrases are ignored"
        self._told = matching != "auto"

    def notes(self) -> list[str]:
        """What was decided, where the user did not."""
        return [self._note] if self.ignored and not self._told else []

    def __call__(self, phrase: str) -> str:
        """The name under which objects of this phrase are compared."""
        return ANY_PHRASE if self.ignored else self._names.get(_plain(phrase), phrase)


def _plain(phrase: str) -> str:
    return " ".join(phrase.casefold().split())


def _some(phrases: Mapping[str, str]) -> str:
    return ", ".join(list(phrases.values())[:3]) + (" ..." if len(phrases) > 3 else "") or "none"


def frames_of(pair: VideoPair, truth: Labels, run: Labels, phrases: PhraseMap, kind: Kind) -> Frames:
    """Both sides' frames in step, phrases mapped and annotations that are not to be found gone.

    Raises:
        FormatError: (while going through) objects beyond the end of the other side's video.
    """
    pred, gt = pair.pred, pair.gt

    def start() -> Iterator[tuple[FrameLabels, FrameLabels]]:
        predicted = run.frames(pred.video_id) if pred else iter(())
        for index, left, right in _in_step(truth.frames(gt.video_id), predicted):
            if right is None and pred and not pred.partial:
                _inside(index, pred.num_frames, gt.video_id, "ground truth", "video")
            if left is None and gt.sparse:
                continue
            if left is None:
                _inside(index, gt.num_frames, gt.video_id, "run", "ground truth")
            if not pair.compared(index):
                continue
            left = left or FrameLabels.empty(index, masks=truth.masks)
            right = right or FrameLabels.empty(index, masks=run.masks)
            left, right = apply_roles(left, right, kind)
            yield left.renamed(phrases), right.renamed(phrases)

    return start


def _inside(index: int, num_frames: int | None, video_id: str, whose: str, other: str) -> None:
    if num_frames is not None and index >= num_frames:
        raise FormatError(
            f"the {whose} has objects on frame {index}, but the {other} has {num_frames} frames",
            video_id,
            "compare the same video, with frames counted alike",
        )


def _in_step(
    left: Iterator[FrameLabels], right: Iterator[FrameLabels]
) -> Iterator[tuple[int, FrameLabels | None, FrameLabels | None]]:
    """Both in time order, frame by frame; ``None`` where a side has no such frame."""
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        index = min(x.index for x in (a, b) if x is not None)
        on_a, on_b = a is not None and a.index == index, b is not None and b.index == index
        yield index, a if on_a else None, b if on_b else None
        a = next(left, None) if on_a else a
        b = next(right, None) if on_b else b
