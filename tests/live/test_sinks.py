"""Sinks: what they write can be read, what they lose is counted, and nothing they do holds up tracking."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import masks as mask_ops
from pipeline.errors import UsageError
from pipeline.live.events import Event, LiveResult
from pipeline.live.sink_parquet import EVENT_SCHEMA, ParquetSink, SegmentWriter
from pipeline.live.sink_video import target_of
from pipeline.live.sink_webhook import MAX_TRIES, WebhookSink
from pipeline.live.sinks import Item, JsonlSink, Outlet, open_sinks
from pipeline.results import FrameResult
from pipeline.store import ROW_SCHEMA
from pipeline.types import RLE
from tests.live.rtsp_server import picture
from tests.live.servers import http_server, wait_for

SIZE = (48, 64)


def result(index: int, ids: Sequence[int] = (1, 2), stream_id: str = "cam", pts_s: float | None = None) -> FrameResult:
    masks = np.zeros((len(ids), *SIZE), bool)
    for k in range(len(ids)):
        masks[k, 5 + k : 20 + k, 10 : 20 + 2 * k] = True
    rles = mask_ops.encode(masks)
    score = np.linspace(0.1, 0.9, len(ids)).astype(np.float32)
    ids_array = np.array(ids, np.int32)
    at = index / 10 if pts_s is None else pts_s
    return FrameResult(
        stream_id, index, at, SIZE, ids_array, ("cup",) * len(ids), score, mask_ops.rle_boxes(rles), rles
    )


def live(index: int, ids: Sequence[int] = (1, 2), stream_id: str = "cam", with_picture: bool = False) -> LiveResult:
    image = picture(SIZE[1], SIZE[0], index / 10, index) if with_picture else None
    return LiveResult(result(index, ids, stream_id), 0, 1000.0 + index, 0.0, image)


def event(index: int, kind: str = "born") -> Event:
    return Event(f"cam:0:{index}:{kind}:1", kind, "cam", 0, index, index / 10, 1000.0 + index, 1, "cup")


class Stuck:
    """A sink that does not return until it is let go."""

    wants_pictures = False

    def __init__(self) -> None:
        self.go = threading.Event()
        self.taken: list[Item] = []

    def write(self, items: Sequence[Item]) -> int:
        self.go.wait(20)
        self.taken += items
        return 0

    def flush(self) -> None:
        return

    def close(self) -> None:
        return


def test_a_stuck_sink_holds_nothing_up_and_its_losses_are_counted() -> None:
    sink = Stuck()
    outlet = Outlet("stuck", sink, capacity=10, batch=1)
    outlet.put(live(0))
    assert wait_for(lambda: outlet.depth == 0)  # it has the first and keeps it
    for k in range(1, 100):
        outlet.put(live(k))
    assert outlet.depth <= 10
    assert outlet.num_lost == 89
    sink.go.set()
    outlet.close(10)
    assert len(sink.taken) + outlet.num_lost == 100
    indices = [item.result.index for item in sink.taken if isinstance(item, LiveResult)]
    assert indices[-1] == 99
    assert indices == sorted(indices)


def test_a_failing_sink_is_tried_again_and_says_why() -> None:
    class Flaky(Stuck):
        def write(self, items: Sequence[Item]) -> int:
            if len(self.taken) == 0:
                self.taken += items
                raise OSError(28, "No space left on device")
            self.taken += items
            return 0

    outlet = Outlet("flaky", Flaky(), capacity=10, batch=1)
    outlet.put(live(0))
    assert wait_for(lambda: outlet.num_lost == 1)
    assert outlet.error == "No space left on device"
    outlet.put(live(1))
    assert wait_for(lambda: outlet.num_written == 1)
    assert outlet.error == ""
    outlet.close(5)


def test_jsonl_rows_have_the_columns_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    outlet = Outlet("jsonl", JsonlSink(str(path)), capacity=10)
    outlet.put(live(0))
    outlet.put(event(0))
    outlet.put(live(1, ids=()))
    outlet.close(5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["type"] for r in rows] == ["masklet", "masklet", "event"]
    assert set(ROW_SCHEMA.names) <= set(rows[0])
    rle = RLE(tuple(rows[0]["rle"]["size"]), rows[0]["rle"]["counts"].encode())
    assert mask_ops.areas([rle])[0] == rows[0]["area_px"]
    assert np.float32(rows[1]["score"]) == result(0).score[1]
    assert rows[2]["event_id"] == "cam:0:0:born:1"


def test_jsonl_goes_on_in_a_new_file_after_rotation(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    sink = JsonlSink(str(path))
    sink.write([event(0)])
    path.rename(tmp_path / "old.jsonl")
    sink.write([event(1)])
    sink.close()
    assert json.loads(path.read_text())["frame"] == 1


def test_jsonl_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    JsonlSink("-").write([event(0)])
    assert json.loads(capsys.readouterr().out)["kind"] == "born"


def test_segments_roll_by_stream_time_and_the_open_part_is_readable(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, segment_s=1.0, rows_per_part=1000)
    for k in range(25):
        writer.add(result(k))
        if k == 14:
            writer.commit()
            frames = [pq.read_table(p)["frame"].to_pylist()[-1] for p in sorted(tmp_path.glob("part-*"))]
            assert frames == [9, 14]
    writer.commit()
    parts = sorted(tmp_path.glob("part-*"))
    assert [p.name for p in parts] == [f"part-{k:05d}.parquet" for k in range(3)]
    tables = [pq.read_table(p) for p in parts]
    assert [t.schema.equals(ROW_SCHEMA) for t in tables] == [True] * 3
    assert [f for t in tables for f in t["frame"].to_pylist()] == [k for k in range(25) for _ in range(2)]


def test_segments_go_on_after_a_restart_without_repeating_rows(tmp_path: Path) -> None:
    first = SegmentWriter(tmp_path, segment_s=60, rows_per_part=1000)
    for k in range(5):
        first.add(result(k))
    first.commit()
    second = SegmentWriter(tmp_path, segment_s=60, rows_per_part=1000)
    for k in range(3, 8):
        second.add(result(k))
    second.commit()
    frames = [f for p in sorted(tmp_path.glob("part-*")) for f in pq.read_table(p)["frame"].to_pylist()]
    assert frames == [k for k in range(8) for _ in range(2)]


def test_a_stream_without_rows_has_one_empty_part(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, segment_s=60, rows_per_part=100)
    sink.write([live(k, ids=()) for k in range(200)])
    sink.write([event(3, "stream_gap")])
    sink.close()
    assert pq.read_table(tmp_path / "masklets").num_rows == 0
    events = pq.read_table(tmp_path / "events" / "cam" / "part-00000.parquet")
    assert events.schema.equals(EVENT_SCHEMA)
    assert events["kind"].to_pylist() == ["stream_gap"]


def test_parts_are_also_rolled_by_rows(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, segment_s=1e9, rows_per_part=10)
    for k in range(100):
        writer.add(result(k))
    writer.commit()
    assert len(list(tmp_path.glob("part-*"))) == 20


def test_webhook_delivers_at_least_once_with_ids() -> None:
    got: list[tuple[str, dict[str, object]]] = []
    answers = iter([503, 0, 200, 200])

    def receive(request) -> None:  # type: ignore[no-untyped-def]
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        got.append((request.headers["Idempotency-Key"], body))
        status = next(answers)
        if status == 0:
            raise ConnectionResetError
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with http_server(receive) as address:
        sink = WebhookSink(address, sleep=lambda _: None)
        assert sink.write([live(0), event(0), live(1, ids=())]) == 0
        assert sink.write([live(2)]) == 0
    assert [key for key, _ in got[:3]] == [got[0][1]["delivery_id"]] * 3  # tried three times, one id
    assert got[3][0] != got[0][0]
    items = got[2][1]["items"]
    assert isinstance(items, list)
    assert [i["type"] for i in items] == ["frame", "event"]
    assert items[0]["frame_id"] == "cam:0:0"
    assert len(items[0]["rows"]) == 2


def test_webhook_gives_up_on_the_dead_and_on_refusals() -> None:
    waits: list[float] = []
    with pytest.raises(OSError, match="no answer"):
        WebhookSink("http://127.0.0.1:9/", sleep=waits.append).write([event(0)])
    assert len(waits) == MAX_TRIES - 1
    assert waits == sorted(waits) or max(waits) <= 10

    def refuse(request) -> None:  # type: ignore[no-untyped-def]
        request.rfile.read(int(request.headers["Content-Length"]))
        request.send_error(410)

    with http_server(refuse) as address, pytest.raises(OSError, match="410"):
        WebhookSink(address).write([event(0)])


def test_a_dead_webhook_loses_rows_but_no_time() -> None:
    [outlet] = open_sinks(["http://127.0.0.1:9/"], capacity=5, segment_s=60, rows_per_part=100)
    start_s = time.monotonic()
    for k in range(50):
        outlet.put(live(k))
    assert time.monotonic() - start_s < 5
    assert wait_for(lambda: outlet.num_lost > 0)
    outlet.close(0.1)
    assert outlet.depth == 0


def test_annotated_video_plays_and_has_the_stream_s_times(tmp_path: Path) -> None:
    [outlet] = open_sinks([f"mp4:{tmp_path}/{{id}}.mp4"], capacity=100, segment_s=60, rows_per_part=100)
    assert outlet.wants_pictures
    for k in range(12):
        outlet.put(live(k, with_picture=True))
        outlet.put(live(k, stream_id="other", with_picture=True))
        time.sleep(0.01)
    outlet.close(30)
    assert outlet.num_lost == 0
    for name in ("cam", "other"):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            frames = list(container.decode(video=0))
        assert len(frames) == 12
        assert [round(f.time, 2) for f in frames] == [round(k / 10, 2) for k in range(12)]
        drawn = frames[3].to_ndarray(format="rgb24").astype(int)
        plain = picture(SIZE[1], SIZE[0], 0.3, 3).astype(int)
        inside = np.abs(drawn - plain)[8:18, 12:18].mean()
        assert inside > 15  # the mask is there


def test_several_streams_into_one_target_do_not_meet() -> None:
    assert target_of("a/{id}.mp4", "cam", is_first=False) == "a/cam.mp4"
    assert target_of("a/v.mp4", "cam", is_first=True) == "a/v.mp4"
    assert target_of("a/v.mp4", "cam", is_first=False) == "a/v-cam.mp4"
    assert target_of("rtsp://h/x", "cam", is_first=False) == "rtsp://h/x-cam"


@pytest.mark.parametrize("spec", ["jsonl", "jsonl:", "ftp://x", "xml:a", ""])
def test_unknown_sinks_are_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        open_sinks([spec], capacity=1, segment_s=1, rows_per_part=1)
