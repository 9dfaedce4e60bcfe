"""One long video cut, tracked in pieces and stitched, against the same video tracked whole, and against the truth.

    python -m benchmarks.chunked --clips 20 --frames 900             scripted detections and ByteTrack
    python -m benchmarks.chunked --clips 2 --frames 900 --model      the built-in tiny model and the memory tracker

On every clip things pass behind screens at the cuts. ``idf1``: the chunked run measured against the whole run as if
that were the truth; ``hota``: both against the truth; all on masks. Every frame must come out exactly once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.chunk_world import FPS, KINDS, World, write_detections, write_truth
from configs.load import load_config
from pipeline import api, open_run
from pipeline.evaluate import RunLabels, evaluate
from pipeline.store import Run

CHUNK_S, OVERLAP_S = 9, 1


@dataclass(frozen=True, slots=True)
class Compared:
    """One clip, tracked whole and chunked. Scores are 0..1."""

    seed: int
    idf1: float
    """Of the chunked run with the whole run as truth."""
    hota_whole: float
    hota_chunked: float
    num_chunks: int
    num_links: int
    num_weak: int
    num_masklets: tuple[int, int]
    """Whole and chunked."""
    is_complete: bool
    """Both runs tracked every frame, and no row of the chunked one is there twice."""


def compare(seed: int, num_frames: int, folder: Path, *, with_model: bool, threads: int = 1) -> Compared:
    """Track one seeded clip twice."""
    cuts = range(CHUNK_S * FPS, num_frames, CHUNK_S * FPS)
    world = World(seed, num_frames, [c + FPS * OVERLAP_S // 2 for c in cuts])
    name = f"clip{seed}"
    clip = world.write_video(folder / f"{name}.mp4")
    sets = [f"prompts=[{', '.join(phrase for phrase, _ in KINDS)}]", f"device.threads={threads}", "device.name=cpu"]
    if not with_model:
        found = write_detections(world, name, folder / f"{name}-detections")
        sets += [f"detector.detections={found}", "tracker.name=bytetrack"]
    whole = _track(sets, clip, folder / f"{name}-whole")
    chunked = _track(
        [*sets, f"chunk.length={CHUNK_S}s", f"chunk.overlap={OVERLAP_S}s"], clip, folder / f"{name}-chunked"
    )
    truth = RunLabels(write_truth(world, name, folder / f"{name}-truth"))
    entry = chunked.video()
    return Compared(
        seed,
        evaluate(RunLabels(chunked), RunLabels(whole), ["identity"]).score("IDF1"),
        evaluate(RunLabels(whole), truth, ["hota"]).score("HOTA"),
        evaluate(RunLabels(chunked), truth, ["hota"]).score("HOTA"),
        len(entry.chunks),
        len(entry.links),
        sum(bool(link["weak"]) for link in entry.links),
        (whole.video().num_masklets, entry.num_masklets),
        whole.video().num_tracked == entry.num_tracked == num_frames and _is_unique(chunked),
    )


def _track(sets: Sequence[str], clip: Path, out: Path) -> Run:
    api.track_to_run(load_config(None, list(sets)), [str(clip)], out)
    return open_run(out)


def _is_unique(run: Run) -> bool:
    table = run.table(columns=["frame", "masklet_id"])
    return int(table.group_by(["frame", "masklet_id"]).aggregate([]).num_rows) == int(table.num_rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per clip and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--frames", type=int, default=900)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--model", action="store_true", help="the tiny model instead of scripted detections")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    rows = []
    print("seed  idf1 chunked:whole  HOTA whole  HOTA chunked  chunks  links (weak)  masklets  every frame once")
    for seed in range(options.first_seed, options.first_seed + options.clips):
        with tempfile.TemporaryDirectory() as folder:
            r = compare(seed, options.frames, Path(folder), with_model=options.model, threads=options.threads)
        rows.append(r)
        print(
            f"{r.seed:4d}  {r.idf1:18.4f}  {r.hota_whole:10.4f}  {r.hota_chunked:12.4f}  {r.num_chunks:6d}  "
            f"{r.num_links:5d} ({r.num_weak:4d})  {r.num_masklets[0]:3d}:{r.num_masklets[1]:<4d}  {r.is_complete}",
            flush=True,
        )
    idf1, loss = [r.idf1 for r in rows], [100 * (r.hota_whole - r.hota_chunked) for r in rows]
    print(
        f"IDF1 median {np.median(idf1):.4f} mean {np.mean(idf1):.4f} least {np.min(idf1):.4f}; HOTA lost, points: "
        f"median {np.median(loss):+.2f} mean {np.mean(loss):+.2f} most {np.max(loss):+.2f}; "
        f"every frame once on {sum(r.is_complete for r in rows)} of {len(rows)}"
    )


if __name__ == "__main__":
    main()
