"""What the pipelines of diffusers differ in, as one table: text, denoiser, latents, and the scheduler's arguments.

Only what pipelines offer publicly is called: ``encode_prompt``, the denoiser, the autoencoder and ``set_timesteps``. Modular
blocks would do as well for some of them, but there are none for Stable Diffusion 1 and 2, and in the oldest diffusers that is
supported for none; a pipeline's own class is there in every version, and reads every folder of its kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adanat_toolkit.errors import ConfigError, nearest

Condition = dict[str, Tensor]
"""What one prompt is to the denoiser, without a batch axis: ``states`` (L, C), and ``pooled`` (P,) where the family has it."""
Size = tuple[int, int]
"""(height, width) in pixels."""
Predict = Callable[[Any, Tensor, Tensor, Sequence[Condition], Size], Tensor]
"""(denoiser, latents (B, C, h, w), timesteps (B,), B conditions, image size) -> prediction (B, C, h, w). Latents and
conditions are in the denoiser's dtype, times in float32."""


@dataclass(frozen=True)
class Family:
    """Pipelines that are used in the same way.

    Attributes:
        name: as in messages. pipelines: names of their classes in diffusers.
        denoiser: the pipeline's attribute. predict: calls it.
        last_hidden: the module of the denoiser whose input is the last hidden state: a map (B, D, h, w), or, where
            ``tokens``, (B, N, D) whose first tokens are the image's, row by row.
        components: of which none may be missing.
        fields: what ``encode_prompt`` returns, each first for the prompt and then for the negative one.
        encode_options: further arguments of ``encode_prompt``.
        plain_scale: the guidance scale of the pipeline that means no guidance: 1 in u + s (c - u), 0 in c + s (c - u). The
            knob is s minus it.
        shifted: whether latents have the autoencoder's shift besides its scale.
        times: further arguments of the scheduler's ``set_timesteps`` for a pipeline, steps and tokens of an image.
    """

    name: str
    pipelines: tuple[str, ...]
    denoiser: str
    predict: Predict
    last_hidden: str
    components: tuple[str, ...]
    fields: tuple[str, ...] = ("states",)
    encode_options: Mapping[str, Any] = field(default_factory=dict)
    tokens: bool = False
    plain_scale: float = 1.0
    shifted: bool = False
    times: Callable[[Any, int, int], dict[str, Any]] = lambda pipe, steps, tokens: {}

    # --- sizes --------------------------------------------------------------------------------------------------------

    def patch(self, pipe: Any) -> int:
        """Latent cells on a side of what the denoiser takes as one."""
        if not self.tokens:
            return 1
        config = getattr(pipe, self.denoiser).config
        return int(config["patch_size"] if "patch_size" in config else config["all_patch_size"][0])

    def default_size(self, pipe: Any) -> Size:
        """The pipeline's own size of images."""
        sample = getattr(pipe, self.denoiser).config.get("sample_size")
        if sample is None:  # a denoiser of any size: what the pipeline's text says
            return 1024, 1024
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor

    def latent_shape(self, pipe: Any, size: Size) -> tuple[int, int, int]:
        """(C, h, w) of an image's latents.

        Raises:
            ConfigError: the size is no multiple of what the pipeline needs.
        """
        unit = pipe.vae_scale_factor * self.patch(pipe)
        for what, value in zip(("height", "width"), size, strict=True):
            if value < unit or value % unit:
                raise ConfigError(f"{what} is {value}; this pipeline makes images of a multiple of {unit} pixels.")
        channels = int(pipe.vae.config.latent_channels)
        taken = int(getattr(pipe, self.denoiser).config.in_channels)
        if taken != channels:
            raise ConfigError(
                f"the {self.denoiser} takes {taken} channels and the latents have {channels}: this pipeline needs more than "
                "a prompt (an image, a mask). Use the text-to-image pipeline of the same model."
            )
        return channels, size[0] // pipe.vae_scale_factor, size[1] // pipe.vae_scale_factor

    # --- text ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, pipe: Any, prompt: str, device: torch.device) -> Condition:
        """What the denoiser is given for a prompt."""
        found = pipe.encode_prompt(
            prompt=[prompt], device=device, do_classifier_free_guidance=False, **self.encode_options
        )
        return {name: found[2 * i][0] for i, name in enumerate(self.fields)}

    @torch.no_grad()
    def encode_null(self, pipe: Any, negative: str | None, device: torch.device) -> Condition:
        """What the denoiser is given without a prompt, or for a negative one. Some pipelines tell "" and None apart."""
        found = pipe.encode_prompt(
            prompt=[""],
            device=device,
            do_classifier_free_guidance=True,
            negative_prompt=None if negative is None else [negative],
            **self.encode_options,
        )
        return {name: found[2 * i + 1][0] for i, name in enumerate(self.fields)}

    # --- guidance and times -------------------------------------------------------------------------------------------

    def default_guidance(self, pipe: Any) -> float:
        """The knob's value that the pipeline is called with where nobody says another."""
        return float(_default(pipe, "guidance_scale")) - self.plain_scale

    def default_steps(self, pipe: Any) -> int:
        return int(_default(pipe, "num_inference_steps"))

    # --- images -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W) float32 in [0, 1]."""
        scale, shift = self._scale_and_shift(pipe, latents)
        images: Tensor = pipe.vae.decode((latents * scale + shift).to(pipe.vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        """The inverse, (B, C, h, w) float32: the mean of what the autoencoder makes of images (B, 3, H, W)."""
        found = pipe.vae.encode((2 * images - 1).to(pipe.vae.dtype))
        latents = (found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents).float()
        scale, shift = self._scale_and_shift(pipe, latents)
        return (latents - shift) / scale

    def _scale_and_shift(self, pipe: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What latents are multiplied by and what is added, for the autoencoder: (1, C or 1, 1, 1) each."""
        config = pipe.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = [config.get("shift_factor") or 0.0 if self.shifted else 0.0], [1.0]
        columns = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (std, mean))
        scale, shift = columns
        return scale / config.scaling_factor, shift


def _default(pipe: Any, argument: str) -> Any:
    return inspect.signature(type(pipe).__call__).parameters[argument].default


def _rows(conditions: Sequence[Condition], name: str) -> Tensor:
    return torch.stack([condition[name] for condition in conditions])


def _unet(unet: Any, latents: Tensor, times: Tensor, conditions: Sequence[Condition], size: Size) -> Tensor:
    found: Tensor = unet(latents, times, encoder_hidden_states=_rows(conditions, "states"), return_dict=False)[0]
    return found


def _unet_with_size(unet: Any, latents: Tensor, times: Tensor, conditions: Sequence[Condition], size: Size) -> Tensor:
    """As :func:`_unet`; it is also told the image's size, before cropping and after, and that nothing was cropped."""
    sizes = latents.new_tensor([[*size, 0, 0, *size]]).expand(len(latents), -1)
    found: Tensor = unet(
        latents,
        times,
        encoder_hidden_states=_rows(conditions, "states"),
        added_cond_kwargs={"text_embeds": _rows(conditions, "pooled"), "time_ids": sizes},
        return_dict=False,
    )[0]
    return found


def _joint(transformer: Any, latents: Tensor, times: Tensor, conditions: Sequence[Condition], size: Size) -> Tensor:
    found: Tensor = transformer(
        hidden_states=latents,
        timestep=times,
        encoder_hidden_states=_rows(conditions, "states"),
        pooled_projections=_rows(conditions, "pooled"),
        return_dict=False,
    )[0]
    return found


def _single_stream(
    transformer: Any, latents: Tensor, times: Tensor, conditions: Sequence[Condition], size: Size
) -> Tensor:
    """Z-Image takes lists, since texts differ in length; counts time from noise to image; and its velocity is the other way."""
    frames = list(latents[:, :, None].unbind())
    states = [condition["states"] for condition in conditions]
    found = transformer(frames, (1000 - times) / 1000, states, return_dict=False)[0]
    return -torch.stack(found).squeeze(2)


def _shift_by_size(pipe: Any, tokens: int) -> float:
    """How far flow schedules of larger images begin at more noise: linear in the tokens, by the scheduler's two points."""
    config = pipe.scheduler.config
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    first, last = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(first + (last - first) * (tokens - low) / (high - low))


def _dynamic(pipe: Any, steps: int, tokens: int) -> dict[str, Any]:
    return {"mu": _shift_by_size(pipe, tokens)} if pipe.scheduler.config.get("use_dynamic_shifting") else {}


def _even_sigmas(pipe: Any, steps: int, tokens: int) -> dict[str, Any]:
    sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
    return {"sigmas": sigmas, "mu": _shift_by_size(pipe, tokens)}


FAMILIES: tuple[Family, ...] = (
    Family(
        name="Stable Diffusion 1 and 2",
        pipelines=("StableDiffusionPipeline",),
        denoiser="unet",
        predict=_unet,
        last_hidden="conv_out",
        components=("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
        encode_options={"num_images_per_prompt": 1},
    ),
    Family(
        name="Stable Diffusion XL",
        pipelines=("StableDiffusionXLPipeline",),
        denoiser="unet",
        predict=_unet_with_size,
        last_hidden="conv_out",
        components=("unet", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"),
        fields=("states", "pooled"),
    ),
    Family(
        name="Stable Diffusion 3",
        pipelines=("StableDiffusion3Pipeline",),
        denoiser="transformer",
        predict=_joint,
        last_hidden="proj_out",
        components=("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"),
        fields=("states", "pooled"),
        encode_options={"prompt_2": None, "prompt_3": None},
        tokens=True,
        shifted=True,
        times=_dynamic,
    ),
    Family(
        name="Z-Image",
        pipelines=("ZImagePipeline",),
        denoiser="transformer",
        predict=_single_stream,
        last_hidden="all_final_layer.2-1.linear",
        components=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        tokens=True,
        plain_scale=0.0,
        shifted=True,
        times=_even_sigmas,
    ),
)


def family_of(pipeline: str) -> Family:
    """The family of a pipeline class, by its name.

    Raises:
        ConfigError: none is known.
    """
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    known = [name for family in FAMILIES for name in family.pipelines]
    raise ConfigError(
        f"pipelines of the class {pipeline!r} are not known{nearest(pipeline, known)} Known: {', '.join(known)}."
    )
