"""Phrases to embeddings: once per job, and again in a worker that cannot get the job's."""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema import Config
from pipeline.errors import UsageError, empty_phrase
from pipeline.types import Prompts


def encode_prompts(config: Config, *, has_boxes: bool = False) -> Prompts:
    """The phrases as embeddings, all in one batch; the text encoder is gone again when this returns.

    Raises:
        UsageError: no phrase and no box, or an empty phrase.
    """
    phrases = list(config.prompts) or (["visual"] if has_boxes else [])
    if config.detector.detections is not None:
        return _scripted_prompts(config, phrases)
    if not phrases:
        raise UsageError("nothing to look for", "", 'add --text "red car" (repeatable), or --box')
    for text in (*phrases, *config.not_prompts):  # now, not after the model's libraries are loaded
        if not text.strip():
            raise empty_phrase(text)
    from pipeline.checkpoints import open_checkpoint

    return open_checkpoint(config.model).encode(phrases, list(config.not_prompts), config.text.convention)


def _scripted_prompts(config: Config, phrases: Sequence[str]) -> Prompts:
    from pipeline.detectors.scripted import scripted_prompts

    return scripted_prompts(config.detector, phrases)
