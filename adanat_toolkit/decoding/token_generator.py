"""Masked-token generators: the loop, and the predictions of first states that are kept.

Shapes: B samples, N = h * w cells of the generator's grid, D feature channels.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core import REMASK, TOKEN, Context, Generator, ImageSource, Noise, to_gumbel
from ..errors import ConfigError
from .fused import decoding_step
from .masked_decoding import StepKnobs, StepNoise, StepResult
from .statistics import RANGES, prediction_statistics, statistic_names


class DecodingRule(Protocol):
    """A step that replaces ``masked_decoding_step`` for one rollout (see ``released_samplers``)."""

    def step(self, state: TokenState, knobs: StepKnobs, noise: StepNoise, generator: TokenGenerator) -> StepResult:
        """The result of one step; the generator's prediction for ``state`` is in it."""
        ...


@dataclass
class TokenState:
    """State of a token generator.

    Attributes:
        tokens: (B, N) int64 with ``mask_id`` at unknown cells. proposal: (B, N) int64, the last fully drawn sequence.
        step: index of the next step. editable: (B, N) bool or None (see ``masked_decoding_step``).
        prediction: cached conditional (logits, features) and unconditional logits of ``tokens``.
        sampler: the published sampler whose step this rollout takes; None for the toolkit's own.
        unguided: whoever observed the state has promised that the next step has guidance 0.
    """

    context: Context
    steps: int
    tokens: Tensor
    proposal: Tensor
    step: int = 0
    editable: Tensor | None = None
    prediction: tuple[Tensor, Tensor] | None = None
    null_logits: Tensor | None = None
    sampler: DecodingRule | None = None
    unguided: bool = False


FIRST_STATES_ON_CPU = 128 * 2**20
"""Bytes of first states that are kept on a CPU."""


FIRST_STATES_ON_CUDA = 0.05
"""The same on a CUDA device, as a share of its memory: the 1,000 classes of a 16x16 grid take 1.8 GB."""


KEPT_CODES = 64 * 2**20
"""Bytes of the codes of real images that are kept: 65,536 images of a 16x16 grid."""


