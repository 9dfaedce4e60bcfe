"""Camera groups on a Ray cluster: one pinned actor per group, pulled by the coordinator, and started again if it dies.

Frames never travel: an actor reads its cameras and tracks them beside its GPU. Ray's own restarts are off, because a
new actor has to know which cameras and phrases there are by now. What an actor holds is made by ``make``, so nothing
here knows what a camera is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import remove_placement_group

from pipeline.errors import MaskletError
from workers.ray_session import RaySession, Share, cluster_nodes, share_cluster

LOGGER = logging.getLogger("masklet.ray")

FIRST_BACKOFF_S, BACKOFF_CAP_S = 0.5, 10.0
SILENCE_S = 120.0
"""An actor that says nothing for so long hangs; it says something ten times a second once its models are loaded."""
_COMMAND_S = 60.0


class Group(Protocol):
    """What an actor holds; see :class:`pipeline.live.group.CameraGroup`."""

    def take(self, safe: int) -> Any:
        """What there is to say since the last call."""
        ...


class GroupActor:
    """Builds its group with the first call: then an error on the way is the call's, not a dead actor."""

    def __init__(self, make: Callable[[Any], Group], spec: Any) -> None:
        self._make, self._spec = make, spec
        self._group: Group | None = None

    def take(self, safe: int) -> Any:
        """See :class:`Group`."""
        if self._group is None:
            self._group = self._make(self._spec)
        return self._group.take(safe)

    def do(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the group; Ray runs this beside ``take``."""
        if self._group is None:
            raise RuntimeError("the group is not there yet")
        return getattr(self._group, name)(*arguments)

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()


@dataclass(slots=True)
class _Place:
    """Of one actor, and what is under way."""

    spec: Any
    placement: Any
    actor: Any = None
    pending: Any = None
    asked_s: float = 0.0
    tries: int = 0
    try_at_s: float = 0.0
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Heard:
    """What came from the actor of a group."""

    group: int
    report: Any
    """``None``: it died; ``what`` says how, and it is being started again."""
    is_new: bool = False
    """The first report of this actor: it counts from the beginning."""
    what: str = ""


@dataclass(slots=True)
class RayGroups:
    """The actors of several groups.

    Args:
        make: builds a group from its spec, in the actor.
        share: what each actor reserves.
        session: closed with the groups.
    """

    make: Callable[[Any], Group]
    share: Share
    session: RaySession
    num_restarts: int = 0
    _places: list[_Place] = field(default_factory=list)

    def open(self, specs: Sequence[Any]) -> None:
        """Start an actor for each group."""
        for number, spec in enumerate(specs):
            self._places.append(_Place(spec, self.share.reserve(f"masklet-{os.getpid()}-cameras-{number}")))

    def _start(self, place: _Place) -> None:
        options = self.share.options(place.placement)
        actor = ray.remote(GroupActor).options(max_restarts=0, max_concurrency=4, **options)
        place.actor, place.is_new = actor.remote(self.make, place.spec), True

    def poll(self, safe: Mapping[int, int], timeout_s: float) -> list[Heard]:
        """What groups have to say; ``safe`` is handed to each (:meth:`Group.take`).

        Raises:
            MaskletError: a group cannot work at all; no restart would help.
        """
        now_s = time.monotonic()
        for number, place in enumerate(self._places):
            if place.pending is None and now_s >= place.try_at_s:
                if place.actor is None:
                    self._start(place)
                place.pending, place.asked_s = place.actor.take.remote(safe.get(number, 0)), now_s
        pending = {p.pending: n for n, p in enumerate(self._places) if p.pending is not None}
        if not pending:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=timeout_s)
        late = [r for r, n in pending.items() if r not in ready and now_s - self._places[n].asked_s > SILENCE_S]
        return [self._heard(pending[r], is_late=r in late) for r in [*ready, *late]]

    def _heard(self, number: int, *, is_late: bool) -> Heard:
        place = self._places[number]
        try:
            if is_late:
                raise GetTimeoutError(f"no word for {SILENCE_S:g} s")
            report = ray.get(place.pending)
        except RayTaskError as error:
            if isinstance(error.cause, MaskletError):
                raise error.cause from error
            return self._died(number, error)
        except (RayError, GetTimeoutError) as error:
            return self._died(number, error)
        heard = Heard(number, report, is_new=place.is_new)
        place.pending, place.is_new, place.tries = None, False, 0
        return heard

    def _died(self, number: int, error: Exception) -> Heard:
        place = self._places[number]
        if place.actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(place.actor)
        place.actor = place.pending = None
        place.try_at_s = time.monotonic() + min(FIRST_BACKOFF_S * 2**place.tries, BACKOFF_CAP_S)
        place.tries = min(place.tries + 1, 16)
        self.num_restarts += 1
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]
        LOGGER.warning("camera worker %d died and is started again: %s", number, what)
        return Heard(number, None, what=what)

    def do(self, number: int, name: str, *arguments: Any) -> Any:
        """Have a group do something; its answer. From any thread.

        Raises:
            MaskletError: the group refuses, or is not there.
        """
        actor = self._places[number].actor
        try:
            if actor is None:
                raise MaskletError("the worker of this camera is being started", "", "try again in a moment")
            return ray.get(actor.do.remote(name, arguments), timeout=_COMMAND_S)
        except RayTaskError as error:
            if isinstance(error.cause, MaskletError):
                raise error.cause from error
            raise MaskletError("the worker of this camera failed", "", str(error.cause)) from error
        except (RayError, GetTimeoutError) as error:
            raise MaskletError("the worker of this camera does not answer", "", "try again in a moment") from error

    def respec(self, number: int, spec: Any) -> None:
        """What the group's next actor is built from."""
        self._places[number].spec = spec

    def pid(self, number: int) -> int:
        """The process of a group's actor."""
        return int(ray.get(self._places[number].actor.pid.remote()))

    def close(self) -> None:
        """End all actors, and leave the cluster."""
        for place in self._places:
            with contextlib.suppress(RayError):
                if place.actor is not None:
                    ray.kill(place.actor)
                remove_placement_group(place.placement)
        self._places.clear()
        self.session.close()


def plan_share(*, on_cpu: bool, workers: int, gpus: float | None) -> tuple[int, Share]:
    """How many actors the cluster has room for (or is asked to have), and what each takes."""
    nodes = cluster_nodes()
    has_gpus = any(n.get("GPU", 0) > 0 for n in nodes) and not on_cpu
    return share_cluster(nodes, (gpus if gpus is not None else 1.0) if has_gpus else 0.0, workers)
