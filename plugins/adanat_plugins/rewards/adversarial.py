"""``adversarial``: a discriminator on frozen features, trained in alternation with the policy (AdaNAT, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adanat_toolkit.compute import in_chunks
from adanat_toolkit.errors import CheckpointError, ConfigError, nearest
from adanat_toolkit.interfaces import Context, Generator, ImageSource, LearnedReward, PluginOptions

from .backbones import Backbone, emoji64_clip
from .discriminator import Discriminator, Norm

Loss = Literal["bce", "hinge"]

LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "bce": (lambda real: F.softplus(-real), F.softplus),
    "hinge": (lambda real: F.relu(1 - real), lambda fake: F.relu(1 + fake)),
}
"""Loss of a real and of a generated image's logits, elementwise."""

BACKBONES = ("emoji64-clip",)


class AdversarialOptions(PluginOptions):
    """Options of the adversarial reward."""

    backbone: str = "auto"
    """Frozen features: ``auto`` (the embedded CLIP for emoji64) or one of :data:`BACKBONES`."""
    pool: int = Field(1, ge=1)
    """Average pooling of the features' map before the heads (must divide its side)."""
    width: int = Field(64, ge=8)
    """Channels inside a head."""
    kernel: int = Field(9, ge=1)
    """Kernel of a head's residual convolution over positions."""
    outputs: int = Field(64, ge=1)
    """Channels that a head weighs with the context."""
    norm: Norm = "none"
    """Normalisation in the heads: ``none``, ``group`` (of channels), ``local`` (batch norm over groups of up to 8
    images as in the paper: then a score depends on the sample's neighbours)."""
    output: Literal["sigmoid", "logit"] = "sigmoid"
    """The reward: sigmoid of the mean logit (the paper's), or the mean logit."""
    loss: Loss = "bce"
    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.5, 0.999)
    updates: int = Field(2, ge=1)
    """Adam steps an iteration."""
    batch: int = Field(128, ge=1)
    """Real images in one step, and about as many generated ones, of all processes together."""


