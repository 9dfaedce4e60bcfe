"""Ground truth of any format as labels to compare a run with, and ``masklet eval`` as one function.

There is one reader per format: ground truth is imported (:func:`pipeline.sinks.import_file`) into a temporary run, and
what a format says beyond objects (ignored rows, distractors, ignore regions) is told from the phrases it gets there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FormatError, UsageError
from pipeline.evaluate import METRICS, Comparison, EvalReport, Labels, Role, RunLabels, evaluate
from pipeline.evaluate.pairing import Matching
from pipeline.results import FrameResult
from pipeline.sinks import FORMATS, import_file
from pipeline.sinks.jsonio import read_elements
from pipeline.sinks.mot import CLASSES
from pipeline.sinks.mots import IGNORED_PHRASE
from pipeline.store import Run, open_run

DISTRACTORS = frozenset({"person on vehicle", "static person", "distractor", "reflection"})
"""MOT16 and later: a prediction on one of these is no error (TrackEval's ``mot_challenge_2d_box.py``)."""
JUDGED_CLASS = "pedestrian"
"""The one class MOTChallenge evaluates."""
_ENOUGH_ELEMENTS = 200_000
"""A JSON file is looked through for so long before its kind is given up on."""


def evaluate_runs(
    runs: Sequence[Run],
    gt: Path,
    gt_format: str = "auto",
    metrics: Sequence[str] = tuple(METRICS),
    *,
    matching: Matching = "auto",
) -> EvalReport | Comparison:
    """Score one run, or two against each other; ``masklet eval``.

    Raises:
        UsageError: not one or two runs, no such file, or an unknown format or metric.
        FormatError: malformed ground truth, or of other videos than the run's.
    """
    if len(runs) not in (1, 2):
        raise UsageError(f"{len(runs)} runs are given", "", "evaluate one, or compare two")
    with open_truth(gt, gt_format) as truth:
        reports = [evaluate(run_labels(run), truth, metrics, name=run.folder.name, matching=matching) for run in runs]
    return reports[0] if len(reports) == 1 else Comparison(*reports)


@contextmanager
def open_truth(path: Path, gt_format: str = "auto") -> Iterator[Labels]:
    """Ground truth as labels; what had to be imported for it is removed at the end.

    Args:
        path: a file, folder or zip in the format, or a run folder.
        gt_format: a format that can be imported, ``run``, or ``auto``: told from names and content.

    Raises:
        UsageError: no such file or format. FormatError: malformed, or of no known format.
    """
    if not path.exists():
        raise UsageError("no such file or folder", str(path), "name the ground truth with --gt")
    name = detect_format(path) if gt_format == "auto" else gt_format
    if name == "run":
        yield run_labels(open_run(path))
        return
    known = [f for f, info in FORMATS.items() if info.importable]
    if name not in known:
        raise UsageError(
            f"unknown ground truth format {name!r}", "--gt-format", f"choose from auto, run, {', '.join(known)}"
        )
    with tempfile.TemporaryDirectory(prefix="masklet-gt-") as folder:
        import_file(path, name, Path(folder, "truth"))
        labels = run_labels(open_run(Path(folder, "truth")), name)
        if name in ("mot", "mots") and not _has_seqinfo(path):
            labels.forget_extent()
        yield labels


def _has_seqinfo(path: Path) -> bool:
    """Whether a ``seqinfo.ini`` says how large and long the sequences are; else the importer took it from the rows."""
    if path.is_dir():
        return any(path.rglob("*.ini"))
    places = (path.with_suffix(".ini"), path.parent / "seqinfo.ini", path.parent.parent / "seqinfo.ini")
    return any(p.is_file() for p in places)


def run_labels(run: Run, source: str | None = None) -> RunLabels:
    """A run as labels; ``source`` is the format it was imported from, if it was (told from the manifest if not)."""
    source = source or _import_format(run)
    if source == "mot":
        is_mot16 = set(run.manifest.prompts) & set(CLASSES.values()) - {JUDGED_CLASS}
        if is_mot16:
            return RunLabels(run, roles=_mot16_roles, masks=False, asked=(JUDGED_CLASS,))
        return RunLabels(run, roles=_mot_roles, masks=False)
    if source == "mots":
        return RunLabels(run, roles=_mots_roles, asked=[p for p in run.manifest.prompts if p != IGNORED_PHRASE])
    return RunLabels(run)


def _import_format(run: Run) -> str | None:
    """The format a run was imported from, or ``None`` if masklet made it."""
    model = run.manifest.model.get("id", "")
    return model.removeprefix("imported from ") if model.startswith("imported from ") else None


def _mot_roles(result: FrameResult) -> NDArray[np.int8]:
    """Rows with flag 0 are left out, as TrackEval does."""
    return np.where(result.score == 0, Role.LEFT_OUT, Role.OBJECT).astype(np.int8)


def _mot16_roles(result: FrameResult) -> NDArray[np.int8]:
    """Also: pedestrians are judged, distractors excuse, other classes are left out."""
    judged = np.array([p == JUDGED_CLASS for p in result.prompt], bool)
    excuses = np.array([p in DISTRACTORS for p in result.prompt], bool)
    role = np.where(judged & (result.score != 0), Role.OBJECT, Role.LEFT_OUT)
    return np.where(excuses, Role.DISTRACTOR, role).astype(np.int8)


def _mots_roles(result: FrameResult) -> NDArray[np.int8]:
    region = np.array([p == IGNORED_PHRASE for p in result.prompt], bool)
    return np.where(region, Role.IGNORE_REGION, Role.OBJECT).astype(np.int8)


def detect_format(path: Path) -> str:
    """The ground truth format of a file or folder, by its names and the beginning of its content.

    Raises:
        FormatError: nothing known.
    """
    if path.is_dir():
        found = _folder_format(path)
    else:
        tell = {".json": _json_format, ".txt": _text_format, ".xml": _xml_format}.get(path.suffix.lower())
        found = tell(path) if tell else None
    if found is None:
        raise FormatError("the format of the ground truth cannot be told", str(path), "name it with --gt-format")
    return found


def _folder_format(folder: Path) -> str | None:
    if (folder / "manifest.json").is_file():
        return "run"
    by_suffix: list[tuple[str, Callable[[Path], str | None]]] = [
        ("*.png", _png_format),
        ("*.txt", _text_format),
        ("*.json", _json_format),
    ]
    for pattern, tell in by_suffix:
        files = sorted(p for p in folder.rglob(pattern) if p.name not in ("objects.json", "classes.json"))
        if files:
            return tell(files[0])
    return None


def _png_format(path: Path) -> str | None:
    return "davis"


def _xml_format(path: Path) -> str | None:
    return "cvat"


def _text_format(path: Path) -> str | None:
    """MOTS separates by spaces, MOT by commas."""
    try:
        with open(path, encoding="utf-8-sig") as lines:
            line = next((text for text in lines if text.strip()), "")
    except (OSError, UnicodeDecodeError):
        return None
    if len(line.split(",")) >= 6:
        return "mot"
    return "mots" if len(line.split()) == 6 else None


def _json_format(path: Path) -> str | None:
    """SA-Co lists what was asked; COCO has images, YouTube-VIS has tracks with a list of segmentations."""
    names: set[str] = set()
    for number, (member, element) in enumerate(read_elements(path)):
        names.add(member)
        record = element if isinstance(element, dict) else {}
        if member == "video_np_pairs" or "noun_phrase" in record:
            return "saco"
        if member == "images" or "image_id" in record:
            return "coco"
        if number > _ENOUGH_ELEMENTS:
            break
    return "ytvis" if "videos" in names else None
