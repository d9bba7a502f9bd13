"""``diffusers``: any text-to-image pipeline of diffusers whose family is in ``diffusion.families``.

The pipeline's text encoders, denoiser, autoencoder and scheduler are used as they are; the loop around them is the
toolkit's, so that guidance and the steps' times belong to each sample. Where nobody acts, the loop makes the pipeline's own
images.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from adanat_toolkit.core import CONTEXT, GUIDANCE, INITIAL, STEP, ActionSpace, Noise
from adanat_toolkit.errors import ConfigError, nearest
from adanat_toolkit.interfaces import Context, ContextKind, Generator, PluginOptions, Source
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import distributed, in_chunks, minimum_batch
from adanat_toolkit.storage import read_prompts

from ..diffusion.families import FAMILIES, Condition, Family
from ..diffusion.features import FeatureHook
from ..diffusion.loading import TEXT_ENCODER, load_pipeline, pipeline_folder
from ..diffusion.samplers import (
    ETA,
    NOTHING,
    OWN_TIMES,
    TIME_SHIFT,
    Place,
    Schedule,
    Step,
    next_position,
    sampler_of,
)
from ..fingerprints import fingerprint_state
from ..prompt_rows import CutPrompts, library_cuts

log = logging.getLogger("adanat_toolkit")

DECIDING = ("prediction_type", "algorithm_type", "solver_order", "solver_type", "clip_sample")
"""Settings of schedulers that change their steps beside their times."""
KEPT_TEXT = 2**29
"""Bytes of encoded prompts that are kept: a thousand of Stable Diffusion 3's without T5."""


class DiffusersOptions(PluginOptions):
    weights: Source = None
    """Pipeline folder in diffusers' layout, or a hub id ``owner/name[@revision]``."""
    prompts: Source = None
    """Text file with one prompt a line, that images are made of where nobody names others. Each is equally likely."""
    negative_prompt: str | None = None
    """What the unconditional prediction is told; None as the pipeline has it, which is the empty prompt or nothing."""
    height: int | None = Field(None, ge=1)
    """In pixels; None as the pipeline has it."""
    width: int | None = Field(None, ge=1)
    """In pixels; None as the pipeline has it."""
    offload: bool = False
    """Keep the text encoders in main memory, and on the device only while they encode prompts. Every prompt is encoded once,
    so that this costs little after the first iterations."""


@dataclass
class PipelineState:
    """State of samples between two actions.

    Attributes:
        latents: (B, C, h, w) float32. place: where they are in the schedule. index: actions so far.
        conditions: distinct encoded prompts, the unconditional one last; rows: which of them each sample has.
        memory: of the sampler. output: the conditional prediction for ``latents``, and features: once they were needed.
    """

    context: Context
    schedule: Schedule
    latents: Tensor
    place: Place
    conditions: list[Condition]
    rows: Tensor
    memory: Any
    index: int = 0
    output: Tensor | None = None
    features: Tensor | None = None


