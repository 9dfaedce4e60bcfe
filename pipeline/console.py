"""What every command shares: options, one-line errors, exit codes, progress on stderr."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.errors import MaskletError, UsageError
from pipeline.store import VideoEntry
from pipeline.telemetry import setup_logging
from workers.units import Unit, UnitProgress, UnitReport

LOGGER = logging.getLogger("masklet")

Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback instead of a one-line error.")]
LogLevel = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and no progress.")]

_SHARED = {"debug": (Debug, False), "log_level": (LogLevel, "info"), "as_json": (Json, False)}


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command writes: results to stdout, everything else to stderr."""

    as_json: bool

    @property
    def stderr(self) -> Console:
        """For progress and notes; silent with ``--json``."""
        return Console(stderr=True, quiet=self.as_json)

    def result(self, data: Mapping[str, Any], table: RenderableType | None = None) -> None:
        """The command's result: ``data`` with ``--json``, else the table (or nothing)."""
        if self.as_json:
            sys.stdout.write(json.dumps(data, ensure_ascii=False, default=str) + "\n")
        elif table is not None:
            # A pipe has no width: do not fold columns then.
            Console(width=None if sys.stdout.isatty() else max(120, Console().width)).print(table)


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Give a command ``--debug --log-level --json``; pass it an :class:`Output`; turn errors into exit codes."""

    @functools.wraps(function)
    def run(*args: Any, debug: bool, log_level: str, as_json: bool, **kwargs: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            _set_level(log_level)
            code = function(Output(as_json), *args, **kwargs) or 0
        except MaskletError as error:
            code = _fail(str(error), error.exit_code, debug)
        except KeyboardInterrupt:
            code = _fail("interrupted", 130, False)
        except BrokenPipeError:
            code = _closed_pipe()
        except Exception as error:
            code = _fail(f"{type(error).__name__}: {' '.join(str(error).split())}: run again with --debug", 2, debug)
        raise typer.Exit(code)

    signature = inspect.signature(function, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _SHARED.items()
    ]
    own = [p for name, p in signature.parameters.items() if name != "output"]
    run.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
    return run


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM stops like Ctrl-C: what is finished stays valid."""
    raise KeyboardInterrupt


def _set_level(level: str) -> None:
    try:
        setup_logging(level)
    except ValueError:
        raise UsageError(f"unknown log level {level!r}", "", "choose debug, info, warning or error") from None


def _fail(message: str, code: int, debug: bool) -> int:
    if debug and sys.exc_info()[0] not in (None, KeyboardInterrupt):
        Console(stderr=True).print_exception()
    sys.stderr.write(f"error: {message}\n")
    return code


def _closed_pipe() -> int:
    """``masklet ... | head``: the reader left, which is no error; keep Python from complaining at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


@dataclass(slots=True)
class Tally:
    """How far a job is: the share of its work done, and the rate, from what its units say."""

    weights: dict[str, float] = field(default_factory=dict)
    """Relative cost by unit."""
    videos: dict[str, list[str]] = field(default_factory=dict)
    """Units still under way by video."""
    units: dict[str, list[str]] = field(default_factory=dict)
    """All that had to be done, by video."""
    objects: dict[str, int] = field(default_factory=dict)
    """On the last frame of each unit at hand."""
    shares: dict[str, float] = field(default_factory=dict)
    """How much of each unit is done, 0..1."""
    frames: dict[str, int] = field(default_factory=dict)
    num_frames: int = 0
    """All of them."""
    work: float = 0.0
    work_done: float = 0.0
    """In weights. Sums are kept, not made: a job has a hundred thousand units, and each says something every second."""
    expected: dict[str, int] = field(default_factory=dict)
    """Frames of each unit that was begun."""
    num_videos: int = 0
    num_ended: int = 0
    slowest: Counter[str] = field(default_factory=Counter)
    """How often each stage was named as the slowest."""

    def plan(self, num_videos: int, todo: Sequence[Unit]) -> None:
        """Take in the plan. A unit whose cost nobody knows weighs as much as the others on average."""
        known = [u.cost for u in todo if u.cost > 0]
        usual = sum(known) / len(known) if known else 1.0
        self.num_videos = num_videos
        self.weights = {u.key: u.cost or usual for u in todo}
        self.work = sum(self.weights.values())
        for unit in todo:
            self.videos.setdefault(unit.video_id, []).append(unit.key)
        self.units = {video_id: list(keys) for video_id, keys in self.videos.items()}

    def progress(self, progress: UnitProgress) -> None:
        """A unit got further; one that starts again goes back."""
        self._set_share(progress.key, progress.num_done / max(progress.num_expected, 1))
        known = self.frames.get(progress.key, 0)
        self.frames[progress.key] = max(progress.num_done, known)
        self.num_frames += self.frames[progress.key] - known
        self.objects[progress.key] = progress.num_objects
        self.expected[progress.key] = progress.num_expected
        if progress.slowest:
            self.slowest[progress.slowest] += 1

    def end_unit(self, key: str) -> None:
        """A unit ended, well or not."""
        self._set_share(key, 1.0)
        self.objects.pop(key, None)

    def _set_share(self, key: str, share: float) -> None:
        self.work_done += self.weights.get(key, 0.0) * (share - self.shares.get(key, 0.0))
        self.shares[key] = share

    def share_of(self, video_id: str) -> float:
        """Of one video's units, 0..1."""
        keys = self.units.get(video_id, [])
        total = sum(self.weights[k] for k in keys)
        return min(sum(self.weights[k] * self.shares.get(k, 0.0) for k in keys) / total, 1.0) if total else 0.0

    def note_of(self, video_id: str) -> str:
        """How far one video is, all its units together."""
        keys = self.units.get(video_id, [])
        done, objects = (sum(d.get(k, 0) for k in keys) for d in (self.frames, self.objects))
        expected = sum(self.expected.get(k, 0) for k in keys)
        ended = sum(self.shares.get(k, 0.0) >= 1.0 for k in keys)
        of = f", {ended} of {len(keys)} pieces" if len(keys) > 1 else f" of {expected} frames"
        frames = f"{done} frames{of}" if len(keys) > 1 else f"{done}{of}"
        return f"{frames}, {objects} object{'s' if objects != 1 else ''}"

    def end(self, video_id: str) -> None:
        """A video ended, well or not: nothing of it is left to do."""
        self.num_ended += 1
        for key in self.videos.pop(video_id, []):
            self._set_share(key, 1.0)

    @property
    def share(self) -> float:
        """Of the work that was to be done, 0..1."""
        return min(self.work_done / self.work, 1.0) if self.work else 1.0

    def note(self, elapsed_s: float) -> str:
        """Frames per second of all workers, and the stage that holds most of them up."""
        rate = f"{self.num_frames / max(elapsed_s, 1e-6):.1f} frames/s"
        return f"{rate}, slowest: {self.slowest.most_common(1)[0][0]}" if self.slowest else rate


