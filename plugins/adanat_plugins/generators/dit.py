"""``dit`` and ``sit``: class-conditional latent diffusion and flow with a transformer, under a second-order solver.

One class for both: they share network, solver and knobs, and differ in the path from noise to image (``dpm_solver.Path``).
An action chooses the time that the latent goes to and the guidance of the prediction it goes by. The first one, before any
forward, chooses the starting time, with features that are zero (AdaGen, arXiv:2603.06993).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, ClassVar, Protocol

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn

from adanat_toolkit.core import GUIDANCE, INITIAL, TIME, ActionSpace, Noise
from adanat_toolkit.errors import ConfigError, WeightsError, nearest
from adanat_toolkit.interfaces import Context, ContextKind, Generator, PluginOptions, SamplingPolicy
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch
from adanat_toolkit.storage import parse_document

from ..emoji64.data import class_names
from ..fingerprints import fingerprint_state, fingerprint_tokenizer
from ..tokenizers.autoencoder_kl import KLTokenizer
from ..tokenizers.principal import PrincipalLatents
from ..weights import Shapes, asset, build, place, read_state
from .class_conditional import Emoji64Classes, PublishedOptions, emoji64_file, published_files, uniform_classes
from .dit_net import DiT, dit_sizes
from .dpm_solver import Diffusion, Flow, Path, VelocityOnDiffusion, first_order, second_order
from .maskgit import embedded_tokenizer
from .tokenized import compile_modules


class LatentTokenizer(Protocol):
    """Latents at the generator's scale <-> images in [0, 1]."""

    channels: int
    downsampling: int

    @property
    def model(self) -> Any: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...


RANGES = {"spread": (0.65, 0.2), "detail": (0.7, 0.3), "divergence": (0.25, 0.1), "time": (0.5, 0.3)}
"""Usual value and spread of each statistic over samples and steps, of the embedded ``sit`` and ``dit`` at T = 4."""


@dataclass
class Start:
    """Where an update began: latents and data prediction (B, C, h, w) float32, time (B,) float32."""

    latents: Tensor
    data: Tensor
    time: Tensor


@dataclass
class LatentState:
    """State of a sample between two actions.

    Attributes:
        latents: (B, C, h, w) float32 at time (B,) float32, which is None before the first action.
        start: where the update in progress began; None between two updates.
        data: the last prediction of the image's latents.
        output, null_output, features: the network's for ``latents``, once they were needed.
    """

    context: Context
    latents: Tensor
    time: Tensor | None = None
    start: Start | None = None
    data: Tensor | None = None
    output: Tensor | None = None
    null_output: Tensor | None = None
    features: Tensor | None = None


