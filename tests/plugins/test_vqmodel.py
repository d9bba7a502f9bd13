"""The tokenizer's own network computes what diffusers' does, bit for bit."""

from __future__ import annotations

import pytest
import torch

from adanat_plugins.tokenizers.vqmodel import VQModelTokenizer

CPU = torch.device("cpu")
CONFIG = {
    "block_out_channels": [16, 32, 48],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 8,
    "num_vq_embeddings": 40,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "norm_type": "group",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_diffusers(dtype: torch.dtype) -> None:
    from diffusers import VQModel

    torch.manual_seed(0)
    stock = VQModel.from_config(CONFIG)
    state = {name: value.clone() for name, value in stock.state_dict().items()}
    own = VQModelTokenizer.from_state(CONFIG, state, CPU, dtype)
    other = VQModelTokenizer(stock, CPU, dtype)
    assert own.downsampling == other.downsampling == 4
    codes = torch.randint(40, (5, 24))
    images = own.decode(codes, (4, 6))
    assert images.shape == (5, 3, 16, 24) and float(images.std()) > 0
    # In float32 ours takes up-sampling and its convolution as one (tokenizers/layers.py).
    torch.testing.assert_close(images, other.decode(codes, (4, 6)), rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-5)
    assert torch.equal(own.latents(images), other.latents(images))
    assert torch.equal(own.encode(images), other.encode(images))
    assert torch.equal(own.vectors(codes, (4, 6)), other.vectors(codes, (4, 6)))
