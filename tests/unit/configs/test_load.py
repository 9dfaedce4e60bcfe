"""Configuration: files, assignments, and errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import digest, load_config, presets, to_yaml
from configs.schema import Config, ModelConfig
from pipeline.errors import ConfigError


def test_defaults_are_the_schema() -> None:
    assert load_config(None, ["model.name=s0"]) == Config(model=ModelConfig(name="s0"))
    assert load_config() == load_config("default")


def test_the_tiny_model_has_defaults_of_its_own_below_the_users() -> None:
    assert load_config().tracker.recondition_every_frames == 1
    assert load_config(None, ["tracker.recondition_every_frames=5"]).tracker.recondition_every_frames == 5
    assert load_config(None, ["model.name=s0"]).tracker.recondition_every_frames == 16


@pytest.mark.parametrize("name", presets())
def test_every_packaged_preset_loads(name: str) -> None:
    load_config(name)


def test_last_word_wins(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: fast\nsampling: {stride: 4}\n")
    assert load_config(str(file)).sampling.stride == 4
    assert load_config(str(file)).detector.batch_frames == 8
    assert load_config(str(file), ["sampling.stride=5"]).sampling.stride == 5
    assert load_config(str(file), ["sampling.stride=5"], {"sampling": {"stride": 6}}).sampling.stride == 6
    assert load_config(str(file), (), {"sampling": {"stride": None}}).sampling.stride == 4


def test_yaml_round_trip() -> None:
    config = load_config("accurate", ["prompts=[red car, person]", "model.name=s0"])
    again = load_config(values=__import__("yaml").safe_load(to_yaml(config)))
    assert again == config


def test_environment_is_substituted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {name: '${ENV:MASKLET_MODEL}'}\n")
    monkeypatch.setenv("MASKLET_MODEL", "/weights/s0")
    assert load_config(str(file)).model.name == "/weights/s0"
    monkeypatch.delenv("MASKLET_MODEL")
    with pytest.raises(ConfigError, match="MASKLET_MODEL is not set"):
        load_config(str(file))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "tracker: {max_object: 3}",
            r"unknown configuration key 'tracker.max_object' \(.*a.yaml: tracker.max_object\)",
        ),
        ("tracker: {max_objects: 0}", r"bad value 0 \(.*a.yaml: tracker.max_objects\)"),
        ("tracker: {keep_alive_init_frames: 99}", "must not exceed"),
        ("- 1\n- 2", "mapping of sections"),
        ("a: [", "cannot read the configuration"),
        ("extends: a.yaml", "circle"),
        ("extends: nowhere", "no such configuration"),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(str(file))


@pytest.mark.parametrize("assignment", ["tracker.max_objects", "=3", "device.name=tpu"])
def test_bad_assignments(assignment: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [assignment])


def test_digest_tells_what_changes_rows() -> None:
    base = digest(load_config())
    assert digest(load_config(None, ["prompts=[cat]"])) != base
    assert digest(load_config(None, ["tracker.new_object_score=0.6"])) != base
    assert digest(load_config(None, ["decode.batch_frames=4"])) == base
    assert digest(load_config(None, ["device.threads=1"])) == base
    assert digest(load_config(None, ["output.rows_per_part=500"])) == base
