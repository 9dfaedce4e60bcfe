"""The parent's side of the decode process: start it, listen to it, kill it when it is silent or too large."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.schema import DecodeConfig
from pipeline.types import UInt8Array
from workers.decode_child import Alive, Batch, Done, Failed, Job, Loading, Message, pack

START_TIMEOUT_S = 120.0
"""Longest wait for a process that starts or loads torch on a busy machine."""
_TICK_S = 0.25
_LENGTH = struct.Struct("!Q")
_PROGRAM = "import sys; sys.path[:] = {path!r}; from workers.decode_child import serve; serve({connection}, {lifeline})"


@dataclass(frozen=True, slots=True)
class Frames:
    """A batch that has arrived."""

    decoder: str
    indices: tuple[int, ...]
    images: UInt8Array
    """``(n, h, w, 3)``"""


@dataclass(frozen=True, slots=True)
class Lost:
    """The process is gone."""

    reason: str


Arrival = Frames | Done | Failed | Lost


class Child:
    """A decode process and the sockets to it.

    It is started as a program, not by ``multiprocessing``: that would fork, or run the user's main module once more.
    """

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair()
        self._lifeline, life = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        path = [entry or os.getcwd() for entry in sys.path]
        program = _PROGRAM.format(path=path, connection=theirs.fileno(), lifeline=life.fileno())
        with theirs, life:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(theirs.fileno(), life.fileno()),
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )
        self.is_loaded = False
        """True once it has spoken: it is up, and torch is loaded if it was needed."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    def rss_mb(self) -> float:
        """Resident memory, or 0 where the system does not tell (only Linux has decord)."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self, deadline_s: float) -> str:
        """End it: ask by hanging up, kill after ``deadline_s``. Returns how it ended."""
        self.connection.close()
        try:
            code = self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._lifeline.close()
        return self._ending(code)

    def _ending(self, code: int) -> str:
        with self._errors as errors:
            errors.seek(0)
            lines = errors.read()[-4096:].decode(errors="replace").strip().splitlines()
        if code < 0:
            return f"crashed ({signal.Signals(-code).name})"
        return f"ended with code {code}" + (f": {lines[-1]}" if lines else "")


class Pump(threading.Thread):
    """Moves batches from the child into a short queue, and is its watchdog.

    At most ``config.queue_batches`` batches wait on this side. A child that says nothing for ``stall_timeout_s`` while
    it is listened to, or that grows beyond ``memory_limit_mb`` at any time, is killed.
    """

    def __init__(self, child: Child, config: DecodeConfig, job: Job) -> None:
        super().__init__(name="masklet-decode-pump", daemon=True)
        self._child, self._config, self._job = child, config, job
        self._slots = threading.Semaphore(config.queue_batches)
        self._arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._is_stopped = threading.Event()
        self._heard_s = self._weighed_s = time.monotonic()
        self._patience_s = config.stall_timeout_s if child.is_loaded else START_TIMEOUT_S

    def __iter__(self) -> Iterator[Arrival]:
        """What arrives, in order; the last is not :class:`Frames`."""
        while True:
            arrival = self._arrivals.get()
            self._slots.release()
            yield arrival
            if not isinstance(arrival, Frames):
                return

    def stop(self) -> None:
        """End the thread; a child that still had work is killed, because only that stops it for certain."""
        self._is_stopped.set()
        self.join()

    def run(self) -> None:
        """Thread body: never raises; the last arrival says how it ended."""
        connection = self._child.connection
        connection.settimeout(_TICK_S)
        try:
            self._send(pack(self._job))
            while True:
                self._take_slot()
                arrival = self._next_arrival()
                self._arrivals.put(arrival)
                if not isinstance(arrival, Frames):
                    return
        except _KilledError as error:
            self._child.stop(0)
            self._arrivals.put(Lost(f"was killed: {error}"))
        except (OSError, EOFError):
            self._arrivals.put(Lost(self._child.stop(1.0)))

    def _next_arrival(self) -> Arrival:
        while True:
            message: Message = pickle.loads(self._read(_LENGTH.unpack(self._read(_LENGTH.size))[0]))
            self._child.is_loaded = not isinstance(message, Loading)
            self._patience_s = self._config.stall_timeout_s if self._child.is_loaded else START_TIMEOUT_S
            if isinstance(message, Batch):
                images = np.empty(message.shape, np.uint8)
                self._fill(images.data.cast("B"))
                return Frames(message.decoder, message.indices, images)
            if not isinstance(message, Alive | Loading):
                return message

    def _take_slot(self) -> None:
        """Wait until the consumer has room; only memory is watched meanwhile: who is not heard may be silent."""
        while not self._slots.acquire(timeout=_TICK_S):
            self._heard_s = time.monotonic()
            self._watch()
        self._heard_s = time.monotonic()

    def _read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def _fill(self, view: memoryview) -> None:
        while view:
            try:
                count = self._child.connection.recv_into(view)
            except TimeoutError:
                self._watch()
                continue
            if not count:
                raise EOFError
            self._heard_s = time.monotonic()
            self._watch()
            view = view[count:]

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._child.connection.send(view) :]
            except TimeoutError:
                self._watch()

    def _watch(self) -> None:
        """Raise if the child has to die."""
        now_s = time.monotonic()
        if self._is_stopped.is_set():
            raise _KilledError("its frames are no longer wanted")
        if now_s - self._heard_s > self._patience_s:
            raise _KilledError(f"silent for {self._patience_s:g} s")
        if now_s - self._weighed_s > _TICK_S:
            self._weighed_s = now_s
            if (rss_mb := self._child.rss_mb()) > self._config.memory_limit_mb:
                raise _KilledError(f"{rss_mb:.0f} MB is more than memory_limit_mb={self._config.memory_limit_mb}")


class _KilledError(Exception):
    """The watchdog's verdict."""
