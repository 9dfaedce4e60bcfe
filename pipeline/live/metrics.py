"""Prometheus metrics of a running service, read from its counters when asked. No global registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.live.events import OBJECT_EVENTS
from pipeline.live.service import LiveService

_COUNTERS = {
    "masklet_frames_arrived": ("Frames a camera delivered.", "arrived"),
    "masklet_frames_tracked": ("Frames that went through detector and tracker.", "tracked"),
    "masklet_frames_corrupt": ("Frames that arrived damaged.", "corrupt"),
    "masklet_reconnects": ("Connections made again after a loss.", "reconnects"),
    "masklet_tracking_failures": ("Times a camera's tracking failed and was restarted.", "tracking_failures"),
    "masklet_masklets": ("Masklets numbered.", "masklets"),
}
_GAUGES = {
    "masklet_queue_depth": ("Decoded frames that wait to be tracked.", "waiting"),
    "masklet_live_objects": ("Objects in sight.", "objects"),
    "masklet_session": ("Session number; rises when a gap was too long.", "session"),
    "masklet_fps": ("Frames tracked per second, over the last seconds.", "fps"),
}


class ServiceCollector(Collector):
    """Turns the counters of a service into metric families."""

    def __init__(self, service: LiveService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        status = self._status()
        yield from _plain(status)
        yield from _drops(status)
        yield from _identity(status)
        yield from self._latencies()
        yield from self._sinks()

    def _status(self) -> list[dict[str, Any]]:
        return [{**status, "up": status["state"] == "live"} for status in self._service.statuses()]

    def _latencies(self) -> Iterator[Metric]:
        row = HistogramMetricFamily(
            "masklet_row_latency_seconds", "From a frame's arrival to its rows, hotstart included.", labels=["stream"]
        )
        step = HistogramMetricFamily(
            "masklet_step_latency_seconds", "From a frame's arrival to the end of its tracking.", labels=["stream"]
        )
        for stream_id, (to_row, to_step) in self._service.latencies().items():
            row.add_metric([stream_id], to_row.cumulative(), to_row.sum_s)
            step.add_metric([stream_id], to_step.cumulative(), to_step.sum_s)
        stages = HistogramMetricFamily("masklet_stage_seconds", "Time per call of a stage.", labels=["stage"])
        for name, histogram in self._service.stages().items():
            stages.add_metric([name], histogram.cumulative(), histogram.sum_s)
        yield from (row, step, stages)

    def _sinks(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("masklet_sink_queue_depth", "Items that wait for a sink.", labels=["sink"])
        written = CounterMetricFamily("masklet_sink_written", "Items a sink has taken.", labels=["sink"])
        lost = CounterMetricFamily("masklet_sink_lost", "Items lost for a slow or dead sink.", labels=["sink"])
        for outlet in self._service.outlets:
            depth.add_metric([outlet.name], outlet.depth)
            written.add_metric([outlet.name], outlet.num_written)
            lost.add_metric([outlet.name], outlet.num_lost)
        failures = CounterMetricFamily("masklet_save_failures", "Times that the state could not be saved.")
        failures.add_metric([], self._service.num_save_failures)
        yield from (depth, written, lost, failures)


def _plain(status: list[dict[str, Any]]) -> Iterator[Metric]:
    for name, (text, key) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=["stream"])
        for camera in status:
            counter.add_metric([camera["id"]], camera[key])
        yield counter
    for name, (text, key) in {**_GAUGES, "masklet_up": ("Whether the camera delivers.", "up")}.items():
        gauge = GaugeMetricFamily(name, text, labels=["stream"])
        for camera in status:
            gauge.add_metric([camera["id"]], camera[key])
        yield gauge


def _drops(status: list[dict[str, Any]]) -> Iterator[Metric]:
    drops = CounterMetricFamily("masklet_frames_dropped", "Frames not tracked, by reason.", labels=["stream", "reason"])
    for camera in status:
        drops.add_metric([camera["id"], "queue"], camera["dropped"])
        drops.add_metric([camera["id"], "paused"], camera["paused"])
    yield drops


def _identity(status: list[dict[str, Any]]) -> Iterator[Metric]:
    """Births, deaths and how restless ids are: births and endings per tracked frame and object in sight."""
    events = CounterMetricFamily("masklet_object_events", "Events of objects, by kind.", labels=["stream", "kind"])
    churn = GaugeMetricFamily(
        "masklet_id_churn", "Births and endings per 1000 tracked frames, since the start.", labels=["stream"]
    )
    for camera in status:
        counts = camera["events"]
        for kind in OBJECT_EVENTS:
            events.add_metric([camera["id"], kind], counts.get(kind, 0))
        changes = sum(counts.get(k, 0) for k in ("born", "ended", "retracted"))
        churn.add_metric([camera["id"]], 1000 * changes / max(camera["tracked"], 1))
    yield from (events, churn)


def exposition(service: LiveService) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServiceCollector(service))
    return generate_latest(registry)
