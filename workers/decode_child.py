"""What runs inside the decode process, and how it speaks to its parent.

Messages travel over a socket as a length, a pickle and, for a batch, the raw pixels. Parent and child are the same
program, so pickle is safe. Sending blocks when the parent does not read: that is the back-pressure.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass

import numpy as np

from pipeline.decode import FrameTable, Picture, Segment, decode_segments
from pipeline.errors import DecodeError, MaskletError
from pipeline.types import UInt8Array

KEEP_ALIVE_S = 0.5
"""A sign of life is sent at most so often."""
_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Job:
    """One video, or what is left of it."""

    table: FrameTable
    segments: tuple[Segment, ...]
    stride: int
    size: tuple[int, int] | None
    batch_frames: int


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Load what resizing needs now: the parent is busy loading models, and a job that resizes will come."""


@dataclass(frozen=True, slots=True)
class Loading:
    """A library is being loaded: the next message may take longer than a frame would."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Still working."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The head of a batch; its pixels, ``shape`` uint8, follow."""

    decoder: str
    indices: tuple[int, ...]
    shape: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Done:
    """The job's last message."""

    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended with an error; its last message."""

    error: MaskletError


Message = Loading | Alive | Batch | Done | Failed


class Channel:
    """The child's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._last_sent_s = 0.0

    def send(self, message: Message, images: UInt8Array | None = None) -> None:
        """Send a message, and the pixels of a batch."""
        self._connection.sendall(pack(message))
        if images is not None:
            self._connection.sendall(images.data.cast("B"))
        self._last_sent_s = time.monotonic()

    def keep_alive(self) -> None:
        """Tell the parent that work goes on, if it has not heard for a while."""
        if time.monotonic() - self._last_sent_s > KEEP_ALIVE_S:
            self.send(Alive())

    def receive_job(self) -> Job | WarmUp | None:
        """The next job (or a request to get ready for one), or ``None`` when the parent has hung up."""
        head = self._read(_LENGTH.size)
        body = self._read(_LENGTH.unpack(head)[0]) if head else None
        return None if body is None else pickle.loads(body)

    def _read(self, size: int) -> bytes | None:
        parts: list[bytes] = []
        while size:
            part = self._connection.recv(min(size, 1 << 20))
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def pack(message: Message | Job | WarmUp) -> bytes:
    """A message as it goes over the socket: its length (8 bytes, big-endian), then its pickle."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def serve(connection_fd: int, lifeline_fd: int) -> None:
    """Main function of the decode process: one job after another until the parent hangs up or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what ends when
    _die_with_parent(lifeline_fd)
    with socket.socket(fileno=connection_fd) as connection:
        channel = Channel(connection)
        try:
            while (job := channel.receive_job()) is not None:
                if isinstance(job, WarmUp):
                    _load_torch(channel)
                else:
                    _run(channel, job)
        except (BrokenPipeError, ConnectionResetError):
            return


def _die_with_parent(lifeline_fd: int) -> None:
    """Let the kernel end this process when the parent closes its end of the lifeline, even inside a native call.

    SIGIO's default action is to terminate. PR_SET_PDEATHSIG would fire as soon as the *thread* that started us ends.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline_fd], [], [], 0)[0]:
        os._exit(1)  # the parent was gone before we listened


def _load_torch(channel: Channel) -> None:
    """Load what resizing needs; the parent waits longer than for a frame."""
    channel.send(Loading())
    import pipeline.decode_resize  # noqa: F401 - torch, only where it is needed


def _run(channel: Channel, job: Job) -> None:
    """Decode one job; whatever ends it, the parent is told."""
    notes: list[str] = []
    try:
        if job.size is not None:
            _load_torch(channel)
        channel.send(Alive())
        for segment in job.segments:
            _send_segment(channel, job, segment, notes)
    except MaskletError as error:
        channel.send(Failed(error))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        where = job.table.info.uri
        channel.send(Failed(DecodeError(f"{type(error).__name__} while decoding: {error}", where, "report this")))
    else:
        channel.send(Done(tuple(notes)))


def _send_segment(channel: Channel, job: Job, segment: Segment, notes: list[str]) -> None:
    """Decode one segment; its last batch goes out before the next begins, so a crash is blamed on the right one."""
    batch: list[Picture] = []
    try:
        for picture in decode_segments(job.table, (segment,), job.stride, job.size, notes):
            if picture is None:
                channel.keep_alive()
                continue
            if len(batch) == job.batch_frames or (batch and batch[0].decoder != picture.decoder):
                _send_batch(channel, batch)
            batch.append(picture)
            channel.keep_alive()
    finally:
        _send_batch(channel, batch)


def _send_batch(channel: Channel, batch: list[Picture]) -> None:
    """Send the pictures and empty the list."""
    if batch:
        images = np.stack([picture.image for picture in batch])
        channel.send(Batch(batch[0].decoder, tuple(p.index for p in batch), images.shape), images)
        batch.clear()
