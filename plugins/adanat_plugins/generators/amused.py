"""``amused``: aMUSEd, text to image at 256 and 512 pixels (Patil et al. 2024, arXiv:2401.01808).

The networks are diffusers' ``UVit2DModel`` and ``VQModel`` and transformers' ``CLIPTextModelWithProjection``; the loop
around them is the toolkit's, so all four knobs act per sample and step. What its authors run themselves is the policy
``fixed:amused``. Their guidance scale s in uncond + s (cond - uncond) is 1 + ``guidance``; their sampler has no token
temperature, which is the knob's value 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace
from adanat_toolkit.errors import ConfigError, WeightsError, nearest
from adanat_toolkit.interfaces import Context, PluginOptions, Source
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch
from adanat_toolkit.storage import read_document, shortened

from ..fingerprints import fingerprint_state
from ..prompt_rows import CutPrompts
from ..tokenizers.vqmodel import VQModelTokenizer
from ..weights import asset, build, place, read_state, resolve
from .text_conditional import TextConditional
from .tokenized import TokenizedOptions

SCHEDULE = "cosine,guidance=9,mask_temperature=2:0"
"""The published pipeline's choice (guidance scale 10, temperature 2 falling to 0), under the toolkit's own step."""

AESTHETIC_SCORE, CROP = 6.0, (0.0, 0.0)
"""The published pipeline's micro-conditioning beside the image's size."""

PARTS = ("transformer", "vqvae", "text_encoder", "tokenizer", "scheduler")
"""Folders of the pipeline that are read."""


class AmusedOptions(TokenizedOptions):
    weights: Source = None
    """Pipeline folder in diffusers' layout, a folder that holds it, or a hub id; None means the weights folder."""


