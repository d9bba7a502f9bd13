"""The codes of the embedded real images, which training shows through a distilled decoder.

    python recipes/encode_emoji64.py
    adanat distill --generator maskgit --images 6144 --steps 3000 --out plugins/adanat_plugins/emoji64/decoder.safetensors

Writes ``plugins/adanat_plugins/emoji64/codes.safetensors``: ``codes`` (10934, 64) int16, as the embedded tokenizer gives them
in float32. The second line makes the decoder that ships (docs/results/decoder.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.emoji64.data import emoji_images
from adanat_plugins.generators.maskgit import embedded_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "codes.safetensors")
    out = parser.parse_args().out
    tokenizer, real = embedded_tokenizer(torch.device("cpu"), torch.float32), emoji_images()
    codes = [tokenizer.encode(real.images(part)) for part in torch.arange(len(real)).split(128)]
    save_file({"codes": torch.cat(codes).to(torch.int16)}, str(out), {"data": real.fingerprint})


if __name__ == "__main__":
    main()
