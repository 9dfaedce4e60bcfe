"""Phrases to embeddings, in both conventions, against transformers and against a re-statement of the authors' way."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import normalizers
from torch import Tensor
from transformers import Sam3LiteTextModel, Sam3Model

from configs.schema import ModelConfig
from pipeline.checkpoint_text import encode_phrases, text_half
from pipeline.checkpoints import Checkpoint, open_checkpoint
from pipeline.errors import UsageError
from tests import tinyconf

torch.set_num_threads(1)

PHRASES = ("red cup", "person", "the blue car", "a ball")


def litetext(
    folder: Path, *, positions: int, repmixer: bool = True, seed: int = 0
) -> tuple[Checkpoint, Sam3LiteTextModel]:
    config = tinyconf.video_config()
    config.detector_config = tinyconf.litetext_config(positions=positions, repmixer=repmixer)
    return written(folder, config, seed)


def sam3(folder: Path) -> tuple[Checkpoint, Sam3Model]:
    return written(folder, tinyconf.video_config("sam3"), 4)


def written(folder: Path, config: object, seed: int) -> tuple[Checkpoint, Sam3LiteTextModel | Sam3Model]:
    tinyconf.write_folder(folder, config, tinyconf.video_state(config, seed))
    return open_checkpoint(ModelConfig(name=str(folder))), tinyconf.detector_model(config.detector_config, seed)


def by_processor(model: Sam3LiteTextModel | Sam3Model, phrase: str) -> tuple[np.ndarray, np.ndarray]:
    """What ``Sam3Processor`` and the model make of one phrase."""
    tokens = tinyconf.tokenizer()(phrase, return_tensors="pt", padding="max_length", max_length=32)
    with torch.no_grad():
        out = model.get_text_features(tokens.input_ids, attention_mask=tokens.attention_mask, return_dict=True)
    return out.pooler_output[0].numpy(), tokens.attention_mask[0].bool().numpy()


def restated_original(model: Sam3LiteTextModel, ids: Tensor) -> Tensor:
    """The authors' text path: 16 ids, the table's first rows, no mask (efficientsam3 ``text_encoder_student.py``)."""
    encoder = model.text_encoder
    hidden = encoder.embeddings.token_embedding(ids)
    hidden = hidden + encoder.embeddings.position_embedding.position_embedding[0, :, : ids.shape[1]]
    for layer in encoder.layers:
        hidden = layer(hidden, attention_mask=None)
    normed = F.layer_norm(
        hidden, hidden.shape[-1:], encoder.final_layer_norm.weight, encoder.final_layer_norm.bias, 1e-5
    )
    return model.text_projection(normed)


@pytest.mark.parametrize(("positions", "repmixer"), [(16, True), (77, True), (16, False), (32, False)])
def test_litetext_phrases_equal_transformers(tmp_path: Path, positions: int, repmixer: bool) -> None:
    checkpoint, model = litetext(tmp_path, positions=positions, repmixer=repmixer, seed=positions)
    prompts = checkpoint.encode(PHRASES)
    for row, phrase in enumerate(PHRASES):
        expected, mask = by_processor(model, phrase)
        np.testing.assert_allclose(prompts.embeddings[row], expected, atol=2e-5)
        np.testing.assert_array_equal(prompts.mask[row], mask)


def test_sam3_phrases_equal_transformers(tmp_path: Path) -> None:
    checkpoint, model = sam3(tmp_path)
    prompts = checkpoint.encode(PHRASES)
    for row, phrase in enumerate(PHRASES):
        expected, mask = by_processor(model, phrase)
        # Rows beyond the mask are never attended to.
        np.testing.assert_allclose(prompts.embeddings[row][mask], expected[mask], atol=2e-5)
        np.testing.assert_array_equal(prompts.mask[row], mask)


@pytest.mark.parametrize("positions", [16, 77])
def test_the_authors_convention_equals_its_restatement(tmp_path: Path, positions: int) -> None:
    checkpoint, model = litetext(tmp_path, positions=positions, seed=1)
    prompts = checkpoint.encode(PHRASES, convention="original")
    assert prompts.embeddings.shape[:2] == (4, 16)
    ids = torch.zeros(4, 16, dtype=torch.int64)
    for row, phrase in enumerate(PHRASES):
        found = tinyconf.tokenizer()(phrase).input_ids
        ids[row, : len(found)] = torch.tensor(found)
    with torch.no_grad():
        expected = restated_original(model, ids)
    np.testing.assert_allclose(prompts.embeddings, expected.numpy(), atol=2e-5)
    np.testing.assert_array_equal(prompts.mask, ids.numpy() != 0)


def test_the_conventions_differ(tmp_path: Path) -> None:
    checkpoint, _ = litetext(tmp_path, positions=16)
    ours, theirs = checkpoint.encode(["red cup"]), checkpoint.encode(["red cup"], convention="original")
    assert np.abs(ours.embeddings[0, :4] - theirs.embeddings[0, :4]).max() > 0.01


def test_sam3_keeps_32_tokens_in_the_authors_convention(tmp_path: Path) -> None:
    """SAM3's own encoder is causal: zeros after the phrase change nothing before them."""
    checkpoint, model = sam3(tmp_path)
    prompts = checkpoint.encode(PHRASES, convention="original")
    assert prompts.embeddings.shape[1] == 32
    expected, mask = by_processor(model, "red cup")
    np.testing.assert_allclose(prompts.embeddings[0][mask], expected[mask], atol=2e-5)


