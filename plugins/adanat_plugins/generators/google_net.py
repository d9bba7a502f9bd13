"""The transformer of the original MaskGIT (google-research/maskgit; Chang et al., CVPR 2022), and its Flax files.

Parameters keep the names and the layout of the Flax tree (kernels have inputs before outputs, attention kernels an axis
for the heads), so that a checkpoint needs no conversion and an error names what is in the file. Written from the paper
and from what the published implementation computes; ``tests/golden`` compares the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.runtime import attend

from ..weights import Shapes

EPSILON = 1e-12
MASK_ID = -1
"""The mask's id; indexing the word table wraps around, so that its embedding is the table's last row."""


@dataclass(frozen=True)
class GoogleConfig:
    """Sizes of the network.

    Attributes:
        vocabulary: codes, then classes, then one row that is the mask.
        positions: 1 + cells; the first one is the class.
        width, depth, heads, mlp_width: of the transformer.
    """

    vocabulary: int
    positions: int
    width: int
    depth: int
    heads: int
    mlp_width: int

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> GoogleConfig:
        """The sizes of a checkpoint, read from its tensors' shapes (names joined by ".").

        Raises:
            WeightsError: a tensor that the sizes are read from is missing or has another form.
        """
        expected = "the Flax tree of maskgit_imagenet256_checkpoint (Embed_0, TransformerLayer_N, MlmLayer_0)"
        shapes = Shapes(state, "not a google-research/maskgit transformer", expected)
        vocabulary, width = shapes.of("Embed_0.word_embeddings.embedding", 2)
        positions = shapes.of("Embed_0.position_embeddings.embedding", 2, least=2)[0]
        heads = shapes.of("TransformerLayer_0.Attention_0.self_attention.query.kernel", 3)[1]
        mlp_width = shapes.of("TransformerLayer_0.Mlp_0.intermediate_output.bias", 1)[0]
        shapes.check_heads(width, heads)
        layers = {match[1] for match in (re.match(r"TransformerLayer_(\d+)\.", name) for name in state) if match}
        return cls(vocabulary, positions, width, len(layers), heads, mlp_width)


class Dense(nn.Module):
    """x @ kernel + bias over the last axes of x; the kernel is (\\*inputs, \\*outputs), as in Flax."""

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.inputs = len(inputs)
        self.kernel = nn.Parameter(torch.empty(*inputs, *outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        nn.init.trunc_normal_(self.kernel, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensordot(x, self.kernel, dims=self.inputs) + self.bias


class LayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.bias, EPSILON)


class Table(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, width))
        nn.init.trunc_normal_(self.embedding, std=0.02)


class Embed(nn.Module):
    """Word + position, then a norm."""

    def __init__(self, config: GoogleConfig) -> None:
        super().__init__()
        self.word_embeddings = Table(config.vocabulary, config.width)
        self.position_embeddings = Table(config.positions, config.width)
        self.embeddings_ln = LayerNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:
        words = F.embedding(ids % self.word_embeddings.embedding.shape[0], self.word_embeddings.embedding)
        return self.embeddings_ln(words + self.position_embeddings.embedding[: ids.shape[1]])


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        split = (heads, width // heads)
        self.query, self.key, self.value = (Dense((width,), split) for _ in range(3))
        self.out = Dense(split, (width,))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.out(attend(query, key, value).transpose(1, 2))


class Attention(nn.Module):
    def __init__(self, config: GoogleConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.width, config.heads)
        self.attention_output_ln = LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention_output_ln(self.self_attention(x) + x)


class Mlp(nn.Module):
    def __init__(self, config: GoogleConfig) -> None:
        super().__init__()
        self.intermediate_output = Dense((config.width,), (config.mlp_width,))
        self.layer_output = Dense((config.mlp_width,), (config.width,))
        self.layer_output_ln = LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_output_ln(self.layer_output(F.gelu(self.intermediate_output(x), approximate="tanh")) + x)


class TransformerLayer(nn.Module):
    """A post-norm BERT layer."""

    def __init__(self, config: GoogleConfig) -> None:
        super().__init__()
        self.Attention_0 = Attention(config)
        self.Mlp_0 = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.Mlp_0(self.Attention_0(x))


class Bias(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))


class MlmLayer(nn.Module):
    """Dense, GELU, norm, product with the word table, and a bias."""

    def __init__(self, config: GoogleConfig) -> None:
        super().__init__()
        self.mlm_dense = Dense((config.width,), (config.width,))
        self.mlm_ln = LayerNorm(config.width)
        self.mlm_bias = Bias(config.vocabulary)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """``table``: the first rows of the word table, as many as columns are wanted."""
        hidden = self.mlm_ln(F.gelu(self.mlm_dense(x), approximate="tanh"))
        return hidden @ table.T + self.mlm_bias.bias[: table.shape[0]]


class GoogleTransformer(nn.Module):
    """A class and masked codes -> logits over the vocabulary."""

    def __init__(self, config: GoogleConfig) -> None:
        super().__init__()
        self.config = config
        self.Embed_0 = Embed(config)
        for i in range(config.depth):
            self.add_module(f"TransformerLayer_{i}", TransformerLayer(config))
        self.MlmLayer_0 = MlmLayer(config)

    def hidden(self, ids: Tensor) -> Tensor:
        """(B, 1 + N) int64, the class's id first and -1 at masked cells -> (B, 1 + N, width)."""
        x = self.Embed_0(ids)
        for i in range(self.config.depth):
            x = self.get_submodule(f"TransformerLayer_{i}")(x)
        return x

    def logits(self, hidden: Tensor, columns: int | None = None) -> Tensor:
        """(B, M, width) -> (B, M, columns): the first columns of the vocabulary; None means all."""
        return self.MlmLayer_0(hidden, self.Embed_0.word_embeddings.embedding[:columns])

    def forward(self, ids: Tensor) -> Tensor:
        """(B, 1 + N) int64 -> raw logits (B, 1 + N, vocabulary)."""
        return self.logits(self.hidden(ids))


