"""The `masklet` command: options in, exit codes out. Everything it does is a call into the modules below it."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.console import LiveProgress, Output, command
from pipeline.live.command import stream
from pipeline.options import (
    Box,
    Conf,
    ConfigFile,
    Device,
    Dtype,
    GpusPerWorker,
    Model,
    NotText,
    Overwrite,
    Ray,
    Set,
    Text,
    TrackerName,
    Workers,
)

app = typer.Typer(
    name="masklet",
    help="Find every instance of a phrase in video, follow each one through time, and get its masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
@command
def track(
    output: Output,
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE...", help="Videos, folders, globs, manifests (.txt .csv .jsonl), URLs."),
    ] = None,
    text: Text = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="RUN", help="The run folder to write; also s3://, gs:// ...")
    ] = None,
    not_text: NotText = None,
    box: Box = None,
    model: Model = None,
    tracker: TrackerName = None,
    conf: Conf = None,
    device: Device = None,
    dtype: Dtype = None,
    stride: Annotated[int | None, typer.Option(help="Track every Nth frame.")] = None,
    start: Annotated[str | None, typer.Option(help="First frame number, or seconds as 4.5s.")] = None,
    stop: Annotated[str | None, typer.Option(help="End (exclusive): frame number, or seconds as 9s.")] = None,
    chunk: Annotated[str | None, typer.Option(help="Cut into pieces of this many seconds, as 60s; stitch ids.")] = None,
    chunk_mode: Annotated[
        str | None, typer.Option(help="parallel (stitched), or sequential (state goes on; equal to the uncut run).")
    ] = None,
    overlap: Annotated[str | None, typer.Option(help="What neighbouring pieces share, as 2s.")] = None,
    ray: Ray = "off",
    workers: Workers = 0,
    gpus_per_worker: GpusPerWorker = None,
    decoder: Annotated[str | None, typer.Option(help="auto, decord or pyav.")] = None,
    detections: Annotated[str | None, typer.Option(help="Detections (MOT, COCO, Parquet) instead of a model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run: do what is missing.")] = False,
    overwrite: Overwrite = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write the annotated video.")] = False,
    config: ConfigFile = None,
    set_: Set = None,
) -> int:
    """Track every instance of the phrases and write a run folder."""
    from configs.load import load_config
    from pipeline import api, report
    from pipeline.decode import redact
    from pipeline.errors import UsageError
    from pipeline.remote import open_folder

    values = api.option_values(
        text=text or (),
        not_text=not_text or (),
        boxes=box or (),
        model=model,
        tracker=tracker,
        device=device,
        dtype=dtype,
        conf=conf,
        decoder=decoder,
        stride=stride,
        start=start,
        stop=stop,
        detections=detections,
        overlay=overlay or None,
        chunk=chunk,
        chunk_mode=chunk_mode,
        overlap=overlap,
    )
    effective = load_config(config, set_ or (), values)
    if out is None:
        raise UsageError("no run folder given", "", "add -o RUN")
    overlays: list[Path] = []
    with open_folder(out, resume=resume, overwrite=overwrite) as (folder, twin):
        with LiveProgress(output) as progress:
            manifest = api.track_to_run(
                effective,
                source or [],
                folder,
                resume=resume,
                overwrite=overwrite,
                listener=progress,
                placement=api.Placement(ray, workers, gpus_per_worker),
                twin=twin,
            )
        if effective.output.overlay:
            for file in api.write_overlays(folder):
                overlays.append(file.relative_to(folder))
                if twin is not None:
                    twin.put(file)
        shown = redact(out)
        output.result(report.as_dict(folder, manifest, shown), report.table(folder, manifest, shown))
        if overlays:
            more = f" and {len(overlays) - 1} more" if overlays[1:] else ""
            output.stderr.print(f"overlay: {shown.rstrip('/')}/{overlays[0]}{more}", highlight=False)
    return 1 if any(v.status == "failed" or v.missing for v in manifest.videos) else 0


@app.command()
@command
def demo(
    output: Output,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where to write the run.")] = Path(
        "masklet-demo"
    ),
) -> int:
    """The main job on the built-in clip with the built-in tiny model: a run, an overlay.mp4 and a table."""
    from configs.load import load_config
    from pipeline import api, report

    config = load_config(
        None, (), {"prompts": list(api.DEMO_PHRASES), "model": {"name": "tiny"}, "device": {"name": "cpu"}}
    )
    with LiveProgress(output) as progress:
        manifest = api.track_to_run(config, [str(api.DEMO_CLIP)], out, overwrite=True, listener=progress)
    api.write_overlays(out)
    output.result(report.as_dict(out, manifest), report.table(out, manifest))
    output.stderr.print(f"Watch {out / 'overlay.mp4'}, then try: masklet view {out}", highlight=False)
    return 0


@app.command(name="config")
@command
def config_(output: Output, config: ConfigFile = None, set_: Set = None) -> int:
    """Print the effective config."""
    import json

    from configs.load import load_config, to_yaml

    effective = load_config(config, set_ or ())
    output.result(json.loads(effective.model_dump_json()), to_yaml(effective).rstrip())
    return 0


@app.command()
@command
def render(
    output: Output,
    run: RunPath,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OVERLAY.mp4", help="The video to write.")],
    style: Annotated[str, typer.Option(help="Comma-separated: mask, box, id, trace.")] = "mask,id",
    video_id: Annotated[str | None, typer.Option(help="Which video of the run; needed if it has several.")] = None,
    beside: Annotated[Path | None, typer.Option(help="A second run of the same video, shown on the right.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet PNG, one row per masklet.")] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="Also write a timeline PNG: when each masklet is there.")
    ] = None,
) -> int:
    """Draw a run onto its video."""
    from pipeline import render as drawing
    from pipeline.store import open_run

    opened = open_run(run)
    files = [
        drawing.render(
            opened, out, style=tuple(style.split(",")), video_id=video_id, beside=open_run(beside) if beside else None
        )
    ]
    if sheet:
        files.append(drawing.contact_sheet(opened, sheet, video_id=video_id))
    if timeline:
        files.append(drawing.timeline(opened, timeline, video_id=video_id))
    output.result({"files": [str(f) for f in files]}, "\n".join(str(f) for f in files))
    return 0


@app.command()
@command
def export(
    output: Output,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder.")] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="FORMAT,...", help="One or several; see --list.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Written as DIR/FORMAT/.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the formats and what each loses.")] = False,
) -> int:
    """Write a run in other tools' formats."""
    from dataclasses import asdict

    from pipeline import sinks
    from pipeline.errors import UsageError
    from pipeline.store import open_run

    if list_:
        output.result({name: asdict(info) for name, info in sinks.FORMATS.items()}, _format_table())
        return 0
    if run is None or to is None or out is None:
        raise UsageError("an export needs RUN, --to and -o", "", "see masklet export --list for the formats")
    reports = sinks.export_run(open_run(run), to.split(","), out)
    lines = [f"{r.format}: {r.num_files} file(s) in {out / r.format}" for r in reports]
    lines += [f"{r.format}: {note}" for r in reports for note in r.notes]
    output.result({"exports": [asdict(r) for r in reports]}, "\n".join(lines))
    return 0


