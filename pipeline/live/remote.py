"""The near side of cameras that are followed on a cluster: pulls rows, feeds sinks and page, keeps the run folder.

A group that dies is started again and goes on from its saved state: ids continue, frames are not numbered twice, and
rows that were handed out already are not handed out again.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from configs.schema import Config
from pipeline.errors import MaskletError, SourceError, UsageError
from pipeline.live.board import Board
from pipeline.live.events import LiveResult
from pipeline.live.group import GroupCamera, GroupSpec, Report, without_camera
from pipeline.live.roster import Roster
from pipeline.live.service import has_no_listener, known_past
from pipeline.live.sinks import Item, Outlet
from pipeline.live.stats import Histogram
from pipeline.sources.live_open import CameraSpec, parse_cameras
from pipeline.store import RunWriter

LOGGER = logging.getLogger("masklet.live")
_POLL_S = 0.1
_CLOSE_TIMEOUT_S = 15.0
_FINISH_S = 30.0


class Heard(Protocol):
    """See :class:`workers.ray_cameras.Heard`."""

    group: int
    report: Report | None
    is_new: bool


class Groups(Protocol):
    """Where groups live; see :class:`workers.ray_cameras.RayGroups`."""

    def open(self, specs: Sequence[GroupSpec]) -> None:
        """Start them."""
        ...

    def poll(self, safe: Mapping[int, int], timeout_s: float) -> Sequence[Any]:
        """What they have to say: see :class:`Heard`."""
        ...

    def do(self, number: int, name: str, *arguments: Any) -> Any:
        """Have one do something."""
        ...

    def respec(self, number: int, spec: GroupSpec) -> None:
        """What it is built from when it is started again."""
        ...

    def close(self) -> None:
        """End them."""
        ...


@dataclass(slots=True)
class _Share:
    """What is known of one group."""

    spec: GroupSpec
    safe: int = 0
    """Items of its present life that are safe in the sinks."""
    flushing: tuple[threading.Event | None, int] | None = None
    report: Report | None = None
    num_lost: int = 0
    """Items of its present life that were lost on the way here."""
    is_closing: bool = False
    """It was told to finish and has not said that it has."""


class RemoteService:
    """Cameras in groups on a cluster, as one :class:`pipeline.live.service.LiveService`.

    Args:
        config: the effective configuration.
        groups: runs them.
        specs: who follows which cameras at first; a camera that comes later joins the smallest group.
        outlets: where rows and events go; states count once the first of them has the rows.
        board: what the page sees.
        run: the run folder, if there is one.
        scratch: a folder of the groups that nobody needs afterwards.
    """

    def __init__(
        self,
        config: Config,
        groups: Groups,
        specs: Sequence[GroupSpec],
        outlets: Sequence[Outlet],
        *,
        board: Board | None = None,
        run: RunWriter | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._scratch = scratch
        self.config, self._groups, self._outlets, self.board, self.run_folder = (
            config,
            groups,
            list(outlets),
            board,
            run,
        )
        self._shares = [_Share(spec) for spec in specs]
        self._handed: dict[str, int] = {}
        """Last frame of each camera that was handed out."""
        self._removed: set[str] = set()
        self._num_lost_before = 0
        self._flushed_s = time.monotonic()
        self._cannot_save, self._num_save_failures = False, 0
        self.num_repeated = 0
        """Frames that came again after a worker was restarted, and were not handed out twice."""
        self.roster = Roster(run.folder / "state" if run is not None else None)
        self.last_turn_s = time.monotonic()
        groups.open(specs)

    @property
    def outlets(self) -> Sequence[Outlet]:
        """Where rows and events go."""
        return self._outlets

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, *, until_ended: bool = True) -> None:
        """Pull until ``stop`` is set or, with ``until_ended``, every camera has ended or failed."""
        while not stop.is_set():
            self.turn()
            if (until_ended and self.is_over) or self.is_unheard:
                return

    def turn(self) -> None:
        """Go round once: what is safe by now, and what the groups have to say."""
        self.last_turn_s = time.monotonic()
        for share in self._shares:
            if share.flushing is not None and (share.flushing[0] is None or share.flushing[0].is_set()):
                share.safe, share.flushing = share.flushing[1], None
        for heard in self._groups.poll({n: s.safe for n, s in enumerate(self._shares)}, _POLL_S):
            share = self._shares[heard.group]
            if heard.report is None or heard.is_new:
                share.safe, share.flushing = 0, None
                share.is_closing &= heard.report is not None  # what died while it finished is not waited for
                self._num_lost_before += share.num_lost
                share.num_lost = 0
            if heard.report is not None:
                self._take(share, heard.report)
            elif share.report is not None:
                share.report = _bereft(share.report)
        self._flush()
        self._show()

    def _flush(self) -> None:
        """Have all sinks write what they hold, from time to time."""
        if time.monotonic() - self._flushed_s >= self.config.live.checkpoint_every_s:
            self._flushed_s = time.monotonic()
            for outlet in self.outlets:
                outlet.flush()

    def _take(self, share: _Share, report: Report) -> None:
        share.report, share.num_lost = report, report.num_lost
        fresh = [item for item in report.items if self._is_fresh(item)]
        for outlet in self.outlets:
            for item in fresh:
                outlet.put(item)
        if self.board is not None:
            for stream_id in {_stream_of(item) for item in fresh} - self._removed:
                mine = [item for item in fresh if _stream_of(item) == stream_id]
                results = [item for item in mine if isinstance(item, LiveResult)]
                self.board.show(stream_id, results, [item for item in mine if not isinstance(item, LiveResult)])
        if report.saves and share.flushing is None and report.number > share.safe:
            share.flushing = (self.outlets[0].flush() if self.outlets else None, report.number)
        if report.saves:
            self._save_manifest("running")

    def _is_fresh(self, item: Item) -> bool:
        """Whether it was not handed out by an earlier life of its group."""
        if not isinstance(item, LiveResult):
            return True
        last = self._handed.get(item.result.video_id, -1)
        self._handed[item.result.video_id] = max(last, item.result.index)
        self.num_repeated += item.result.index <= last
        return item.result.index > last

    def _show(self) -> None:
        if self.board is not None:
            self.board.status = self.statuses()
            on_the_way = {"sink": "from workers", "waiting": 0, "written": 0, "lost": self.num_lost, "error": ""}
            self.board.sinks = [*(o.status() for o in self.outlets), *([on_the_way] if self.num_lost else [])]
            self.board.is_ready = any(s.report is not None for s in self._shares)

    @property
    def num_lost(self) -> int:
        """Items that were lost between the groups and here, because nobody pulled them in time."""
        return self._num_lost_before + sum(share.num_lost for share in self._shares)

    @property
    def num_save_failures(self) -> int:
        """See :class:`pipeline.live.service.LiveService`."""
        there = sum(share.report.num_save_failures for share in self._shares if share.report is not None)
        return self._num_save_failures + there

    @property
    def is_unheard(self) -> bool:
        """See :func:`has_no_listener`."""
        return has_no_listener(self.board, self.outlets)

    @property
    def is_over(self) -> bool:
        """Whether every camera has ended or failed, and nothing waits."""
        return all(s.report is not None and s.report.is_over and not s.report.items for s in self._shares)

    def _save_manifest(self, status: str) -> None:
        if self.run_folder is None:
            return
        for share in self._shares:
            for entry in share.report.entries if share.report is not None else ():
                self.run_folder.manifest.put(entry)
        self.run_folder.manifest.status = status
        try:
            self.run_folder.save()
            self._cannot_save = False
        except MaskletError as error:
            self._num_save_failures += 1
            if not self._cannot_save:
                LOGGER.error("the manifest cannot be saved; rows go on: %s", error)
            self._cannot_save = True

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self, *, interrupted: bool) -> None:
        """Have the groups hand out what they hold back and save; finish the sinks; leave the cluster."""
        for number, share in enumerate(self._shares):
            try:
                self._groups.do(number, "finish", interrupted)
                share.is_closing = True
            except MaskletError as error:
                LOGGER.warning("a camera worker cannot be ended in order: %s", error)
        until_s = time.monotonic() + _FINISH_S
        while any(share.is_closing for share in self._shares) and time.monotonic() < until_s:
            self.turn()
            for share in self._shares:
                share.is_closing &= not (share.report is not None and share.report.is_closed)
        for outlet in self.outlets:
            outlet.close(_CLOSE_TIMEOUT_S)
        self._save_manifest("interrupted" if interrupted else "complete")
        self._groups.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def failure(self) -> MaskletError | None:
        """The error to end with, if no camera ever gave a frame."""
        statuses = self.statuses()
        if not statuses or any(s["arrived"] for s in statuses):
            return None
        return SourceError("nothing could be read", statuses[0]["url"], statuses[0]["error"])

    @property
    def any_failed(self) -> bool:
        """Whether a camera was given up."""
        return any(s["state"] == "failed" for s in self.statuses())

    # -- for the page, from any thread ----------------------------------------------------------------------------

    def stream_ids(self) -> list[str]:
        """See :class:`pipeline.live.service.LiveService`, also for what follows."""
        return [c.spec.stream_id for s in self._shares for c in s.spec.cameras]

    def request_camera(self, uri: str, phrases: Sequence[str]) -> CameraSpec:
        """Follow one more camera, in the smallest group."""
        taken = self.stream_ids()
        if len(taken) >= self.config.live.max_cameras:
            raise UsageError(f"{len(taken)} cameras run already", "", "raise live.max_cameras")
        [spec] = parse_cameras([uri], taken=taken)
        number = min(range(len(self._shares)), key=lambda n: len(self._shares[n].spec.cameras))
        camera = GroupCamera(spec, tuple(phrases), known_past(spec, self.outlets))
        self._removed.discard(spec.stream_id)
        self._groups.do(number, "add_camera", camera)
        self._respec(number, lambda old: replace(old, cameras=(*old.cameras, camera)))
        self.roster.add(spec, phrases)
        return spec

    def request_phrases(self, stream_id: str, phrases: Sequence[str]) -> None:
        """Look for other phrases."""
        number = self._group_of(stream_id)
        self._groups.do(number, "request_phrases", stream_id, list(phrases))
        changed = tuple(phrases)
        self._respec(
            number,
            lambda old: replace(
                old,
                cameras=tuple(replace(c, phrases=changed) if c.spec.stream_id == stream_id else c for c in old.cameras),
            ),
        )

    def request_pause(self, stream_id: str, is_paused: bool) -> None:
        """Stop tracking for a while, or go on."""
        self._groups.do(self._group_of(stream_id), "request_pause", stream_id, is_paused)

    def request_removal(self, stream_id: str) -> None:
        """Let a camera go."""
        number = self._group_of(stream_id)
        self._groups.do(number, "request_removal", stream_id)
        self._respec(number, lambda old: without_camera(old, stream_id))
        self.roster.remove(stream_id)
        self._removed.add(stream_id)
        if self.board is not None:
            self.board.remove(stream_id)

    def _group_of(self, stream_id: str) -> int:
        for number, share in enumerate(self._shares):
            if any(c.spec.stream_id == stream_id for c in share.spec.cameras):
                return number
        raise UsageError("no such camera", stream_id)

    def _respec(self, number: int, change: Callable[[GroupSpec], GroupSpec]) -> None:
        share = self._shares[number]
        share.spec = change(share.spec)
        self._groups.respec(number, share.spec)

    def statuses(self) -> list[dict[str, Any]]:
        """Every camera, as its group last said."""
        there = set(self.stream_ids())
        return [s for share in self._shares if share.report for s in share.report.statuses if s["id"] in there]

    def latencies(self) -> dict[str, tuple[Histogram, Histogram]]:
        """Until the rows left their group."""
        return {i: pair for share in self._shares if share.report for i, pair in share.report.latencies.items()}

    def stages(self) -> dict[str, Histogram]:
        """Of all groups together."""
        out: dict[str, Histogram] = {}
        for share in self._shares:
            for name, histogram in (share.report.stages if share.report else {}).items():
                out.setdefault(name, Histogram()).merge(histogram)
        return out


def _bereft(report: Report) -> Report:
    """What is known of a group whose process died: its cameras wait for the next."""
    gone = {"state": "waiting", "error": "its worker died and is started again", "fps": 0.0, "waiting": 0}
    return replace(report, items=(), is_over=False, statuses=[{**status, **gone} for status in report.statuses])


def _stream_of(item: Item) -> str:
    return item.result.video_id if isinstance(item, LiveResult) else item.stream_id
