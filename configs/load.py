"""From YAML files and ``--set`` options to one validated :class:`configs.schema.Config`, and back."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.schema import Config
from pipeline.errors import ConfigError

FOLDER = Path(__file__).parent
"""Where the packaged presets live; ``--config fast`` means ``configs/fast.yaml``."""

TINY = "tiny"
"""The built-in model, and the preset that suits it."""

_ENV = re.compile(r"\$\{ENV:([A-Za-z_][A-Za-z0-9_]*)\}")
_NOT_IN_RESULTS = ("sources", "output", "decode", "live")
"""Sections that cannot change a row; a run may be resumed with other values there."""


def load_config(file: str | None = None, sets: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Config:
    """The effective configuration: defaults, then ``file``, then ``sets`` (``section.key=value``), then ``values``.

    The tiny model has defaults of its own (``configs/tiny.yaml``).

    Args:
        file: a YAML file, or the name of a packaged preset (``default``, ``fast``, ``accurate``, ``live``).
        sets: command line assignments; the right side is read as YAML.
        values: a nested mapping with the last word; keys holding ``None`` are left out.

    Raises:
        ConfigError: the file is missing or malformed, a key is unknown, or a value is out of range. Names file and key.
    """
    tree: dict[str, Any] = _read(_find(file), ()) if file else {}
    for assignment in sets:
        _merge(tree, _parse_set(assignment))
    _merge(tree, _without_none(values or {}))
    try:
        config = Config.model_validate(tree)
        if config.model.name != TINY:
            return config
        suited = _read(FOLDER / f"{TINY}.yaml", ())
        _merge(suited, tree)
        return Config.model_validate(suited)
    except ValidationError as error:
        raise _readable(error, file) from None


def to_yaml(config: Config) -> str:
    """The whole tree as YAML; loading it again gives an equal configuration."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True)


def digest(config: Config) -> str:
    """Hex digest of everything that can change a row (not of sources, output and decoding sizes)."""
    tree = json.loads(config.model_dump_json(exclude=set(_NOT_IN_RESULTS)))
    tree["device"].pop("threads")
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: str, new: str) -> list[str]:
    """``section.key: old -> new`` for everything that can change a row, between two trees as :func:`to_yaml` gives."""
    before, after = (_leaves(yaml.safe_load(text) or {}) for text in (old, new))
    keys = [k for k in {**before, **after} if k.split(".")[0] not in _NOT_IN_RESULTS and k != "device.threads"]
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _leaves(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def presets() -> list[str]:
    """Names of the packaged presets."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def _find(file: str) -> Path:
    path = Path(file)
    if path.is_file():
        return path
    packaged = FOLDER / f"{file}.yaml"
    if packaged.is_file():
        return packaged
    raise ConfigError("no such configuration", file, f"give a YAML file or one of: {', '.join(presets())}")


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError("configuration files extend each other in a circle", str(path))
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("cannot read the configuration", str(path), " ".join(str(error).split())) from error
    if not isinstance(tree, dict):
        raise ConfigError("a configuration is a mapping of sections", str(path), f"got {type(tree).__name__}")
    parent = tree.pop("extends", None)
    own: dict[str, Any] = _substitute(tree, str(path))
    if parent is None:
        return own
    beside = path.parent / str(parent)
    base = _read(beside if beside.is_file() else _find(str(parent)), (*seen, path.resolve()))
    _merge(base, own)
    return base


def _substitute(value: Any, where: str) -> Any:
    """Replace ``${ENV:NAME}`` in every string."""
    if isinstance(value, dict):
        return {k: _substitute(v, where) for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(v, where) for v in value]
    if not isinstance(value, str):
        return value
    missing = [name for name in _ENV.findall(value) if name not in os.environ]
    if missing:
        raise ConfigError(f"the environment variable {missing[0]} is not set", where)
    return _ENV.sub(lambda m: os.environ[m[1]], value)


def _parse_set(assignment: str) -> dict[str, Any]:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError("an assignment is section.key=value", f"--set {assignment}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    for name in reversed(key.strip().split(".")):
        value = {name: value}
    tree: dict[str, Any] = value
    return tree


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in tree.items() if v is not None}
    return {k: v for k, v in kept.items() if v != {}}


def _readable(error: ValidationError, file: str | None) -> ConfigError:
    """The first validation error, with its key, as one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    where = f"{file}: {key}" if file else key
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown configuration key {key!r}", where, "see `masklet config` for all keys")
    return ConfigError(f"bad value {first.get('input')!r}", where, first["msg"])
