"""Placement, sharing and faults of jobs on Ray, and the same rows whatever the number of workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import api, open_run
from pipeline.errors import DeviceError, UsageError
from pipeline.job import Job, Silent
from pipeline.store import Manifest, RunWriter
from pipeline.types import Prompts
from tests.flow.faults import FaultyWorker, LateToStart, NeverStarts, Picky
from tests.flow.many import track_many
from tests.flow.worlds import CHUNKED, ROOT, World, finish, start_driver, wait_for_work

ray = pytest.importorskip("ray")

from workers.phrases import encode_prompts  # noqa: E402 - what follows needs Ray
from workers.ray_executor import RayExecutor, WorkerSpec, shared_prompts  # noqa: E402
from workers.ray_session import Share, is_placed, share_cluster  # noqa: E402
from workers.units import Unit, UnitReport  # noqa: E402

pytestmark = [
    pytest.mark.timeout(600),
    # Ray leaves sockets and files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize(
    ("nodes", "gpus", "workers", "expected"),
    [
        ([{"CPU": 2}], 0, 0, (1, Share(0, 2))),
        ([{"CPU": 16}], 0, 0, (8, Share(0, 2))),
        ([{"CPU": 2}], 0, 2, (2, Share(0, 1))),
        ([{"CPU": 2}], 0, 4, (4, Share(0, 0.5))),
        ([{"CPU": 4}, {"CPU": 2}], 0, 5, (5, Share(0, 1))),
        ([{"CPU": 0}, *[{"CPU": 32, "GPU": 8}] * 2], 1, 0, (16, Share(1, 2))),
        ([{"CPU": 4, "GPU": 4}], 1, 0, (4, Share(1, 1))),
        ([{"CPU": 32, "GPU": 2}], 0.5, 0, (4, Share(0.5, 2))),
        ([{"CPU": 32, "GPU": 8}], 2, 0, (4, Share(2, 2))),
        ([{"CPU": 8, "GPU": 2}], 1, 6, (6, Share(1, 2))),  # four more ask an autoscaler for nodes
    ],
)
def test_a_worker_gets_two_cpus_or_what_there_is(
    nodes: list[dict[str, float]], gpus: float, workers: int, expected: tuple[int, Share]
) -> None:
    assert share_cluster(nodes, gpus, workers) == expected


def test_a_third_of_a_cpu_is_rounded_down_so_that_all_fit() -> None:
    _, share = share_cluster([{"CPU": 2}], 0, 3)
    assert 0.6 < share.cpus <= 2 / 3
    assert 3 * share.cpus <= 2


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 4]
)
def test_rows_are_the_same_for_any_number_of_workers(world: World, cluster: Any, tmp_path: Path, workers: int) -> None:
    config = world.config(*CHUNKED)
    placement = api.Placement(cluster.address, workers)
    manifest = api.track_to_run(config, [i.uri for i in world.items], tmp_path / "run", placement=placement)
    assert manifest.counts["workers"] == workers
    assert manifest.counts["retries"] == 0
    assert open_run(tmp_path / "run").table().equals(world.chunked)


def faulty_run(world: World, folder: Path, faults: dict[str, str], **options: Any) -> tuple[Manifest, RayExecutor]:
    clips = folder / "clips"
    (clips / "faults").mkdir(parents=True)
    items = []
    for item in world.items:
        os.link(item.uri, clips / Path(item.uri).name)
        items.append(type(item)(item.video_id, str(clips / Path(item.uri).name)))
    for video_id, fault in faults.items():
        (clips / "faults" / video_id).write_text(fault)
    spec = WorkerSpec(world.config(), [], "", FaultyWorker)
    executor = RayExecutor(spec, encode_prompts(world.config()), workers=2, **options)
    manifest = Manifest("0", {"fingerprint": "f"}, ["disc"], [], "d")
    try:
        done = Job(world.config(), RunWriter.create(folder / "run", manifest, ""), executor).execute(items, Silent())
    finally:
        executor.close()
    return done, executor


@pytest.mark.slow  # silence takes its time; the retry itself is in the next one
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_hangs_or_is_out_of_memory_costs_one_attempt(world: World, tmp_path: Path) -> None:
    manifest, executor = faulty_run(world, tmp_path, {"v1": "hang once", "v2": "memory once"}, silence_s=20.0)
    assert executor.num_retries == manifest.counts["retries"] == 2
    assert open_run(tmp_path / "run").table().equals(world.whole)


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_starts_when_nothing_is_left_to_do_disturbs_nobody(world: World, tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    spec = WorkerSpec(world.config(), [], "", LateToStart(tmp_path))
    executor = RayExecutor(spec, encode_prompts(world.config()), workers=2)
    todo = [Unit(name, name, "", cost=cost) for name, cost in (("a", 1.0), ("b", 5.0))]
    try:
        events = list(executor.run(todo, tmp_path / "units"))
    finally:
        executor.close()
    reports = [e for e in events if isinstance(e, UnitReport)]
    assert {(r.video_id, r.status) for r in reports} == {("a", "done"), ("b", "done")}
    assert executor.num_retries == 0


def test_ray_does_not_make_each_worker_an_environment_of_its_own() -> None:
    """As it does by default for a driver that `uv run` started: minutes per worker, without the driver's packages."""
    code = (
        "import workers.ray_session\n"
        "from ray._private import ray_constants\n"
        "assert not ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV\n"
    )
    clean = {k: v for k, v in os.environ.items() if k != "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT, env=clean)


@pytest.mark.usefixtures("cluster")
def test_workers_that_can_never_start_end_the_job(world: World, tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    spec = WorkerSpec(world.config(), [], "", NeverStarts())  # type: ignore[arg-type]
    executor = RayExecutor(spec, encode_prompts(world.config()), workers=1)
    try:
        with pytest.raises(DeviceError, match=r"no worker can start .*it is broken"):
            list(executor.run([Unit("a", "a", "", cost=1.0)], tmp_path / "units"))
    finally:
        executor.close()


@pytest.mark.usefixtures("cluster")
def test_a_video_that_kills_every_worker_is_set_aside(world: World, tmp_path: Path) -> None:
    manifest, executor = faulty_run(world, tmp_path, {"v3": "kill"})
    status = {v.video_id: (v.status, v.error) for v in manifest.videos}
    assert status["v3"][0] == "failed"
    assert "set aside after 3 attempts on 2 worker(s)" in (status["v3"][1] or "")
    (log,) = (tmp_path / "run" / "logs").iterdir()
    assert f"(see logs/{log.name})" in (status["v3"][1] or "")
    text = log.read_text()
    assert [f"attempt {i}: worker " in text for i in (1, 2, 3, 4)] == [True, True, True, False]
    assert text.count("process ") >= 3
    assert executor.num_retries == 2
    others = world.whole.filter([v != "v3" for v in world.whole["video_id"].to_pylist()])
    assert open_run(tmp_path / "run").table().equals(others)


@pytest.mark.usefixtures("cluster")
def test_a_device_out_of_memory_is_tried_elsewhere_and_costs_its_video_only(world: World, tmp_path: Path) -> None:
    manifest, executor = faulty_run(world, tmp_path, {"v2": "device once", "v3": "device"})
    status = {v.video_id: (v.status, v.error) for v in manifest.videos}
    assert [status[v][0] for v in ("v0", "v1", "v2", "v3")] == ["done", "done", "done", "failed"]
    assert status["v3"][1] is not None
    assert status["v3"][1].startswith(
        "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.): free the device"
    )
    assert "(3 attempts on 2 worker(s); see logs/" in status["v3"][1]
    assert executor.num_retries == 3


@pytest.mark.usefixtures("cluster")
def test_a_node_that_does_not_see_the_run_folder_ends_the_job(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.ray_executor.write_token", lambda _: "of another folder")
    with pytest.raises(UsageError, match=r"does not see the run folder .*name an -o that all nodes mount"):
        faulty_run(world, tmp_path, {})


def picky_run(world: World, folder: Path, failures: int, workers: int) -> tuple[Manifest, RayExecutor]:
    spec = WorkerSpec(world.config(), [], "", Picky(folder, failures))
    executor = RayExecutor(spec, encode_prompts(world.config()), workers=workers)
    manifest = Manifest("0", {"fingerprint": "f"}, ["disc"], [], "d")
    try:
        run = RunWriter.create(folder / "run", manifest, "")
        return Job(world.config(), run, executor).execute(world.items, Silent()), executor
    finally:
        executor.close()


@pytest.mark.usefixtures("cluster")
def test_a_worker_without_its_device_costs_an_attempt_and_is_replaced(world: World, tmp_path: Path) -> None:
    manifest, executor = picky_run(world, tmp_path, failures=1, workers=2)
    assert [v.status for v in manifest.videos] == ["done"] * 4
    assert executor.num_retries == 1
    assert open_run(tmp_path / "run").table().equals(world.whole)


@pytest.mark.usefixtures("cluster")
def test_a_model_that_no_worker_can_load_ends_the_job(world: World, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no such device"):
        picky_run(world, tmp_path, failures=100, workers=2)


@pytest.mark.usefixtures("cluster")
def test_embeddings_whose_owner_died_are_encoded_again(world: World) -> None:
    class Owner:
        def put(self) -> list[Any]:
            return [ray.put(Prompts(("stale",), np.zeros((1, 1, 1), np.float32), np.ones((1, 1), bool)))]

    owner = ray.remote(Owner).options(num_cpus=0).remote()
    (reference,) = ray.get(owner.put.remote())
    assert shared_prompts(reference, world.config(), has_boxes=False).phrases == ("stale",)
    ray.kill(owner)
    (lost,) = [reference]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if shared_prompts(lost, world.config(), has_boxes=False).phrases == ("disc",):
            return
        time.sleep(0.5)
    raise AssertionError("the embeddings outlived their owner by a minute")


@pytest.mark.usefixtures("cluster")
def test_a_share_is_one_node_with_room_for_worker_and_decoder() -> None:
    group = Share(0.0, 2.0).reserve("masklet-test-place")
    try:
        assert group.wait(30)
        assert is_placed(group)
        assert group.bundle_specs == [{"CPU": 1.0}, {"CPU": 1.0}]
        with_gpu = Share(1.0, 2.0).reserve("masklet-test-no-gpu-here")
        assert not with_gpu.wait(1)
        assert not is_placed(with_gpu)
        ray.util.remove_placement_group(with_gpu)
    finally:
        ray.util.remove_placement_group(group)


@pytest.mark.parametrize("where", ["off", pytest.param("ray", marks=pytest.mark.slow)])
def test_ctrl_c_commits_exits_130_and_resumes(world: World, cluster: Any, tmp_path: Path, where: str) -> None:
    options = ["--ray", cluster.address, "--workers", "2"] if where == "ray" else []
    run = tmp_path / "run"
    process = start_driver(world, run, *options)
    assert wait_for_work(run, process, commits=1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everything in the group gets it
    code, output = finish(process, timeout_s=120)
    assert code == 130, output
    assert "error: interrupted" in output
    stopped = open_run(run)
    assert stopped.manifest.status == "interrupted"
    assert any(v.status == "done" for v in stopped.videos)
    assert {v.status for v in stopped.videos} <= {"done", "partial"}
    code, output = finish(start_driver(world, run, *options, "--resume"))
    assert code == 0, output
    assert open_run(run).table().equals(world.whole)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_very_many_clips_some_broken(tmp_path: Path, count: int) -> None:
    outcome = track_many(tmp_path / "many", count)
    assert outcome.exit_code == 1, outcome.output
    run = open_run(tmp_path / "many" / "run")
    assert {v.video_id: v.status for v in run.videos} == outcome.expected
    assert outcome.peak_rss_mb < 1000
    assert all(v.error for v in run.videos if v.status == "failed")
    assert len(run.table()) == 8 * sum(status == "done" for status in outcome.expected.values())


@pytest.mark.slow
def test_a_simulated_cluster_is_used_evenly() -> None:
    """In a process of its own: this one is connected to another cluster."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.flow.simulated"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["units"] == 200
    assert found["places"] == 8
    assert found["at_once_on_a_place"] == 1
    assert found["balance"] <= 1.15


def test_what_a_submitted_job_brings_along_runs_by_itself(tmp_path: Path) -> None:
    """``ray job submit --working-dir .`` packs by these rules; the entry point then starts in the unpacked folder.

    Only the packing is Ray's here: submitting itself needs Ray's dashboard, which ``ray`` alone does not install.
    """
    from ray._private.runtime_env.packaging import create_package, get_excludes_from_ignore_files, unzip_package

    package = tmp_path / "package.zip"
    assert get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    create_package(str(ROOT), package, include_gitignore=True)
    unzip_package(str(package), str(tmp_path / "job"), remove_top_level_directory=False, unlink_zip=False)
    sent = {p.name for p in (tmp_path / "job").iterdir()}
    assert {"pipeline", "trackers", "workers", "configs", "models", "pyproject.toml"} <= sent
    assert not {"tests", ".git", ".venv", ".train"} & sent
    assert package.stat().st_size < 60 << 20
    command = [sys.executable, "-c", "import pipeline, sys; from configs.load import load_config; "]
    command[-1] += "load_config('cluster'); import pipeline.api; assert pipeline.api.DEMO_CLIP.exists()"
    command[-1] += "; assert pipeline.__file__.startswith(sys.argv[1]), pipeline.__file__"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "job"), "PYTHONWARNINGS": "ignore"}
    subprocess.run([*command, str(tmp_path / "job")], cwd=tmp_path / "job", env=environment, check=True, timeout=120)
