"""The 16x down-sampling VQGAN of MaskGIT, MAGE and AdaNAT (Esser et al. 2021; Chang et al. 2022, section 3.1).

Parameter names follow the released PyTorch files, so that they load by name. It is not the usual VQGAN: it has no
attention, its residual convolutions have no bias, and a block that changes the number of channels adds a 1x1
convolution of its own output instead of its input (see :class:`ResidualBlock`). Images are in [0, 1], not [-1, 1].
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..weights import Shapes, build, encoder_sizes
from .layers import Upsample, silu_of_own

LOSS_PREFIX = "loss."
"""Training files may carry the discriminator and perceptual loss below this prefix; generation does not use them."""


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of the tokenizer; the defaults are the published one.

    Attributes:
        codebook_size, code_width: number of codes and their channels.
        width, multipliers: level i has ``width * multipliers[i]`` channels; each level but the last halves the image.
        blocks: residual blocks a level in the encoder and in the decoder.
        middle: residual blocks at the lowest resolution (2 in PyTorch files, as many as ``blocks`` in Flax ones).
    """

    codebook_size: int = 1024
    code_width: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    middle: int = 2

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, source: str = "the file") -> VQGANConfig:
        """The sizes of a checkpoint, read from its tensors' shapes.

        Raises:
            WeightsError: the tensors are not those of this tokenizer.
        """
        shapes = Shapes(
            state,
            f"{source} is no MaskGIT/MAGE VQGAN",
            "the layout of vqgan_jax_strongaug.ckpt (encoder.down.N.block..., decoder.up.N.block..., "
            "quantize.embedding.weight)",
        )
        codebook_size, code_width = shapes.of("quantize.embedding.weight", 2)
        middle = len([name for name in state if re.fullmatch(r"encoder\.mid\.block_\d+\.conv1\.weight", name)])
        return cls(codebook_size, code_width, *encoder_sizes(shapes), middle)


def _conv3(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), _conv3(inputs, outputs)
        self.norm2, self.conv2 = _norm(outputs), _conv3(outputs, outputs)
        self.nin_shortcut = nn.Conv2d(outputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu_of_own(self.norm1(x)))
        h = self.conv2(silu_of_own(self.norm2(h)))
        # Where channels change, the published weights were trained with the shortcut on h itself: x is not used again.
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Level(nn.Module):
    """The residual blocks of one resolution, and in the decoder the up-sampling that follows them."""

    def __init__(self, inputs: int, outputs: int, blocks: int, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.upsample = Upsample(_conv3(outputs, outputs, bias=True)) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Sequential):
    """Residual blocks, named ``block_1``, ``block_2``, ..."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__(OrderedDict((f"block_{i + 1}", ResidualBlock(channels, channels)) for i in range(blocks)))


class Encoder(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        outputs = [config.width * m for m in config.multipliers]
        inputs = [config.width, *outputs[:-1]]
        self.conv_in = _conv3(3, config.width)
        self.down = nn.ModuleList(Level(i, o, config.blocks) for i, o in zip(inputs, outputs, strict=True))
        self.mid = Middle(outputs[-1], config.middle)
        self.norm_out = _norm(outputs[-1])
        self.conv_out = nn.Conv2d(outputs[-1], config.code_width, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for i, level in enumerate(self.down):
            x = level(x)
            if i + 1 < len(self.down):
                x = F.avg_pool2d(x, 2)
        return self.conv_out(silu_of_own(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        outputs = [config.width * m for m in config.multipliers]
        inputs = [*outputs[1:], outputs[-1]]
        self.conv_in = _conv3(config.code_width, outputs[-1], bias=True)
        self.mid = Middle(outputs[-1], config.middle)
        self.up = nn.ModuleList(
            Level(inputs[i], outputs[i], config.blocks, upsample=i > 0) for i in range(len(outputs))
        )
        self.norm_out = _norm(outputs[0])
        self.conv_out = _conv3(outputs[0], 3, bias=True)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(silu_of_own(self.norm_out(x)))


class Quantizer(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)


class VQGAN(nn.Module):
    """The network alone: names, shapes and numbers of the published implementation."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.codebook_size, config.code_width)

    def latent(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, code_width, H / 16, W / 16), before quantisation."""
        return self.encoder(images)

    def nearest(self, latent: Tensor) -> Tensor:
        """(B, code_width, h, w) -> (B, h * w) int64: the nearest codes in Euclidean distance, row by row."""
        flat = latent.float().permute(0, 2, 3, 1).flatten(1, 2)
        table = self.quantize.embedding.weight.float()
        # |z|^2 is the same for every code, so it is left out.
        return (table.square().sum(1) - 2 * flat @ table.T).argmin(-1)

    def raw_images(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h * w) int64 -> (B, 3, 16 h, 16 w), about [0, 1], not clamped."""
        return self.decoder(self.vectors(codes, grid))

    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h * w) int64 -> (B, C, h, w)."""
        return self.quantize.embedding(codes).view(len(codes), *grid, -1).permute(0, 3, 1, 2).contiguous()


class VQGANTokenizer(nn.Module):
    """Codes <-> images with a loaded :class:`VQGAN`.

    Args:
        model: the network with its weights.
        device, dtype: where and in what the convolutions run; images and codes are float32 and int64 outside.
    """

    def __init__(self, model: VQGAN, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(device=device, dtype=dtype)
        # Channels-last is faster on tensor cores. On a CPU torch's channels-last group norm takes E[x^2] - E[x]^2 in
        # float32, which loses digits where a channel's mean is large: codes then differ from the published ones.
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        self.device, self.dtype = device, dtype

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], *, source: str, device: torch.device, dtype: torch.dtype
    ) -> VQGANTokenizer:
        """From the tensors of a published file; the sizes are read from it.

        Raises:
            WeightsError: a tensor is missing, extra or misshapen.
        """
        needed = {name: value for name, value in state.items() if not name.startswith(LOSS_PREFIX)}
        config = VQGANConfig.from_state(needed, source=source)
        return cls(build(lambda: VQGAN(config), needed, source=source, dtype=dtype), device, dtype)

    @property
    def downsampling(self) -> int:
        return self.model.config.downsampling

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N) int64 codes of an (h, w) grid -> (B, 3, H, W) float32 in [0, 1]."""

        def run(ids: Tensor) -> Tensor:
            return self.model.raw_images(ids, grid).float().clamp(0, 1).contiguous()

        return in_chunks(run, codes, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]

    @torch.no_grad()
    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N) int64 codes of an (h, w) grid -> their vectors (B, C, h, w) float32."""
        return self.model.vectors(codes, grid).float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1], sides divisible by 16 -> (B, N) int64, the nearest codes."""

        def run(batch: Tensor) -> Tensor:
            x = batch.to(self.dtype).contiguous(memory_format=self.layout)
            return self.model.nearest(self.model.latent(x))

        return in_chunks(run, images, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]
