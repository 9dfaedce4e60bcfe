"""The benchmarks at a small size: contestants agree, and a history that is pretended is like a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from benchmarks import against_transformers as bench
from benchmarks import flat, gpu
from benchmarks.parts import Results
from benchmarks.plot import write_plot
from benchmarks.reference import pretend_ours
from pipeline.bench import Measured, Models
from pipeline.bench import write_plot as write_bench_plot

SIDE = 112
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def built() -> tuple[Any, Models]:
    return bench.build(SIDE, bench.Case("", 3, 2, 0, 0))


@pytest.fixture
def turns(built: tuple[Any, Models]) -> Iterator[bench.Turns]:
    made = bench.Turns(*built, bench.Case("", 3, 2, 40, 0), bench.like_the_reference())
    yield made
    made.reference.close()


def test_a_pretended_history_is_like_a_real_one(turns: bench.Turns) -> None:
    for _ in range(6):
        turns.block(3)
    assert turns.difference > 0, "the networks' own masks were compared"
    turns.reference.pretend(34)
    for subject in turns.ours.values():
        pretend_ours(subject, 34)
    pretended, bank = turns.reference.signature(), turns.ours["exact"].tracker._bank
    memory_step, pointer_step, memory = bank.memory_step.copy(), bank.pointer_step.copy(), bank.memory.clone()
    turns.block(2)  # goes on, and everyone still agrees
    turns.reference.close()

    real = bench.Turns(turns.reference.model, _models(turns), turns.case, bench.like_the_reference())
    turns.reference = real.reference  # to be closed
    del real.ours["adaptive"]
    for _ in range(17):
        real.block(2)
    assert pretended == real.reference.signature()
    bank = real.ours["exact"].tracker._bank
    assert (memory_step == bank.memory_step).all() and (pointer_step == bank.pointer_step).all()
    filled = torch.from_numpy(memory_step >= 0)
    assert memory.shape == bank.memory.shape and (memory[filled] != 0).any(-1).any(-1).all()


def _models(turns: bench.Turns) -> Models:
    subject = turns.ours["exact"]
    return Models(subject.detector, subject.parts, turns.scene.mask_side, 128, torch.device("cpu"))


def test_contestants_are_timed_and_the_model_gets_its_methods_back(built: tuple[Any, Models], tmp_path: Path) -> None:
    result = bench.measure(*built, bench.Case("16 objects", 3, 2, 8, 8), bench.like_the_reference(), block=4)
    assert result["counted_frames"] == [8, 16]
    for one in result["contestants"].values():
        assert one["fps"] == pytest.approx(1e3 / one["wall_ms"])
        assert one["peak_working_mb"] is None or one["peak_working_mb"] >= 0
        assert one["ratio_wall"] > 0 and {"image encoder", "attention", "memory"} <= set(one["part_ms"])
    grows = {name: one["state_mb_per_1000_frames"] for name, one in result["contestants"].items()}
    assert grows["exact"] == pytest.approx(0, abs=0.1) and grows["reference"] > 10
    assert "**" in bench.table([result]) and "frames/s" in bench.table([result])
    file = write_plot([result], tmp_path / "plot.png")
    assert cv2.imread(str(file)).std() > 0
    assert built[0].run_detection.__func__ is type(built[0]).run_detection


def test_the_gpu_benchmark_runs_without_decoders_or_ray(tmp_path: Path) -> None:
    """In a process of its own, in which these packages cannot be imported, at a tiny size."""
    code = (
        "import sys\n"
        "for name in ('av', 'decord', 'ray', 'pyarrow'): sys.modules[name] = None\n"
        "import torch; torch.set_num_threads(1)\n"
        "from benchmarks import gpu\n"
        "gpu.CASES = [(2, 1)]; gpu.WARM_UP = 4\n"
        f"sys.argv = ['gpu', '--size', 'tiny', '--device', 'cpu', '--frames', '4', '-o', {str(tmp_path)!r}]\n"
        "gpu.main()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT, capture_output=True)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["reference", "exact", "adaptive"]
    for row in rows:
        assert row["fps"] > 0 and row["peak_mb"] > 0 and row["card_tflops"] > 0
        parts = {"image encoder", "detection"} | (set() if row["name"] == "adaptive" else {"neck", "memory"})
        assert parts <= set(row["part_ms"]), "adaptive: nobody may need attention on so few frames"
    assert "| 2 | 1 | adaptive |" in (tmp_path / "gpu.md").read_text()


def test_the_gpu_table_is_filled_in_several_goes(tmp_path: Path) -> None:
    """What another card, or the same case, said before goes."""
    row = {"name": "exact", "fps": 1.0, "ratio": 1.0, "share_of_floor": None, "peak_mb": 1.0, "card_tflops": 700.0}
    cases = {(5, 1): 1.0, (1, 4): 2.0}
    rows = [row | {"objects": k, "prompts": p, "fps": fps} for (k, p), fps in cases.items()]
    gpu._write(rows, [], tmp_path / "gpu", "card A")
    again = [row | {"objects": 5, "prompts": 1, "fps": 3.0}, row | {"objects": 20, "prompts": 1, "fps": 4.0}]
    gpu._write(again, [], tmp_path / "gpu", "card A")
    found = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [(r["objects"], r["prompts"], r["fps"]) for r in found] == [(1, 4, 2.0), (5, 1, 3.0), (20, 1, 4.0)]
    gpu._write(again[:1], [], tmp_path / "gpu", "card B")
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == 1


def test_one_frame_leaves_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--size", "tiny", "--device", "cpu", "--one-frame", "5", "-o", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu", *options])
    gpu.main()
    found = json.loads((tmp_path / "gpu_one_frame.json").read_text())
    assert found["objects"] == 5 and found["peak_mb"] > 0 and "tiny" in found["where"]


def test_cases_that_would_end_too_late_are_not_begun() -> None:
    deadline = gpu.Deadline(10)
    assert (1, 4) in gpu.CASES and all(deadline.allows(case) for case in gpu.CASES)
    deadline.note((1, 1), 100.0)
    assert deadline.allows((20, 1)) and not deadline.allows((50, 4))


def test_the_command_draws_its_table(tmp_path: Path) -> None:
    rows = [Measured(5, 1, mode, fps=10, frame_ms=100, shares={"detection": 0.7, "render": 0.3}) for mode in "ab"]
    assert cv2.imread(str(write_bench_plot(rows, tmp_path / "bench.png"))).std() > 0


def test_the_floor_is_the_arithmetic_of_all_parts() -> None:
    assert gpu.floor_tflop(5, 4) == pytest.approx((5.83 + 4 * 0.42 + 5 * 0.97, 5.83 + 4 * 0.42 + 5 * 1.31))


@pytest.mark.parametrize("way", flat.WAYS)
def test_the_flatness_benchmark_measures_both_ways(way: str, tmp_path: Path) -> None:
    models = bench.build(SIDE, bench.Case("", 2, 1, 0, 0))[1]
    result = flat.measure(models, 2, 320, "adaptive", way)
    assert result["frames"] == 320
    assert result["state_mb"][0] == result["state_mb"][1]
    assert result["end_by_early"] > 0 and result["cpu_ms_near_frame_100"] > 0
    flat._add(result, tmp_path)
    assert f"2 objects, adaptive, {way}, 320 frames" in (tmp_path / "flat.md").read_text()


def test_parts_are_merged_with_what_was_measured_before(tmp_path: Path) -> None:
    rows = (("a", "x", "x of a", "> 1"), ("a", "ok", "all well", "yes"), ("b", "x", "x of b", ""))
    results = Results(tmp_path, "some", "Some", rows)
    results.measure(["b"], {"b": lambda folder: {"x": [1.5, 2], "empty": not list(folder.iterdir())}})
    results.measure(["a"], {"a": lambda folder: {"x": 2.3456, "ok": True}})
    found = json.loads((tmp_path / "some.json").read_text())
    assert found["b"]["x"] == [1.5, 2] and found["b"]["empty"] and len(found["a"]["load_average"]) == 2
    text = (tmp_path / "some.md").read_text()
    assert "| a | x of a | 2.35 | > 1 |" in text and "| a | all well | yes | yes |" in text
    assert "| b | x of b | 1.5 2 |  |" in text and "benchmarks.some`" in text
