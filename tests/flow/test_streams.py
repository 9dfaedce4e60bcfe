"""Several videos side by side in one process: each has the rows it has alone, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from configs.load import load_config
from configs.schema import Config
from pipeline import api, open_run
from pipeline.detectors.sam3_litetext import Sam3LiteTextDetector
from pipeline.errors import DecodeError, RunInterruptedError
from pipeline.flow import JointDetection
from pipeline.telemetry import StageTimes
from pipeline.types import Detections, Frame, Prompts
from tests import tinyconf
from tests.e2e.clips import write_clip
from tests.unit.detectors.reference import Reference, frames
from workers.unit_worker import UnitWorker

LENGTHS = (12, 6, 10, 8)
PLAIN = ["prompts=[red circle, blue square]", "device.threads=1", "device.name=cpu", "tracker.hotstart_delay_frames=2"]
TOGETHER = [*PLAIN, "worker.streams_per_device=4"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    return [str(write_clip(folder / f"clip{n}.mp4", num_frames=n)) for n in LENGTHS]


def run(config: Config, clips: Sequence[str], folder: Path, *, resume: bool = False) -> pa.Table:
    torch.set_num_threads(1)
    api.track_to_run(config, clips, folder, resume=resume)
    return open_run(folder).table()


def assert_same_rows(found: pa.Table, expected: pa.Table) -> None:
    """Ids, phrases, boxes and masks are equal; a score may differ by the rounding of a batch of another size."""
    assert found.drop_columns("score").equals(expected.drop_columns("score"))
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def alone(clips: list[str], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return run(load_config(None, PLAIN), clips, tmp_path_factory.mktemp("alone") / "run")


def test_four_videos_together_have_the_rows_of_each_alone(
    clips: list[str], alone: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[set[str]] = []
    detect = Sam3LiteTextDetector.detect

    def noting(self: Sam3LiteTextDetector, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        batches.append({f.stream_id for f in frames})
        return detect(self, frames, prompts)

    monkeypatch.setattr(Sam3LiteTextDetector, "detect", noting)
    together = run(load_config(None, TOGETHER), clips, tmp_path / "run")
    assert len(alone) > 20
    assert_same_rows(together, alone)
    assert max(len(b) for b in batches) == 4


def test_an_interrupted_run_of_several_videos_goes_on(
    clips: list[str], alone: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        follow = UnitWorker._write

        def stopped(self: UnitWorker, *args: object) -> object:
            for number, progress in enumerate(follow(self, *args)):  # type: ignore[arg-type]
                yield progress
                if number == 10:
                    raise KeyboardInterrupt

        patch.setattr(UnitWorker, "_write", stopped)
        with pytest.raises(RunInterruptedError):
            run(load_config(None, TOGETHER), clips, tmp_path / "run")
    assert not list((tmp_path / "run" / ".units").glob(".*")), "no attempt is left behind"
    assert_same_rows(run(load_config(None, TOGETHER), clips, tmp_path / "run", resume=True), alone)


def test_a_broken_video_fails_alone(clips: list[str], alone: pa.Table, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    torch.set_num_threads(1)
    manifest = api.track_to_run(load_config(None, TOGETHER), [str(broken), *clips], tmp_path / "run")
    assert [v.status for v in manifest.videos] == ["failed", *["done"] * 4]
    assert_same_rows(open_run(tmp_path / "run").table(), alone)


class Counting:
    """A detector that finds nothing, or fails once."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, int]]] = []
        self.fails_next = False

    def detect(self, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        if self.fails_next:
            self.fails_next = False
            raise RuntimeError("no memory")
        self.batches.append([(f.stream_id, f.index) for f in frames])
        return [Detections.empty() for _ in frames]


def frames_of(name: str, count: int, *, fails_at: int = -1) -> object:
    for index in range(count):
        if index == fails_at:
            raise DecodeError("cannot go on", name)
        yield Frame(name, index, index / 24, np.zeros((2, 2, 3), np.uint8), (2, 2))


PROMPTS = Prompts(("a",), np.zeros((1, 1, 1), np.float32), np.ones((1, 1), bool))


def test_streams_in_step_share_every_call() -> None:
    detector = Counting()
    joint = JointDetection(detector, batch_frames=8, num_streams=4)
    streams = [joint.detect(frames_of(name, 7), PROMPTS, StageTimes()) for name in "abcd"]  # type: ignore[arg-type]
    for _ in range(7):
        for stream in streams:
            next(stream)
    whole = [batch for batch in detector.batches if {name for name, _ in batch} == set("abcd")]
    assert len(whole) >= 3 and max(len(batch) for batch in detector.batches) == 8


def test_who_is_left_alone_has_whole_batches() -> None:
    detector = Counting()
    joint = JointDetection(detector, batch_frames=4, num_streams=4)
    streams = [joint.detect(frames_of(n, 12 if n == "a" else 3), PROMPTS, StageTimes()) for n in "abcd"]  # type: ignore[arg-type]
    while streams:
        streams = [stream for stream in streams if next(stream, None) is not None]
    alone = [batch for batch in detector.batches if {name for name, _ in batch} == {"a"}]
    assert max(len(batch) for batch in alone) == 4
    assert sum(len(batch) for batch in detector.batches) == 12 + 3 * 3


def test_sixteen_streams_encode_every_frame_once() -> None:
    """Detector calls have four frames and more of all streams; the tracker asks for each of them later."""
    reference = Reference(tinyconf.litetext_config(), 4)
    detector, prompts = reference.detector(num_streams=16, batch_frames=4), reference.prompts(["person"])
    encoded: list[int] = []
    detector._network.backbone.embeddings.register_forward_pre_hook(
        lambda _module, given: encoded.append(len(given[0]))
    )
    joint = JointDetection(detector, batch_frames=4, num_streams=16)
    streams = [joint.detect(frames(n, 4, stream_id=f"s{n}"), prompts, StageTimes()) for n in range(16)]
    for _ in range(4):
        for stream in streams:
            detector.features(next(stream)[0])
    assert sum(encoded) == 16 * 4
    together = [frames(100 + n, 1, stream_id=f"camera{n}")[0] for n in range(40)]
    detector.detect(together, prompts)
    for frame in together:
        detector.features(frame)
    assert sum(encoded) == 16 * 4 + 40, "a call with more frames than that keeps them all, too"


def test_a_joint_call_has_an_equal_share_of_every_stream_that_ran_out() -> None:
    detector = Counting()
    joint = JointDetection(detector, batch_frames=4, num_streams=2)
    times = StageTimes(), StageTimes()
    a, b = (joint.detect(frames_of(n, c), PROMPTS, t) for (n, c), t in zip([("a", 5), ("b", 3)], times, strict=True))  # type: ignore[arg-type]
    order = [next(a)[0].index, next(b)[0].index]
    while (one := next(a, None)) is not None:
        order.append(one[0].index)
        if (other := next(b, None)) is not None:
            order.append(other[0].index)
    assert detector.batches[0] == [("a", 0), ("a", 1)]  # b had not begun
    assert sorted(i for batch in detector.batches for i in batch) == [("a", i) for i in range(5)] + [
        ("b", i) for i in range(3)
    ]
    assert any({name for name, _ in batch} == {"a", "b"} for batch in detector.batches)
    assert all("detect" in t.seconds for t in times)


def test_who_fails_fails_alone_and_no_frame_of_another_is_lost() -> None:
    detector = Counting()
    joint = JointDetection(detector, batch_frames=2, num_streams=2)
    bad = joint.detect(frames_of("bad", 4, fails_at=2), PROMPTS, StageTimes())  # type: ignore[arg-type]
    good = joint.detect(frames_of("good", 6), PROMPTS, StageTimes())  # type: ignore[arg-type]
    seen = [next(bad)[0].index, next(good)[0].index, next(bad)[0].index]
    seen = [next(good)[0].index]  # pulls the bad one's third frame
    with pytest.raises(DecodeError):
        next(bad)
    detector.fails_next = True
    third = joint.detect(frames_of("third", 2), PROMPTS, StageTimes())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        next(third)
    assert seen + [frame.index for frame, _ in good] == [1, 2, 3, 4, 5]
