"""Options that several commands share, written once. :mod:`pipeline.cli` and :mod:`pipeline.live.command` use them."""

from __future__ import annotations

from typing import Annotated

import typer

Text = Annotated[list[str] | None, typer.Option("--text", "-t", help="Phrase to find; repeat for several.")]
NotText = Annotated[list[str] | None, typer.Option("--not-text", help="Objects that match this phrase are vetoed.")]
Box = Annotated[
    list[str] | None,
    typer.Option("--box", help="FRAME:x1,y1,x2,y2[:+|:-]: find everything like this / not like this."),
]
Model = Annotated[str | None, typer.Option(help="tiny, s0, s1, l, sam3, a Hub id or a local folder.")]
TrackerName = Annotated[str | None, typer.Option("--tracker", help="sam3_memory or bytetrack.")]
Conf = Annotated[float | None, typer.Option(help="Confidence that starts a masklet, 0..1.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda[:N] or mps.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file or preset (default, fast, accurate, live).")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; repeatable.")]
Ray = Annotated[str, typer.Option(help="off, auto (join or start a cluster), local or an address.")]
Workers = Annotated[int, typer.Option(min=0, help="Ray workers; 0: one per GPU, or per two CPUs.")]
GpusPerWorker = Annotated[float | None, typer.Option(help="Below 1, workers share a GPU.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that exists.")]
