"""What is malformed ends as a one-line error, and nothing half-written stays."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import FormatError, MaskletError, RunError, RunExistsError, SourceError, UsageError
from pipeline.masks import fault_of, run_lengths
from pipeline.sinks import FORMATS, export_run, import_file
from pipeline.store import Run, open_run
from pipeline.types import RLE
from tests.runs import make_run


def refused(path: Path, name: str, out: Path, match: str, kind: type[MaskletError] = FormatError) -> None:
    """Importing ``path`` gives this error, in one line, and leaves nothing."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind, match=match) as caught:
        import_file(path, name, out)
    assert "\n" not in str(caught.value)
    assert not out.exists() and sorted(out.parent.iterdir()) == before


Edit = Callable[[dict[str, Any]], object]


def set_counts(document: dict[str, Any], counts: Any) -> None:
    document["annotations"][0]["segmentation"]["counts"] = counts


COCO_FAULTS: dict[str, tuple[Edit, str]] = {
    "counts that run over": (lambda d: set_counts(d, "0" * 5), "do not fill the frame"),
    "counts that are no counts": (lambda d: set_counts(d, "\x01\x02"), "malformed"),
    "counts beyond ASCII": (lambda d: set_counts(d, "äöü"), "malformed|do not fill"),
    "counts of another size": (
        lambda d: d["annotations"][0]["segmentation"].update(size=[5, 5]),
        r"its size is \[5, 5\]",
    ),
    "negative runs": (lambda d: set_counts(d, [-1, 48 * 64 + 1]), "do not fill"),
    "a polygon outside": (
        lambda d: d["annotations"][0].update(segmentation=[[0, 0, 9e9, 0, 0, 9]]),
        "outside the frame",
    ),
    "a polygon of two points": (lambda d: d["annotations"][0].update(segmentation=[[0, 0, 1, 1]]), "three points"),
    "a segmentation that is none": (lambda d: d["annotations"][0].update(segmentation="x"), "neither RLE nor polygons"),
    "a mask twice": (lambda d: d["annotations"].append(d["annotations"][0]), "is there twice"),
    "an image twice": (lambda d: d["images"].append(d["images"][0]), "twice in images"),
    "a video twice": (lambda d: d["videos"].append(d["videos"][0]), "twice in videos"),
    "an unknown image": (lambda d: d["annotations"][0].update(image_id=999), "image 999, which is not listed"),
    "an unknown category": (lambda d: d["annotations"][0].update(category_id=999), "category 999 is not listed"),
    "a huge id": (lambda d: d["annotations"][0].update(track_id=10**30), "below 2\\^63"),
    "an id that is no number": (lambda d: d["annotations"][0].update(track_id="a"), "below 2\\^63"),
    "no track": (
        lambda d: [d["annotations"][0].pop(k) for k in ("track_id", "instance_id")],
        "plain COCO has no tracks",
    ),
    "a name that climbs": (lambda d: d["videos"][0].update(name="../../etc"), "leaves its folder"),
    "a name at the root": (lambda d: d["videos"][0].update(name="/etc/passwd"), "leaves its folder"),
    "a name with a null": (lambda d: d["videos"][0].update(name="a\0b"), "cannot be a file name"),
    "a negative width": (lambda d: d["videos"][0].update(width=-4), "pixels"),
    "a huge frame": (lambda d: d["videos"][0].update(width=10**9), "pixels"),
    "a frame number below 0": (lambda d: d["images"][0].update(frame_id=-1), "not within the video"),
    "a score that is no number": (lambda d: d["annotations"][0].update(score="high"), "finite number"),
    "a box of three": (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "a bbox must be"),
    "a rate of zero frames": (lambda d: d["videos"][0].update(fps="-3"), "frame rate"),
    "a row that is no object": (lambda d: d["annotations"].append(7), "must be an object"),
    "no videos": (lambda d: [d.pop("videos"), d.pop("images")], "no videos"),
}


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    run = make_run(tmp_path / "run", "gaps", 0)
    export_run(run, ["coco"], tmp_path / "export")
    loaded: dict[str, Any] = json.loads((tmp_path / "export" / "coco" / "annotations.json").read_text())
    return loaded


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_malformed_coco(tmp_path: Path, document: dict[str, Any], fault: str) -> None:
    edit, match = COCO_FAULTS[fault]
    path = tmp_path / "in.json"
    path.write_text(json.dumps(document))
    import_file(path, "coco", tmp_path / "good")
    edit(document)
    path.write_text(json.dumps(document))
    refused(path, "coco", tmp_path / "bad", match)


