"""What the user names as SOURCE becomes a list of videos: files, folders, globs, manifests and remote addresses.

* a file: one video, whatever its name ends with;
* a folder: the videos directly in it, or, if there are none but pictures, those pictures as one video
  (not its subfolders: a glob such as ``clips/**/*.mp4`` reaches them);
* a glob: the videos and the folders of pictures it matches;
* a ``.txt``, ``.csv`` or ``.jsonl`` manifest: one of the above per line, relative to the manifest's folder;
* ``http(s)://``: one video or one manifest; ``s3://``, ``gs://`` and whatever else fsspec knows: file, folder, glob or
  manifest.

Whether a video can be read is found out later: a bad one fails alone.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import posixpath
import re
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec

from pipeline.decode import image_files, is_image_folder, local_path, natural_key, redact, scheme_of
from pipeline.errors import SourceError

__all__ = ["VIDEO_SUFFIXES", "VideoItem", "expand", "redact"]

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".av1", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m2ts", ".m2v",
    ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".obu", ".ogv", ".ts",
    ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
MANIFEST_SUFFIXES = frozenset({".txt", ".csv", ".jsonl"})
LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "udp", "tcp", "srt", "rtp"})
_URI_KEYS = ("uri", "path", "video", "file", "url", "source")
_ID_KEYS = ("video_id", "id", "name")
_DOWNLOAD_TIMEOUT_S = 30.0
_MAX_ID_CHARS = 100


@dataclass(frozen=True, slots=True)
class VideoItem:
    """One video of a job."""

    video_id: str
    """Unique in the job and fit for a file name."""
    uri: str
    """Local path or address, as it is opened: credentials included."""


@dataclass(frozen=True, slots=True)
class _Found:
    uri: str
    wish: str = ""
    """The id a manifest asks for."""


def expand(specs: Sequence[str]) -> list[VideoItem]:
    """The videos that ``specs`` stand for: in the order given, naturally sorted inside a folder or glob.

    A file that does not exist is an error when it is all there is; beside others it becomes an item that fails alone.

    Raises:
        SourceError: a folder or glob without videos, an empty or malformed manifest, an address nobody can list.
    """
    found = [video for spec in specs for video in _expand_one(spec, is_alone=len(specs) == 1)]
    if not found:
        raise SourceError("no source was given", "", "name a video file, a folder, a glob or an address")
    ids = _unique_ids([video.wish or _stem(video.uri) for video in found])
    return [VideoItem(video_id, video.uri) for video_id, video in zip(ids, found, strict=True)]


def _expand_one(spec: str, *, is_alone: bool, in_manifest: bool = False) -> list[_Found]:
    scheme = scheme_of(spec)
    if scheme in LIVE_SCHEMES:
        raise SourceError("a live address", redact(spec), "use `masklet stream`")
    if not in_manifest and _suffix(spec) in MANIFEST_SUFFIXES:
        return _read_manifest(spec)
    if scheme in ("http", "https"):
        return [_Found(spec)]
    if scheme:
        return _expand_remote(spec, scheme)
    return _expand_local(spec, is_alone=is_alone)


def _expand_local(spec: str, *, is_alone: bool) -> list[_Found]:
    path = local_path(spec)
    if path.is_dir():
        return _in_folder(path)
    if path.exists() or not glob.has_magic(str(path)):
        if is_alone and not path.exists():
            raise SourceError("no such file or folder", spec, "check the path")
        return [_Found(str(path))]
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    videos = [p for p in matches if p.suffix.lower() in VIDEO_SUFFIXES or is_image_folder(p)]
    if not videos:
        raise SourceError("no video matches", spec, _hint(len(matches), "quote the pattern and check it"))
    return [_Found(str(p)) for p in sorted(videos, key=lambda p: natural_key(str(p)))]


def _hint(num_others: int, otherwise: str) -> str:
    return f"{num_others} files match, none a video; for pictures name their folder" if num_others else otherwise


def _in_folder(folder: Path) -> list[_Found]:
    files = sorted(folder.iterdir(), key=lambda p: natural_key(p.name))
    videos = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if videos:
        return [_Found(str(p)) for p in videos]
    if image_files(folder):
        return [_Found(str(folder))]
    raise SourceError(
        "no videos or pictures in this folder", str(folder), f"name another, or a glob such as '{folder}/**/*.mp4'"
    )


def _expand_remote(spec: str, scheme: str) -> list[_Found]:
    """List an fsspec address. A chained one (``zip://a.mp4::s3://...``) is a single file."""
    if "::" in spec:
        return [_Found(spec)]
    try:
        system, path = fsspec.core.url_to_fs(spec)
        if glob.has_magic(path):
            names = system.glob(path)
        elif system.isdir(path):
            names = system.ls(path, detail=False)
        else:
            return [_Found(spec)]
    except ImportError as error:
        raise SourceError(f"no driver for {scheme}://", redact(spec), f"install it: {error}") from error
    except Exception as error:  # every driver has its own exceptions for wrong keys, buckets and networks
        raise SourceError(
            f"cannot be listed: {error}", redact(spec), "check the address and your credentials"
        ) from error
    videos = [name for name in names if posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES]
    if not videos:
        raise SourceError("no videos there", redact(spec), _hint(len(names), "check the address"))
    return [_Found(system.unstrip_protocol(name)) for name in sorted(videos, key=natural_key)]


def _read_manifest(spec: str) -> list[_Found]:
    rows = list(_rows(_read_text(spec), _suffix(spec), redact(spec)))
    if not rows:
        raise SourceError("the manifest lists no video", redact(spec), "write one path or address per line")
    found: list[_Found] = []
    for row in rows:
        videos = _expand_one(_beside(spec, row.uri), is_alone=False, in_manifest=True)
        found.extend(_Found(video.uri, row.wish) for video in videos)
    return found


def _rows(text: str, suffix: str, where: str) -> Iterator[_Found]:
    """The entries of a manifest."""
    if suffix == ".csv":
        yield from _csv_rows(text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if suffix == ".jsonl" and line:
            yield _json_row(line, f"{where}, line {number}")
        elif suffix == ".txt" and line and not line.startswith("#"):
            yield _Found(line)


def _csv_rows(text: str) -> Iterator[_Found]:
    """With a header that names a ``uri`` (or ``path``, ...) column; without one the first column counts."""
    table = [
        [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)
    ]
    header = [cell.lower() for cell in table[0]] if table else []
    uri_at = next((header.index(key) for key in _URI_KEYS if key in header), None)
    id_at = next((header.index(key) for key in _ID_KEYS if key in header), None) if uri_at is not None else None
    for row in table if uri_at is None else table[1:]:
        uri = row[uri_at or 0] if len(row) > (uri_at or 0) else ""
        if uri:
            yield _Found(uri, row[id_at] if id_at is not None and len(row) > id_at else "")


def _json_row(line: str, where: str) -> _Found:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise SourceError(f"not JSON: {error.msg}", where, "write one JSON object or string per line") from error
    fields = {"uri": value} if isinstance(value, str) else value if isinstance(value, dict) else {}
    uri = next((fields[key] for key in _URI_KEYS if isinstance(fields.get(key), str) and fields[key]), None)
    if uri is None:
        raise SourceError("no video named", where, 'write {"uri": "..."}')
    wish = next((fields[key] for key in _ID_KEYS if fields.get(key) not in (None, "")), "")
    return _Found(uri, str(wish))


def _read_text(spec: str) -> str:
    try:
        if scheme_of(spec) in ("http", "https"):
            with urllib.request.urlopen(spec, timeout=_DOWNLOAD_TIMEOUT_S) as response:
                data = response.read()
        else:
            with fsspec.open(spec if scheme_of(spec) else str(local_path(spec)), "rb") as file:
                data = file.read()
        return str(data.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise SourceError("no such file", redact(spec), "check the path") from error
    except UnicodeDecodeError as error:
        raise SourceError("the manifest is not UTF-8 text", redact(spec), "save it as UTF-8") from error
    except (OSError, ImportError) as error:
        raise SourceError(f"the manifest cannot be read: {error}", redact(spec), "check the address") from error


def _beside(manifest: str, uri: str) -> str:
    """A manifest's relative entry seen from where the manifest is."""
    if "://" in uri or os.path.isabs(uri) or uri.startswith("~"):
        return uri
    if scheme_of(manifest):
        return manifest.partition("?")[0].rpartition("/")[0] + "/" + uri
    return str(local_path(manifest).parent / uri)


def _name(uri: str) -> str:
    """The last part of a path or address, without query."""
    if scheme_of(uri):
        return posixpath.basename(unquote(urlsplit(uri.partition("::")[0]).path).rstrip("/")) or urlsplit(uri).netloc
    return Path(os.path.abspath(local_path(uri))).name


def _suffix(uri: str) -> str:
    return posixpath.splitext(_name(uri))[1].lower()


def _stem(uri: str) -> str:
    name = _name(uri)
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES | MANIFEST_SUFFIXES else name


def _unique_ids(names: Sequence[str]) -> list[str]:
    """Names fit for files, the second of two equal ones with ``-2``; case does not distinguish them (macOS)."""
    ids: list[str] = []
    taken: set[str] = set()
    for name in map(_safe, names):
        number, unique = 1, name
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        ids.append(unique)
    return ids


def _safe(name: str) -> str:
    """Letters, digits, ``.``, ``-``, ``_``; not starting with ``.`` or ``_``, which Parquet readers take for hidden."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._ ")[:_MAX_ID_CHARS] or "video"