class LiveProgress:
    """Bars on a terminal (one per video at hand, one for the job), plain log lines elsewhere. A context manager."""

    _LOG_EVERY_S = 10.0

    def __init__(self, output: Output) -> None:
        self._console = output.stderr
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal or output.as_json,
        )
        self._quiet = output.as_json
        self._tally = Tally()
        self._job: TaskID | None = None
        self._bar: dict[str, TaskID] = {}
        """By video."""
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        if not self._quiet:
            LOGGER.info("loading the model")
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def planned(self, num_videos: int, todo: Sequence[Unit]) -> None:
        """Open the job's bar, if there is more than one thing to do."""
        self._tally.plan(num_videos, todo)
        self._started = time.monotonic()
        if len(todo) > 1:
            self._job = self._bars.add_task("", total=1.0, note="")
            self._show_job()

    def progress(self, progress: UnitProgress) -> None:
        """Move a video's bar and the job's, or log a line now and then."""
        self._tally.progress(progress)
        self._show_video(progress.video_id)
        self._log(f"{progress.video_id}: {self._tally.note_of(progress.video_id)}", worth_it=progress.num_done > 0)

    def unit_ended(self, report: UnitReport) -> None:
        """A piece of a video is done; the bar of the video stays until all are."""
        self._tally.end_unit(report.key)
        if report.video_id in self._bar:
            self._show_video(report.video_id)

    def _show_video(self, video_id: str) -> None:
        if video_id not in self._bar:
            self._bar[video_id] = self._bars.add_task(video_id, total=1.0, note="")
        tally = self._tally
        self._bars.update(self._bar[video_id], completed=tally.share_of(video_id), note=tally.note_of(video_id))
        self._show_job()

    def _show_job(self) -> None:
        if self._job is not None:
            tally = self._tally
            self._bars.update(
                self._job,
                description=f"{tally.num_ended} of {tally.num_videos} videos",
                completed=tally.share,
                note=tally.note(time.monotonic() - self._started),
            )

    def _log(self, line: str, *, worth_it: bool) -> None:
        now = time.monotonic()
        if not self._bars.disable or self._quiet or not worth_it or now - self._logged < self._LOG_EVERY_S:
            return
        self._logged, elapsed_s, share = now, now - self._started, self._tally.share
        LOGGER.info("%s, %s", line, self._tally.note(elapsed_s))
        if self._job is not None and share >= 0.01:  # before, an estimate is none
            left = timedelta(seconds=round(elapsed_s / share - elapsed_s))
            ended = f"{self._tally.num_ended} of {self._tally.num_videos} videos"
            LOGGER.info("%s, %.0f%% of the work, about %s left", ended, 100 * share, left)

    def video_ended(self, entry: VideoEntry) -> None:
        """Close the bar of a video that ended and say how."""
        self._tally.end(entry.video_id)
        if entry.video_id in self._bar:
            self._bars.remove_task(self._bar.pop(entry.video_id))
        self._show_job()
        if not self._quiet:
            note = f": {entry.error}" if entry.error else ""
            log = LOGGER.info if entry.status == "done" else LOGGER.warning
            log(
                "%s: %s, %d frames, %d masklets%s",
                entry.video_id,
                entry.status,
                entry.num_tracked,
                entry.num_masklets,
                note,
            )
