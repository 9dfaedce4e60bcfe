"""Chunked runs against whole ones: the identities of the whole run, every frame once, doubts listed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.chunked import Compared, compare
from configs.schema import Config
from pipeline import report
from pipeline.assemble import Assembler
from pipeline.masks import boxes, encode
from pipeline.results import FrameResult
from pipeline.store import Manifest, RunWriter, VideoWriter, open_run
from pipeline.types import FrameTracks
from workers.units import LOOKS, UnitFolder, UnitReport, committed
from workers.video_state import Looks

SIZE = (60, 100)


def assert_as_good_as_whole(got: Compared, num_frames: int) -> None:
    assert got.is_complete
    assert got.num_chunks == num_frames // 225
    assert got.hota_chunked >= got.hota_whole - 0.01


def test_chunked_is_as_true_as_whole(tmp_path: Path) -> None:
    """ByteTrack gives things new ids that come out from behind the screens at the cuts; stitching knows them again."""
    got = compare(1, 460, tmp_path, with_model=False)
    assert_as_good_as_whole(got, 460)
    assert got.num_masklets[1] <= got.num_masklets[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_long_clips_chunked_are_as_true_as_whole(tmp_path: Path, seed: int) -> None:
    assert_as_good_as_whole(compare(seed, 900, tmp_path, with_model=False), 900)


@pytest.mark.slow
def test_chunked_has_the_identities_of_the_whole_with_the_tiny_model(tmp_path: Path) -> None:
    got = compare(0, 900, tmp_path, with_model=True)
    assert_as_good_as_whole(got, 900)
    assert got.idf1 >= 0.98


# -- looks: from the tracker to the links ------------------------------------------------------------------------------


def unit(units: Path, ordinal: int, span: tuple[int, int], seen: dict[int, tuple[range, int]], looks: object) -> None:
    """A chunk's unit, committed: per track id the frames it is on and where, and its look."""
    folder = UnitFolder(units, f"k{ordinal}")
    with VideoWriter(folder.masklets) as writer:
        for index in range(*span):
            here = [(i, x) for i, (frames, x) in seen.items() if index in frames]
            masks = np.zeros((len(here), *SIZE), bool)
            for row, (_, x) in enumerate(here):
                masks[row, 20:40, x : x + 20] = True
            ids = np.array([i for i, _ in here], np.int32)
            score = np.ones(len(here), np.float32)
            rows = (ids, ("cat",) * len(here), score, boxes(masks), encode(masks))
            writer.write(FrameResult("v", index, index / 10, SIZE, *rows))
    np.savez(folder.temporary / LOOKS, **looks)  # type: ignore[arg-type]
    folder.commit(UnitReport(f"k{ordinal}", "v", ordinal, "done", *span, *SIZE[::-1], "10/1", 60, span[1] - span[0]))


def look(*columns: int) -> dict[str, np.ndarray]:
    """Masklet ids from 1, each looking like one of the axes, first and last."""
    axes = np.eye(3, dtype=np.float32)[list(columns)]
    return {"masklet_id": np.arange(1, len(columns) + 1), "head": axes, "tail": axes}


@pytest.mark.parametrize(("columns", "winner"), [((1, 0), 24), ((0, 1), 12)])
def test_across_a_cut_looks_decide_over_place(tmp_path: Path, columns: tuple[int, int], winner: int) -> None:
    run = RunWriter.create(tmp_path / "run", Manifest("0", {}, ["cat"], [], ""), "")
    units = tmp_path / "run" / ".units"
    unit(units, 0, (0, 34), {1: (range(20), 10)}, look(0))
    unit(units, 1, (26, 60), {1: (range(40, 60), 12), 2: (range(40, 60), 24)}, look(*columns))
    reports = [r for r in (committed(units, "k0"), committed(units, "k1")) if r is not None]
    entry = Assembler(Config(), tmp_path / "run", units).publish(reports, "v.mp4")
    run.end_video(entry)
    rows = open_run(tmp_path / "run").table("v", ["frame", "masklet_id", "x1"]).to_pylist()
    after = {r["x1"]: r["masklet_id"] for r in rows if r["frame"] == 59}
    assert after[winner] == 1
    assert len(set(after.values())) == 2


def test_weak_links_are_shown_at_the_end(tmp_path: Path) -> None:
    manifest = Manifest("0", {}, ["cat"], [], "")
    run = RunWriter.create(tmp_path / "run", manifest, "")
    units = tmp_path / "run" / ".units"
    unit(units, 0, (0, 34), {1: (range(20), 10)}, look(0))
    unit(units, 1, (26, 60), {1: (range(40, 60), 12), 2: (range(40, 60), 16)}, look(0, 0))
    reports = [r for r in (committed(units, "k0"), committed(units, "k1")) if r is not None]
    run.end_video(Assembler(Config(), tmp_path / "run", units).publish(reports, "v.mp4"))
    (link,) = open_run(tmp_path / "run").video("v").links
    assert link["weak"]
    assert link["rival"] > 0.5
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table(tmp_path / "run", manifest))
    text = console.export_text()
    console.file.close()
    assert "check: v: masklet 1 at frame 40 was joined across a cut with confidence" in text


class Knowing:
    """A tracker that knows what things look like now."""

    def __init__(self) -> None:
        self.now: dict[int, np.ndarray] = {}

    def appearances(self, track_ids: np.ndarray) -> np.ndarray:
        return np.stack([self.now[int(t)] for t in track_ids])


def tracks(index: int, ids: list[int], withdrawn: tuple[int, ...] = ()) -> FrameTracks:
    n = len(ids)
    masks = np.zeros((n, *SIZE), bool)
    masks[:, 5:9, 5:9] = True
    columns = (np.array(ids, np.int64), np.zeros(n, np.int16), np.ones(n, np.float32), boxes(masks), encode(masks))
    return FrameTracks("v", 0, index, index / 10, *columns, np.array(withdrawn, np.int64))


def test_looks_are_kept_from_both_ends_of_what_got_a_number(tmp_path: Path) -> None:
    tracker = Knowing()
    looks = Looks(tracker)  # type: ignore[arg-type]
    for index in range(40):
        tracker.now = {i: np.array([i, index], np.float32) for i in (1, 2, 3)}
        looks.note(tracks(index, [1, 2] if index < 20 else [1, 3], (2,) if index == 20 else ()))
    looks.save(tmp_path / "looks.npz", {1: 7, 2: 8})
    with np.load(tmp_path / "looks.npz") as data:
        assert data["masklet_id"].tolist() == [7]
        (head,), (tail,) = data["head"], data["tail"]
    assert head[1] <= 12
    assert tail[1] >= 36