def _format_table() -> Table:
    from pipeline import sinks

    table = Table("format", "what it is", "what it loses", "import", box=None, header_style="bold", pad_edge=False)
    for name, info in sinks.FORMATS.items():
        table.add_row(name, info.description, info.loss or "nothing", "yes" if info.importable else "")
    return table


@app.command(name="import")
@command
def import_(
    output: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Results or ground truth: a file or a folder.")],
    format_: Annotated[str, typer.Option("--format", help="See masklet export --list.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="RUN", help="The run folder to write.")],
    text: Annotated[str, typer.Option(help="The phrase of objects in formats that hold none.")] = "object",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, for formats that hold none.")] = None,
    fps: Annotated[str | None, typer.Option(help="Frame rate, such as 25 or 30000/1001, where none is stated.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that exists.")] = False,
) -> int:
    """Take in other tools' results or ground truth as a run folder."""
    from dataclasses import asdict

    from pipeline import sinks

    report = sinks.import_file(file, format_, out, text=text, size=_size(size), fps=_fps(fps), overwrite=overwrite)
    lines = [f"{report.num_videos} video(s), {report.num_masklets} masklets in {out}", *report.notes]
    output.result(asdict(report), "\n".join(lines))
    return 0


def _fps(text: str | None) -> Fraction | None:
    """A frame rate as an exact fraction."""
    from pipeline.errors import UsageError

    try:
        rate = Fraction(text) if text is not None else None
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate is not None and rate <= 0:
        raise UsageError(f"bad frame rate {text!r}", "--fps", "write 25 or 30000/1001")
    return rate


def _size(text: str | None) -> tuple[int, int] | None:
    """``(width, height)`` of ``WIDTHxHEIGHT``."""
    from pipeline.errors import UsageError

    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise UsageError(f"bad size {text!r}", "--size", "write WIDTHxHEIGHT, such as 1920x1080")
    return int(width), int(height)


@app.command(name="eval")
@command
def eval_(
    output: Output,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]", help="One run, or two to compare.")],
    gt: Annotated[Path, typer.Option("--gt", metavar="PATH", help="Ground truth: a file, a folder or a run.")],
    gt_format: Annotated[str, typer.Option(help="auto, coco, ytvis, saco, mot, mots, davis or run.")] = "auto",
    metrics: Annotated[str, typer.Option(help="Comma-separated: hota, clear, identity, jf, cgf1, teta, ap.")] = (
        "hota,clear,identity,jf"
    ),
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write plots (PNG) here.")] = None,
) -> int:
    """Score a run against ground truth, per sequence, per phrase and overall; or compare two runs."""
    from pipeline.errors import UsageError
    from pipeline.groundtruth import evaluate_runs
    from pipeline.plots import write_plots
    from pipeline.store import open_run

    if len(runs) > 2:
        raise UsageError("more than two runs", str(runs[2]), "compare two at a time")
    report = evaluate_runs([open_run(r) for r in runs], gt, gt_format, metrics.split(","))
    files = write_plots(report, plots) if plots else []
    table = Table("", "", "", *report.columns(), box=None, header_style="bold", pad_edge=False)
    for row in report.rows():
        table.add_row(row.level, row.name, row.kind, *row.cells)
    output.result({**report.to_dict(), "plots": [str(f) for f in files]}, table)
    for note in report.notes:
        output.stderr.print(f"note: {note}", highlight=False)
    return 0


@app.command()
@command
def view(
    output: Output,
    run: RunPath,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="HTML", help="Default: RUN/report.html.")] = None,
    video_id: Annotated[str | None, typer.Option(help="Only this video; default: all of the run.")] = None,
) -> int:
    """Write a self-contained HTML report: scrub the video, filter, click a masklet."""
    from pipeline.store import open_run
    from pipeline.view import view as write

    path = write(open_run(run), out or run / "report.html", video_id=video_id)
    output.result({"report": str(path)}, f"open {path} in a browser")
    return 0


