"""Turn a model folder back into training checkpoints, to train on from what is shipped.

The image tokens' readout (`TokenHeads`) is not shipped: the first minutes should fit it with the encoder at rest.
    python -m models.recipe.unpack --folder models/tiny --detector detector.pt --tracker tracker.pt
    python -m models.recipe.train_detector phrases --minutes 4 --vit-scale 0 --resume detector.pt --out warm.pt
"""

import argparse
from pathlib import Path

import torch

from models.recipe.net import Shape, TokenHeads, load
from models.recipe.train_tracker import unfuse


def main() -> None:
    """Write both checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("models/tiny"))
    parser.add_argument("--detector", required=True)
    parser.add_argument("--tracker", required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    shape, tiny = Shape(), load(args.folder)
    torch.save({"model": tiny.detector.state_dict(), "heads": TokenHeads(shape).state_dict()}, args.detector)
    torch.save(
        {"tracker": tiny.tracker.state_dict(), "neck": unfuse(tiny.neck, shape).state_dict()},
        args.tracker,
    )


if __name__ == "__main__":
    main()