@pytest.mark.parametrize("name", ["coco", "ytvis", "saco"])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "neither a JSON object|not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"videos": [', "not valid JSON"),
        (b'{"videos": [], "annotations": [NaN]}', "NaN is not JSON"),
        (b'{"videos": []} trailing', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON|ground truth beside"),
        (b'{"videos": ' + b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe\x00{", "cannot read the file|not valid JSON"),
        (b"42", "neither a JSON object"),
        (b'{"videos": 3, "annotations": []}', "must be an object|no videos"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_malformed_json(tmp_path: Path, name: str, text: bytes, match: str) -> None:
    (tmp_path / "in.json").write_bytes(text)
    refused(tmp_path / "in.json", name, tmp_path / "run", match)


TRACK_FAULTS: dict[str, tuple[Edit, str]] = {
    "lists of two lengths": (lambda d: d["annotations"][0]["bboxes"].pop(), "not one for each"),
    "no masks": (lambda d: d["annotations"][0].pop("segmentations"), "no list of segmentations"),
    "an unknown video": (lambda d: d["annotations"][0].update(video_id=77), "video 77, which is not listed|'77'"),
}


@pytest.mark.parametrize("fault", TRACK_FAULTS)
@pytest.mark.parametrize(("name", "file"), [("ytvis", "annotations.json"), ("saco", "ground_truth.json")])
def test_malformed_tracks(tmp_path: Path, name: str, file: str, fault: str) -> None:
    run = make_run(tmp_path / "run", "gaps", 0)
    export_run(run, [name], tmp_path / "export")
    content = json.loads((tmp_path / "export" / name / file).read_text())
    edit, match = TRACK_FAULTS[fault]
    edit(content)
    (tmp_path / "in.json").write_text(json.dumps(content))
    refused(tmp_path / "in.json", name, tmp_path / "bad", match)


def test_more_masks_than_the_video_has_frames(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain", 0)
    export_run(run, ["ytvis"], tmp_path / "export")
    content = json.loads((tmp_path / "export" / "ytvis" / "annotations.json").read_text())
    content["videos"][0]["file_names"] = content["videos"][0]["file_names"][:1]
    (tmp_path / "in.json").write_text(json.dumps(content))
    refused(tmp_path / "in.json", "ytvis", tmp_path / "bad", "not within the video's 1 frames")


def test_results_without_their_ground_truth(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    refused(tmp_path / "results.json", "ytvis", tmp_path / "run", "put the ground truth beside them")


INI = "[Sequence]\nimWidth=64\nimHeight=48\nseqLength=5\nframeRate=25\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1,1,0,0,5\n", "5 columns"),
        ("a,b,c,d,e,f,g\n", "finite number"),
        ("1,1,0,0,nan,5,1,-1,-1,-1\n", "finite number"),
        ("0,1,0,0,5,5,1,-1,-1,-1\n", "frames count from 1"),
        ("6,1,0,0,5,5,1,-1,-1,-1\n", "not within the video's 5 frames"),
        ("1,-1,0,0,5,5,1,-1,-1,-1\n", "no id"),
        ("1,1e30,0,0,5,5,1,-1,-1,-1\n", "below 2\\^63"),
        ("1,1.5,0,0,5,5,1,-1,-1,-1\n", "whole number"),
        ("1,1,0,0,0,5,1,-1,-1,-1\n", "no area"),
        ("1,1,100,0,5,5,1,-1,-1,-1\n", "outside the frame"),
        ("1,1,0,0,5,5,1,-1,-1,-1\n1,1,9,9,5,5,1,-1,-1,-1\n", "is there twice"),
        ("\x00\x01", "column|not a MOT"),
    ],
)
def test_malformed_mot(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "clip.ini").write_text(INI)
    (tmp_path / "clip.txt").write_text(text)
    refused(tmp_path / "clip.txt", "mot", tmp_path / "run", match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1 1 2 48 64\n", "5 columns"),
        ("1 1 2 48 64 000\n", "do not fill"),
        ("1 1 2 9 9 `2\n", "its size is"),
        ("1 1 2 0 64 a\n", "pixels"),
        ("-1 1 2 48 64 a\n", "negative"),
        ("1 x 2 48 64 a\n", "whole number"),
        ("1 1 2 48 64 ä\n", "not a MOTS"),
    ],
)
def test_malformed_mots(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "clip.ini").write_text(INI)
    (tmp_path / "clip.txt").write_text(text)
    refused(tmp_path / "clip.txt", "mots", tmp_path / "run", match)


def test_an_ini_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "clip.ini").write_text("nonsense")
    (tmp_path / "clip.txt").write_text("1,1,0,0,5,5,1\n")
    refused(tmp_path / "clip.txt", "mot", tmp_path / "run", "seqinfo.ini")


def test_pictures_that_are_no_labels(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "clip"
    folder.mkdir(parents=True)
    refused(tmp_path / "in", "davis", tmp_path / "run", "no PNG files")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "00000.png")
    refused(tmp_path / "in", "davis", tmp_path / "run", "RGB, not indexed")
    (folder / "00000.png").write_bytes(b"garbage")
    refused(tmp_path / "in", "davis", tmp_path / "run", "not a PNG")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "00000.png")
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(folder / "00001.png")
    refused(tmp_path / "in", "davis", tmp_path / "run", "the first is 4 x 4")
    whole = (folder / "00000.png").read_bytes()
    (folder / "00001.png").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "in", "davis", tmp_path / "run", "not a PNG")


