"""Opens one live source with FFmpeg, fenced in: which protocols, formats, hosts and sizes it may use.

A playlist or a redirect comes from the other side and must not make this machine read its own files or call other
hosts. So every kind of address has its own protocol and format list, and HTTP does not go through FFmpeg's client at
all: each address a playlist leads to passes through :class:`HttpDoor`, which knows the allowed hosts.
"""

from __future__ import annotations

import base64
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPMessage, HTTPResponse
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from configs.schema import LiveConfig
from pipeline.decode_table import local_path, scheme_of, video_stream
from pipeline.errors import NoVideoError, SourceError, UsageError
from pipeline.sources.live_redact import is_ambiguous, redact

NETWORK_SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "tcp")
_HTTP_FORMATS = "hls,mpegts,mpjpeg,mjpeg,mov,matroska,flv,h264,hevc,ogg"
_FILE_FORMATS = "mov,matroska,webm,mpegts,avi,flv,mpeg,ogg,asf,h264,hevc,mjpeg,gif,ivf"
_RTSP_PORT, _MAX_LINES, _MAX_LINE = 554, 64, 4096
PLAYLIST_PATIENCE_S = 15.0
"""A playlist says nothing between two segments, which are up to ten seconds long."""
_RTSP_PROTOCOLS = "rtsp,rtsps,rtp,srtp,udp,tcp,tls"


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """One source to follow."""

    stream_id: str
    uri: str
    """As the user gave it, perhaps with a password: never log or show this, but :attr:`shown`."""
    realtime: bool = False
    """A file at its own speed; without, as fast as it is tracked."""

    @property
    def shown(self) -> str:
        """The address without credentials."""
        return redact(self.uri)

    @property
    def is_webcam(self) -> bool:
        """Whether the address is a webcam's number."""
        return self.uri.isdecimal()

    @property
    def is_file(self) -> bool:
        """Whether it ends on its own, so that an end is no failure."""
        return not self.is_webcam and not scheme_of(self.uri)

    def __repr__(self) -> str:
        return f"CameraSpec({self.stream_id!r}, {self.shown!r})"


def parse_cameras(uris: Sequence[str], *, realtime: bool = False, taken: Sequence[str] = ()) -> list[CameraSpec]:
    """A camera for each address, with an id that is unique and fit for a folder name.

    Raises:
        UsageError: an address of a kind that cannot be streamed.
        SourceError: a file that does not exist.
    """
    cameras: list[CameraSpec] = []
    used = set(taken)
    for uri in uris:
        check_camera(CameraSpec("", uri, realtime))
        stream_id = _unique(_slug(uri), used)
        used.add(stream_id)
        cameras.append(CameraSpec(stream_id, uri, realtime))
    return cameras


def check_camera(spec: CameraSpec) -> None:
    """Refuse what cannot be opened for reasons that do not change."""
    scheme = scheme_of(spec.uri)
    if scheme and is_ambiguous(spec.uri):
        raise UsageError("a bad host", spec.shown, "percent-encode / ? # of a password: %2F %3F %23")
    if any(ord(c) < 33 for c in spec.uri) and scheme:
        raise UsageError("an address with blanks or control characters", spec.shown)
    if spec.is_webcam:
        return
    if scheme:
        if scheme not in NETWORK_SCHEMES or (not urlsplit(spec.uri).hostname and scheme != "udp"):
            raise UsageError(
                f"cannot stream from {scheme}://",
                spec.shown,
                f"use {', '.join(NETWORK_SCHEMES)}, a webcam number or a file",
            )
    elif not local_path(spec.uri).is_file():
        raise SourceError("no such file", spec.shown, "give a URL, a webcam number or a file")


def _slug(uri: str) -> str:
    """A readable name without credentials: host and path of a URL, the stem of a file, ``webcam0``."""
    if uri.isdecimal():
        return f"webcam{int(uri)}"
    if not scheme_of(uri):
        name = local_path(uri).stem
    else:
        parts = urlsplit(redact(uri))
        name = "-".join(p for p in (parts.hostname or "", str(_port(parts) or ""), *parts.path.split("/")) if p)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:64] or "camera"


def _port(parts: Any) -> int | None:
    try:
        port: int | None = parts.port
    except ValueError:
        raise UsageError("an address with a bad port", redact(urlunsplit(parts))) from None
    return port


