"""Association measured on real pedestrians: ``bytetrack`` on the detections of a file, beside roboflow's ByteTrack."""

from __future__ import annotations

import configparser
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from configs.schema import DetectorConfig, TrackerConfig
from pipeline import flow
from pipeline.detectors.scripted import ScriptedDetector, scripted_prompts
from pipeline.evaluate import EvalReport
from pipeline.groundtruth import evaluate_runs
from pipeline.link import MaskletNumbering, ReleaseBuffer
from pipeline.store import Manifest, Run, RunWriter, VideoEntry, open_run
from pipeline.telemetry import StageTimes
from pipeline.types import Frame
from trackers.bytetrack import ByteTrackTracker

SEQUENCES = ("KITTI-17", "TUD-Campus", "TUD-Stadtmitte")
ROBOFLOW: Mapping[str, Mapping[str, float]] = json.loads(Path(__file__).with_name("mot15.json").read_text())
REFERENCE = {"TUD-Campus": (0.3913974, 0.526462, 0.557659), "TUD-Stadtmitte": (0.3978490, 0.564014, 0.644619)}
"""HOTA, MOTA, IDF1 of the sample results in the motmetrics package, by TrackEval 1.3.0 (motmetrics agrees)."""


def track(sequence: Path, detections: Path, out: Path) -> Run:
    """A run folder of this sequence, made as ``masklet track --detections FILE --tracker bytetrack`` does."""
    ini = configparser.ConfigParser()
    ini.read(sequence / "seqinfo.ini")
    info = ini["Sequence"]
    size, length = (int(info["imHeight"]), int(info["imWidth"])), int(info["seqLength"])
    config, name = DetectorConfig(detections=str(detections)), sequence.name

    def frames() -> Iterator[Frame]:
        blank = np.zeros((1, 1, 3), np.uint8)
        return (Frame(name, t, t / 25, blank, size) for t in range(length))

    prompts, times = scripted_prompts(config, ("pedestrian",)), StageTimes()
    detected = flow.detect(frames(), ScriptedDetector(config), prompts, 8, times)
    tracked = flow.track(detected, ByteTrackTracker(TrackerConfig(name="bytetrack"), stream_id=name), times)
    buffer = ReleaseBuffer(TrackerConfig().hotstart_delay_frames)
    writer = RunWriter.create(out, Manifest("0", {"id": "detections"}, ["pedestrian"], [], "none"), "{}\n")
    with writer.video(name, rows_per_part=1000, frames_per_part=100) as video:
        for result in flow.release(tracked, buffer, MaskletNumbering(name, prompts, size)):
            video.write(result)
    writer.end_video(VideoEntry(name, name, "done", size[1], size[0], "25/1", length, length))
    return open_run(out)


def scores(run: Run, gt: Path) -> Mapping[str, float]:
    report = evaluate_runs([run], gt, "mot", ("hota", "clear", "identity"))
    assert isinstance(report, EvalReport)
    return report.overall["box"]


@pytest.mark.parametrize("name", REFERENCE)
def test_published_values_are_reproduced(data: Path, tmp_path: Path, name: str) -> None:
    from pipeline.sinks import import_file

    sequence = data / "mot15" / name
    import_file(sequence / "tracker" / "motmetrics_sample.txt", "mot", tmp_path / "run", size=(640, 480))
    got = scores(open_run(tmp_path / "run"), sequence)
    assert (got["HOTA"], got["MOTA"], got["IDF1"]) == pytest.approx(REFERENCE[name], abs=1e-6)


def test_bytetrack_is_at_least_as_good_as_roboflows(data: Path, tmp_path: Path) -> None:
    assert all(ROBOFLOW[name]["HOTA"] > 0.4 for name in SEQUENCES)
    ours = {}
    for name in SEQUENCES:
        sequence = data / "mot15" / name
        ours[name] = scores(track(sequence, sequence / "det" / "det_sort_frcnn.txt", tmp_path / name), sequence)
    assert pooled_idf1(ours) >= pooled_idf1(ROBOFLOW)
    assert np.mean([s["HOTA"] for s in ours.values()]) >= np.mean([ROBOFLOW[n]["HOTA"] for n in SEQUENCES])


def pooled_idf1(results: Mapping[str, Mapping[str, float]]) -> float:
    tp, fp, fn = (sum(results[n][key] for n in SEQUENCES) for key in ("IDTP", "IDFP", "IDFN"))
    return tp / (tp + 0.5 * fp + 0.5 * fn)


@pytest.mark.parametrize("name", SEQUENCES)
def test_true_boxes_are_linked_almost_perfectly(data: Path, tmp_path: Path, name: str) -> None:
    """Ids removed, order shuffled."""
    sequence = data / "mot15" / name
    rows = np.loadtxt(sequence / "gt" / "gt.txt", delimiter=",")
    rows = np.random.default_rng(0).permutation(rows[rows[:, 6] != 0])
    rows[:, 1] = -1
    np.savetxt(tmp_path / "det.txt", rows[:, :7], fmt="%g", delimiter=",")
    assert scores(track(sequence, tmp_path / "det.txt", tmp_path / "run"), sequence)["HOTA"] >= 0.93


def test_acf_detections_with_their_own_scores_are_tracked_too(data: Path, tmp_path: Path) -> None:
    sequence = data / "mot15" / "TUD-Campus"
    run = track(sequence, sequence / "det" / "det_public_acf.txt", tmp_path / "run")
    assert run.table(columns=["masklet_id"]).num_rows > 0