CVAT = (
    "<annotations><meta><task><size>5</size><original_size><width>64</width><height>48</height></original_size>"
    '</task></meta><track id="0" label="cat">{}</track></annotations>'
)
POLYGON = '<polygon frame="{}" outside="0" points="{}"/>'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid XML"),
        ("<annotations>", "not valid XML"),
        ("<svg/>", "root is <svg>"),
        ('<!DOCTYPE annotations [<!ENTITY a "aaaa">]><annotations>&a;</annotations>', "DOCTYPE"),
        ('<!DOCTYPE annotations SYSTEM "file:///etc/passwd"><annotations/>', "DOCTYPE"),
        ("<annotations/>", "no original_size"),
        ('<annotations><image id="0"/></annotations>', "CVAT for images"),
        (CVAT.format(POLYGON.format(9, "0,0;5,0;5,5")), "not within the video's 5 frames"),
        (CVAT.format(POLYGON.format("x", "0,0;5,0;5,5")), "whole number"),
        (CVAT.format(POLYGON.format(0, "0,0;5,0")), "three points"),
        (CVAT.format(POLYGON.format(0, "0,0;5,z;5,5")), "finite number"),
        (CVAT.format(POLYGON.format(0, "0,0;900,0;5,5")), "outside the frame"),
        (CVAT.format(POLYGON.format(0, "0,0;5,0;5,5") * 2), "is there twice"),
        (CVAT.format('<mask frame="0" rle="1,9" left="0" top="0" width="9" height="9"/>'), "do not fill its box"),
        (CVAT.format('<mask frame="0" rle="0,81" left="60" top="0" width="9" height="9"/>'), "outside the frame"),
        (CVAT.format('<box frame="0" xtl="5" ytl="5" xbr="5" ybr="9"/>'), "no area"),
    ],
)
def test_malformed_cvat(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "in.xml").write_text(text)
    refused(tmp_path / "in.xml", "cvat", tmp_path / "run", match)


