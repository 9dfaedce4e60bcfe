"""The summary at the end of a job: masklets per phrase, frames per second, where the time went."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.store import Manifest, open_run

STAGES = ("decode", "detect", "track")


def masklets_by_phrase(out: Path, manifest: Manifest) -> Counter[str]:
    """How many masklets each phrase found, over all videos; phrases that found nothing count 0."""
    counts: Counter[str] = Counter(dict.fromkeys(manifest.prompts, 0))
    run = open_run(out)
    for entry in manifest.videos:
        if entry.status != "failed":
            rows = run.table(entry.video_id, ["masklet_id", "prompt"]).group_by(["masklet_id", "prompt"]).aggregate([])
            counts.update(rows["prompt"].to_pylist())
    return counts


def seconds_by_stage(manifest: Manifest) -> dict[str, float]:
    """Wall-clock seconds of all videos in each stage, and ``total``."""
    total: Counter[str] = Counter()
    for entry in manifest.videos:
        total.update(entry.timings_s)
    return {name: round(s, 3) for name, s in total.items()}


def as_dict(out: Path, manifest: Manifest, shown: str = "") -> dict[str, Any]:
    """The summary for ``--json``; ``shown`` is what the user calls the run, if not ``out``."""
    seconds = seconds_by_stage(manifest)
    frames = manifest.counts.get("frames", 0)
    return {
        "run": shown or str(out),
        "status": manifest.status,
        "counts": manifest.counts,
        "masklets_by_phrase": dict(masklets_by_phrase(out, manifest)),
        "frames_per_s": round(frames / seconds["total"], 2) if seconds.get("total") else None,
        "timings_s": seconds,
        "job": {
            "seconds": manifest.timings_s.get("total"),
            "utilisation": utilisation(manifest),
            **{k: manifest.counts.get(k, 0) for k in ("workers", "retries", "weak_links", "session_frames")},
        },
        "videos": [asdict(v) for v in manifest.videos],
    }


def table(out: Path, manifest: Manifest, shown: str = "") -> RenderableType:
    """The summary for people; ``shown`` as in :func:`as_dict`."""
    phrases = Table("phrase", "masklets", title=None, box=None, header_style="bold", pad_edge=False)
    phrases.columns[1].justify = "right"
    for phrase, count in masklets_by_phrase(out, manifest).items():
        phrases.add_row(Text(phrase), str(count))
    lines = [
        Text(""),
        Text(_sentence(manifest)),
        *_job_lines(manifest),
        Text(f"run: {shown or out}"),
        *_problems(manifest),
    ]
    lines += _weak_links(manifest)
    return Group(phrases, *lines)


def _sentence(manifest: Manifest) -> str:
    counts = manifest.counts
    seconds = seconds_by_stage(manifest)
    total = seconds.get("total", 0.0)
    shares = ", ".join(f"{s} {100 * seconds.get(s, 0) / total:.0f}%" for s in STAGES if total)
    rate = f" at {counts.get('frames', 0) / total:.1f} frames/s ({shares})" if total else ""
    return f"{counts.get('frames', 0)} frames of {counts.get('videos', 0)} video(s){rate}"


def utilisation(manifest: Manifest) -> dict[str, float]:
    """Share of the workers' wall-clock time in this session by stage (``decode``: waiting for frames), and ``idle``."""
    available_s = manifest.timings_s.get("total", 0.0) * manifest.counts.get("workers", 1)
    if not available_s:
        return {}
    shares = {s: round(manifest.timings_s.get(s, 0.0) / available_s, 3) for s in STAGES}
    return {**shares, "idle": round(max(1 - manifest.timings_s.get("busy", 0.0) / available_s, 0), 3)}


def _job_lines(manifest: Manifest) -> list[Text]:
    """Of a job with several workers: throughput and how they were used; of any: what had to be repeated."""
    counts, seconds = manifest.counts, manifest.timings_s.get("total", 0.0)
    lines = []
    if counts.get("workers", 1) > 1 and seconds:
        used = ", ".join(f"{name} {100 * share:.0f}%" for name, share in utilisation(manifest).items())
        rate = counts.get("session_frames", 0) / seconds
        lines.append(Text(f"{counts['workers']} workers, {rate:.1f} frames/s together over {seconds:.0f} s; {used}"))
    if counts.get("retries"):
        lines.append(Text(f"{counts['retries']} attempt(s) failed and were repeated", style="yellow"))
    return lines


def _problems(manifest: Manifest, limit: int = 10) -> list[Text]:
    bad = [v for v in manifest.videos if v.status != "done"]
    lines = [Text(f"{v.status}: {v.video_id}: {v.error}", style="yellow") for v in bad[:limit]]
    return [*lines, *([Text(f"... and {len(bad) - limit} more in manifest.json")] if len(bad) > limit else [])]


def _weak_links(manifest: Manifest, limit: int = 10) -> list[Text]:
    """Stitches that somebody should look at, the weakest first."""
    weak = [(link["confidence"], v.video_id, link) for v in manifest.videos for link in v.links if link["weak"]]
    weak.sort(key=lambda item: item[:2])
    lines = [
        Text(
            f"check: {video_id}: masklet {link['masklet_id']} at frame {link['frame']} was joined across a cut with "
            f"confidence {confidence:.2f} ({link['kind']}; another one it could be: {link['rival']:.2f})",
            style="yellow",
        )
        for confidence, video_id, link in weak[:limit]
    ]
    return [*lines, *([Text(f"... and {len(weak) - limit} more weak links in manifest.json")] if weak[limit:] else [])]