class LatentGenerator(Generator):
    """A frozen transformer that predicts noise or velocity, and the autoencoder that its latents belong to.

    Every update of the solver takes two forwards, hence T steps make T // 2 updates, and one action more than forwards.

    Args:
        network: in float32; its class table's last row is the null class of guidance.
        guided_channels: those that guidance changes, counted from the first one.
    """

    family: ClassVar[str]
    path: ClassVar[Path]
    context_kind: ContextKind = "class"
    default_steps = 16
    free_actions = 1
    thread_safe = True
    Options: ClassVar[type[PluginOptions]] = PublishedOptions

    def __init__(
        self,
        name: str,
        network: DiT,
        tokenizer: LatentTokenizer,
        *,
        guided_channels: int,
        default_schedule: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self.action_space = ActionSpace((TIME, GUIDANCE))
        self.default_schedule = default_schedule
        self.fingerprint = fingerprint_state(network.state_dict())
        self.network = place(network, device, dtype).eval().requires_grad_(False)
        self.tokenizer, self.guided_channels = tokenizer, guided_channels
        self.latent_shape = (network.channels, network.side, network.side)
        self.grid = (network.side // network.patch,) * 2
        self.image_size = (network.side * tokenizer.downsampling,) * 2
        self.feature_dim = network.pos_embed.shape[2]
        self.num_classes = self.null_class = network.classes
        self.device, self.dtype = device, dtype

    def parameters_count(self) -> dict[str, int]:
        parts = {"generator": self.network, "tokenizer": self.tokenizer}
        modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in modules.items()}

    @property
    def tokenizer_fingerprint(self) -> str | None:
        return fingerprint_tokenizer(self.tokenizer) if isinstance(self.tokenizer, nn.Module) else None

    def compile(self) -> None:
        compile_modules(self, self.network, self.tokenizer.model.decoder)

    def sample_contexts(self, noise: Noise) -> Context:
        """Classes as likely as each other: published weights do not tell label frequencies."""
        assert self.num_classes is not None
        return uniform_classes(noise, self.num_classes, self.device)

    def bind(self, schedule: str | None, steps: int, **about: Any) -> ActionSpace:
        space = super().bind(schedule, steps, **about)
        assert space.schedule is not None
        times = space.schedule[:, space.names.index(TIME.name)].tolist()
        falls = self.path.start > self.path.end
        for before, after in itertools.pairwise(times):
            if before != after and (before > after) != falls:
                raise ConfigError(
                    f"schedule {schedule!r} goes from time {before:g} to {after:g}; in {self.name} times "
                    f"{'fall: 1' if falls else 'rise: 0'} is noise. Write them in that order, such as "
                    f"time={self.path.start:g}:{self.path.end:g}."
                )
        return space

    def decisions(self, steps: int) -> int:
        if steps < 2:
            raise ConfigError(f"{self.name} cannot make an image in {steps} step: an update takes two. Use 2 or more.")
        return 2 * (steps // 2) + 1

    # --- one image ----------------------------------------------------------------------------------------------------

    def reset(self, context: Context, noise: Noise, steps: int) -> LatentState:
        """Standard normal noise, which is taken as the latent at whatever time the first action starts from."""
        return LatentState(context, noise.normal(INITIAL, 0, self.latent_shape))

    @torch.no_grad()
    def observe(self, state: LatentState, *, guided: bool = True) -> Tensor:
        if state.time is None:
            cells = self.grid[0] * self.grid[1]
            return state.latents.new_zeros(1).expand(len(state.context), cells, self.feature_dim)
        classes = state.context.classes
        assert classes is not None
        null = torch.full_like(classes, self.null_class)
        if state.output is None:
            if guided:  # conditional and unconditional are one batch
                both = (torch.cat([a, b]) for a, b in ((state.latents,) * 2, (state.time,) * 2, (classes, null)))
                output, features = self._predict(*both)
                state.output, state.null_output = output.chunk(2)
                state.features = features[: len(classes)]
            else:
                state.output, state.features = self._predict(state.latents, state.time, classes)
        elif guided and state.null_output is None:
            state.null_output = self._predict(state.latents, state.time, null)[0]
        assert state.features is not None
        return state.features

    # --- statistics of the prediction ---------------------------------------------------------------------------------

    @property
    def statistic_names(self) -> tuple[str, ...]:
        return tuple(RANGES)

    @property
    def statistic_ranges(self) -> tuple[tuple[float, float], ...]:
        return tuple(RANGES.values())

    @torch.no_grad()
    def statistics(self, state: LatentState) -> Tensor:
        """Of the image's latents as they are predicted: ``spread``, their standard deviation; ``detail``, the root mean square
        difference of neighbouring cells; ``divergence``, that of the predictions with and without the class; and ``time``.
        All are 0 before the first action, when nothing has been predicted."""
        if state.time is None:
            return state.latents.new_zeros(len(state.context), len(RANGES))
        self.observe(state)
        assert state.output is not None and state.null_output is not None
        data, null = (self.path.data(state.latents, x, state.time) for x in (state.output, state.null_output))

        def size(*differences: Tensor) -> Tensor:
            return torch.stack([x.square().flatten(1).mean(1) for x in differences]).mean(0).sqrt()

        detail = size(data.diff(dim=2), data.diff(dim=3))
        return torch.stack([data.flatten(1).std(1), detail, size(data - null), state.time], 1)

    @torch.no_grad()
    def step(self, state: LatentState, action: Tensor, noise: Noise) -> LatentState:
        proposed, guidance = action.unbind(1)
        time = self.path.move(proposed, state.time)
        if state.time is None:
            return LatentState(state.context, state.latents, time)
        null = self._null_output(state, guidance)
        assert state.output is not None
        output = state.output
        if null is not None:
            channels = torch.arange(output.shape[1], device=output.device) < self.guided_channels
            weight = guidance[:, None, None, None] * channels[:, None, None]
            output = output + weight * (output - null)
        data = self.path.data(state.latents, output, state.time)
        if state.start is None:
            latents = first_order(self.path, state.latents, data, state.time, time)
            return LatentState(state.context, latents, time, Start(state.latents, data, state.time), data)
        begun = state.start
        latents = second_order(self.path, begun.latents, begun.data, data, begun.time, state.time, time)
        return LatentState(state.context, latents, time, data=data)

    def _null_output(self, state: LatentState, guidance: Tensor) -> Tensor | None:
        """The network's output without the class, computed for the samples that are guided alone; None if none is."""
        if state.null_output is not None:
            return state.null_output
        # To ask which samples are guided waits for the device, so it is asked only when nobody observed them all.
        rows = (guidance != 0).nonzero().squeeze(1)
        everyone = len(rows) == len(guidance)
        self.observe(state, guided=everyone)
        if everyone or not len(rows):
            return state.null_output
        assert state.output is not None and state.time is not None
        classes = torch.full_like(rows, self.null_class)
        found = self._predict(state.latents[rows], state.time[rows], classes)[0]
        # Guidance does not touch the others, so theirs may be the conditional one. The state does not keep it: statistics
        # want that of every sample.
        return state.output.index_copy(0, rows, found)

    @torch.no_grad()
    def decode(self, state: LatentState) -> Tensor:
        return self.tokenizer.decode(state.latents)

    def latents(self, state: LatentState) -> Tensor:
        return state.latents

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)

    def _predict(self, latents: Tensor, time: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Noise or velocity (B, C, h, w) and features (B, N, D), both float32."""

        def run(x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            output, features = self.network(x.to(self.dtype), t, labels)
            return output[:, : self.latent_shape[0]].float(), features.float()

        minimum = minimum_batch(self.dtype, self.device)
        given = self.path.network_input(latents, time)
        output, features = in_chunks(run, given, self.path.network_time(time), classes, minimum=minimum)
        return output, features

    def read_policy(self, path: FilePath, steps: int | None, changes: str = "") -> SamplingPolicy:
        """A policy published with AdaGen (see ``released_policy.read_policy``)."""
        from ..released_policy import read_policy

        return read_policy(path, self, steps, changes)

    # --- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def preset_settings(cls, preset: str, variant: str | None) -> dict[str, Any]:
        from ..released_policy import adagen_settings

        return adagen_settings(f"{cls.family}:{variant or cls.variants()[0]}") if preset == "adagen" else {}

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("emoji64", "xl-2-256")

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> LatentGenerator:
        """See ``interfaces.Generator.create``."""
        chosen_variant = variant or cls.variants()[0]
        if chosen_variant not in cls.variants():
            raise ConfigError(
                f"{cls.family} has no variant {variant!r}{nearest(chosen_variant, cls.variants())} "
                f"Variants: {', '.join(cls.variants())}."
            )
        name = f"{cls.family}:{chosen_variant}"
        chosen = parse_options(f"generator {name!r}", DiTOptions, options)
        assert isinstance(chosen, DiTOptions)
        if chosen_variant == "emoji64":
            return chosen.applied(_emoji64(cls.family, chosen, device, dtype, offline))
        files = published_files(chosen, asset(name, "generator"), asset(name, "tokenizer"), offline=offline)
        network = _network(read_state(files[0]), chosen, files[0])
        tokenizer = KLTokenizer.from_state(read_state(files[1]), source=str(files[1]), device=device, dtype=dtype)
        if tokenizer.channels != network.channels:
            raise WeightsError(
                f"the generator works on latents of {network.channels} channels and the tokenizer {files[1]} has "
                f"{tokenizer.channels}: they do not belong together. Give the matching file with the option tokenizer."
            )
        made = cls(
            name,
            network,
            tokenizer,
            guided_channels=3,  # as published: the last of the four latent channels is not guided
            default_schedule=cls.published_schedule,
            device=device,
            dtype=dtype,
        )
        return chosen.applied(made)

    published_schedule: ClassVar[str]
    """Even times, and the guidance that AdaGen's policies were added to."""
    hand_made: ClassVar[str]
    """The best schedule of even times and constant guidance of the embedded network (a grid search)."""


class DiTOptions(PublishedOptions):
    heads: int | None = Field(None, ge=1, le=1024)
    """Attention heads of a checkpoint of an unpublished size (weights do not tell them)."""


class DiTGenerator(LatentGenerator):
    """``dit``: the network predicts noise on the variance-preserving path; time falls from 1 (noise) to 0."""

    family = "dit"
    path = Diffusion()
    Options: ClassVar[type[PluginOptions]] = DiTOptions
    published_schedule = "time=0.9:0.01,guidance=1"
    hand_made = "time=0.9:0.01,guidance=1"


class SiTGenerator(LatentGenerator):
    """``sit``: the network predicts velocity on the linear path; time rises from 0 (noise) to 1."""

    family = "sit"
    path = Flow()
    Options: ClassVar[type[PluginOptions]] = DiTOptions
    published_schedule = "time=0.01:0.99,guidance=1.5"
    hand_made = "time=0.01:0.99,guidance=1"


class Emoji64DiT(Emoji64Classes, DiTGenerator):
    """The embedded generator: a network of velocities, whose noise prediction follows from them."""

    path = VelocityOnDiffusion()


class Emoji64NoiseDiT(Emoji64Classes, DiTGenerator):
    """A network of one's own for the embedded images, trained to predict noise."""


class Emoji64SiT(Emoji64Classes, SiTGenerator):
    """The embedded generator of velocities."""


EMBEDDED: dict[tuple[str, str], type[LatentGenerator]] = {
    ("dit", "sit"): Emoji64DiT,
    ("dit", "dit"): Emoji64NoiseDiT,
    ("sit", "sit"): Emoji64SiT,
}
"""By the family that is asked for and the one that the weights were trained for."""


def _emoji64(
    family: str, options: DiTOptions, device: torch.device, dtype: torch.dtype, offline: bool
) -> LatentGenerator:
    """A network of ``recipes/train_dit.py``; its file also has the way between the tokenizer's latents and its own."""
    name = f"{family}:emoji64"
    file = emoji64_file(name, options, offline=offline)
    state = read_state(file)
    cls = EMBEDDED.get((family, _trained_for(file)))
    if cls is None:
        raise WeightsError(f"{file} is not of a network that {name} can use; make one with recipes/train_dit.py {family}.")
    shapes = Shapes(state, f"{file} is not of a network for {name}", "the tensors that recipes/train_dit.py writes")
    found = [shapes.of(f"latents.{part}", axes) for part, axes in (("mean", 1), ("into", 2), ("back", 2))]
    mean, into, back = (state.pop(f"latents.{part}") for part in ("mean", "into", "back"))
    network = _network(state, options, file)
    embedded = embedded_tokenizer(device, dtype)
    own, kept = embedded.model.quantize.embedding.weight.shape[1], network.channels
    if found != [(own,), (own, kept), (kept, own)]:
        raise shapes.wrong(
            f"'latents.mean', '.into' and '.back' have the shapes {[list(shape) for shape in found]}, which do not lead from "
            f"the tokenizer's {own} channels to the network's {kept} and back"
        )
    tokenizer = PrincipalLatents(embedded, mean, into, back)
    made = cls(
        name,
        network,
        tokenizer,
        guided_channels=network.channels,
        default_schedule=cls.hand_made,
        device=device,
        dtype=dtype,
    )
    made.class_names = class_names()
    return made


def _trained_for(file: FilePath) -> str:
    """The family that ``recipes/train_dit.py`` wrote into a file; "" where it says nothing."""
    if file.suffix != ".safetensors":
        return ""
    with safe_open(file, "pt") as handle:
        text = (handle.metadata() or {}).get("training", "{}")
    training: dict[str, Any] = parse_document(text, dict[str, Any], where=f"training of {file}", error=WeightsError)
    return str(training.get("family", ""))


def _network(state: dict[str, Tensor], options: DiTOptions, file: FilePath) -> DiT:
    sizes = dit_sizes(state, heads=options.heads, source=str(file))
    return build(lambda: DiT(**sizes), state, source=str(file))
