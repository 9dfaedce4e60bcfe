"""The report: one HTML file to scrub a run, filter its masklets and look into each one's life. Works offline."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.view.build import VideoData, build_video

if TYPE_CHECKING:
    from pipeline.store import Run, VideoEntry

EMBED_BYTES = 32 * 2**20
"""Up to so much video and mask data goes into the HTML file itself; what is more is written into a folder beside it."""


def view(run: Run, out: Path, *, video_id: str | None = None) -> Path:
    """Write the report on a run (or on one of its videos) as HTML that opens from disk, without a network.

    Videos are copied small. What exceeds :data:`EMBED_BYTES` goes to the folder ``NAME_files`` beside the report, and
    the report says that the two belong together. A missing source video leaves its masks viewable.

    Raises:
        UsageError: no such video, or the file cannot be written.
        RunError: the run is damaged.
    """
    entries = run.videos if video_id is None else [run.video(video_id)]
    beside = out.with_name(f"{out.stem}_files")
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as scratch:
            writer = _Writer(Path(scratch), beside.name)
            sections = [writer.add(run, i, entry) for i, entry in enumerate(entries)]
            with open(partial, "w", encoding="utf-8") as file:
                for piece in _page(run, sections, writer.blobs):
                    file.write(piece)
            shutil.rmtree(beside, ignore_errors=True)
            if writer.beside.exists():
                os.replace(writer.beside, beside)
            os.replace(partial, out)
    except OSError as error:
        raise UsageError("cannot write the report", str(out), error.strerror or str(error)) from error
    finally:
        with suppress(OSError):  # there may be none, or not even its folder
            partial.unlink()
    return out


@dataclass(frozen=True, slots=True)
class _Blob:
    """Text that stands in the page as a block of its own, read by the script when its video is chosen."""

    element_id: str
    kind: str
    path: Path


class _Writer:
    """Builds one video after the other, and decides what is embedded and what goes beside."""

    def __init__(self, scratch: Path, beside_name: str) -> None:
        self._scratch, self._beside_name = scratch, beside_name
        self.beside = scratch / "beside"
        self.blobs: list[_Blob] = []
        self._left = EMBED_BYTES

    def add(self, run: Run, number: int, entry: VideoEntry) -> dict[str, Any]:
        """The entry of this video in the page's index."""
        about: dict[str, Any] = {
            "id": entry.video_id,
            "uri": entry.uri,
            "status": entry.status,
            "error": entry.error or "",
            "fps": entry.fps or "",
            "data": None,
            "video": None,
            "notice": "",
        }
        if entry.status == "failed":
            return about
        proxy = self._scratch / f"{number:03d}.mp4"
        data = build_video(run, entry, proxy)
        about["notice"] = data.notice
        about["data"] = self._data(number, data)
        about["video"] = self._video(number, proxy) if data.has_video else None
        return about

    def _data(self, number: int, data: VideoData) -> str:
        text = script_json(data.payload)
        if len(text) <= self._left:
            return self._embed(f"data-{number}", "application/json", text)
        name = f"{number:03d}.js"
        self.beside.mkdir(exist_ok=True)
        (self.beside / name).write_text(f"maskletData({number}, {text});\n", encoding="utf-8")
        return f"{self._beside_name}/{name}"

    def _video(self, number: int, proxy: Path) -> str:
        if proxy.stat().st_size * 4 // 3 <= self._left:
            text = base64.b64encode(proxy.read_bytes()).decode()
            proxy.unlink()
            return self._embed(f"video-{number}", "text/plain", text)
        self.beside.mkdir(exist_ok=True)
        os.replace(proxy, self.beside / proxy.name)
        return f"{self._beside_name}/{proxy.name}"

    def _embed(self, element_id: str, kind: str, text: str) -> str:
        self._left -= len(text)
        path = self._scratch / f"{element_id}.txt"
        path.write_text(text, encoding="utf-8")
        self.blobs.append(_Blob(element_id, kind, path))
        return f"#{element_id}"


def script_json(value: Any) -> str:
    """JSON that is safe in a script element and as JavaScript: no tag, comment or line separator can begin in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m.group()):04x}", text)


def _page(run: Run, sections: list[dict[str, Any]], blobs: list[_Blob]) -> Iterator[str]:
    """The pieces of the HTML file: the skeleton, its ``{{NAME}}`` places filled in."""
    css, script = _asset("report.css"), _asset("report.js")
    name = run.folder.resolve().name
    manifest = run.manifest
    index = {
        "run": name,
        "model": manifest.model.get("name") or manifest.model.get("id") or "",
        "version": manifest.masklet_version,
        "status": manifest.status,
        "phrases": manifest.prompts,
        "videos": sections,
    }
    filled = {
        "TITLE": html.escape(f"{name} · masklet"),
        "CSP": html.escape(_policy(css, script)),
        "CSS": css,
        "SCRIPT": script,
        "INDEX": script_json(index),
    }
    for number, piece in enumerate(re.split(r"\{\{([A-Z]+)\}\}", _asset("report.html"))):
        if number % 2 == 0:
            yield piece
        elif piece == "BLOBS":
            yield from _blob_elements(blobs)
        else:
            yield filled[piece]


def _blob_elements(blobs: list[_Blob]) -> Iterator[str]:
    for blob in blobs:
        yield f'<script type="{blob.kind}" id="{blob.element_id}">'
        yield blob.path.read_text(encoding="utf-8")
        yield "</script>\n"


def _policy(css: str, script: str) -> str:
    """A content security policy: only this page's own script and style run, nothing is fetched from elsewhere."""
    return (
        f"default-src 'none'; script-src 'self' file: {_digest(script)}; style-src {_digest(css)}; img-src data:; "
        "media-src 'self' blob: file:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("pipeline.view").joinpath("assets", name).read_text(encoding="utf-8")
