"""CLIP models through open_clip: unit-length embeddings of images and of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adanat_toolkit.errors import ConfigError, WeightsError, nearest
from adanat_toolkit.interfaces import PluginOptions, Source
from adanat_toolkit.runtime import in_chunks, minimum_batch
from adanat_toolkit.storage import downloads_refused, read_document, shortened

from .emoji64 import FOLDER as EMOJI64
from .fingerprints import fingerprint_state
from .prepare import forward_batch, prepare_images
from .prompt_rows import CutPrompts, open_clip_ids, prompt_rows

EMBEDDED = "emoji64"
TEXT_CACHE = 20_000
"""Text embeddings that are kept (a prompt of the training data comes again)."""


class ClipOptions(PluginOptions):
    """Which CLIP."""

    model: str = "auto"
    """``emoji64`` (embedded), an open_clip model name such as ``ViT-L-14-quickgelu`` (OpenAI's weights want the names with
    ``-quickgelu``), or a folder with ``open_clip_config.json`` and weights. ``auto`` is the embedded one for the embedded
    generators."""
    weights: Source = Field(None, min_length=1)
    """Weights of a named model: a local file (images are normalised as OpenAI's CLIP wants them; give a folder where a model
    wants another recipe), or one of open_clip's tags (``openai``), which it downloads."""


