"""``imagereward``: human preference for text-to-image samples (Xu et al., NeurIPS 2023), with a scorer of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.interfaces import Context, Generator, ImageSource, RewardModel, Source
from adanat_toolkit.runtime import in_chunks, minimum_batch, resolve_dtype

from ..prepare import forward_batch, prepare_images
from ..prompt_rows import CutPrompts
from ..weights import Asset, build, read_state, resolve
from .frozen import FrozenReward, PromptOptions, Prompts
from .imagereward_net import TEXT_LENGTH, ImageRewardConfig, ImageRewardNet

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_POSITIONS = "blip.text_encoder.embeddings.position_ids"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class RewardAsset(Asset):
    """A file of a reward; ``option`` names it on the command line."""

    option: str = ""

    def missing(self, where: Path | None = None) -> WeightsError:
        return WeightsError(
            f"reward {self.variants[0]!r} needs its {self.role}, and {where or self.path} does not exist.\n"
            f"  published: {self.source}\n  licence: {self.licence}\n  size: {self.size_text()}\n"
            f"  obtain: {self.obtain}\n"
            f"Put it at {self.path}, or name it: --set reward.options.{self.option}=PATH (={self.hub} downloads it)."
        )


SCORER = RewardAsset(
    ("imagereward",),
    "weights",
    "imagereward/ImageReward.pt",
    "https://huggingface.co/zai-org/ImageReward",
    "Apache-2.0 (code repository; see the model card for the weights)",
    "download ImageReward.pt",
    446_665_953,
    hub="zai-org/ImageReward",
    option="weights",
)
VOCABULARY = RewardAsset(
    ("imagereward",),
    "vocabulary",
    "imagereward/vocab.txt",
    "https://huggingface.co/google-bert/bert-base-uncased",
    "Apache-2.0",
    "download vocab.txt (30,522 lines, 232 kB)",
    hub="google-bert/bert-base-uncased",
    option="tokenizer",
)


class ImageRewardOptions(PromptOptions):
    """Options of ImageReward."""

    weights: Source = None
    """``ImageReward.pt`` (or its tensors as safetensors): a file, a folder or a hub id. Default: weights folder."""
    tokenizer: Source = None
    """``vocab.txt`` of bert-base-uncased: the file, a folder with it, or a hub id. Default: weights folder."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int | None = Field(None, ge=1)
    """Images a forward; default 16 on a CPU and 64 on a GPU."""


class ImageRewardReward(FrozenReward):
    """The published score: mean 0 and standard deviation 1 over its authors' validation images, higher is better.

    The image is resized (shorter side to 224, bicubic), cropped in the middle and normalised as CLIP's. A
    class-conditional generator gets a prompt a class from a template. 447 M parameters: 1.8 GB in float32.
    """

    Options = ImageRewardOptions

    @classmethod
    def create(cls, options: Any, **made_for: Any) -> RewardModel:
        return cls(options, **made_for)

    def __init__(
        self,
        options: ImageRewardOptions,
        *,
        generator: Generator,
        real: ImageSource | None,
        device: torch.device,
        seed: int,
        offline: bool = False,
    ) -> None:
        self.device, self.dtype = device, resolve_dtype(options.dtype, device)
        self.prompts = Prompts("imagereward", generator, options)
        self.tokenize = WordPiece(resolve(options.tokenizer, VOCABULARY, offline=offline))
        self.network = load_network(resolve(options.weights, SCORER, offline=offline), device, self.dtype)
        self.tokenize.check_fits(self.network.config.vocab)
        self.batch = options.batch or forward_batch(device)

    @torch.no_grad()
    def score(self, images: Tensor, context: Context) -> Tensor:
        ids, mask = self.tokenize(self.prompts(context))
        size = self.network.config.image_size

        def run(part: Tensor, part_ids: Tensor, part_mask: Tensor) -> Tensor:
            prepared = prepare_images(part, size, CLIP_MEAN, CLIP_STD).to(self.dtype)
            return self.network(prepared, part_ids, part_mask)[:, 0]

        minimum = minimum_batch(self.dtype, self.device)
        inputs = (images.to(self.device), ids.to(self.device), mask.to(self.device))
        return in_chunks(run, *inputs, chunk=self.batch, minimum=minimum)[0]

    def parameters_count(self) -> dict[str, int]:
        return {"ImageReward (frozen)": sum(p.numel() for p in self.network.parameters())}


def load_network(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> ImageRewardNet:
    """The network with the weights of ``ImageReward.pt``, read without running pickled code.

    Raises:
        WeightsError: the file is missing, damaged, or not an ImageReward.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a folder without {Path(SCORER.file).name}; give the file.")
    state = read_state(path)
    config = ImageRewardConfig.of_state(state, str(path))
    # A fixed buffer that files written by newer transformers leave out.
    state.setdefault(_POSITIONS, torch.arange(config.max_positions)[None])
    return build(partial(ImageRewardNet, config), state, source=str(path), device=device, dtype=dtype)


class WordPiece:
    """bert-base-uncased's tokenizer from its ``vocab.txt``, through the ``tokenizers`` library.

    The classes of transformers change their arguments and files between versions; the vocabulary has not changed since
    2018.

    Raises:
        WeightsError: the file is missing or is no WordPiece vocabulary.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import BertWordPieceTokenizer

        if path.is_dir():
            raise WeightsError(f"{path} is a folder without vocab.txt; give the vocabulary of bert-base-uncased.")
        try:
            words = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(f"{path} cannot be read as a vocabulary ({error}); give bert-base-uncased's.") from None
        lacking = [token for token in _SPECIAL if token not in words]
        if lacking:
            raise WeightsError(
                f"{path} is no BERT vocabulary: it has no line {', '.join(lacking)}. Give bert-base-uncased's."
            )
        self.path, self.size = path, len(words)
        vocabulary = {word: number for number, word in enumerate(words)}
        self._pad = vocabulary["[PAD]"]
        self._tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)
        self._tokenizer.enable_truncation(TEXT_LENGTH)
        self._cut = CutPrompts("ImageReward", TEXT_LENGTH)

    def check_fits(self, embeddings: int) -> None:
        """Raises WeightsError when the vocabulary has more entries than the network (BLIP added two to BERT's)."""
        if self.size > embeddings:
            raise WeightsError(
                f"{self.path} has {self.size} words, but the network knows {embeddings}; give its own "
                "vocabulary (bert-base-uncased for the published weights)."
            )

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, (B, 35) int64 each: [CLS] words [SEP], cut or padded; the mask is 0 at padding."""
        ids = torch.full((len(prompts), TEXT_LENGTH), self._pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        encodings = self._tokenizer.encode_batch(list(prompts))
        distinct = dict(zip(prompts, encodings, strict=True))
        self._cut.count(sum(bool(encoding.overflowing) for encoding in distinct.values()), len(distinct))
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
            mask[row, : len(encoding.ids)] = 1
        return ids, mask