class AdversarialReward(LearnedReward):
    """sigmoid(mean logit) of a discriminator with spectral-norm heads on a frozen backbone.

    The score of a sample does not depend on the samples it is scored with (but for ``norm=local``).
    """

    Options = AdversarialOptions

    def __init__(
        self, options: PluginOptions, *, generator: Generator, real: ImageSource | None, device: torch.device, seed: int
    ) -> None:
        assert isinstance(options, AdversarialOptions)
        self.options, self.device = options, device
        self.real_per_update = options.updates * options.batch
        self.backbone = make_backbone(options, generator).freeze(device, generator.dtype)
        classes, text_dim = context_sizes(generator)
        self.discriminator = Discriminator(
            self.backbone.layers,
            self.backbone.channels,
            width=options.width,
            kernel=options.kernel,
            outputs=options.outputs,
            norm=options.norm,
            classes=classes,
            text_dim=text_dim,
            seed=seed,
        ).to(device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=options.learning_rate, betas=options.betas, eps=1e-8
        )
        self.updates_done = 0

    def parameters_count(self) -> dict[str, int]:
        return {"reward backbone (frozen)": count(self.backbone), "discriminator": count(self.discriminator)}

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, images: Tensor, context: Context) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> frozen features (B, K, P, C) in the compute dtype."""
        return in_chunks(self.backbone, images.to(self.device), minimum=self.backbone.minimum_batch)[0]

    @torch.no_grad()
    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        self.discriminator.eval()
        return self._reward(self.discriminator(embedded, context).mean(1))

    @torch.no_grad()
    def score(self, images: Tensor, context: Context) -> Tensor:
        return self.score_embedded(self.embed(images, context), context)

    def _reward(self, mean_logit: Tensor) -> Tensor:
        return mean_logit.sigmoid() if self.options.output == "sigmoid" else mean_logit

    # --- training -----------------------------------------------------------------------------------------------------

    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        """``options.updates`` Adam steps.

        Step u takes every ``updates``-th real image from the u-th on, and all generated images, or when there are at
        least two batches of them, every k-th. Gradients are those of the mean over all processes' samples.

        Returns:
            loss; accuracy_real and accuracy_fake (share of images whose mean logit has the right sign); logit_real,
            logit_fake; reward_real (mean score of the real images); gradient_norm. Each is the mean over the steps.
        """
        self.discriminator.train()
        world = process_count()
        stride = max(1, len(fake_context) * world // self.options.batch)
        rows = []
        for u in range(self.options.updates):
            chosen_real = torch.arange(u, len(real_context), self.options.updates, device=real.device)
            chosen_fake = torch.arange(u % stride, len(fake_context), stride, device=fake.device)
            rows.append(
                self._step(
                    real[chosen_real],
                    real_context.select(chosen_real),
                    fake[chosen_fake],
                    fake_context.select(chosen_fake),
                )
            )
        self.updates_done += 1
        figures = torch.stack(rows).mean(0).tolist()
        return dict(zip(FIGURES, figures, strict=True))

    def _step(self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context) -> Tensor:
        """One Adam step; returns the figures as one tensor, so that an update waits for the device only once."""
        counts = torch.tensor([float(len(real_context)), float(len(fake_context))], device=self.device)
        sum_over_processes(counts)
        real_loss, fake_loss = LOSSES[self.options.loss]
        logits_real = self.discriminator(real, real_context)
        logits_fake = self.discriminator(fake, fake_context)
        loss = real_loss(logits_real).mean(1).sum() / counts[0] + fake_loss(logits_fake).mean(1).sum() / counts[1]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient = average_gradients(list(self.discriminator.parameters()))
        self.optimizer.step()
        with torch.no_grad():
            means_real, means_fake = logits_real.mean(1), logits_fake.mean(1)
            figures = torch.stack(
                [
                    loss,
                    (means_real > 0).sum() / counts[0],
                    (means_fake < 0).sum() / counts[1],
                    means_real.sum() / counts[0],
                    means_fake.sum() / counts[1],
                    self._reward(means_real).sum() / counts[0],
                ]
            )
            sum_over_processes(figures)
            return torch.cat([figures, gradient[None]])

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Heads with spectral-norm vectors, Adam's moments and steps, the update counter; not the frozen backbone."""
        out = {f"discriminator.{key}": value.detach() for key, value in self.discriminator.state_dict().items()}
        for name, parameter in self.discriminator.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                out[f"adam.{key}.{name}"] = value.detach()
        out["updates"] = torch.tensor(self.updates_done)
        return out

    def load_state(self, state: dict[str, Tensor]) -> None:
        own = self.discriminator.state_dict()
        trained = {name for name in state if name.startswith("adam.")}
        expected = {f"discriminator.{key}": value.shape for key, value in own.items()} | {"updates": torch.Size([])}
        if trained:
            for name, parameter in self.discriminator.named_parameters():
                expected[f"adam.step.{name}"] = torch.Size([])
                expected[f"adam.exp_avg.{name}"] = expected[f"adam.exp_avg_sq.{name}"] = parameter.shape
        wrong = [key for key, shape in expected.items() if key not in state or state[key].shape != shape]
        wrong += sorted(state.keys() - expected.keys())
        if wrong:
            raise CheckpointError(
                f"the checkpoint does not fit the adversarial reward: {wrong[0]!r} and {len(wrong) - 1} more "
                "tensors are missing, misshapen or unknown. Resume with the reward options that the run was started with."
            )
        self.discriminator.load_state_dict({key: state[f"discriminator.{key}"] for key in own})
        self.optimizer.state.clear()
        if trained:
            for name, parameter in self.discriminator.named_parameters():
                saved = {key: state[f"adam.{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {
                    key: value.cpu() if key == "step" else value.to(self.device) for key, value in saved.items()
                }
        self.updates_done = int(state["updates"])


FIGURES = ("loss", "accuracy_real", "accuracy_fake", "logit_real", "logit_fake", "reward_real", "gradient_norm")


def make_backbone(options: AdversarialOptions, generator: Generator) -> Backbone:
    """The backbone that the options name.

    Raises:
        ConfigError: unknown name, or ``auto`` for a generator that has no default.
    """
    name = options.backbone
    if name == "auto":
        if "emoji64" not in generator.name:
            known = ", ".join(BACKBONES)
            raise ConfigError(f"backbone 'auto' is not known for generator {generator.name}; name one of {known}.")
        name = "emoji64-clip"
    if name not in BACKBONES:
        raise ConfigError(f"backbone {name!r} is unknown{nearest(name, BACKBONES)} Known: auto, {', '.join(BACKBONES)}.")
    return emoji64_clip(options.pool)


def context_sizes(generator: Generator) -> tuple[int | None, int | None]:
    """(number of classes, width of the pooled text), each None where the generator has no such context."""
    if generator.context_kind == "class":
        return generator.num_classes, None
    if generator.context_kind == "text":
        pooled = generator.encode_prompts([""]).pooled
        if pooled is None:
            raise ConfigError(f"{generator.name} gives no pooled text, which the adversarial reward reads.")
        return None, pooled.shape[1]
    return None, None


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


# --- several processes ------------------------------------------------------------------------------------------------


def process_count() -> int:
    """1 without torch.distributed."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def sum_over_processes(value: Tensor) -> None:
    """In-place sum; nothing with one process."""
    if process_count() > 1:
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.SUM)


def average_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """Sum the gradients (of losses already divided by the global counts) over processes; returns the global norm."""
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    if process_count() > 1:
        sum_over_processes(flat)
        start = 0
        for p in parameters:
            if p.grad is not None:
                p.grad.copy_(flat[start : start + p.numel()].view_as(p))
                start += p.numel()
    return flat.norm()
