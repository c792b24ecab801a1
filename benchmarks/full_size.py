"""The second design at its own sizes, where its data and CLIP's weights are not at hand: two steps.

    python benchmarks/full_size.py [--recipe ncaltech101_clip_written] [--batch-size 4]

A set of 100 classes is laid out as N-Caltech101 and Caltech101 are, with random recordings and
photographs, and a ViT-B/16 for 224 pixels with random weights as the Hub has CLIP's. `estl fit
--dry-run` then trains the recipe on them for two steps, and says how long one takes, in how much
memory.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from estl.commands import main as estl

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.tiny_sets import names_of, write_ncaltech101


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="ncaltech101_clip_written")
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [name for k in range(100) for name in names_of(f"class{k:02d}", 4)]
        write_ncaltech101(root / "data", names)
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            image_size=224, patch_size=16,
        )  # fmt: skip
        CLIPVisionModel(config).save_pretrained(root / "teacher")
        sizes = [f"--batch-size={args.batch_size}", "--data.init_args.num_workers=0"]
        paths = [f"--data-path={root / 'data'}", f"--teacher={root / 'teacher'}"]
        return estl(["fit", f"--config={args.recipe}", *paths, *sizes, "--dry-run"])


if __name__ == "__main__":
    sys.exit(main())
