"""``masklet doctor``: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

PACKAGES = ("torch", "torchvision", "transformers", "av", "decord", "opencv-python", "numpy", "pyarrow", "ray")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    state: str
    """``ok``, ``missing`` (optional, something else does the work) or ``problem``."""
    detail: str
    todo: str = ""

    def to_dict(self) -> dict[str, str]:
        """For ``--json``."""
        return asdict(self)


def examine() -> list[Check]:
    """Run all checks; none needs a network, none raises."""
    checks = [_python(), *_packages(), _decord(), _av(), *_devices(), _ray(), _tiny(), _token()]
    return checks


def _guarded(name: str, check: Callable[[], Check], todo: str) -> Check:
    """A check whose imports may fail on a broken machine: that is what it is there to report."""
    try:
        return check()
    except Exception as error:
        return Check(name, "problem", f"{type(error).__name__}: {' '.join(str(error).split())}", todo)


def _python() -> Check:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Check("python", "ok" if sys.version_info >= (3, 11) else "problem", detail, "")


def _packages() -> list[Check]:
    checks = []
    for name in PACKAGES:
        try:
            checks.append(Check(name, "ok", version(name)))
        except PackageNotFoundError:
            optional = name in ("decord", "ray")
            checks.append(Check(name, "missing" if optional else "problem", "not installed", f"pip install {name}"))
    return checks


def _decord() -> Check:
    if find_spec("decord") is None:
        return Check("decode: decord", "missing", "no wheel here", "nothing to do: PyAV decodes everything")
    return Check("decode: decord", "ok", "H.264, HEVC, VP8 and VP9 in MP4 and Matroska, after a probe cleared them")


def _av() -> Check:
    def check() -> Check:
        import av

        wanted = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")
        found = [c for c in wanted if c in av.codecs_available]
        return Check("decode: PyAV", "ok", f"{', '.join(found)}; everything decord is not cleared for, and live input")

    return _guarded("decode: PyAV", check, "pip install av")


def _devices() -> list[Check]:
    def check() -> Check:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            return Check("device: CUDA", "ok", ", ".join(names))
        if torch.backends.mps.is_available():
            return Check("device: MPS", "ok", "Apple GPU")
        return Check("device: CUDA", "missing", "no GPU found", "the tiny model is fine on the CPU; s0 is not")

    def cpu() -> Check:
        import torch

        return Check("device: CPU", "ok", f"{torch.get_num_threads()} torch threads")

    return [_guarded("device: CUDA", check, "pip install torch"), _guarded("device: CPU", cpu, "pip install torch")]


def _ray() -> Check:
    if find_spec("ray") is None:
        return Check("ray", "missing", "not installed", "only --ray needs it: pip install ray")
    address = os.environ.get("RAY_ADDRESS")
    return Check("ray cluster", "ok", f"RAY_ADDRESS={address}" if address else "none; --ray off needs none")


def _tiny() -> Check:
    def check() -> Check:
        from configs.schema import ModelConfig
        from pipeline.checkpoints import open_checkpoint

        checkpoint = open_checkpoint(ModelConfig(name="tiny"))
        return Check("weights: tiny", "ok", f"built in, {checkpoint.image_size} px, {checkpoint.fingerprint[:12]}")

    return _guarded("weights: tiny", check, "reinstall masklet")


def _token() -> Check:
    def check() -> Check:
        from huggingface_hub import get_token

        if get_token():
            return Check("weights: Hub token", "ok", "found")
        todo = "for s0, s1, l and sam3: accept the licence of facebook/sam3, then `hf auth login`"
        return Check("weights: Hub token", "missing", "none", todo)

    return _guarded("weights: Hub token", check, "pip install huggingface_hub")