def test_vetoes_come_last(tmp_path: Path) -> None:
    checkpoint, _ = litetext(tmp_path, positions=16)
    prompts = checkpoint.encode(["person"], ["car", "ball"])
    assert (prompts.phrases, prompts.num_wanted, prompts.num_vetoes) == (("person", "car", "ball"), 1, 2)


@pytest.mark.parametrize(("convention", "words"), [("transformers", 30), ("original", 14)])
def test_a_long_phrase_is_cut_with_a_warning_that_says_what_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, convention: str, words: int
) -> None:
    checkpoint, _ = litetext(tmp_path, positions=16)
    fits = " ".join(["red", "cup"] * (words // 2))
    logging.getLogger("masklet.checkpoints").addHandler(caplog.handler)
    try:
        whole = checkpoint.encode([fits], convention=convention)  # type: ignore[arg-type]
        assert caplog.messages == []
        cut = checkpoint.encode([f"{fits} the  Blue ball"], convention=convention)  # type: ignore[arg-type]
    finally:
        logging.getLogger("masklet.checkpoints").removeHandler(caplog.handler)
    np.testing.assert_array_equal(cut.embeddings, whole.embeddings)
    assert len(set(caplog.messages)) == 1
    assert caplog.messages[0].endswith("'the  Blue ball' is cut off")
    assert cut.phrases == (f"{fits} the  Blue ball",)


@pytest.mark.parametrize(
    ("phrases", "vetoes", "message"),
    [
        ([], [], "nothing to look for"),
        (["person", ""], [], "a phrase is empty"),
        (["person"], ["  "], "a phrase is empty"),
    ],
)
def test_nothing_to_encode(tmp_path: Path, phrases: list[str], vetoes: list[str], message: str) -> None:
    checkpoint, _ = litetext(tmp_path, positions=16)
    with pytest.raises(UsageError, match=message):
        checkpoint.encode(phrases, vetoes)


def test_a_phrase_the_tokenizer_drops_is_refused(tmp_path: Path) -> None:
    checkpoint, _ = litetext(tmp_path, positions=16)
    half = text_half(checkpoint.config.detector_config, checkpoint.weights)
    tokenizer = checkpoint.tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("?", "")
    with pytest.raises(UsageError, match="no words"):
        encode_phrases(half, tokenizer, ["??"], [], "transformers")
