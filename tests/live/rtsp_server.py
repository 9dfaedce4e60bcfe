"""A small RTSP/1.0 server for tests: the standard library and PyAV, one H.264 track per camera, TCP and UDP.

``python -m tests.live.rtsp_server PORT [--cameras N] [--fps F] [--size WxH] [--seconds S]`` serves ``/cam0``, ``/cam1``
and so on, and prints ``ready PORT``. With ``--film PATH`` (by :func:`write_film`), ``/cam0`` is that film instead, from
its first frame on, once somebody plays it; then it is silent.

It must be a process of its own: cameras die by being killed and freeze by SIGSTOP. Lines on stdin make trouble:
``garbage`` (random bytes instead of RTP for the next second), ``size WxH`` (another resolution from now on). Each
picture shows moving shapes and, in its top rows, a bar code of the wall clock in milliseconds modulo 65536.

Written from RFC 2326 (RTSP), RFC 3550 (RTP) and RFC 6184 (H.264 over RTP, packetization-mode 1).
"""

from __future__ import annotations

import argparse
import base64
import random
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

Sender = Callable[[bytes], None]
MTU = 1400
BAR_SHARE, BAR_BITS = 12, 16
COLOURS = ((220, 40, 40), (40, 80, 220), (40, 170, 70))


def picture(width: int, height: int, t_s: float, clock_ms: int) -> np.ndarray:
    """Three discs (red, blue, green) that never touch, over a grey ground, and the clock as a bar code on top."""
    image = np.full((height, width, 3), 150, np.uint8)
    radius, bar = height // 10, height // BAR_SHARE
    for k, colour in enumerate(COLOURS):
        x = width * (0.5 + 0.32 * np.sin(0.5 * t_s + 2.1 * k))
        y = height * (0.24 + 0.28 * k + 0.02 * np.cos(0.7 * t_s + k))
        cv2.circle(image, (round(x), round(y)), radius, colour, -1)
    step = width // BAR_BITS
    for bit in range(BAR_BITS):
        image[:bar, bit * step : (bit + 1) * step] = 255 if clock_ms >> bit & 1 else 0
    return image


