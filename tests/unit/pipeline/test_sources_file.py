"""Everything a user may name as SOURCE, and the names the videos get."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.decode import probe, read
from pipeline.errors import SourceError
from pipeline.sources.file import expand
from tests import synth


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def _ids(*specs: str | Path) -> list[str]:
    return [item.video_id for item in expand([str(spec) for spec in specs])]


def test_file_whatever_its_suffix(tmp_path: Path) -> None:
    _touch(tmp_path, "clip.mp4", "odd.xyz")
    assert _ids(tmp_path / "clip.mp4", tmp_path / "odd.xyz") == ["clip", "odd.xyz"]
    assert expand([str(tmp_path / "clip.mp4")])[0].uri == str(tmp_path / "clip.mp4")


def test_folder_is_its_top_level_in_natural_order(tmp_path: Path) -> None:
    _touch(tmp_path, "v10.mp4", "v2.MOV", "v1.webm", ".hidden.mp4", "notes.pdf", "thumb.jpg", "deeper/v3.mp4")
    assert _ids(tmp_path) == ["v1", "v2", "v10"]


def test_folder_of_pictures_is_one_video(tmp_path: Path) -> None:
    _touch(tmp_path, "shot.01/0.jpg", "shot.01/1.jpg")
    items = expand([str(tmp_path / "shot.01") + "/"])
    assert [item.video_id for item in items] == ["shot.01"]


def test_glob_matches_videos_and_folders_of_pictures(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.mp4", "a/b/y.mp4", "a/b/y.txt", "f/1.png", "g/1.png", "h/1.pdf", "n[1].mp4")
    assert _ids(tmp_path / "a" / "**" / "*") == ["y", "x"]
    assert _ids(tmp_path / "[a-z]") == ["f", "g"]
    assert _ids(tmp_path / "n[1].mp4") == ["n_1"]  # a name that exists is not a pattern


def test_names_are_unique_and_fit_for_files(tmp_path: Path) -> None:
    _touch(tmp_path, "a/cam.mp4", "b/cam.mp4", "c/Cam.mkv", "c/cam-2.mp4", "c/_x=y z.mp4", "c/猫.mp4")
    ids = _ids(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert ids == ["cam", "cam-2", "x_y_z", "cam-2-2", "Cam-3", "猫"]


def test_manifests(tmp_path: Path) -> None:
    _touch(tmp_path, "v/a.mp4", "v/b.mp4", "f/1.png")
    (tmp_path / "list.txt").write_text(f"# comment\nv/a.mp4\n\n{tmp_path}/v/b.mp4\nf\nhttps://h/c.mp4?x=1\n")
    items = expand([str(tmp_path / "list.txt")])
    assert [i.video_id for i in items] == ["a", "b", "f", "c"]
    assert items[0].uri == str(tmp_path / "v/a.mp4")
    (tmp_path / "list.csv").write_text("video_id,path\nleft,v/a.mp4\nright,v/b.mp4\n", encoding="utf-8-sig")
    assert _ids(tmp_path / "list.csv") == ["left", "right"]
    (tmp_path / "bare.csv").write_text("v/a.mp4\nv/b.mp4,ignored\n")
    assert _ids(tmp_path / "bare.csv") == ["a", "b"]
    rows = [{"uri": "v/a.mp4", "video_id": "one"}, "v/b.mp4"]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert _ids(tmp_path / "list.jsonl") == ["one", "b"]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("m.txt", "# nothing\n", "lists no video"),
        ("m.csv", "path\n", "lists no video"),
        ("m.jsonl", "{oops\n", "line 1"),
        ("m.jsonl", '"a.mp4"\n{"size": 3}\n', "line 2"),
    ],
)
def test_bad_manifests(tmp_path: Path, name: str, text: str, what: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=what):
        expand([str(tmp_path / name)])


def test_bad_sources(tmp_path: Path) -> None:
    _touch(tmp_path, "empty/readme.md", "a.mp4")
    for spec, what in [
        (tmp_path / "no.mp4", "no such file"),
        (tmp_path / "no.txt", "no such file"),
        (tmp_path / "empty", "no videos or pictures"),
        (tmp_path / "*.avi", "no video matches"),
        ("rtsp://me:secret@cam/1", "masklet stream"),
        ("nosuch://bucket/a.mp4", "cannot be listed|no driver"),
    ]:
        with pytest.raises(SourceError, match=what) as error:
            expand([str(spec)])
        assert "secret" not in str(error.value)
    with pytest.raises(SourceError, match="no source"):
        expand([])


def test_a_missing_file_beside_others_fails_alone(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4")
    assert _ids(tmp_path / "a.mp4", tmp_path / "no.mp4") == ["a", "no"]


def test_fsspec_file_folder_glob_and_reading(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    data = synth.video(tmp_path / "a.mp4", 30).read_bytes()
    for name in ("/bucket/v10.mp4", "/bucket/v9.mp4", "/bucket/readme.md"):
        system.pipe_file(name, data)
    try:
        assert _ids("memory://bucket") == _ids("memory://bucket/*.mp4") == ["v9", "v10"]
        with pytest.raises(SourceError, match="no videos there"):
            expand(["memory://bucket/*.md"])
        item = expand(["memory://bucket/v9.mp4"])[0]
        table = probe(item.uri, item.video_id)
        assert (table.decord_ok, table.decord_reason) == (False, "it is not a local file")
        assert [synth.read_barcode(f.image) for f in read(table, 17, 25)] == list(range(17, 25))
        with pytest.raises(SourceError, match="no such file"):
            probe("memory://bucket/none.mp4", "x")
    finally:
        system.rm("/bucket", recursive=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            del args

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_http_video_and_manifest(server: str, tmp_path: Path) -> None:
    synth.video(tmp_path / "a b.mp4", 30)
    (tmp_path / "list.txt").write_text("a%20b.mp4\n")
    items = expand([f"{server}/list.txt", f"{server}/a%20b.mp4?token=secret"])
    assert [item.video_id for item in items] == ["a_b", "a_b-2"]
    table = probe(items[1].uri, items[1].video_id)
    assert "secret" not in table.info.uri + repr(table)
    assert [synth.read_barcode(f.image) for f in read(table, 17, 25)] == list(range(17, 25))
    with pytest.raises(SourceError, match="no such file"):
        probe(f"{server}/none.mp4", "x")
