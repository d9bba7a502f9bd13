"""``var``: next-scale generation, VAR (Tian et al. 2024, arXiv:2404.02905).

Variants: ``emoji64`` (embedded), ``d16`` and ``d30``, the published ImageNet-256 checkpoints with their tokenizer. One
step draws all tokens of one scale, from a single one to the full map; what has been drawn adds up to a latent, which
the tokenizer's decoder makes an image of. The knobs act at every scale: guidance, whose weight grows from 0 at the
coarsest scale to its value at the finest, and top-k, top-p and temperature of the draw.

With fewer steps than scales, scales are skipped: T of S scales are used, evenly spread, the finest always among them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from adanat_toolkit.core import TOKEN, ActionSpace, Noise, next_scale_knobs
from adanat_toolkit.decoding import RANGES, draw_tokens, guide, prediction_statistics, statistic_names
from adanat_toolkit.errors import ConfigError, WeightsError, nearest
from adanat_toolkit.interfaces import Context, ContextKind, Generator, PluginOptions, SamplingPolicy
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..emoji64.data import class_names
from ..fingerprints import fingerprint_state, fingerprint_tokenizer
from ..released_policy import ADAGEN, adagen_settings, read_policy
from ..tokenizers.multi_scale import MultiScaleQuantizer, MultiScaleTokenizer, MultiScaleVQ, MultiScaleVQConfig
from ..weights import asset, build, place, read_state
from .class_conditional import Emoji64Classes, PublishedOptions, emoji64_file, published_files, uniform_classes
from .maskgit import embedded_tokenizer
from .tokenized import compile_modules
from .var_net import VAR, VARConfig

POLICY_GRID = (16, 16)
"""Features of every scale are resized to this grid, whatever the tokens' own is: published policies read 256 cells."""


