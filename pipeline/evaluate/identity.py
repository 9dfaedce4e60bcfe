"""Identity metrics: IDF1, IDP, IDR (Ristani et al., arXiv 1609.01775)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.evaluate.sequence import IntArray, check_frames, relabel


@dataclass(frozen=True, slots=True)
class IdentityResult:
    """Boxes explained by the best one-to-one assignment of whole tracks, and the rest."""

    idtp: int
    idfn: int
    idfp: int

    @property
    def idf1(self) -> float:
        """The score, 0..1."""
        return self.idtp / max(1.0, self.idtp + 0.5 * self.idfp + 0.5 * self.idfn)

    def scores(self) -> dict[str, float]:
        """The usual names; counts as whole numbers, the rest 0..1."""
        return {
            "IDF1": self.idf1,
            "IDR": self.idtp / max(1, self.idtp + self.idfn),
            "IDP": self.idtp / max(1, self.idtp + self.idfp),
            "IDTP": self.idtp,
            "IDFN": self.idfn,
            "IDFP": self.idfp,
        }


def identity(
    gt_ids: Sequence[IntArray],
    pred_ids: Sequence[IntArray],
    similarities: Sequence[NDArray[np.floating[Any]]],
    threshold: float = 0.5,
) -> IdentityResult:
    """Identity metrics of one sequence; the arguments are those of :func:`pipeline.evaluate.hota.hota`.

    The paper minimises false negatives and false positives of a padded bipartite matching; that is the same as
    maximising the frames in which matched tracks overlap, which needs no padding.
    """
    check_frames(gt_ids, pred_ids, similarities)
    gt, num_gt = relabel(gt_ids)
    pred, num_pred = relabel(pred_ids)
    together = np.zeros((num_gt, num_pred))
    for g, p, similarity in zip(gt, pred, similarities, strict=True):
        # Without slack, unlike the other metrics: so TrackEval compares, and so do the published numbers.
        together[g[:, None], p[None, :]] += similarity >= threshold
    idtp = int(together[linear_sum_assignment(-together)].sum())
    return IdentityResult(idtp, sum(map(len, gt)) - idtp, sum(map(len, pred)) - idtp)


def combine_identity(results: Sequence[IdentityResult]) -> IdentityResult:
    """Several sequences as one: the counts are summed."""
    return IdentityResult(*(sum(getattr(r, name) for r in results) for name in ("idtp", "idfn", "idfp")))
