"""Checkpoints: halves found, merged, checked and written, and everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import Sam3TrackerVideoModel, Sam3VideoModel
from transformers.utils import logging as transformers_logging

from configs.schema import ModelConfig
from pipeline import checkpoint_hub, checkpoints
from pipeline.checkpoints import open_checkpoint, prepare, text_parameters
from pipeline.errors import ModelError, UsageError
from tests import tinyconf

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()


def opened(folder: Path, tracker_from: Path | None = None) -> checkpoints.Checkpoint:
    return open_checkpoint(
        ModelConfig(name=str(folder), tracker_from=None if tracker_from is None else str(tracker_from))
    )


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A composite whose detector and tracker have different widths, as the packaged tiny model."""
    config = tinyconf.video_config(detector_width=32)
    return tinyconf.write_folder(tmp_path_factory.mktemp("video"), config, tinyconf.video_state(config, 3))


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Sam3VideoModel]:
    """A LiteText detector alone, and a SAM3 video model saved by transformers, of the same image encoder."""
    root = tmp_path_factory.mktemp("halves")
    sam3 = tinyconf.video_model(tinyconf.video_config("sam3", hotstart_delay=11), 5)
    sam3.save_pretrained(root / "sam3")
    tinyconf.tokenizer().save_pretrained(root / "sam3")
    config = tinyconf.litetext_config()
    state = tinyconf.detector_model(config, 6).state_dict()
    tinyconf.write_folder(root / "litetext", config, state)
    return root / "litetext", root / "sam3", sam3


def test_packaged_tiny_model_loads_in_halves_without_a_text_encoder() -> None:
    checkpoint = open_checkpoint(ModelConfig())
    detector, tracker = checkpoint.load_detector(), checkpoint.load_tracker()
    stored = load_file(checkpoint.folder / "model.safetensors")
    assert (tracker.image_size, tracker.low_res_size) == (checkpoint.image_size, checkpoint.low_res_size)
    assert not {"text_encoder", "text_projection"} & {name for name, _ in detector.named_children()}
    for prefix, part in (
        ("detector_model", detector),
        ("tracker_neck", tracker.neck),
        ("tracker_model", tracker.model),
    ):
        for name, value in part.state_dict().items():
            assert torch.equal(value, stored[f"{prefix}.{name}"].float() if value.is_floating_point() else value)


def test_a_model_may_have_a_narrow_detector_and_a_wide_tracker(video_folder: Path) -> None:
    checkpoint = opened(video_folder)
    tracker = checkpoint.load_tracker()
    features = torch.randn(1, 64, 8, 8)
    assert tracker.neck(features)[0][0].shape == (1, 96, 32, 32)
    assert checkpoint.load_detector().get_parameter("mask_decoder.instance_projection.weight").shape[0] == 32


def test_weights_saved_by_transformers_give_its_features(halves: tuple[Path, Path, Sam3VideoModel]) -> None:
    """The double prefix that transformers writes is understood, and the neck is the reference's."""
    _, folder, reference = halves
    assert any(name.startswith("tracker_model.tracker_model.") for name in load_file(folder / "model.safetensors"))
    checkpoint = opened(folder)
    tracker = checkpoint.load_tracker()
    pixels = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vision = reference.detector_model.get_vision_features(pixels)
        expected, _ = reference.get_vision_features_for_tracker(vision)
        state = checkpoint.load_detector().get_submodule("vision_encoder.backbone")(pixels).last_hidden_state
        levels = tracker.neck(state.transpose(1, 2).unflatten(2, (8, 8)))[0]
        finest = tracker.model.mask_decoder.conv_s0(levels[0])
    assert torch.equal(state, vision.last_hidden_state)
    assert torch.allclose(finest.flatten(2).permute(2, 0, 1), expected[0], atol=1e-5)


def test_sharded_weights_are_the_same_model(halves: tuple[Path, Path, Sam3VideoModel], tmp_path: Path) -> None:
    _, folder, reference = halves
    reference.save_pretrained(tmp_path, max_shard_size="2MB")
    tinyconf.tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert opened(tmp_path).fingerprint == opened(folder).fingerprint
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        opened(tmp_path)


