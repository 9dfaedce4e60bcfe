"""The run folder: parts, manifest, resume and damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.load import load_config, to_yaml
from pipeline.errors import RunError, RunExistsError, UsageError
from pipeline.masks import encode
from pipeline.results import FrameResult
from pipeline.store import ROW_SCHEMA, Manifest, RunWriter, VideoEntry, open_run, read_manifest


def manifest(prompts: tuple[str, ...] = ("cat",)) -> Manifest:
    return Manifest("0", {"fingerprint": "f"}, list(prompts), [], "d")


def result(index: int, ids: list[int]) -> FrameResult:
    masks = np.zeros((len(ids), 8, 9), bool)
    for row, masklet in enumerate(ids):
        masks[row, 1 : 2 + masklet, 2:5] = True
    boxes = np.array([[2, 1, 5, 2 + i] for i in ids], np.float32).reshape(-1, 4)
    return FrameResult(
        "v",
        index,
        index / 25,
        (8, 9),
        np.array(ids, np.int32),
        ("cat",) * len(ids),
        np.full(len(ids), 0.5, np.float32),
        boxes,
        encode(masks),
    )


def write_run(folder: Path, frames: list[FrameResult], rows_per_part: int = 100) -> None:
    run = RunWriter.create(folder, manifest(), "prompts: [cat]\n")
    with run.video("v", rows_per_part=rows_per_part, frames_per_part=1000) as writer:
        for frame in frames:
            writer.write(frame)
    ids = {int(i) for f in frames for i in f.masklet_id}
    run.end_video(VideoEntry("v", "v.mp4", "done", 9, 8, "25/1", len(frames), len(frames), len(ids)))


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    frames = [result(0, []), result(1, [1]), result(2, [1, 2]), result(7, [2, 3])]
    write_run(tmp_path / "run", frames, rows_per_part=2)
    run = open_run(tmp_path / "run")
    assert len(run.parts("v")) > 1
    back = list(run.frames("v"))
    assert [f.index for f in back] == [1, 2, 7]
    for got, want in zip(back, frames[1:], strict=True):
        assert np.array_equal(got.masklet_id, want.masklet_id)
        assert np.array_equal(got.xyxy, want.xyxy)
        assert np.array_equal(got.masks(), want.masks())
        assert got.prompt == want.prompt
    table = run.table()
    assert table.schema.names == ROW_SCHEMA.names
    assert table["frame"].to_pylist() == [1, 2, 2, 7, 7]
    assert table["area_px"].to_pylist() == [6, 6, 9, 9, 12]
    lives = list(run.masklets())
    assert [(m.masklet_id, m.index.tolist()) for m in lives] == [(1, [1, 2]), (2, [2, 7]), (3, [7])]
    assert [m.masklet_id for m in run.masklets(min_frames=2)] == [1, 2]
    assert list(run.masklets(prompt="dog")) == []


def test_an_empty_video_is_a_valid_run_that_outside_readers_open(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [result(i, []) for i in range(3)])
    assert list(open_run(tmp_path / "run").frames("v")) == []
    read = pq.read_table(tmp_path / "run" / "masklets")
    assert read.schema.names == ROW_SCHEMA.names
    assert len(read) == 0


def test_frames_must_ascend(tmp_path: Path) -> None:
    run = RunWriter.create(tmp_path / "r", manifest(), "")
    writer = run.video("v", rows_per_part=100, frames_per_part=10)
    writer.write(result(3, [1]))
    with pytest.raises(ValueError, match="comes after"):
        writer.write(result(3, [1]))


def test_a_changed_plan_is_told_by_its_keys(tmp_path: Path) -> None:
    before = to_yaml(load_config(None, ["prompts=[cat]", "tracker.mode=exact", "output.rows_per_part=700"]))
    after = to_yaml(load_config(None, ["prompts=[cat]", "tracker.mode=adaptive", "sampling.stride=3"]))
    RunWriter.create(tmp_path / "run", manifest(), before)
    other = manifest()
    other.config_digest = "e"
    with pytest.raises(UsageError) as error:
        RunWriter.create(tmp_path / "run", other, after, resume=True)
    told = str(error.value).partition("changed: configuration ")[2].partition(")")[0]
    assert sorted(told.split(", ")) == ["sampling.stride: 1 -> 3", 'tracker.mode: "exact" -> "adaptive"']
    (tmp_path / "run" / "config.yaml").write_text("[")
    with pytest.raises(UsageError, match=r"changed: configuration\)"):
        RunWriter.create(tmp_path / "run", other, after, resume=True)


def write_and_fail(run: RunWriter) -> None:
    with run.video("v", rows_per_part=2, frames_per_part=1000) as writer:
        writer.write(result(0, [1, 2]))  # fills a part
        writer.write(result(1, [1]))
        raise RuntimeError


def test_nothing_uncommitted_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_and_fail(RunWriter.create(tmp_path / "r", manifest(), ""))
    assert pq.read_table(tmp_path / "r" / "masklets")["frame"].to_pylist() == [0, 0]
    assert [p.name for p in (tmp_path / "r").rglob("*") if p.name.endswith(".tmp")] == []


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [result(0, [1])])
    with pytest.raises(RunExistsError, match="--resume"):
        RunWriter.create(tmp_path / "run", manifest(), "")
    continued = RunWriter.create(tmp_path / "run", manifest(), "", resume=True)
    assert continued.finished("v")
    with pytest.raises(UsageError, match="phrases"):
        RunWriter.create(tmp_path / "run", manifest(prompts=("dog",)), "", resume=True)
    fresh = RunWriter.create(tmp_path / "run", manifest(prompts=("dog",)), "", overwrite=True)
    assert not fresh.finished("v")
    assert not (tmp_path / "run" / "masklets" / "v").exists()


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_folder_of_somebody_elses_is_never_touched(tmp_path: Path, flag: str) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunExistsError, match="not a run"):
        RunWriter.create(tmp_path, manifest(), "", **{flag: True})
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_overwriting_leaves_what_a_user_put_beside(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [result(0, [1])])
    (tmp_path / "run" / "notes.txt").write_text("mine")
    RunWriter.create(tmp_path / "run", manifest(), "", overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_an_interrupted_video_is_not_finished_but_a_damaged_one_is(tmp_path: Path) -> None:
    run = RunWriter.create(tmp_path / "r", manifest(), "")
    run.end_video(VideoEntry("a", "a", "partial", error="interrupted after 3 of 9 frames"))
    run.end_video(VideoEntry("b", "b", "partial", error="9 frames promised, 5 decoded"))
    run.end_video(VideoEntry("c", "c", "failed", error="no video"))
    assert [run.finished(v) for v in "abc"] == [False, True, False]


def test_a_video_that_is_done_again_is_listed_once(tmp_path: Path) -> None:
    run = RunWriter.create(tmp_path / "run", manifest("cat"), "")
    for name in "abc":
        run.list_video(VideoEntry(name, name, "failed"))
    run.list_video(VideoEntry("b", "b", "done", num_tracked=7))
    assert [(v.video_id, v.status) for v in run.manifest.videos] == [("a", "failed"), ("b", "done"), ("c", "failed")]
    assert run.finished("b") and not run.finished("c") and run.entry("b").num_tracked == 7
    run.save()
    counts = read_manifest(tmp_path / "run").counts
    assert counts == {"videos": 3, "done": 1, "partial": 0, "failed": 2, "frames": 7, "masklets": 0}


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no manifest\.json"):
        open_run(tmp_path)
    write_run(tmp_path / "run", [result(0, [1])])
    part = open_run(tmp_path / "run").parts("v")[0]
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(RunError, match="part-00000"):
        list(open_run(tmp_path / "run").frames("v"))
    path = tmp_path / "run" / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "schema_version": 99}))
    with pytest.raises(RunError, match="newer"):
        open_run(tmp_path / "run")
    path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        open_run(tmp_path / "run")


def test_choosing_a_video(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [result(0, [1])])
    run = open_run(tmp_path / "run")
    assert run.video().video_id == "v"
    with pytest.raises(UsageError, match="name one of: v"):
        run.video("w")


def test_a_run_that_never_got_anywhere_is_not_in_the_way(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "run", manifest(), "")
    RunWriter.create(tmp_path / "run", manifest(("dog",)), "")
    assert open_run(tmp_path / "run").manifest.prompts == ["dog"]


def test_a_run_in_which_everything_failed_is_not_in_the_way(tmp_path: Path) -> None:
    """A wrong --start, say: the corrected line is the same but for it."""
    run = RunWriter.create(tmp_path / "run", manifest(), "")
    run.end_video(VideoEntry("v", "v.mp4", "failed", error="it ends before --start"))
    run = RunWriter.create(tmp_path / "run", manifest(), "")
    run.end_video(VideoEntry("v", "v.mp4", "failed"))
    run.end_video(VideoEntry("w", "w.mp4", "done"))
    with pytest.raises(RunExistsError):
        RunWriter.create(tmp_path / "run", manifest(), "")
