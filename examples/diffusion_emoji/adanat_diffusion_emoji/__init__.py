"""``diffusion-emoji``: class-conditional latent diffusion on the embedded 64x64 emoji, steered by DDIM's three knobs.

A diffusers ``UNet2DModel`` (weights beside this file, made by ``train.py``) denoises the 8x8 latents of the toolkit's
embedded tokenizer, before quantisation and in their leading principal components; the result is moved to the nearest codes
and decoded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from adanat_plugins.emoji64 import data
from adanat_plugins.generators.maskgit import embedded_tokenizer
from adanat_plugins.weights import load_into, place
from adanat_toolkit.core import GUIDANCE, INITIAL, STEP, ActionSpace, Knob, Noise
from adanat_toolkit.errors import ConfigError, WeightsError, nearest
from adanat_toolkit.interfaces import Context, Generator, ImageSource, PluginOptions, Source
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch

from .ddim import NoiseLevels, ddim_step, next_remaining

WEIGHTS = Path(__file__).parent / "emoji64.safetensors"
ETA = Knob("eta", "sigmoid", "share of DDPM's noise that a step adds; 0 is deterministic DDIM", 0.0)
STEP_SIZE = Knob(
    "step_size", "softplus", "exponent s of u' = u (1 - 1/n)^s: u time left, n steps left; 1 is even spacing", 1.0
)


class Options(PluginOptions):
    weights: Source = None
    """File written by ``train.py``; None is the one that ships."""


@dataclass
class Diffusion:
    """State: latents (B, C, h, w) float32 of unit scale at remaining time (B,), and the network's outputs for them."""

    context: Context
    steps: int
    latents: Tensor
    remaining: Tensor
    step: int = 0
    velocity: Tensor | None = None
    null_velocity: Tensor | None = None
    features: Tensor | None = None


class DiffusionEmoji(Generator):
    """A frozen denoiser; an action is (guidance, eta, step size) for one sample at one step.

    Features are the U-Net's last feature map after its normalisation: what the prediction is read from.
    """

    Options = Options
    name = "diffusion-emoji:emoji64"
    action_space = ActionSpace((GUIDANCE, ETA, STEP_SIZE))
    default_schedule = "guidance=1,eta=0.4,step_size=1"
    """The first word matters only to a mask_ratio. Even spacing; guidance and eta are the best of a small search (README)."""
    context_kind = "class"

    def __init__(self, file: Path, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DDIMScheduler, UNet2DModel

        try:
            with safe_open(file, "pt") as handle:
                config = {key: json.loads(value) for key, value in handle.metadata().items()}
                state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - no mapping
        except Exception as error:
            raise WeightsError(f"cannot read {file}: {error}. Give a file written by train.py.") from None
        self.fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        self.mean, self.back = (state.pop(f"latents.{key}").float().to(device) for key in ("mean", "back"))
        network = UNet2DModel.from_config(config["unet"]).eval().requires_grad_(False)
        load_into(network, state, source=str(file))
        self.network = place(network, device, dtype)
        torch.nn.Module.to(self.network, memory_format=torch.channels_last)  # diffusers' own override warns
        self.scheduler = DDIMScheduler.from_config(config["scheduler"])
        self.levels = NoiseLevels(self.scheduler.alphas_cumprod)
        self.tokenizer = embedded_tokenizer(device, dtype)
        self.device, self.dtype = device, dtype
        self.channels = config["unet"]["in_channels"]
        self.grid = (config["unet"]["sample_size"],) * 2
        self.image_size = data.SIZE
        self.feature_dim = config["unet"]["block_out_channels"][0]
        self.class_names = data.class_names()
        self.num_classes = self.null_class = len(self.class_names)
        self._seen: list[Tensor] = []
        self.network.conv_norm_out.register_forward_hook(lambda module, inputs, output: self._seen.append(output))

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> DiffusionEmoji:
        chosen = parse_options("generator 'diffusion-emoji'", Options, options)
        if variant not in (None, *cls.variants()):
            raise ConfigError(f"diffusion-emoji has no variant {variant!r}{nearest(variant, cls.variants())}")
        return cls(Path(chosen.weights) if chosen.weights else WEIGHTS, device, dtype)

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("emoji64",)

    def parameters_count(self) -> dict[str, int]:
        parts = {"generator": self.network, "tokenizer": self.tokenizer}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def real_images(self) -> ImageSource:
        return data.emoji_images()

    def sample_contexts(self, noise: Noise) -> Context:
        return Context(len(noise), classes=data.sample_labels(noise).to(self.device))

    def reset(self, context: Context, noise: Noise, steps: int) -> Diffusion:
        latents = noise.normal(INITIAL, 0, (self.channels, *self.grid))
        return Diffusion(context, steps, latents, torch.ones(len(context), device=self.device))

    @torch.no_grad()
    def observe(self, state: Diffusion, *, guided: bool = True) -> Tensor:
        classes = state.context.classes
        assert classes is not None
        null = torch.full_like(classes, self.null_class)
        if state.velocity is None or state.features is None:
            if guided:  # conditional and unconditional are one batch
                twice = Diffusion(state.context, 0, *(torch.cat([x, x]) for x in (state.latents, state.remaining)))
                velocity, features = self._predict(twice, torch.cat([classes, null]))
                state.velocity, state.null_velocity = velocity.chunk(2)
                state.features = features[: len(classes)]
            else:
                state.velocity, state.features = self._predict(state, classes)
        elif guided and state.null_velocity is None:
            state.null_velocity = self._predict(state, null)[0]
        return state.features

    @torch.no_grad()
    def step(self, state: Diffusion, action: Tensor, noise: Noise) -> Diffusion:
        guidance, eta, size = action.unbind(1)
        self.observe(state, guided=state.null_velocity is not None or bool((guidance != 0).any()))
        velocity = state.velocity
        assert velocity is not None
        if state.null_velocity is not None:
            velocity = velocity + guidance[:, None, None, None] * (velocity - state.null_velocity)
        remaining = next_remaining(state.remaining, size, state.steps - state.step)
        latents = ddim_step(
            state.latents,
            velocity,
            self.levels.alpha(state.remaining),
            self.levels.alpha(remaining),
            eta,
            noise.normal(STEP, state.step, (self.channels, *self.grid)),
        )
        return Diffusion(state.context, state.steps, latents, remaining, state.step + 1)

    @torch.no_grad()
    def decode(self, state: Diffusion) -> Tensor:
        latents = state.latents.flatten(2).transpose(1, 2) @ self.back + self.mean
        codebook = self.tokenizer.model.quantize.embedding.weight.float()
        return self.tokenizer.decode(torch.cdist(latents, codebook[None]).argmin(-1), self.grid)

    def _predict(self, state: Diffusion, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted v (B, C, h, w) and features (B, h * w, D), both float32."""

        def run(latents: Tensor, timesteps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            x = latents.to(self.dtype).contiguous(memory_format=torch.channels_last)
            velocity = self.network(x, timesteps, labels).sample.float()
            return velocity.contiguous(), self._seen.pop().float().flatten(2).transpose(1, 2).contiguous()

        timesteps = self.levels.timestep(state.remaining)
        minimum = minimum_batch(self.dtype, self.device)
        velocity, features = in_chunks(run, state.latents, timesteps, classes, minimum=minimum)
        return velocity, features