def _unique(name: str, used: set[str]) -> str:
    if name not in used:
        return name
    return next(f"{name}-{n}" for n in range(2, len(used) + 3) if f"{name}-{n}" not in used)


class UnfitSourceError(SourceError):
    """A stream of a codec or size that is not taken: no new try helps."""


@contextmanager
def open_live(spec: CameraSpec, config: LiveConfig) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the camera; closed on exit.

    Raises:
        UnfitSourceError: its frames are larger than ``max_frame_px``, or nothing here decodes them.
        SourceError: there is no video in it, or no such webcam.
        av.error.FFmpegError, OSError: it cannot be reached.
    """
    door = HttpDoor(spec.uri, config) if scheme_of(spec.uri) in ("http", "https") else None
    if scheme_of(spec.uri) == "rtsp":
        refuse_rtsp_redirect(spec.uri, config)
    try:
        # Between two segments of a playlist nothing comes; who serves them is watched by the door.
        patience_s = config.stall_timeout_s if door is None else max(config.stall_timeout_s, PLAYLIST_PATIENCE_S)
        timeout = (config.open_timeout_s, patience_s)
        with av.open(**_arguments(spec, config, door), timeout=timeout, metadata_errors="replace") as container:
            stream = _video_stream(container, spec)
            stream.codec_context.thread_count = config.decode_threads
            check_size(stream.codec_context.width, stream.codec_context.height, spec, config)
            yield container, stream
    finally:
        if door is not None:
            door.close()


def _video_stream(container: InputContainer, spec: CameraSpec) -> VideoStream:
    try:
        return video_stream(container, spec.shown)
    except NoVideoError:
        raise
    except SourceError as error:
        raise UnfitSourceError(error.what, error.where, error.todo) from error


def check_size(width: int, height: int, spec: CameraSpec, config: LiveConfig) -> None:
    """Refuse frames that are too large."""
    if width * height > config.max_frame_px:
        raise UnfitSourceError(f"frames of {width}x{height} are too large", spec.shown, "raise live.max_frame_px")


def _arguments(spec: CameraSpec, config: LiveConfig, door: HttpDoor | None) -> dict[str, Any]:
    """What ``av.open`` is told for this kind of address."""
    scheme = scheme_of(spec.uri)
    limits = {"max_pixels": str(config.max_frame_px)}
    if spec.is_webcam:
        return _webcam(int(spec.uri))
    if door is not None:
        # FFmpeg's keep-alive for playlists reaches behind custom input and would abort.
        options = {
            "protocol_whitelist": "http,https,tcp,tls",
            "format_whitelist": _HTTP_FORMATS,
            "http_persistent": "0",
            "allowed_extensions": "ALL",
        }
        return {"file": door.address, "io_open": door.open, "container_options": options | limits}
    if scheme in ("rtsp", "rtsps"):
        options = {
            "protocol_whitelist": _RTSP_PROTOCOLS,
            "rtsp_transport": config.rtsp_transport,
            "timeout": str(round(config.stall_timeout_s * 1e6)),
            "allowed_media_types": "video",
            # What a camera announces is enough to begin with; measuring its frame rate first takes seconds.
            "fpsprobesize": "0",
            "analyzeduration": "500000",
        }
        return {"file": spec.uri, "format": "rtsp", "container_options": options | limits}
    if scheme in ("udp", "tcp"):
        # A forced format: raw bytes must not turn out to be a playlist.
        options = {"protocol_whitelist": scheme, "overrun_nonfatal": "1", "fifo_size": "50000"}
        return {"file": spec.uri, "format": "mpegts", "container_options": options | limits}
    options = {"protocol_whitelist": "file", "format_whitelist": _FILE_FORMATS}
    return {"file": f"file:{local_path(spec.uri).absolute()}", "container_options": options | limits}


def _webcam(number: int) -> dict[str, Any]:
    if sys.platform == "darwin":
        return {"file": str(number), "format": "avfoundation", "container_options": {"framerate": "30"}}
    if sys.platform == "win32":
        return {"file": f"video={number}", "format": "dshow"}
    if not Path(f"/dev/video{number}").exists():
        raise SourceError("no such webcam", f"/dev/video{number}", "see ls /dev/video*")
    return {"file": f"/dev/video{number}", "format": "v4l2"}


def refuse_rtsp_redirect(uri: str, config: LiveConfig) -> None:
    """Ask the camera whether it sends us elsewhere, because FFmpeg would follow without asking.

    One DESCRIBE without credentials (RFC 2326, 10.2 and 11.3), on a connection of its own; a camera that answers FFmpeg
    differently a moment later, or only once it is logged in to, is not caught. What else goes wrong is FFmpeg's to say.

    Raises:
        PermissionError: to a host that is neither its own nor in ``live.allow_hosts``.
    """
    parts = urlsplit(uri)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
    request = f"DESCRIBE {bare} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\nUser-Agent: masklet\r\n\r\n"
    address = (parts.hostname or "", parts.port or _RTSP_PORT)
    try:
        with socket.create_connection(address, config.open_timeout_s) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as answer:
                head = [
                    line.decode("latin-1")
                    for line in takewhile(
                        bytes.strip, islice(iter(partial(answer.readline, _MAX_LINE), b""), _MAX_LINES)
                    )
                ]
    except OSError:
        return
    status = head[0].split(" ")[1:2] if head else []
    target = next((line.partition(":")[2].strip() for line in head if line.lower().startswith("location:")), "")
    host = (urlsplit(target).hostname or "").lower()
    allowed = {(parts.hostname or "").lower(), *(h.lower() for h in config.allow_hosts)}
    if status and status[0].startswith("3") and host not in allowed:
        raise PermissionError(1, f"the stream leads to another host, {host or '?'}: add it to live.allow_hosts")


class HttpDoor:
    """The only way out for an HTTP stream: opens addresses of allowed hosts, one response each.

    The camera's own host is allowed, and those in ``live.allow_hosts``; redirects are checked like any address.
    """

    def __init__(self, uri: str, config: LiveConfig) -> None:
        parts = urlsplit(uri)
        self._hosts = {(parts.hostname or "").lower(), *(h.lower() for h in config.allow_hosts)}
        self._timeout_s = config.stall_timeout_s
        self._authorization = basic_authorization(parts.username, parts.password)
        self._home = (parts.scheme, parts.hostname, parts.port)
        netloc = parts.netloc.rpartition("@")[2]
        self.address = urlunsplit((parts.scheme, netloc, parts.path or "/", parts.query, ""))
        """Without credentials: they travel in a header, and only to the camera itself."""
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Redirects(self))
        self._open: list[_Body] = []

    def open(self, url: str, flags: int, options: dict[str, str]) -> _Body:
        """What FFmpeg calls for the stream itself and for everything it leads to."""
        del flags
        self.check(url)
        request = urllib.request.Request(url, headers={"User-Agent": "masklet", "Accept": "*/*"})
        parts = urlsplit(url)
        if self._authorization and (parts.scheme, parts.hostname, parts.port) == self._home:
            request.add_unredirected_header("Authorization", self._authorization)
        if "offset" in options:
            end = int(options["end_offset"]) - 1 if "end_offset" in options else ""
            request.add_header("Range", f"bytes={int(options['offset'])}-{end}")
        try:
            body = _Body(self._opener.open(request, timeout=self._timeout_s))
        except urllib.error.HTTPError as error:
            error.close()
            raise OSError(error.code, f"HTTP {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            raise OSError(getattr(error.reason, "errno", 5) or 5, str(error.reason)) from None
        self._open = [b for b in self._open if not b.closed] + [body]
        return body

    def check(self, url: str) -> None:
        """Raise ``PermissionError`` unless this address may be opened."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise PermissionError(1, f"the stream leads to {parts.scheme}:, which is not allowed")
        if (parts.hostname or "").lower() not in self._hosts:
            raise PermissionError(1, f"the stream leads to another host, {parts.hostname}: add it to live.allow_hosts")

    def close(self) -> None:
        """Close what FFmpeg left open."""
        for body in self._open:
            body.close()


class _Body:
    """A response as FFmpeg reads it: what has arrived, without waiting for a full buffer."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response
        self.closed = False

    def read(self, size: int) -> bytes:
        return self._response.read1(size)

    def close(self) -> None:
        self.closed = True
        self._response.close()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the allowed hosts."""

    def __init__(self, door: HttpDoor) -> None:
        self._door = door

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        self._door.check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def basic_authorization(user: str | None, password: str | None) -> str:
    """The ``Authorization`` header of basic authentication (RFC 7617); empty without a user."""
    if user is None:
        return ""
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return "Basic " + base64.b64encode(pair).decode()