def test_cvat_masks_and_boxes_are_read(tmp_path: Path) -> None:
    shapes = (
        '<mask frame="0" rle="1,2,1" left="3" top="4" width="2" height="2"/>'
        '<box frame="1" outside="0" xtl="5" ytl="6" xbr="8" ybr="10"/>'
        '<box frame="2" outside="1" xtl="5" ytl="6" xbr="8" ybr="10"/>'
        '<points frame="3" points="1,1"/>'
    )
    (tmp_path / "in.xml").write_text(CVAT.format(shapes))
    report = import_file(tmp_path / "in.xml", "cvat", tmp_path / "run")
    first, second = open_run(report.folder).frames("in")
    assert [tuple(p) for p in np.argwhere(first.masks()[0]).tolist()] == [(4, 4), (5, 3)]
    assert second.xyxy.tolist() == [[5, 6, 8, 10]] and second.masks()[0][6:10, 5:8].all() and second.area_px()[0] == 12
    assert report.notes == ("1 shapes of another kind than polygon, box, mask were left out",)


@pytest.mark.parametrize("member", ["../evil.xml", "/evil.xml", "a/../../evil.xml", "..\\evil.xml", "C:\\evil.xml"])
def test_a_zip_that_leaves_its_folder(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr(member, "<annotations/>")
    refused(tmp_path / "in.zip", "cvat", tmp_path / "run", "leaves its folder")


def test_a_damaged_zip_and_a_good_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("annotations.xml", CVAT.format(POLYGON.format(0, "0,0;5,0;5,5")))
    assert import_file(tmp_path / "in.zip", "cvat", tmp_path / "good").num_masklets == 1
    content = bytearray((tmp_path / "in.zip").read_bytes())
    content[40:60] = b"x" * 20
    (tmp_path / "in.zip").write_bytes(content)
    refused(tmp_path / "in.zip", "cvat", tmp_path / "run", "zip is damaged|not valid XML")


def test_names_and_places_that_cannot_be(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    with pytest.raises(UsageError, match=r"no format 'nope'.*choose from coco"):
        export_run(run, ["coco", "nope"], tmp_path / "out")
    with pytest.raises(UsageError, match="no format was named"):
        export_run(run, [" "], tmp_path / "out")
    refused(tmp_path / "missing", "coco", tmp_path / "r", "no such file", UsageError)
    refused(tmp_path / "run", "csv", tmp_path / "r", "exported but not imported", UsageError)
    (tmp_path / "in.txt").write_text("1,1,0,0,5,5,1\n")
    with pytest.raises(RunExistsError, match="--overwrite"):
        import_file(tmp_path / "in.txt", "mot", tmp_path / "run")
    before = (tmp_path / "run" / "manifest.json").read_text()
    (tmp_path / "in.txt").write_text("bad\n")
    with pytest.raises(FormatError):
        import_file(tmp_path / "in.txt", "mot", tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "manifest.json").read_text() == before, "a failed import replaces nothing"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(RunExistsError, match="not a run"):
        import_file(tmp_path / "in.txt", "mot", tmp_path / "full", overwrite=True)
    assert not (tmp_path / "out").exists()


def damage(run: Run, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite the run's last part."""
    part = run.parts("clip")[-1]
    pq.write_table(edit(pq.read_table(part)), part)


def replaced(column: str, values: list[Any]) -> Callable[[pa.Table], pa.Table]:
    """An edit that puts these values at the head of a column."""

    def edit(table: pa.Table) -> pa.Table:
        index = table.column_names.index(column)
        content = [*values, *table[column].to_pylist()[len(values) :]]
        return table.set_column(
            index, table.schema.field(index), pa.array(content, type=table.schema.field(index).type)
        )

    return edit


PART_FAULTS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "run lengths": replaced("rle", [{"size": [48, 64], "counts": b"00000"}]),
    "rle size": replaced("rle", [{"size": [4, 4], "counts": b"`0"}]),
    "a frame beyond the video": lambda t: replaced("frame", [10**6] * len(t))(t),
    "a frame of before": lambda t: replaced("frame", [0] * len(t))(t),
    "an id of zero": lambda t: replaced("masklet_id", [0] * len(t))(t),
    "an id twice": lambda t: pa.concat_tables([t.slice(0, 1)] * 2),
    "a score that is none": replaced("score", [float("nan")]),
    "an empty field": replaced("prompt", [None]),
    "columns missing": lambda t: t.drop(["score"]),
    "a column of another type": lambda t: t.set_column(1, "frame", pa.array(["x"] * len(t))),
}


@pytest.mark.parametrize("fault", PART_FAULTS)
@pytest.mark.parametrize("name", ["coco", "saco", "davis", "csv"])
def test_damaged_parts(tmp_path: Path, fault: str, name: str) -> None:
    run = make_run(tmp_path / "run", "gaps", 1)
    export_run(run, [name], tmp_path / "out")
    damage(run, PART_FAULTS[fault])
    before = {p: p.read_bytes() for p in sorted((tmp_path / "out").rglob("*")) if p.is_file()}
    with pytest.raises(RunError) as caught:
        export_run(run, [name], tmp_path / "out")
    assert "\n" not in str(caught.value)
    after = {p: p.read_bytes() for p in sorted((tmp_path / "out").rglob("*")) if p.is_file()}
    assert after == before, "the earlier export stays as it was"


def test_a_part_of_garbage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gaps", 1)
    run.parts("clip")[-1].write_bytes(b"garbage")
    with pytest.raises(RunError, match="a part is damaged"):
        export_run(run, ["coco"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_run_whose_video_id_climbs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    manifest = (tmp_path / "run" / "manifest.json").read_text().replace('"clip"', '"../../clip"')
    (tmp_path / "run" / "manifest.json").write_text(manifest)
    with pytest.raises(FormatError, match="cannot be a file name"):
        export_run(open_run(run.folder), ["jsonl"], tmp_path / "out")


def test_pictures_need_the_video(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    for name in (n for n, info in FORMATS.items() if info.needs_video):
        with pytest.raises(SourceError, match="needs the source video") as caught:
            export_run(run, [name], tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out" / name).exists()


def test_a_folder_that_no_export_wrote_is_not_touched(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    (tmp_path / "out" / "coco").mkdir(parents=True)
    (tmp_path / "out" / "coco" / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="no export wrote it"):
        export_run(run, ["csv", "coco"], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["coco"]
    assert (tmp_path / "out" / "coco" / "precious.txt").read_text() == "mine"


def test_run_lengths_are_those_of_pycocotools() -> None:
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 30, 2).tolist()
        mask = rng.random((height, width)) < rng.random()
        counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        runs = run_lengths(counts)
        assert runs is not None
        flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
        assert np.array_equal(flat.reshape(height, width, order="F"), mask)
        assert fault_of(RLE((height, width), counts), (height, width)) is None
        assert fault_of(RLE((height, width), counts), (height, width + 1)) is not None
    for counts in (b"", b"o", b"~~", b"\x00", b"oooooooooo0"):
        assert run_lengths(counts) is None


def test_messages_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text("1,1,0,0,5,5,1,-1,-1,-1\nx\n")
    with pytest.raises(FormatError) as caught:
        import_file(tmp_path / "clip.txt", "mot", tmp_path / "run")
    assert re.search(r"clip\.txt, line 2", str(caught.value))
