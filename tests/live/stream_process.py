"""``masklet stream`` with models that see colours, as a process that tests can kill: URL RUN [--resume]."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.errors import MaskletError
from pipeline.live.run import StreamOptions, run_stream
from pipeline.telemetry import setup_logging
from tests.live.running import NO_MODEL, fake_models, live

if __name__ == "__main__":
    setup_logging("info")
    url, out, *flags = sys.argv[1:]
    config = live(checkpoint_every_s=1.0, latency_frames=3, max_gap_s=30.0).model_copy(
        update={"detector": live().detector.model_copy(update={"detections": NO_MODEL})}
    )
    options = StreamOptions(urls=(url,), out=Path(out), sinks=(f"jsonl:{out}.jsonl",), resume="--resume" in flags)
    try:
        sys.exit(run_stream(config, options, fake_models()))
    except MaskletError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