class ClipModel:
    """A frozen CLIP in float32.

    Attributes:
        name: what it was loaded as. dim: width E of the embeddings.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        tokenizer: Any,
        *,
        dim: int,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        mode: str,
        squash: bool,
        device: torch.device,
    ) -> None:
        self.name, self.dim, self.device = name, dim, device
        self.network: Any = network.to(device).eval().requires_grad_(False)
        self._tokenize, self._mode, self._squash = tokenizer, mode, squash
        self._cut = CutPrompts(f"CLIP {name}", tokenizer.context_length)
        self._size, self._mean, self._std = size, mean, std
        self._texts: dict[str, Tensor] = {}

    @cached_property
    def protocol(self) -> str:
        """Name of the feature protocol ``clip`` with this network (see ``features.clip``)."""
        return clip_protocol(self.name, self.digest)

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the weights."""
        return fingerprint_state(self.network.state_dict())

    @torch.no_grad()
    def raw_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, E) float32, as the network gives them."""

        def run(part: Tensor) -> Tensor:
            prepared = prepare_images(part, self._size, self._mean, self._std, mode=self._mode, squash=self._squash)
            return self.network.encode_image(prepared).float()

        least = minimum_batch(torch.float32, self.device, rows=True)
        return in_chunks(run, images.to(self.device), chunk=forward_batch(self.device), minimum=least)[0]

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, E) float32 of length 1."""
        return F.normalize(self.raw_images(images), dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, E) float32 of length 1. Each distinct prompt is encoded once while the cache holds it."""
        return prompt_rows(prompts, self._texts, self._encode, limit=TEXT_CACHE)

    def _encode(self, prompts: list[str]) -> Tensor:
        def run(ids: Tensor) -> Tensor:
            return F.normalize(self.network.encode_text(ids).float(), dim=-1)

        # A resumed run must compute the same, whatever the prompts are encoded with.
        least = minimum_batch(torch.float32, self.device, rows=True)
        ids = open_clip_ids(self._tokenize, prompts, self._cut)
        return in_chunks(run, ids.to(self.device), chunk=64, minimum=least)[0]

    def parameters_count(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


def load_clip(
    owner: str, options: ClipOptions, generator_name: str, device: torch.device, *, offline: bool = False
) -> ClipModel:
    """The CLIP that the options of reward ``owner`` name.

    Args:
        offline: what open_clip would download must be in its caches.

    Raises:
        ConfigError: unknown model, or ``auto`` for a generator without a default.
        WeightsError: weights are missing, damaged, or of another model.
    """
    model = options.model
    if options.weights is not None and (model == EMBEDDED or (model == "auto" and "emoji64" in generator_name)):
        raise ConfigError(
            f"weights = {options.weights!r} of reward {owner!r} would not be used: the CLIP is the embedded one. Leave weights "
            "out, or name the model that they belong to (model=ViT-B-32-quickgelu)."
        )
    if model == "auto":
        if "emoji64" not in generator_name:
            raise ConfigError(
                f"reward {owner!r} has no default CLIP for {generator_name}; name an open_clip model and its weights: "
                "model=ViT-L-14-quickgelu and weights=FILE (or weights=openai to download)."
            )
        model = EMBEDDED
    if model == EMBEDDED:
        return _embedded(device)
    return _open_clip(owner, model, options.weights, device, offline)


@cache
def embedded_protocol() -> str:
    """:attr:`ClipModel.protocol` of the embedded CLIP, from its file alone: to import open_clip takes seconds."""
    return clip_protocol(EMBEDDED, fingerprint_state(_embedded_state()))


def clip_protocol(name: str, digest: str) -> str:
    """Name of the feature protocol ``clip`` with a network of this name and fingerprint."""
    return f"clip-{name}-{digest[:8]}"


def _embedded_state() -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {key: value.float() for key, value in load_file(EMOJI64 / "clip.safetensors").items()}


def _embedded(device: torch.device) -> ClipModel:
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    config = json.loads((EMOJI64 / "clip.json").read_text())
    network = open_clip.CLIP(**config)
    network.load_state_dict(_embedded_state())
    length = config["text_cfg"]["context_length"]
    tokenizer = SimpleTokenizer(bpe_path=str(EMOJI64 / "bpe_4k.txt.gz"), context_length=length)
    half = (0.5, 0.5, 0.5)
    return ClipModel(
        EMBEDDED,
        network,
        tokenizer,
        dim=config["embed_dim"],
        size=config["vision_cfg"]["image_size"],
        mean=half,
        std=half,
        mode="bicubic",
        squash=False,
        device=device,
    )


def _activation_differs(model: str, tag: str) -> bool:
    """Whether weights want QuickGELU and the model of open_clip has GELU, on which open_clip itself only warns."""
    import open_clip

    wanted = bool((open_clip.get_pretrained_cfg(model, tag) or {}).get("quick_gelu", False))
    return wanted and not bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))


TOKENIZER_SETTINGS = ("clean", "context_length", "language", "reduction_mask", "strip_sep_token", "tokenizer_mode")


def _refuse_named_elsewhere(folder: Path, owner: str) -> bool:
    """Whether a folder has a tokenizer of transformers. What its configuration names beyond the folder is not followed:
    open_clip would fetch it, or run code that a tokenizer brings.

    Raises:
        ConfigError: it names something. WeightsError: it cannot be read.
    """
    file = folder / "open_clip_config.json"
    found: dict[str, Any] = read_document(file, dict[str, Any], error=WeightsError, remedy="Fetch the whole folder again.")
    parts = found.get("model_cfg", {})
    text, vision = (parts.get(key) if isinstance(parts, dict) else None for key in ("text_cfg", "vision_cfg"))
    text, vision = (part if isinstance(part, dict) else {} for part in (text, vision))
    more = text.get("tokenizer_kwargs") or {}
    named = {key: more[key] for key in more if key not in TOKENIZER_SETTINGS} if isinstance(more, dict) else {"": more}
    named |= {"hf_model_name": text["hf_model_name"]} if text.get("hf_model_name") else {}
    timm = vision.get("timm_model_name") or ""
    if not isinstance(timm, str) or ":" in timm or "/" in timm:  # a plain name is an architecture
        named["timm_model_name"] = timm
    if named:
        key, value = next(iter(named.items()))
        raise ConfigError(
            f"{file} of reward {owner!r} names {shortened(key)[1:-1]} = {shortened(value, 200)}. What a folder names is not "
            "followed; give a folder that holds all that its model needs, or a model of open_clip.list_models()."
        )
    return bool(text.get("hf_tokenizer_name"))  # of transformers, which lies in the folder too


def _open_clip(owner: str, model: str, weights: str | None, device: torch.device, offline: bool) -> ClipModel:
    import open_clip

    folder = Path(model).expanduser()
    own_folder, settings = folder.is_dir(), dict[str, Any]()
    if own_folder:
        if weights is not None:
            raise ConfigError(
                f"weights = {weights!r} of reward {owner!r} would not be used: {folder} holds the weights too. Leave them out."
            )
        if _refuse_named_elsewhere(folder, owner):
            settings["trust_remote_code"] = False
        name, pretrained = f"local-dir:{folder}", None
    else:
        name, pretrained = model, weights
        known = open_clip.list_models()
        if model not in known:
            raise ConfigError(
                f"CLIP {model!r} of reward {owner!r} is neither a folder nor a model of "
                f"open_clip{nearest(model, known)} Use {EMBEDDED}, a folder with open_clip_config.json, or a name of "
                "open_clip.list_models()."
            )
        tags = open_clip.list_pretrained_tags_by_model(model)
        if weights is None or not (weights in tags or Path(weights).expanduser().is_file()):
            given = "has no weights" if weights is None else f"has weights {weights!r}, which is no file and no tag"
            raise WeightsError(
                f"CLIP {model} of reward {owner!r} {given}. Give weights=FILE, or a tag that open_clip downloads: "
                f"{', '.join(tags) or 'none is published'}."
            )
        if weights not in tags:
            pretrained = str(Path(weights).expanduser())
        elif _activation_differs(model, weights):
            raise ConfigError(
                f"weights {weights!r} of CLIP {model} were trained with another activation (QuickGELU) than this model has, so "
                f"that its features would be wrong; give model={model}-quickgelu."
            )
    try:
        with downloads_refused(offline or own_folder):
            network = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
            tokenizer = open_clip.get_tokenizer(name, **settings)
    except Exception as error:  # open_clip and the hub client raise a dozen kinds for absent, damaged and foreign files
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        fetched = pretrained is not None and not Path(pretrained).is_file()
        allow = "Leave --offline out once, to fetch them"
        remedy = allow if offline and fetched else "Check that the file belongs to this model"
        raise WeightsError(
            f"CLIP {model} of reward {owner!r} could not be loaded with weights {weights or folder}: "
            f"{type(error).__name__}: {first}. {remedy}."
        ) from error
    recipe = open_clip.get_model_preprocess_cfg(network)
    size, resize = recipe["size"], recipe.get("resize_mode", "shortest")
    side = size if isinstance(size, int) else size[0]
    if resize not in ("shortest", "squash") or (not isinstance(size, int) and size[0] != size[1]):
        raise ConfigError(f"CLIP {model} wants images of size {size}, resized by {resize!r}: not supported.")
    dim = int(network.encode_text(tokenizer([""])).shape[-1])
    return ClipModel(
        model,
        network,
        tokenizer,
        dim=dim,
        size=side,
        mean=tuple(recipe["mean"]),
        std=tuple(recipe["std"]),
        mode=recipe.get("interpolation", "bicubic"),
        squash=resize == "squash",
        device=device,
    )
