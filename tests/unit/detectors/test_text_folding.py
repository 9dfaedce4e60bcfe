"""Folding the text encoder's batch norms changes nothing but the last digits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import Sam3LiteTextModel

from configs.schema import ModelConfig
from pipeline.checkpoints import open_checkpoint
from pipeline.text_folding import fold
from tests import tinyconf

SAME = 1e-5


@pytest.mark.parametrize("repmixer", [True, False])
def test_a_folded_encoder_equals_transformers(repmixer: bool) -> None:
    torch.set_num_threads(1)
    plain = tinyconf.detector_model(tinyconf.litetext_config(repmixer=repmixer), 3).text_encoder
    folded = copy.deepcopy(plain)
    fold(folded)
    ids = torch.randint(1, 60, (5, 32), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(32)[None] < torch.tensor([4, 32, 9, 16, 2])[:, None]
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        got = folded(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(got, expected, atol=SAME, rtol=0)
    assert expected.std() > 0.1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) == repmixer


def test_the_packaged_models_phrases_equal_transformers() -> None:
    checkpoint = open_checkpoint(ModelConfig())
    prompts = checkpoint.encode(["red circle", "blue square", "a hand"])
    model = Sam3LiteTextModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    given = checkpoint.tokenizer(list(prompts.phrases), padding="max_length", max_length=32, return_tensors="pt")
    with torch.no_grad():
        hidden = model.text_encoder(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
        expected = model.text_projection(hidden)
    torch.testing.assert_close(torch.from_numpy(prompts.embeddings), expected, atol=SAME, rtol=0)
