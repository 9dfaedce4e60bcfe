"""Write a model folder (fp16 weights, configuration, tokenizer, processor) and check that it reloads.

python -m models.recipe.export --detector detector.pt --tracker tracker.pt --out models/tiny
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoProcessor, Sam3LiteTextModel
from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor
from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoModel
from transformers.models.sam3_video.processing_sam3_video import Sam3VideoProcessor

from models.recipe.net import Phrases, Shape, build_detector, build_tokenizer, load, video_config
from models.recipe.train_tracker import FusedNeck, build_tracker
from models.recipe.vocabulary import words

LIMIT_BYTES = 12_000_000


def weights_of(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Half-precision weights of all parts, each under its prefix."""
    return {
        f"{prefix}.{key}": value.detach().half().contiguous().clone() if value.is_floating_point() else value.clone()
        for prefix, part in parts.items()
        for key, value in part.state_dict().items()
    }


def write_folder(
    folder: Path, shape: Shape, detector: Sam3LiteTextModel, neck: Sam3VisionNeck, tracker: Sam3TrackerVideoModel
) -> int:
    """Write everything a loader needs; returns the bytes on disk. Raises ValueError above 12 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    config = video_config(shape, len(build_tokenizer()))
    config.architectures = ["Sam3VideoModel"]
    config.dtype = "float16"
    config.save_pretrained(folder)
    size = {"height": shape.image, "width": shape.image}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size}
    low = {"height": 4 * shape.grid, "width": 4 * shape.grid}
    processor = Sam3VideoProcessor(
        Sam3ImageProcessor(**half, mask_size=low), Sam2VideoVideoProcessor(**half), build_tokenizer(), shape.image
    )
    processor.save_pretrained(folder)
    weights = weights_of({"detector_model": detector, "tracker_neck": neck, "tracker_model": tracker})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    total = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    if total > LIMIT_BYTES:
        raise ValueError(f"{folder} holds {total} bytes, more than {LIMIT_BYTES}: make the model smaller")
    return total


@torch.no_grad()
def check_folder(folder: Path, detector: Sam3LiteTextModel) -> float:
    """Largest difference of the detector's scores between memory and the reloaded folder (fp16 rounding)."""
    tiny = load(folder)
    AutoProcessor.from_pretrained(folder)
    size = tiny.config.tracker_config.image_size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids, attention = Phrases()(["red circle", "blue thing"])
    outs = [m(pixel_values=pixels, input_ids=ids, attention_mask=attention) for m in (detector.eval(), tiny.detector)]
    return float((outs[0].pred_logits.sigmoid() - outs[1].pred_logits.sigmoid()).abs().max())


def main() -> None:
    """Export a trained pair of checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True)
    parser.add_argument("--tracker", required=True)
    parser.add_argument("--out", default="models/tiny")
    args = parser.parse_args()
    shape, folder = Shape(), Path(args.out)
    detector = build_detector(shape)
    detector.load_state_dict(torch.load(args.detector)["model"])
    tracker, fused = build_tracker(shape), FusedNeck(shape)
    saved = torch.load(args.tracker)
    tracker.load_state_dict(saved["tracker"])
    fused.load_state_dict(saved["neck"])
    neck = Sam3VisionNeck(video_config(shape, len(words())).tracker_config.vision_config)
    fused.export(neck, tracker)
    size, difference = write_folder(folder, shape, detector, neck, tracker), check_folder(folder, detector)
    print(f"{folder}: {size} bytes; scores differ by {difference:.4f} after reloading")


if __name__ == "__main__":
    main()
