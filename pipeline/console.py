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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline.errors import MaskletError, UsageError
from pipeline.store import VideoEntry
from pipeline.telemetry import setup_logging
from workers.units import UnitProgress

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


class LiveProgress:
    """Bars on a terminal (one per video, one for the job), plain log lines elsewhere. A context manager."""

    _LOG_EVERY_S = 10.0

    def __init__(self, output: Output, num_videos: int) -> None:
        self._console = output.stderr
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal or output.as_json,
        )
        self._quiet = output.as_json
        self._num_videos = num_videos
        self._job: TaskID | None = None
        self._bar: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._logged = 0.0

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        if self._num_videos > 1:
            self._job = self._bars.add_task("videos", total=self._num_videos, note="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def progress(self, progress: UnitProgress) -> None:
        """Move a unit's bar, or log a line now and then."""
        now = time.monotonic()
        rate = progress.num_done / max(now - self._started.setdefault(progress.key, now), 1e-6)
        note = f"{rate:.1f} frames/s, {progress.num_objects} object{'s' if progress.num_objects != 1 else ''}"
        if progress.key not in self._bar:
            self._bar[progress.key] = self._bars.add_task(progress.video_id, total=progress.num_expected, note="")
        self._bars.update(self._bar[progress.key], completed=progress.num_done, note=note)
        if self._bars.disable and not self._quiet and now - self._logged > self._LOG_EVERY_S and progress.num_done:
            self._logged = now
            LOGGER.info("%s: %d of %d frames, %s", progress.video_id, progress.num_done, progress.num_expected, note)

    def video_ended(self, entry: VideoEntry) -> None:
        """Close the bars of videos that ended and say how."""
        for key, bar in list(self._bar.items()):
            if self._bars.tasks and any(t.id == bar and t.description == entry.video_id for t in self._bars.tasks):
                self._bars.remove_task(bar)
                del self._bar[key]
        if self._job is not None:
            self._bars.advance(self._job)
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