class TokenGenerator(Generator):
    """A masked-token generator: subclasses write :meth:`predict`, :meth:`decode_tokens` and a loader.

    The step itself is ``masked_decoding.masked_decoding_step``, or its kernels (``fused``). Forwards that would not be used
    are not run: none after the last step, none unconditional where guidance is 0, and the first state (all mask) once per
    distinct context.
    """

    free_actions = 1  # the first state
    mask_id: int
    codebook_size: int
    first_state_cache_bytes: int | None = None
    """First-state predictions of class contexts are kept between batches where those of all classes fit into so many bytes;
    None: :data:`FIRST_STATES_ON_CPU`, or :data:`FIRST_STATES_ON_CUDA`."""
    _codes_of: str | None = None  # the fingerprint of the images whose codes are kept
    _codes: Tensor

    @abstractmethod
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Logits and features of a partly masked sequence.

        Args:
            tokens: (B, N) int64, ``mask_id`` at unknown cells.

        Returns:
            logits (B, N, codebook_size) float32 and features (B, N, feature_dim) float32.
        """

    @abstractmethod
    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N) int64 codes -> images (B, 3, H, W) float32 in [0, 1]."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> (B, N) int64 codes."""
        raise ConfigError(f"the tokenizer of {self.name} has no encoder, so images cannot be encoded.")

    def token_vectors(self, tokens: Tensor) -> Tensor:
        """(B, N) int64 codes -> the tokenizer's vectors of them, (B, C, h, w) float32."""
        raise ConfigError(f"{self.name} does not tell the vectors of its codes; use a reward that reads images.")

    def null_context(self, size: int) -> Context | None:
        """The context that guidance subtracts; None for a generator without the guidance knob."""
        return None

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    def reset(
        self,
        context: Context,
        noise: Noise,
        steps: int,
        *,
        tokens: Tensor | None = None,
        editable: Tensor | None = None,
        sampler: DecodingRule | None = None,
    ) -> TokenState:
        """All mask; or, for masked editing, the given ``tokens`` (B, N) with ``mask_id`` where ``editable`` is True.

        ``sampler``: take a published sampler's steps instead of the toolkit's, in this rollout only.
        """
        if tokens is None:
            tokens = torch.full((len(context), self.cells), self.mask_id, dtype=torch.int64, device=self.device)
        return TokenState(context, steps, tokens, tokens, editable=editable, sampler=sampler)

    @torch.no_grad()
    def observe(self, state: TokenState, *, guided: bool = True) -> Tensor:
        state.unguided = not guided
        return self._observe(state, guided)

    def _observe(self, state: TokenState, guided: bool) -> Tensor:
        wants_null = guided and state.null_logits is None and "guidance" in self.action_space.names
        if state.prediction is None:
            if state.step == 0 and state.editable is None:
                self._predict_first(state, wants_null)
            elif wants_null:
                null = self.null_context(len(state.context))
                assert null is not None
                both = Context.cat([state.context, null])
                logits, features = self.predict(torch.cat([state.tokens, state.tokens]), both)
                conditional, state.null_logits = logits.chunk(2)
                state.prediction = conditional, features[: len(state.context)]
            else:
                state.prediction = self.predict(state.tokens, state.context)
        elif wants_null:
            state.null_logits = self._predict_null(state.tokens)
        assert state.prediction is not None
        return state.prediction[1]

    @torch.no_grad()
    def step(self, state: TokenState, action: Tensor, noise: Noise) -> TokenState:
        token, remask = noise.uniforms([(TOKEN, state.step), (REMASK, state.step)], (self.cells,))
        return self.advance(state, action, StepNoise(token, to_gumbel(remask)))

    @torch.no_grad()
    def advance(self, state: TokenState, action: Tensor, drawn: StepNoise) -> TokenState:
        """:meth:`step` with the random numbers drawn. It does not wait for the device where the state was observed."""
        values = dict(zip(self.action_space.names, action.unbind(1), strict=True))
        guidance = values.get("guidance")
        if guidance is None or state.unguided:
            self._observe(state, guided=False)
        elif state.null_logits is None:
            # To ask which samples are guided waits for the device, so it is asked only when nobody observed them all.
            rows = (guidance != 0).nonzero().squeeze(1)
            first = state.step == 0 and state.editable is None  # whose unconditional logits are computed once for all
            everyone = len(rows) == len(guidance) or (first and len(rows) > 0)
            self._observe(state, guided=everyone)
            if len(rows) and not everyone:  # guidance does not touch the others, so theirs may be the conditional ones
                assert state.prediction is not None
                found = self._predict_null(state.tokens[rows])
                state.null_logits = state.prediction[0].index_copy(0, rows, found)
        assert state.prediction is not None
        ones = torch.ones_like(action[:, 0])
        knobs = StepKnobs(
            values["mask_ratio"],
            values.get("mask_temperature", ones * 0),
            values.get("token_temperature", ones),
            ones * 0 if guidance is None else guidance,
        )
        result = self.decoding_step(state, knobs, drawn)
        return TokenState(
            state.context,
            state.steps,
            result.tokens,
            result.proposal,
            state.step + 1,
            state.editable,
            sampler=state.sampler,
        )

    def decoding_step(self, state: TokenState, knobs: StepKnobs, noise: StepNoise) -> StepResult:
        """The step proper: the toolkit's, or that of the state's published sampler, with its own order and clamps."""
        assert state.prediction is not None
        if state.sampler is not None:
            return state.sampler.step(state, knobs, noise, self)
        return decoding_step(
            state.tokens, state.prediction[0], state.null_logits, knobs, noise, self.mask_id, state.editable
        )

    @torch.no_grad()
    def decode(self, state: TokenState) -> Tensor:
        return self.decode_tokens(state.proposal)

    @torch.no_grad()
    def latents(self, state: TokenState) -> Tensor:
        return self.token_vectors(state.proposal)

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        return self.token_vectors(self.encode_images(images))

    def known_codes(self, real: ImageSource) -> Tensor | None:
        """(M, N) integer codes of all images of a source, where they ship with the generator."""
        return None

    @torch.no_grad()
    def real_latents(self, real: ImageSource, index: Tensor) -> Tensor:
        """Codes that are not known are computed when an image is first asked for, and kept where :data:`KEPT_CODES` do."""
        index = index.cpu()
        known = self.known_codes(real)
        if known is not None:
            return self.token_vectors(known[index].to(self.device, torch.int64))
        if len(real) * self.cells * 4 > KEPT_CODES:
            return super().real_latents(real, index)
        if self._codes_of != real.fingerprint:
            self._codes_of = real.fingerprint
            self._codes = torch.full((len(real), self.cells), -1, dtype=torch.int32)
        missing = index[self._codes[index, 0] < 0].unique()
        if len(missing):
            self._codes[missing] = self.encode_images(real.images(missing).to(self.device)).to("cpu", torch.int32)
        return self.token_vectors(self._codes[index].to(self.device, torch.int64))

    # --- statistics of the prediction ---------------------------------------------------------------------------------

    @property
    def statistic_names(self) -> tuple[str, ...]:
        return statistic_names("guidance" in self.action_space.names)

    @property
    def statistic_ranges(self) -> tuple[tuple[float, float], ...]:
        return tuple(RANGES[name] for name in self.statistic_names)

    @torch.no_grad()
    def statistics(self, state: TokenState) -> Tensor:
        """See :func:`prediction_statistics`; ``masked`` is the share of cells that are unknown."""
        self.observe(state)
        assert state.prediction is not None
        unknown = state.tokens == self.mask_id
        return prediction_statistics(state.prediction[0], state.null_logits, unknown, unknown.float().mean(1))

    # --- the first state ----------------------------------------------------------------------------------------------

    def _predict_null(self, tokens: Tensor) -> Tensor:
        """The unconditional logits (n, N, V) of tokens (n, N)."""
        null = self.null_context(len(tokens))
        assert null is not None
        return self.predict(tokens, null)[0]

    def _predict_first(self, state: TokenState, wants_null: bool) -> None:
        """The all-mask state depends on the context alone: one forward per distinct context, kept for class contexts."""
        if self._keeps_first(state.context):
            state.prediction = self._kept_first(state.context)
        else:
            first, inverse = (index.to(self.device) for index in state.context.distinct())
            logits, features = self._predict_all_mask(state.context.select(first))
            state.prediction = logits[inverse], features[inverse]
        if wants_null:
            if not hasattr(self, "_null_first"):
                null = self.null_context(1)
                assert null is not None
                self._null_first = self._predict_all_mask(null)[0]
            state.null_logits = self._null_first.expand(len(state.context), -1, -1)

    def _keeps_first(self, context: Context) -> bool:
        """Whether the first states of all contexts of this kind fit."""
        limit = self.first_state_cache_bytes
        if limit is None:
            limit = FIRST_STATES_ON_CPU
            if self.device.type == "cuda":
                limit = int(FIRST_STATES_ON_CUDA * torch.cuda.get_device_properties(self.device).total_memory)
        number = self._first_states(context)
        return number is not None and number * 4 * self.cells * (self.codebook_size + self.feature_dim) <= limit

    def _first_states(self, context: Context) -> int | None:
        """How many first states there are in all, for contexts of this kind; None: as many as there are texts."""
        return self.num_classes if context.classes is not None else 1 if self.context_kind == "none" else None

    def _kept_first(self, context: Context) -> tuple[Tensor, Tensor]:
        """First states out of the table of all contexts, which is filled as they come."""
        keys = torch.zeros(len(context), dtype=torch.int64) if context.classes is None else context.classes
        if not hasattr(self, "_first"):
            number = self._first_states(context)
            assert number is not None
            with torch.inference_mode(False):  # the table outlives the mode that its maker may have set
                self._first = [
                    torch.empty(number, self.cells, width, device=self.device)
                    for width in (self.codebook_size, self.feature_dim)
                ] + [torch.zeros(number, dtype=torch.bool)]
        *tables, is_known = self._first  # once for all below: another thread may put others there
        if not is_known.all():  # once all are, no batch waits for the device
            wanted = keys.cpu().unique()
            missing = wanted[~is_known[wanted]]
            if len(missing):
                rows = missing.to(self.device)
                new = Context(len(rows), classes=None if context.classes is None else rows)
                for table, values in zip(tables, self._predict_all_mask(new), strict=True):
                    table[rows] = values
                is_known[missing] = True
        logits, features = tables
        keys = keys.to(self.device)
        return logits[keys], features[keys]

    def _predict_all_mask(self, context: Context) -> tuple[Tensor, Tensor]:
        tokens = torch.full((len(context), self.cells), self.mask_id, dtype=torch.int64, device=self.device)
        return self.predict(tokens, context)