def spread_scales(steps: int, scales: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Which of the scales an image of so many steps uses: indices evenly spread, the last always among them.

    Raises:
        ConfigError: there are not so many scales.
    """
    last = len(scales) - 1
    if not 1 <= steps <= last + 1:
        sides = ", ".join(f"{side}x{side}" for side in scales)
        raise ConfigError(
            f"steps is {steps}, and {name} has {last + 1} scales ({sides}), one a step; use 1 to {last + 1} steps."
        )
    if steps == 1:
        return (last,)
    return tuple((2 * t * last + steps - 1) // (2 * (steps - 1)) for t in range(steps))


@dataclass
class ScaleState:
    """State of a next-scale generator: what has been drawn, and what the transformer remembers of it.

    Attributes:
        scales: indices of the scales that this image uses; step t draws ``scales[t]``.
        latents: latents[t] (B, C, H, H) float32 is what the scales before step t add up to; the last one is the result so
            far.
        conditions: of the samples' classes (see ``VAR.conditions``).
        cache: keys and values of the scales before ``step``: of the conditional rows, with ``rides`` the null rows behind them.
        rides: whether the null rows are in ``cache``.
        null_cache, null_step: of null rows that do not ride along: keys and values of the scales before ``null_step``.
        hidden, logits, null_logits, grown: the transformer's output for this step and the next step's cache, once it has run.
    """

    context: Context
    scales: tuple[int, ...]
    latents: tuple[Tensor, ...]
    conditions: Tensor
    step: int = 0
    cache: tuple[Tensor, ...] = ()
    rides: bool = False
    null_cache: tuple[Tensor, ...] = ()
    null_step: int = 0
    hidden: Tensor | None = None
    logits: Tensor | None = None
    null_logits: Tensor | None = None
    grown: tuple[Tensor, ...] = ()


class NextScale(Generator):
    """VAR with its tokenizer.

    The features that a policy sees are the last block's output of the conditional rows for the scale that is about to be
    drawn, resized to ``grid`` (bicubic).

    No forward is run that is not used: a scale is run when it is observed or drawn, hence none after the last; the null
    rows ride in the same batch at guided steps alone, and what they missed before is made up for when they are first needed.

    Args:
        network: in float32; its class table's last row is the null class of guidance.
        tokenizer: of the same codebook and scales.
    """

    Options: ClassVar[type[PluginOptions]] = PublishedOptions
    context_kind: ContextKind = "class"
    thread_safe = True
    num_classes: int

    def __init__(
        self,
        name: str,
        network: VAR,
        tokenizer: MultiScaleTokenizer,
        *,
        grid: tuple[int, int],
        default_schedule: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        config = network.config
        self.name = name
        self.action_space = ActionSpace(next_scale_knobs(config.vocabulary))
        self.fingerprint = fingerprint_state(network.state_dict())
        self.network = place(network, device, dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.scales, self.default_steps = config.scales, len(config.scales)
        self.grid, self.feature_dim = grid, config.width
        self.image_size = (config.scales[-1] * tokenizer.downsampling,) * 2
        self.num_classes = self.null_class = config.num_classes
        self.default_schedule = default_schedule
        self.device, self.dtype = device, dtype

    @classmethod
    def preset_settings(cls, preset: str, variant: str | None) -> dict[str, Any]:
        return adagen_settings(f"var:{variant or cls.variants()[0]}") if preset == "adagen" else {}

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("emoji64", "d16", "d30")

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> NextScale:
        """See ``interfaces.Generator.create``."""
        name = variant or cls.variants()[0]
        if name not in cls.variants():
            known = ", ".join(cls.variants())
            raise ConfigError(f"var has no variant {name!r}{nearest(name, cls.variants())} Variants: {known}.")
        chosen = parse_options("generator 'var'", PublishedOptions, options)
        assert isinstance(chosen, PublishedOptions)
        if name == "emoji64":
            return chosen.applied(_emoji64(chosen, device, dtype, offline))
        files = published_files(
            chosen, asset(f"var:{name}", "generator"), asset(f"var:{name}", "tokenizer"), offline=offline
        )
        network = load_var(files[0])
        tokenizer = load_tokenizer(files[1], network.config, device, dtype)
        schedule = ADAGEN[f"var:{name}"].schedule
        made = cls(
            f"var:{name}", network, tokenizer, grid=POLICY_GRID, default_schedule=schedule, device=device, dtype=dtype
        )
        return chosen.applied(made)

    def parameters_count(self) -> dict[str, int]:
        parts = {"generator": self.network, "tokenizer": self.tokenizer}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    @property
    def tokenizer_fingerprint(self) -> str | None:
        return fingerprint_tokenizer(self.tokenizer)

    def compile(self) -> None:
        compile_modules(self, self.network, self.tokenizer.model.decoder)

    def sample_contexts(self, noise: Noise) -> Context:
        return uniform_classes(noise, self.num_classes, self.device)

    def decisions(self, steps: int) -> int:
        """One action a step; more steps than scales are refused before anything runs."""
        return len(spread_scales(steps, self.scales, self.name))

    @torch.no_grad()
    def reset(self, context: Context, noise: Noise, steps: int) -> ScaleState:
        assert context.classes is not None
        quantizer = self.tokenizer.quantizer
        empty = torch.zeros(len(context), quantizer.width, quantizer.side, quantizer.side, device=self.device)
        return ScaleState(context, spread_scales(steps, self.scales, self.name), (empty,), self._conditions(context.classes))

    @torch.no_grad()
    def observe(self, state: ScaleState, *, guided: bool = True) -> Tensor:
        self._predict(state, guided)
        assert state.hidden is not None
        side = self.scales[state.scales[state.step]]
        maps = state.hidden.transpose(1, 2).unflatten(2, (side, side))
        if maps.shape[2:] != self.grid:
            maps = F.interpolate(maps, size=self.grid, mode="bicubic")
        return maps.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def step(self, state: ScaleState, action: Tensor, noise: Noise) -> ScaleState:
        values = dict(zip(self.action_space.names, action.unbind(1), strict=True))
        scale = state.scales[state.step]
        # The published ramp: nothing at the coarsest scale, all of it at the finest.
        guidance = values["guidance"] * (scale / (len(self.scales) - 1))
        # Asking whether all guidance is zero costs a device synchronisation, so it is asked only when nobody observed.
        self._predict(state, state.null_logits is not None or bool((guidance != 0).any()))
        assert state.logits is not None
        codes = draw_tokens(
            guide(state.logits, state.null_logits, guidance),
            values["token_temperature"],
            noise.uniform(TOKEN, state.step, state.logits.shape[1:2]),
            top_k=values["top_k"],
            top_p=values["top_p"],
        )
        latent = state.latents[-1] + self.tokenizer.quantizer.contribution(codes, scale)
        return ScaleState(
            state.context,
            state.scales,
            (*state.latents, latent),
            state.conditions,
            state.step + 1,
            state.grown,
            state.rides,
            state.null_cache,
            state.null_step,
        )

    @torch.no_grad()
    def decode(self, state: ScaleState) -> Tensor:
        return self.tokenizer.decode(state.latents[-1])

    def latents(self, state: ScaleState) -> Tensor:
        return state.latents[-1]

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        return self.tokenizer.quantizer.encode(self.tokenizer.encode(images))[1][-1]

    def read_policy(self, path: Path, steps: int | None, changes: str = "") -> SamplingPolicy:
        """A policy published with AdaGen (see ``released_policy.read_policy``)."""
        return read_policy(path, self, steps, changes)

    @property
    def statistic_names(self) -> tuple[str, ...]:
        return statistic_names(True)

    @property
    def statistic_ranges(self) -> tuple[tuple[float, float], ...]:
        return tuple(RANGES[name] for name in self.statistic_names)

    @torch.no_grad()
    def statistics(self, state: ScaleState) -> Tensor:
        """See ``decoding.prediction_statistics``, of the scale that is drawn next; ``masked`` is the share of all scales'
        tokens that are still to be drawn."""
        self._predict(state, True)
        assert state.logits is not None
        counts = [self.scales[scale] ** 2 for scale in state.scales]
        share = sum(counts[state.step :]) / sum(counts)
        rows, cells = state.logits.shape[:2]
        every = torch.ones(rows, cells, dtype=torch.bool, device=self.device)
        left = torch.full((rows,), share, device=self.device)
        return prediction_statistics(state.logits, state.null_logits, every, left)

    # --- the transformer ----------------------------------------------------------------------------------------------

    def _predict(self, state: ScaleState, guided: bool) -> None:
        """Run this step's scale, unless that has been done: the conditional rows, and the null rows where ``guided``."""
        size = len(state.context)
        if state.logits is None:
            if guided and not state.rides:
                self._run_null(state, state.step)
                state.cache = tuple(torch.cat(pair) for pair in zip(state.cache, state.null_cache, strict=True))
                state.null_cache = ()
            elif state.rides and not guided:
                state.null_cache, state.null_step = tuple(part[size:] for part in state.cache), state.step
                state.cache = tuple(part[:size] for part in state.cache)
            state.rides = guided
            hidden, logits, *grown = self._forward(state, state.step, state.cache, own=True, null=guided)
            state.grown, state.hidden, state.logits = tuple(grown), hidden[:size], logits[:size]
            state.null_logits = logits[size:] if guided else None
        elif guided and state.null_logits is None:
            state.null_logits = self._run_null(state, state.step + 1)

    def _run_null(self, state: ScaleState, until: int) -> Tensor | None:
        """Null rows alone, from where they were left up to a step; the logits of the last one that ran."""
        logits = None
        while state.null_step < until:
            _, logits, *grown = self._forward(state, state.null_step, state.null_cache, own=False, null=True)
            state.null_cache, state.null_step = tuple(grown), state.null_step + 1
        return logits

    def _forward(
        self, state: ScaleState, step: int, cache: tuple[Tensor, ...], *, own: bool, null: bool
    ) -> tuple[Tensor, ...]:
        """The conditional rows, the null rows, or both in one batch at a step; logits and hidden states in float32."""
        size, scale = len(state.context), state.scales[step]
        assert state.context.classes is not None
        nobody = torch.full((size,), self.null_class, dtype=torch.int64, device=self.device)
        latent = self.tokenizer.quantizer.resized(state.latents[step], scale)
        classes = torch.cat([state.context.classes] * own + [nobody] * null)
        conditions = [state.conditions] * own + [self._null_conditions().expand(size, -1, -1)] * null

        def run(latent: Tensor, classes: Tensor, condition: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
            hidden, logits, *grown = self.network(self.network.embed(latent, scale, classes), condition, *past)
            return hidden.float(), logits.float(), *grown

        # At the coarsest scale a sample is one row of every matrix product.
        minimum = minimum_batch(self.dtype, self.device, rows=True)
        return in_chunks(run, latent.repeat(own + null, 1, 1, 1), classes, torch.cat(conditions), *cache, minimum=minimum)

    def _conditions(self, classes: Tensor) -> Tensor:
        minimum = minimum_batch(self.dtype, self.device, rows=True)
        return in_chunks(self.network.conditions, classes, minimum=minimum)[0]

    def _null_conditions(self) -> Tensor:
        if not hasattr(self, "_kept_null"):
            with torch.inference_mode(False), torch.no_grad():  # it outlives the mode that its maker may have set
                self._kept_null = self._conditions(torch.tensor([self.null_class], device=self.device))
        return self._kept_null


class Emoji64NextScale(Emoji64Classes, NextScale):
    """The embedded generator."""


HAND_MADE = "guidance=2,top_k=100,top_p=0.9,token_temperature=1"
"""The best hand-made schedule of the embedded generator (a grid search)."""


def _emoji64(options: PublishedOptions, device: torch.device, dtype: torch.dtype, offline: bool) -> NextScale:
    """A network of ``recipes/train_var.py`` with the quantiser of ``recipes/train_var_tokenizer.py``."""
    network = load_var(emoji64_file("var:emoji64", options, offline=offline))
    tokenizer = load_emoji64_tokenizer(asset("var:emoji64", "quantiser").path, device, dtype)
    quantizer = tokenizer.quantizer
    _check_pair(network.config, quantizer.embedding.num_embeddings, quantizer.width, "of the package")
    side = network.config.scales[-1]
    made = Emoji64NextScale(
        "var:emoji64",
        network,
        tokenizer,
        grid=(side, side),
        default_schedule=HAND_MADE,
        device=device,
        dtype=dtype,
    )
    made.class_names = class_names()
    return made


def load_var(path: Path) -> VAR:
    """The transformer of a published file, on the CPU in float32.

    Raises:
        WeightsError: it is no such file, or a tensor is missing, extra or misshapen.
    """
    state = read_state(path)
    config = VARConfig.from_state(state, source=str(path))
    return build(lambda: VAR(config), state, source=str(path))


def load_tokenizer(path: Path, network: VARConfig, device: torch.device, dtype: torch.dtype) -> MultiScaleTokenizer:
    """The tokenizer of a published file, for the scales of a transformer.

    Raises:
        WeightsError: it is no such file, a tensor is missing, extra or misshapen, or it is another transformer's.
    """
    state = read_state(path)
    config = MultiScaleVQConfig.from_state(state, network.scales, source=str(path))
    _check_pair(network, config.vocabulary, config.code_width, str(path))
    model = build(lambda: MultiScaleVQ(config), state, source=str(path))
    return MultiScaleTokenizer(model, model.quantize, config.downsampling, device, dtype)


def _check_pair(network: VARConfig, vocabulary: int, code_width: int, source: str) -> None:
    expected = network.vocabulary, network.code_width
    if (vocabulary, code_width) != expected:
        raise WeightsError(
            f"the transformer predicts {expected[0]} codes of {expected[1]} channels and the tokenizer {source} has "
            f"{vocabulary} of {code_width}: they do not belong together. Give the matching file with the option tokenizer."
        )


def load_emoji64_tokenizer(file: Path, device: torch.device, dtype: torch.dtype) -> MultiScaleTokenizer:
    """The embedded tokenizer's encoder and decoder with a quantiser of ``recipes/train_var_tokenizer.py``."""
    with safe_open(file, "pt") as handle:
        scales = json.loads(handle.metadata()["scales"])
    state = read_state(file)
    vocabulary, width = state["embedding.weight"].shape
    quantizer = build(lambda: MultiScaleQuantizer(vocabulary, width, scales), state, source=str(file))
    embedded = embedded_tokenizer(device, dtype)
    return MultiScaleTokenizer(embedded.model, quantizer, embedded.downsampling, device, dtype)