def read_clock(image: np.ndarray) -> int:
    """The clock in a picture, milliseconds modulo 65536."""
    height, width = image.shape[:2]
    step = width // BAR_BITS
    row = image[height // BAR_SHARE // 2].mean(-1)
    return sum(1 << bit for bit in range(BAR_BITS) if row[bit * step + step // 2] > 127)


class Camera(threading.Thread):
    """Encodes pictures and sends them to whoever plays."""

    def __init__(self, width: int, height: int, fps: float, phase_s: float) -> None:
        super().__init__(daemon=True)
        self.size, self.fps, self._phase_s = (width, height), fps, phase_s
        self.senders: dict[object, Sender] = {}
        self.garbage_until_s = 0.0
        self.ready = threading.Event()
        self.sps = self.pps = b""
        self._sequence = random.randrange(65536)
        self._ssrc = random.getrandbits(32)

    def run(self) -> None:
        start_s, count, encoder, size = time.monotonic(), 0, None, None
        while True:
            now_s = time.monotonic() - start_s
            if encoder is None or size != self.size:
                size = self.size
                encoder = _encoder(*size, self.fps)
            # The scene goes on while a camera is dead: its clock is the machine's, not the process's.
            scene_s = time.monotonic() + self._phase_s
            image = picture(*size, scene_s, int(time.time() * 1000) % 65536)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(now_s * 90_000), Fraction(1, 90_000)
            for packet in encoder.encode(frame):
                self._send(_units(bytes(packet)), frame.pts)
            count += 1
            time.sleep(max(0.0, start_s + count / self.fps - time.monotonic()))

    def _send(self, units: list[bytes], timestamp: int) -> None:
        for unit in units:
            if unit[0] & 31 == 7:
                self.sps = unit
            if unit[0] & 31 == 8:
                self.pps = unit
        if self.sps and self.pps:
            self.ready.set()
        packets = [p for k, unit in enumerate(units) for p in self._packets(unit, timestamp, k == len(units) - 1)]
        if time.monotonic() < self.garbage_until_s:
            packets = [random.randbytes(len(p)) for p in packets]
        for key, send in list(self.senders.items()):
            try:
                for packet in packets:
                    send(packet)
            except OSError:
                self.senders.pop(key, None)

    def _packets(self, unit: bytes, timestamp: int, is_last: bool) -> list[bytes]:
        """RTP packets of one NAL unit: whole, or as fragments (FU-A)."""
        if len(unit) <= MTU:
            return [self._rtp(unit, timestamp, is_last)]
        head, body = unit[0], unit[1:]
        pieces = [body[k : k + MTU - 2] for k in range(0, len(body), MTU - 2)]
        out = []
        for k, piece in enumerate(pieces):
            start, end = k == 0, k == len(pieces) - 1
            fragment = bytes([(head & 0xE0) | 28, start << 7 | end << 6 | (head & 31)]) + piece
            out.append(self._rtp(fragment, timestamp, is_last and end))
        return out

    def _rtp(self, payload: bytes, timestamp: int, marker: bool) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFF
        return (
            struct.pack("!BBHII", 0x80, 96 | marker << 7, self._sequence, timestamp & 0xFFFFFFFF, self._ssrc) + payload
        )


class Film(Camera):
    """Sends a film as it is, bit for bit, to the first who plays."""

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__(0, 0, fps, 0.0)
        with av.open(str(path)) as container:
            base = container.streams.video[0].time_base
            packets = [p for p in container.demux(video=0) if p.size]
            self._shots = [(_units(bytes(p)), round((p.pts - packets[0].pts) * base * 90_000)) for p in packets]
        self.sps, self.pps = (next(u for u in self._shots[0][0] if u[0] & 31 == kind) for kind in (7, 8))
        self.ready.set()

    def run(self) -> None:
        while not self.senders:
            time.sleep(0.01)
        start_s = time.monotonic()
        for count, (units, timestamp) in enumerate(self._shots):
            self._send(units, timestamp)
            time.sleep(max(0.0, start_s + (count + 1) / self.fps - time.monotonic()))
        # An access unit delimiter: FFmpeg's parser gives a picture once it sees the next begin.
        self._send([bytes([9, 0xF0])], self._shots[-1][1] + round(90_000 / self.fps))


def write_film(path: Path, num_frames: int, *, fps: int = 10, size: tuple[int, int] = (320, 192)) -> Path:
    """A film of the test picture as MPEG-TS, H.264 without B-frames."""
    with av.open(str(path), "w", format="mpegts") as container:
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10", "x264-params": "repeat-headers=1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for k in range(num_frames):
            image = picture(*size, k / fps, k)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _encoder(width: int, height: int, fps: float) -> av.CodecContext:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(fps).limit_denominator(1000), Fraction(1, 90_000)
    encoder.thread_count = 1
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "g": str(max(round(fps), 1)),
        "crf": "24",
        "x264-params": "repeat-headers=1:annexb=1",
    }
    return encoder


def _units(stream: bytes) -> list[bytes]:
    """NAL units of an Annex B stream, without start codes."""
    units = [part.rstrip(b"\0") for part in stream.split(b"\0\0\1")]
    return [unit for unit in units if unit]


class Session(socketserver.StreamRequestHandler):
    """One client."""

    server: Server

    def handle(self) -> None:
        self.key, self.send, self.udp = object(), None, None
        self.write_lock = threading.Lock()
        self.camera: Camera | None = None
        try:
            while self._one():
                pass
        except (OSError, ValueError):
            pass
        finally:
            if self.camera is not None:
                self.camera.senders.pop(self.key, None)
            if self.udp is not None:
                self.udp.close()

    def _one(self) -> bool:
        """Answer one request; false when the client leaves."""
        first = self.rfile.read(1)
        if not first:
            return False
        if first == b"$":  # RTCP of the client, interleaved
            _, size = struct.unpack("!BH", self.rfile.read(3))
            self.rfile.read(size)
            return True
        method, url, *_ = (first + self.rfile.readline()).decode().split()
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        answer = getattr(self, f"_{method.lower()}", None)
        if answer is None:
            self._reply(headers, "")
        else:
            answer(url, headers)
        return method != "TEARDOWN"

    def _reply(self, request: dict[str, str], head: str, body: str = "", status: str = "200 OK") -> None:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        first = f"RTSP/1.0 {status}\r\nCSeq: {request.get('cseq', '0')}\r\nSession: 1;timeout=60\r\n"
        text = f"{first}{head}{length}\r\n{body}"
        with self.write_lock:
            self.wfile.write(text.encode())

    def _options(self, _: str, request: dict[str, str]) -> None:
        self._reply(request, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n")

    def _describe(self, url: str, request: dict[str, str]) -> None:
        camera = self.server.camera_of(url)
        if camera is None:
            self._reply(request, "", status="404 Not Found")
            return
        camera.ready.wait(5)
        sets = ",".join(base64.b64encode(s).decode() for s in (camera.sps, camera.pps))
        sdp = (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
            f"a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\n"
            f"a=framerate:{camera.fps}\r\na=control:t0\r\n"
        )
        self._reply(request, f"Content-Type: application/sdp\r\nContent-Base: {url}/\r\n", sdp)

    def _setup(self, url: str, request: dict[str, str]) -> None:
        self.camera = self.server.camera_of(url)
        transport = request["transport"]
        if "interleaved" in transport:
            self.send = self._send_interleaved
            self._reply(request, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n")
            return
        port = int(transport.split("client_port=")[1].split("-")[0].split(";")[0])
        self.udp = udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        target, own = (self.client_address[0], port), udp.getsockname()[1]
        self.send = lambda packet: udp.sendto(packet, target) and None
        ports = f"client_port={port}-{port + 1};server_port={own}-{own + 1}"
        self._reply(request, f"Transport: RTP/AVP;unicast;{ports}\r\n")

    def _send_interleaved(self, packet: bytes) -> None:
        with self.write_lock:
            self.request.sendall(b"$\0" + struct.pack("!H", len(packet)) + packet)

    def _play(self, _: str, request: dict[str, str]) -> None:
        self._reply(request, "Range: npt=0.000-\r\n")
        if self.camera is not None and self.send is not None:
            self.camera.senders[self.key] = self.send


class Server(socketserver.ThreadingTCPServer):
    """All cameras behind one port."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, cameras: list[Camera]) -> None:
        super().__init__(("127.0.0.1", port), Session)
        self.cameras = cameras

    def camera_of(self, url: str) -> Camera | None:
        """The camera this address names."""
        name = url.partition("/cam")[2].partition("/")[0]
        return self.cameras[int(name)] if name.isdecimal() and int(name) < len(self.cameras) else None


def obey(cameras: list[Camera]) -> None:
    """Make the trouble that stdin asks for; end with it."""
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        for camera in cameras:
            if word == "garbage":
                camera.garbage_until_s = time.monotonic() + 1.0
            if word == "size":
                width, height = rest.split("x")
                camera.size = (int(width), int(height))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--size", default="320x192")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--film", type=Path)
    args = parser.parse_args()
    width, height = (int(v) for v in args.size.split("x"))
    cameras = (
        [Film(args.film, args.fps)]
        if args.film
        else [Camera(width, height, args.fps, 1.3 * k) for k in range(args.cameras)]
    )
    for camera in cameras:
        camera.start()
    server = Server(args.port, cameras)
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    threading.Thread(target=obey, args=(cameras,), daemon=True).start()
    print(f"ready {server.server_address[1]}", flush=True)
    time.sleep(args.seconds)


if __name__ == "__main__":
    main()