def transformer_state(tree: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of :class:`GoogleTransformer` from a flat Flax tree ("/" paths, with or without ``params/``)."""
    return {name.removeprefix("params/").replace("/", "."): value for name, value in tree.items()}


def tokenizer_state(tree: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``tokenizers.vqgan.VQGAN`` from the flat Flax tree of a google/maskgit tokenizer.

    Flax numbers the layers of a kind in the order of their calls: the encoder's residual blocks level by level and then
    the middle ones (as many as a level has); the decoder's middle ones first and then level by level from the lowest
    resolution up.

    Args:
        tree: "/" paths, with or without ``params/``. A name that has no place is kept, so that loading reports it.
    """
    flat = {name.removeprefix("params/"): value for name, value in tree.items()}
    numbers = [re.match(r"(encoder|decoder)/(ResBlock|Conv)_(\d+)/", name) for name in flat]

    def count(part: str, kind: str) -> int:
        return 1 + max((int(m[3]) for m in numbers if m and m[1] == part and m[2] == kind), default=-1)

    levels = count("decoder", "Conv") - 1  # one at either end, one up-sampling between two levels
    blocks = count("encoder", "ResBlock") // (max(levels, 0) + 1)
    if levels < 1 or blocks < 1:
        raise WeightsError(
            "not a google-research/maskgit tokenizer: it has no encoder/ResBlock_N and decoder/Conv_N. Expected the "
            "Flax tree of tokenizer_imagenet256_checkpoint."
        )
    places = {
        "encoder/Conv_0": "encoder.conv_in",
        "encoder/Conv_1": "encoder.conv_out",
        "encoder/GroupNorm_0": "encoder.norm_out",
        "decoder/Conv_0": "decoder.conv_in",
        f"decoder/Conv_{levels}": "decoder.conv_out",
        "decoder/GroupNorm_0": "decoder.norm_out",
        "quantizer": "quantize.embedding",
    }
    inner = {
        "Conv_0": "conv1",
        "Conv_1": "conv2",
        "Conv_2": "nin_shortcut",
        "GroupNorm_0": "norm1",
        "GroupNorm_1": "norm2",
    }
    inside = range(levels * blocks)
    middle = [f"mid.block_{i + 1}" for i in range(blocks)]
    runs = {
        "encoder": [*(f"down.{i // blocks}.block.{i % blocks}" for i in inside), *middle],
        "decoder": [*middle, *(f"up.{levels - 1 - i // blocks}.block.{i % blocks}" for i in inside)],
    }
    for part, targets in runs.items():
        for i, target in enumerate(targets):
            places.update({f"{part}/ResBlock_{i}/{name}": f"{part}.{target}.{own}" for name, own in inner.items()})
    for i in range(1, levels):
        places[f"decoder/Conv_{i}"] = f"decoder.up.{levels - i}.upsample.conv"

    out = {}
    for name, value in flat.items():
        module, _, leaf = name.rpartition("/")
        if module not in places:
            out[name] = value
        elif leaf == "kernel" and value.ndim == 4:  # (height, width, in, out) -> (out, in, height, width)
            out[f"{places[module]}.weight"] = value.permute(3, 2, 0, 1)
        else:
            own = {"scale": "weight", "kernel": "weight", "codebook": "weight"}.get(leaf, leaf)
            out[f"{places[module]}.{own}"] = value
    return out