def test_merging_takes_the_detector_here_and_the_tracker_there(halves: tuple[Path, Path, Sam3VideoModel]) -> None:
    litetext, sam3, reference = halves
    merged = opened(litetext, sam3)
    assert merged.config.detector_config.model_type == "sam3_lite_text"
    assert merged.config.hotstart_delay == 11  # the video model's own values come along
    stored = load_file(litetext / "model.safetensors")
    for name, value in merged.load_detector().state_dict().items():
        assert torch.equal(value, stored[name])
    tracker = merged.load_tracker()
    assert all(torch.equal(v, reference.tracker_neck.state_dict()[n]) for n, v in tracker.neck.state_dict().items())
    assert all(torch.equal(v, reference.tracker_model.state_dict()[n]) for n, v in tracker.model.state_dict().items())


def test_a_tracker_saved_alone_can_be_the_other_half(halves: tuple[Path, Path, Sam3VideoModel], tmp_path: Path) -> None:
    model: Sam3TrackerVideoModel = tinyconf.randomize(Sam3TrackerVideoModel(tinyconf.tracker_config()), 8)
    model.save_pretrained(tmp_path)
    merged = opened(halves[0], tmp_path)
    assert merged.low_res_size == 32
    tracker = merged.load_tracker()
    assert torch.equal(tracker.neck.fpn_layers[0].proj1.weight, model.vision_encoder.neck.fpn_layers[0].proj1.weight)
    assert torch.equal(tracker.model.no_memory_embedding, model.no_memory_embedding)


