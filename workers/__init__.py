"""Plain worker classes that decode and track, and the executors that run them."""

import os

# Started by `uv run`, Ray would pack up the current folder and have each worker make itself an environment from it.
# Workers run in the environment of their node: ours on a cluster that we start, what its owner installed on another.
# Ray reads this when it is imported, which is why it stands here.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
