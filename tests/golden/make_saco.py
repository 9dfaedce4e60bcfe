"""Writes ``saco.json``: what Meta's evaluation toolkit says about the cases of ``saco_cases.py``.

The toolkit is in the PyPI wheel ``sam3==0.1.4`` (SAM License), which wants NumPy < 2. To repeat, in a fresh
environment with Python 3.11, from the repository root::

    pip install "numpy<2" torch scipy pycocotools pandas tqdm iopath opencv-python-headless typing_extensions
    pip install --no-deps sam3==0.1.4
    python -m tests.golden.make_saco tests/golden/saco.json

TETA is printed with two decimals by the toolkit; here its own numbers are taken before they are rounded. An empty list
of predictions crashes the toolkit, so no case has one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.saco_cases import RECIPES, gt_json, make_case, pred_json


def import_toolkit() -> Any:
    """``sam3.eval`` without ``sam3/__init__.py``, which loads the model code."""
    spec = importlib.util.find_spec("sam3")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("sam3 is not installed: see the head of this file")
    package = types.ModuleType("sam3")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["sam3"] = package
    from sam3.eval import saco_veval_evaluators as toolkit
    from sam3.eval.teta_eval_toolkit.metrics import TETA

    TETA._summary_row = lambda self, res: [repr(float(np.mean(res[h]))) for h in self.summary_fields]
    parallel = toolkit.run_ytvis_eval
    toolkit.run_ytvis_eval = lambda args, **kw: parallel(
        ["False" if a == "True" and i == 7 else a for i, a in enumerate(args)], **kw
    )
    return toolkit


def evaluate(toolkit: Any, gt: str, pred: str) -> dict[str, float]:
    """Every number of the toolkit for this pair of files."""
    out: dict[str, float] = {}
    for evaluator in (
        toolkit.YTVISPredFileEvaluator(gt),
        toolkit.VideoPhraseApEvaluator(gt),
        toolkit.VideoTetaEvaluator(gt, use_mask=True, is_exhaustive=True, num_parallel_cores=1),
        toolkit.VideoPhraseHotaEvaluator(gt),
        toolkit.VideoCGF1Evaluator(gt),
    ):
        out.update(evaluator.evaluate(pred)[0])
    # 0 / 0 where nothing matches at a threshold
    return {k: float(v) for k, v in out.items() if not np.isnan(v)}


def main(out: Path) -> None:
    """Write the numbers of every case."""
    toolkit = import_toolkit()
    golden = {}
    for name in RECIPES:
        videos = make_case(name)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            gt, pred = Path(folder, "gt.json"), Path(folder, "pred.json")
            gt.write_text(json.dumps(gt_json(videos)))
            pred.write_text(json.dumps(pred_json(videos)))
            golden[name] = evaluate(toolkit, str(gt), str(pred))
        sys.stderr.write(f"{name}: {len(golden[name])} numbers\n")
    out.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