class DiffusersPipeline(Generator):
    """A frozen pipeline.

    Args:
        pipe: a pipeline of diffusers, which is used from now on by this generator alone.
        prompts: what contexts are drawn from; None where there are none.
    """

    context_kind: ContextKind = "text"
    Options: ClassVar[type[PluginOptions]] = DiffusersOptions

    def __init__(
        self,
        pipe: Any,
        family: Family,
        *,
        prompts: Sequence[str] | None = None,
        negative_prompt: str | None = None,
        size: tuple[int | None, int | None] = (None, None),
        offload: bool = False,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if getattr(getattr(pipe, family.denoiser).config, "time_cond_proj_dim", None) is not None:
            raise ConfigError(
                f"the pipeline's {family.denoiser} was distilled for few steps and takes guidance as an input, so that it is "
                "no knob of the sampler. Use the model it was distilled from."
            )
        why = self._look_at(pipe, family, size)
        if why is not None and distributed.is_main():
            log.warning(
                "%s: steps are at the same times for all images, and a policy sets guidance alone. Save the pipeline with %s "
                "for times of each image's own.",
                why,
                " or ".join(sorted(name for kind in OWN_TIMES for name in kind.schedulers)),
            )
        self.device, self.dtype = device, dtype
        self._text_device = torch.device("cpu") if offload else device
        for name, part in self._parts().items():
            if part.dtype != dtype:  # loading has seen to it, and to what a network keeps in float32 all the same
                part.to(dtype)
            part.to(self._text_device if name.startswith(TEXT_ENCODER) else device).eval().requires_grad_(False)
        self.prompts, self.negative_prompt = prompts, negative_prompt
        self.fingerprint = self._fingerprint()
        self._null: Condition | None = None
        self._kept: OrderedDict[str, Condition] = OrderedDict()
        self._cut = CutPrompts("a text encoder of the pipeline", pipe.tokenizer.model_max_length)

    def _look_at(self, pipe: Any, family: Family, size: tuple[int | None, int | None]) -> str | None:
        """All that can be said of a pipeline without moving it; gives the reason where its times are shared."""
        self.pipe, self.family = pipe, family
        self.name = f"diffusers:{type(pipe).__name__}"
        default = family.default_size(pipe)
        self.image_size = (size[0] or default[0], size[1] or default[1])
        self.latent_shape = family.latent_shape(pipe, self.image_size)
        self.sampler, why_shared = sampler_of(pipe.scheduler)
        self.action_space = ActionSpace((GUIDANCE, *self.sampler.knobs))
        self.default_schedule = f"guidance={family.default_guidance(pipe):g}"
        self.default_steps = family.default_steps(pipe)
        self.denoiser = getattr(pipe, family.denoiser)
        patch = family.patch(pipe)
        self._cells = (self.latent_shape[1] // patch, self.latent_shape[2] // patch)
        self.hook = FeatureHook(family, self.denoiser, self._cells)
        self.grid, self.feature_dim = self.hook.grid, self.hook.dim
        return why_shared

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """The pipeline classes that are known. Which one a folder holds it says itself, so that nobody has to."""
        return tuple(name for family in FAMILIES for name in family.pipelines)

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> DiffusersPipeline:
        """See ``interfaces.Generator.create``."""
        if variant is not None and variant not in cls.variants():
            raise ConfigError(
                f"diffusers has no variant {variant!r}{nearest(variant, cls.variants())} Variants are pipeline classes: "
                f"{', '.join(cls.variants())}. Without one, the folder says which it is."
            )
        chosen = parse_options("generator 'diffusers'", DiffusersOptions, options)
        prompts = None if chosen.prompts is None else read_prompts(chosen.prompts)
        folder = pipeline_folder(chosen.weights, offline=offline)
        pipe, family = load_pipeline(folder, dtype, kind=variant, device=device, offload=chosen.offload)
        return cls(
            pipe,
            family,
            prompts=prompts,
            negative_prompt=chosen.negative_prompt,
            size=(chosen.height, chosen.width),
            offload=chosen.offload,
            device=device,
            dtype=dtype,
        )

    def parameters_count(self) -> dict[str, int]:
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self._parts().items()}

    def _parts(self) -> dict[str, Any]:
        return {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}

    def _fingerprint(self) -> str:
        """Of the denoiser's weights, whatever dtype they are loaded in, and of what else decides its images."""
        state = {}
        for name, value in self.denoiser.state_dict().items():
            flat = value.flatten()
            state[f"{name}{tuple(value.shape)}"] = flat[:: max(1, flat.numel() // 4096)].bfloat16()
        config = self.pipe.scheduler.config
        rule = [type(self.pipe.scheduler).__name__, *(config.get(key) for key in DECIDING)]
        # Its times and not its whole configuration, to which every version of diffusers adds; whole ones, since the last
        # bits are the machine's.
        state[f"{rule} {self.image_size}"] = self._schedule(10).timesteps.round()
        return fingerprint_state(state)

    # --- contexts -----------------------------------------------------------------------------------------------------

    def sample_contexts(self, noise: Noise) -> Context:
        """One of the prompts a seed.

        Raises:
            ConfigError: there are none.
        """
        if self.prompts is None:
            raise ConfigError(
                "a pipeline brings no prompts of its own; give --prompt, --prompts FILE, --data with captions or, to train, "
                "--set generator.options.prompts=FILE (one a line)."
            )
        chosen = (noise.uniform(CONTEXT, 0, (1,))[:, 0].double() * len(self.prompts)).long()
        return self.encode_prompts([self.prompts[i] for i in chosen.tolist()])

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Contexts of prompts, pooled (B, P) being the pipeline's own or the mean of its token states."""
        found = self._encoded(prompts or [""])  # of no prompts, for the shapes
        pooled = [c["pooled"] if "pooled" in c else c["states"].float().mean(0) for c in found.values()]
        index = {prompt: i for i, prompt in enumerate(found)}
        rows = torch.tensor([index[prompt] for prompt in prompts], dtype=torch.int64, device=self.device)
        return Context(len(prompts), pooled=torch.stack(pooled).float()[rows], prompts=tuple(prompts))

    def _encoded(self, prompts: Sequence[str]) -> OrderedDict[str, Condition]:
        """The distinct prompts, in order, as the denoiser takes them; each alone, so that no other one rounds it."""
        distinct = list(dict.fromkeys(prompts))
        found, cut = OrderedDict[str, Condition](), 0
        with self._text_encoders(any(prompt not in self._kept for prompt in distinct)):
            for prompt in distinct:
                with library_cuts() as said:
                    found[prompt] = self._kept.pop(prompt) if prompt in self._kept else self._encode(prompt)
                cut += bool(said)
        self._cut.count(cut, len(distinct))
        self._kept.update(found)
        used = sum(value.nbytes for condition in self._kept.values() for value in condition.values())
        while used > KEPT_TEXT:
            used -= sum(value.nbytes for value in self._kept.popitem(last=False)[1].values())
        return found

    def _encode(self, prompt: str) -> Condition:
        return self.family.encode(self.pipe, prompt, self.device)

    @contextmanager
    def _text_encoders(self, needed: bool) -> Iterator[None]:
        """While ``needed``, the text encoders are on the device."""
        moved = [part for name, part in self._parts().items() if name.startswith(TEXT_ENCODER)]
        if not needed or self._text_device == self.device:
            moved = []
        for part in moved:
            part.to(self.device)
        try:
            yield
        finally:
            for part in moved:
                part.to(self._text_device)

    # --- one image ----------------------------------------------------------------------------------------------------

    def decisions(self, steps: int) -> int:
        return self._schedule(steps).steps

    def _times(self, steps: int) -> dict[str, Any]:
        return self.family.times(self.pipe, steps, self._cells[0] * self._cells[1])

    def _schedule(self, steps: int) -> Schedule:
        return self.sampler.schedule(steps, **self._times(steps))

    def reset(self, context: Context, noise: Noise, steps: int) -> PipelineState:
        assert context.prompts is not None
        if self._null is None:
            with self._text_encoders(True):
                self._null = self.family.encode_null(self.pipe, self.negative_prompt, self.device)
        found = self._encoded(context.prompts)
        index = {prompt: i for i, prompt in enumerate(found)}
        schedule = self._schedule(steps).to(self.device)
        start = torch.zeros(len(context), dtype=torch.float64, device=self.device)
        return PipelineState(
            context,
            schedule,
            noise.normal(INITIAL, 0, self.latent_shape) * schedule.start_scale,
            self.sampler.place(schedule, start),
            [*found.values(), self._null],
            torch.tensor([index[prompt] for prompt in context.prompts]),
            self.sampler.begin(steps, **self._times(steps)),
        )

    @torch.no_grad()
    def observe(self, state: PipelineState, *, guided: bool = True) -> Tensor:
        """Features of the conditional prediction. The unconditional one waits for the action, which says who needs it."""
        if state.features is None:
            state.output, state.features = self._predict(state, torch.arange(len(state.context)), state.rows)
        return state.features

    @torch.no_grad()
    def step(self, state: PipelineState, action: Tensor, noise: Noise) -> PipelineState:
        action = action.to(state.latents.device)
        knobs = dict(zip(self.action_space.names, action.unbind(1), strict=True))
        output = self._guided(state, knobs[GUIDANCE.name])
        schedule, index = state.schedule, state.index
        shift = knobs.get(TIME_SHIFT.name, torch.full_like(action[:, 0], 0.5))
        target = self.sampler.place(schedule, next_position(state.place.position, shift, index, schedule.steps))
        step = Step(state.latents, output, state.place, target, index, schedule.steps)
        eta = knobs.get(ETA.name)
        if eta is not None and bool((eta > NOTHING).any()):
            step = replace(step, eta=torch.where(eta < NOTHING, 0.0, eta), noise=noise.normal(STEP, index, self.latent_shape))
        latents, memory = self.sampler.step(step, state.memory)
        return PipelineState(
            state.context, schedule, latents, target, state.conditions, state.rows, memory, index + 1
        )

    def _guided(self, state: PipelineState, guidance: Tensor) -> Tensor:
        """The prediction that the step goes by: (B, C, h, w) float32."""
        everyone = torch.arange(len(state.context))
        needed = everyone[(guidance > NOTHING).cpu()]
        unconditional = torch.full((len(needed),), len(state.conditions) - 1)
        if state.output is None:  # nobody observed: both are one batch
            both = self._predict(state, torch.cat([everyone, needed]), torch.cat([state.rows, unconditional]))[0]
            output, null = both[: len(everyone)], both[len(everyone) :]
        else:
            output = state.output
            null = self._predict(state, needed, unconditional)[0] if len(needed) else output[:0]
        if not len(needed):
            return output
        rows = needed.to(output.device)
        weight = guidance[rows, None, None, None]
        return output.index_add(0, rows, weight * (output[rows] - null))

    def _predict(self, state: PipelineState, samples: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction (n, C, h, w) and features (n, N, D), float32, of n samples under the conditions ``rows``.

        Both indices are (n,) int64 on the CPU.
        """
        entered = self.sampler.network_input(state.latents, state.place, state.memory)
        chosen = samples.to(entered.device)

        def run(latents: Tensor, times: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            conditions = [state.conditions[i] for i in rows.tolist()]
            output = self.family.predict(self.denoiser, latents.to(self.dtype), times, conditions, self.image_size)
            return output.float(), self.hook.take()

        minimum = minimum_batch(self.dtype, self.device)
        output, features = in_chunks(run, entered[chosen], state.place.timestep[chosen], rows, minimum=minimum)
        return output, features

    def decode(self, state: PipelineState) -> Tensor:
        minimum = minimum_batch(self.dtype, self.device)
        (images,) = in_chunks(lambda latents: self.family.decode(self.pipe, latents), state.latents, minimum=minimum)
        return images

    def latents(self, state: PipelineState) -> Tensor:
        return state.latents

    def encode_latents(self, images: Tensor) -> Tensor:
        return self.family.encode_images(self.pipe, images)