class AmusedTextEncoder(nn.Module):
    """Prompts to the states and the pooled embedding that aMUSEd reads.

    Args:
        tower: transformers' ``CLIPTextModelWithProjection``. tokenizer: its ``CLIPTokenizer``.
    """

    def __init__(self, tower: Any, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.tower = place(tower, device, dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device, self.dtype = device, dtype
        self._cut = CutPrompts("the generator's text encoder", tokenizer.model_max_length)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> states (B, L, C) before the last layer and pooled (B, P) after the projection, float32."""
        distinct = list(dict.fromkeys(prompts)) or [""]  # of no prompts, for the shapes
        row = {prompt: i for i, prompt in enumerate(distinct)}
        ids = self._ids(distinct)

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            out = self.tower(batch, output_hidden_states=True)
            return out.hidden_states[-2].float(), out.text_embeds.float()

        minimum = minimum_batch(self.dtype, self.device, rows=True)
        states, pooled = in_chunks(run, ids.to(self.device), minimum=minimum)
        index = torch.tensor([row[prompt] for prompt in prompts], dtype=torch.int64, device=self.device)
        return states[index], pooled[index]

    def _ids(self, prompts: list[str]) -> Tensor:
        """(B, L) int64, cut to the length that the tower reads."""

        def tokenized(some: list[str], length: int) -> Any:
            return self.tokenizer(
                some, return_tensors="pt", padding="max_length", truncation=True, max_length=length
            )

        found = tokenized(prompts, self._cut.limit)
        full = [prompt for prompt, last in zip(prompts, found.attention_mask[:, -1].tolist(), strict=True) if last]
        if full:  # those that end at the last place are not too long
            longer = tokenized(full, self._cut.limit + 1)
            self._cut.count(int(longer.attention_mask[:, -1].sum()), len(prompts))
        ids: Tensor = found.input_ids
        return ids


class Amused(TextConditional):
    """aMUSEd with its text encoder and tokenizer.

    The features that a policy sees are the output of the norm before the vocabulary head (``mlm_layer.layer_norm``),
    taken by a forward hook: (B, N, ``in_channels``), one vector a cell. It is the last state before the logits, as in
    the other families, and at 512 pixels, where the transformer works on a halved grid, it is again one vector a cell.

    Args:
        network: a ``UVit2DModel`` in float32.
        mask_id: the id of an unknown cell in the network's vocabulary.
    """

    Options: ClassVar[type[PluginOptions]] = AmusedOptions
    thread_safe = False  # the hook leaves its features in the object
    network: Any  # a diffusers model

    def __init__(
        self,
        name: str,
        network: Any,
        encoder: AmusedTextEncoder,
        tokenizer: VQModelTokenizer,
        mask_id: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        config = network.config
        self.name = name
        self.action_space = ActionSpace(TOKEN_KNOBS)
        self.fingerprint = fingerprint_state(network.state_dict())
        self.network = place(network, device, dtype).eval().requires_grad_(False)
        self.network.mlm_layer.layer_norm.register_forward_hook(self._keep_features)
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.grid = (config.sample_size, config.sample_size)
        self.image_size = (self.grid[0] * tokenizer.downsampling, self.grid[1] * tokenizer.downsampling)
        self.mask_id, self.codebook_size = mask_id, config.codebook_size
        self.feature_dim = config.in_channels
        self.default_schedule = SCHEDULE
        self.device, self.dtype = device, dtype
        height, width = self.image_size
        # Width first, as published.
        self._micro = torch.tensor([[width, height, *CROP, AESTHETIC_SCORE]], device=device)
        self._features: Tensor | None = None

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("256", "512")

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> Amused:
        """See ``interfaces.Generator.create``."""
        name = variant or cls.variants()[0]
        if name not in cls.variants():
            known = ", ".join(cls.variants())
            raise ConfigError(f"amused has no variant {name!r}{nearest(name, cls.variants())} Variants: {known}.")
        chosen = parse_options("generator 'amused'", AmusedOptions, options)
        folder = resolve(chosen.weights, asset(f"amused:{name}", "pipeline"), offline=offline)
        absent = [part for part in PARTS if not (folder / part).is_dir()]
        if absent:
            raise WeightsError(
                f"{folder} is no aMUSEd pipeline: it lacks the folders {', '.join(absent)}. Give the whole folder of "
                "amused/amused-256 or -512, in which each part has its own."
            )
        network, tokenizer, mask_id = _load_networks(folder, device, dtype)
        encoder = AmusedTextEncoder(*_load_text(folder), device, dtype)
        return chosen.applied(cls(f"amused:{name}", network, encoder, tokenizer, mask_id, device=device, dtype=dtype))

    def _keep_features(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._features = output

    @torch.no_grad()
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.states is not None and context.pooled is not None

        def run(ids: Tensor, states: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.network(
                ids.view(-1, *self.grid),
                encoder_hidden_states=states.to(self.dtype),
                pooled_text_emb=pooled.to(self.dtype),
                micro_conds=self._micro.expand(len(ids), -1),
            )
            features, self._features = self._features, None
            assert features is not None
            return logits.flatten(2).transpose(1, 2).float(), features.flatten(1, 2).float()

        minimum = minimum_batch(self.dtype, self.device)
        logits, features = in_chunks(run, tokens, context.states, context.pooled, minimum=minimum)
        return logits, features


def _load_networks(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, VQModelTokenizer, int]:
    """The ``UVit2DModel`` on the CPU in float32, the tokenizer, and the mask's id."""
    from diffusers import UVit2DModel, VQModel

    def load(kind: Any, part: str) -> Any:
        config = _config(folder / part / "config.json")

        def made() -> Any:
            try:
                return kind.from_config(config)
            except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, ZeroDivisionError) as error:
                raise WeightsError(
                    f"{folder / part / 'config.json'} describes no {kind.__name__}: {error}. Fetch the whole folder again."
                ) from None

        return build(made, read_state(folder / part), source=str(folder / part))

    network, vqvae = load(UVit2DModel, "transformer"), load(VQModel, "vqvae")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    mask_id = _config(scheduler).get("mask_token_id")
    vocabulary, codes = network.config.vocab_size, network.config.codebook_size
    if not isinstance(mask_id, int) or not codes <= mask_id < vocabulary:
        raise WeightsError(
            f"{scheduler}: mask_token_id is {mask_id}; it must lie between the {codes} codes and the end of the "
            f"transformer's vocabulary of {vocabulary}. Fetch the whole folder again."
        )
    if vqvae.config.num_vq_embeddings != codes:
        raise WeightsError(
            f"{folder}: the transformer predicts {codes} codes and the tokenizer has "
            f"{vqvae.config.num_vq_embeddings}: they do not belong together. Fetch the whole folder again."
        )
    return network, VQModelTokenizer(vqvae, device, dtype, signed=False), mask_id


def _load_text(folder: Path) -> tuple[Any, Any]:
    """The text encoder and its tokenizer; transformers reads them, since it knows the names that files of its own
    earlier versions have."""
    import transformers

    loader: Any = transformers.CLIPTextModelWithProjection

    _config(folder / "text_encoder" / "config.json")
    try:
        tower, found = loader.from_pretrained(folder / "text_encoder", local_files_only=True, output_loading_info=True)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:  # transformers raises a dozen kinds for a damaged folder
        raise WeightsError(
            f"{folder}: the text encoder cannot be read: {error}. Fetch the whole folder again."
        ) from None
    wrong = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]
    if wrong:
        raise WeightsError(
            f"{folder / 'text_encoder'} lacks or misshapes {len(wrong)} tensors ({', '.join(sorted(wrong)[:6])}); fetch "
            "the whole folder again."
        )
    return tower, tokenizer


def _config(file: Path) -> dict[str, Any]:
    """What a part's configuration says, no number in it beyond what a network of such a pipeline may have."""
    found: dict[str, Any] = read_document(file, dict[str, Any], error=WeightsError, remedy="Fetch the whole folder again.")
    for key, value in found.items():
        limit = 256 if "layers" in key else 2**20
        if isinstance(value, int) and abs(value) > limit:
            raise WeightsError(f"{file}: {shortened(key)} = {value}, at most {limit:,}. Fetch the whole folder again.")
    return found