def test_tracker_from_replaces_the_tracker_of_a_complete_model(
    halves: tuple[Path, Path, Sam3VideoModel], video_folder: Path
) -> None:
    _, sam3, reference = halves
    replaced = opened(video_folder, sam3).load_tracker().model.no_memory_embedding
    assert torch.equal(replaced, reference.tracker_model.no_memory_embedding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", r"1 missing \(tracker_neck\.fpn_layers\.0\.proj1\.weight\)"),
        ("add", r"1 unknown \(detector_model\.surprise\)"),
        ("reshape", r"fpn_layers\.0\.proj1\.weight is \(5, 5\) instead of \(96, 16, 1, 1\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(video_folder: Path, tmp_path: Path, change: str, message: str) -> None:
    state = load_file(video_folder / "model.safetensors")
    name = "tracker_neck.fpn_layers.0.proj1.weight"
    if change == "drop":
        del state[name]
    elif change == "add":
        state["detector_model.surprise"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(5, 5)
    tinyconf.write_folder(tmp_path, opened(video_folder).config, state)
    with pytest.raises(ModelError, match=message):
        opened(tmp_path)


def test_halves_of_different_image_encoders_are_refused(
    halves: tuple[Path, Path, Sam3VideoModel], tmp_path: Path
) -> None:
    config = tinyconf.litetext_config(image_size=168)
    tinyconf.write_folder(tmp_path, config, tinyconf.detector_model(config).state_dict())
    with pytest.raises(ModelError, match="image_size 168 and 112"):
        opened(tmp_path, halves[1])


def test_a_detector_alone_says_what_it_lacks_and_how_to_get_it(
    halves: tuple[Path, Path, Sam3VideoModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_args: object, **_kwargs: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(checkpoint_hub, "snapshot_download", offline)
    with pytest.raises(ModelError) as error:
        opened(halves[0])
    for part in ("tracker weights facebook/sam3", "SAM License", "hf auth login", "local folder", "--model tiny"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


ANSWER: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (GatedRepoError("gated", response=ANSWER), "is gated"),
        (RepositoryNotFoundError("none", response=ANSWER), "does not exist, or needs a login"),
        (HfHubHTTPError("server error", response=ANSWER), "cannot be reached"),
        (LocalEntryNotFoundError("offline"), "cannot be reached"),
    ],
)
def test_hub_trouble_is_one_line(monkeypatch: pytest.MonkeyPatch, raised: Exception, why: str) -> None:
    asked: list[tuple[str, str | None]] = []

    def refuse(hub_id: str, revision: str | None, **_kwargs: object) -> str:
        asked.append((hub_id, revision))
        raise raised

    monkeypatch.setattr(checkpoint_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=why) as error:
        open_checkpoint(ModelConfig(name="s1", revision="v1"))
    assert asked == [("vil-uob/sam3-litetext-s1", "v1")]
    assert "\n" not in str(error.value) and "--model tiny" in str(error.value)


def test_names_that_are_no_model(tmp_path: Path) -> None:
    for name, message in (
        ("s7", "unknown model 's7'"),
        (str(tmp_path / "nowhere"), "no such model folder"),
        ("weights/sam3.pt", "no such model folder"),
    ):
        with pytest.raises(ModelError, match=message):
            open_checkpoint(ModelConfig(name=name))


def test_pickles_are_never_opened(video_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((video_folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"would run code")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        opened(tmp_path)
    with pytest.raises(ModelError, match="a pickled checkpoint can run code"):
        opened(tmp_path / "pytorch_model.bin")


def test_folders_that_are_no_checkpoint(video_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no usable config\.json"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="not a SAM3 model but 'bert'"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text((video_folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        opened(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((video_folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ModelError, match="damaged"):
        opened(tmp_path)


def test_prepare_writes_the_same_model_as_one_folder(halves: tuple[Path, Path, Sam3VideoModel], tmp_path: Path) -> None:
    litetext, sam3, _ = halves
    config = ModelConfig(name=str(litetext), tracker_from=str(sam3))
    written = prepare(config, tmp_path / "deep" / "merged")
    assert written.fingerprint == open_checkpoint(config).fingerprint
    assert opened(tmp_path / "deep" / "merged").fingerprint == written.fingerprint
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["merged"]
    assert "SAM License" in (tmp_path / "deep" / "merged" / "README.md").read_text()
    with pytest.raises(UsageError, match="the folder exists"):
        prepare(config, tmp_path / "deep" / "merged")


def test_a_failed_prepare_leaves_nothing(
    halves: tuple[Path, Path, Sam3VideoModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    config = ModelConfig(name=str(halves[0]), tracker_from=str(halves[1]))
    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(UsageError, match="No space left on device"):
        prepare(config, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        prepare(config, tmp_path / "file" / "merged")


def test_fingerprint_tells_weights_and_vocabulary_apart(video_folder: Path, tmp_path: Path) -> None:
    original = opened(video_folder)
    state = load_file(video_folder / "model.safetensors")
    state["tracker_model.no_memory_embedding"] += 1
    tinyconf.write_folder(tmp_path / "a", original.config, state)
    assert opened(tmp_path / "a").fingerprint != original.fingerprint
    save_file(load_file(video_folder / "model.safetensors"), tmp_path / "a" / "model.safetensors")
    assert opened(tmp_path / "a").fingerprint == original.fingerprint
    tokens = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    tokens["model"]["vocab"]["blue"], tokens["model"]["vocab"]["red"] = 3, 5
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(tokens))
    assert opened(tmp_path / "a").fingerprint != original.fingerprint


def test_precision_is_that_of_the_caller(video_folder: Path) -> None:
    checkpoint = opened(video_folder)
    detector, tracker = checkpoint.load_detector(dtype=torch.bfloat16), checkpoint.load_tracker(dtype=torch.bfloat16)
    for part in (detector, tracker.neck, tracker.model):
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
        assert not part.training and not any(p.requires_grad for p in part.parameters())


def test_text_encoders_have_the_published_sizes() -> None:
    """arXiv 2602.12173: 42.54, 63.53 and 123.80 million against SAM3's 353.72."""
    counts = {name: text_parameters(name) for name in ("s0", "s1", "l", "sam3")}
    assert counts == {"s0": 42_541_312, "s1": 63_528_192, "l": 123_800_320, "sam3": 353_724_672}


def test_only_published_text_encoders_are_counted() -> None:
    with pytest.raises(UsageError, match="s0, s1, l, sam3"):
        text_parameters("s7")
