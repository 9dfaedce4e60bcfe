"""On a CUDA device: compiled and recorded networks say what the plain ones say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import like_the_reference, settings
from benchmarks.reference import InMemory, random_model, tiny_config
from pipeline.bench import Subject, load_models, modes, stopwatch
from pipeline.bench_scene import Scene, synthetic_prompts

# What the compiler warns of is not ours: complex numbers, precision it would rather have.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@torch.no_grad()
def test_compiled_and_recorded_networks_say_what_the_plain_ones_say() -> None:
    """Memories fill up, batches are padded, and every recording is used again and again."""
    device = torch.device("cuda")
    model = random_model(tiny_config(112, 50), device, torch.float32)
    subjects = []
    for compiles in (False, True):
        checkpoint = InMemory(model)
        models = load_models(checkpoint, settings(compiles=compiles), device, torch.float32)  # type: ignore[arg-type]
        scene, prompts = Scene(5, 2, models.mask_side), synthetic_prompts(2, models.text_width)
        tracker = modes(like_the_reference())["exact"]
        one = Subject(models.detector, models.parts, scene, prompts, tracker, 4, f"{compiles}", stopwatch(device))
        subjects.append(one)
    plain, made = subjects
    for _ in range(24):
        plain.advance(1)
        made.advance(1)
        assert plain.tracker.raw.keys() == made.tracker.raw.keys()
        for row, logits in plain.tracker.raw.items():
            torch.testing.assert_close(made.tracker.raw[row], logits, atol=5e-2, rtol=0)
    assert len(plain.tracker.raw) == 5
    networks = [one.detector._network for one in subjects]
    for seed in range(3):
        torch.manual_seed(seed)
        tokens, mask = torch.randn(3, 32, 128, device=device), torch.ones(3, 32, dtype=torch.bool, device=device)
        states = networks[0].encode(torch.randn(3, 3, 112, 112, device=device))
        a, b = (n.decode(n.coarse(states), tokens, mask) for n in networks)
        torch.testing.assert_close(b.boxes, a.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(b.logits, a.logits, atol=1e-2, rtol=0)
        torch.testing.assert_close(b.presence, a.presence, atol=1e-2, rtol=0)