@app.command(name="bench")
@command
def bench_(
    output: Output,
    model: Model = None,
    frames: Annotated[int, typer.Option(help="Frames per case; from 200 on, the growth of memory is told.")] = 96,
    objects: Annotated[str, typer.Option(help="How many objects, comma-separated.")] = "1,5,20",
    prompts: Annotated[str, typer.Option(help="How many phrases, comma-separated.")] = "1,4",
    plot: Annotated[Path | None, typer.Option(help="Also draw the result, as this PNG file.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> int:
    """Measure frames/s, where the time goes and memory, with a fixed number of objects on synthetic pictures."""
    from configs.load import load_config
    from pipeline import bench

    values = {"model": {"name": model}, "device": {"name": device, "dtype": dtype}}
    cases = bench.cases(_counts(objects, "--objects"), _counts(prompts, "--prompts"))
    result = bench.run(load_config(config, set_ or (), values), cases, frames)
    table = Table(*bench.COLUMNS, box=None, header_style="bold", pad_edge=False)
    for row in result.rows:
        table.add_row(*bench.cells(row))
    if plot is not None:
        bench.write_plot(result.rows, plot)
    output.result(result.as_dict(), table)
    return 0


def _counts(text: str, option: str) -> list[int]:
    """Positive whole numbers, comma-separated."""
    from pipeline.errors import UsageError

    if not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
        raise UsageError(f"bad numbers {text!r}", option, "write positive numbers such as 1,5,20")
    return [int(part) for part in text.split(",")]


@app.command()
@command
def doctor(
    output: Output,
    models: Annotated[bool, typer.Option("--models", help="Count the text encoders' parameters.")] = False,
) -> int:
    """Show what works on this machine and what to do about the rest."""
    from pipeline import doctor as checks

    if models:
        return _doctor_models(output)
    found = checks.examine()
    table = Table("", "what", "found", "to do", box=None, header_style="bold", pad_edge=False)
    for check in found:
        table.add_row(
            {"ok": "[green]ok[/]", "missing": "[yellow]-[/]"}.get(check.state, "[red]!![/]"),
            check.name,
            check.detail,
            check.todo,
        )
    output.result({"checks": [c.to_dict() for c in found]}, table)
    return 2 if any(c.state == "problem" for c in found) else 0


def _doctor_models(output: Output) -> int:
    from pipeline.checkpoints import text_parameters

    counts = {name: text_parameters(name) for name in ("s0", "s1", "l", "sam3")}
    table = Table("model", "text encoder parameters", "against sam3", box=None, header_style="bold", pad_edge=False)
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", f"{100 * (count / counts['sam3'] - 1):+.1f}%" if name != "sam3" else "")
    output.result({"text_parameters": counts}, table)
    output.stderr.print(
        "Counted: text encoder, its projection to the detector, CLIP projection; 16 positions (sam3: 32)."
    )
    return 0


@app.command()
@command
def prepare(
    output: Output,
    model: Annotated[str, typer.Argument(metavar="s0|s1|l|sam3", help="Which model; also a Hub id or a folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder to write.")],
    tracker_from: Annotated[str | None, typer.Option(help="Hub id or folder with the SAM3 tracker half.")] = None,
) -> int:
    """Merge and check detector and tracker weights into one local folder; `--model DIR` then needs no Hub."""
    from configs.load import load_config
    from pipeline.checkpoints import prepare as merge

    merge(load_config(None, (), {"model": {"name": model, "tracker_from": tracker_from}}).model, out)
    output.result({"model": str(out)}, f"wrote {out}: use it with --model {out}")
    return 0


app.command()(stream)


def main() -> None:
    """Entry point of the console command."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (typer.TyperException, typer.Abort) as error:
        shown = error.format_message() if hasattr(error, "format_message") else "aborted"
        context = getattr(error, "ctx", None)
        asked = f"masklet {context.info_name}" if context is not None and context.parent is not None else "masklet"
        sys.stderr.write(f"error: {' '.join(shown.split()).rstrip('.')}: see {asked} --help\n")
        code = 2
    sys.exit(code)
