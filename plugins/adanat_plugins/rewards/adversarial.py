"""``adversarial``: a discriminator on frozen features, trained in alternation with the policy (AdaNAT, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adanat_toolkit.core import REWARD, derive
from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.interfaces import Context, Generator, ImageSource, LearnedReward, RewardModel
from adanat_toolkit.runtime import Adam, distributed, helped, may_be_helped, total_norm

from ..clip_models import embedded_protocol
from .adversarial_losses import discriminator_loss, gradient_penalty
from .adversarial_options import NO_BACKBONE, AdversarialOptions
from .augment import augment
from .backbone import Backbone
from .backbones import create_backbone, published_backbone, random_crop
from .discriminator import Discriminator, Head, LatentDiscriminator, PixelDiscriminator
from .paper_discriminator import PaperDiscriminator, load_heads, read_published
from .replay import ReplayBuffer

FIGURES = ("loss", "accuracy_real", "accuracy_fake", "logit_real", "logit_fake", "reward_real", "gradient_norm")
STATISTICS = 64
"""Real images whose latents give the scale of each channel."""
_CROP = 1


class AdversarialReward(LearnedReward):
    """sigmoid(mean logit) of a discriminator with spectral-norm heads on a frozen backbone.

    The score of a sample does not depend on the samples it is scored with (but for ``norm: local``, which the paper
    uses).
    """

    Options = AdversarialOptions
    thread_safe = True

    @classmethod
    def create(cls, options: Any, **made_for: Any) -> RewardModel:
        return cls(options, **made_for)

    def __init__(
        self,
        options: AdversarialOptions,
        *,
        generator: Generator,
        real: ImageSource | None,
        device: torch.device,
        seed: int,
        offline: bool = False,
    ) -> None:
        self.options, self.device, self.seed = options, device, seed
        self.image_size = generator.image_size
        self.reads_latents = options.backbone == "latents"
        self._encode = generator.encode_latents
        published = None if options.published is None else read_published(options.published)
        self.backbone = _make_backbone(options, generator, published, offline)
        self._reads_embedded = published is None and _backbone_name(options, generator) == "emoji64-clip"
        if self.backbone is not None:
            self.backbone.freeze(device, generator.dtype)
        self.keeps_features = self.backbone is not None and not options.augment
        """Whether :meth:`embed` computes features once and for all, or keeps pixels (or latents)."""
        classes, text_dim = context_sizes(generator)
        head = partial(
            Head, width=options.width, kernel=options.kernel, outputs=options.outputs, norm=options.norm,
            classes=classes, text_dim=text_dim,
        )  # fmt: skip
        self.discriminator: Discriminator | PaperDiscriminator | PixelDiscriminator | LatentDiscriminator
        if self.reads_latents:
            assert real is not None
            mean, std = self._statistics(real)
            self.discriminator = LatentDiscriminator(mean, std, options.width, head, seed)
        elif self.backbone is None:
            self.discriminator = PixelDiscriminator(generator.image_size, options.width // 2, head, seed)
        elif options.architecture == "paper":
            layers, channels = self.backbone.layers, self.backbone.channels
            self.discriminator = PaperDiscriminator(layers, channels, classes=classes, text_dim=text_dim, seed=seed)
            if published is not None:
                load_heads(self.discriminator, published)
        else:
            self.discriminator = Discriminator(self.backbone.layers, self.backbone.channels, head, seed)
        self.discriminator.to(device)
        self.optimizer = Adam(self.discriminator.parameters(), lr=options.learning_rate, betas=options.betas)
        self.replay = ReplayBuffer(options.replay) if options.replay else None
        self.iterations = 0
        """Calls of :meth:`update`."""
        self.centre = torch.zeros((), device=device)
        """Logit that gives reward 0.5. A relativistic loss leaves the logits' level open; there it is half-way between
        the last step's real and generated images."""

    def parameters_count(self) -> dict[str, int]:
        frozen = {} if self.backbone is None else {"backbone (frozen)": _count(self.backbone)}
        return {**frozen, "discriminator": _count(self.discriminator)}

    @property
    def real_per_update(self) -> int:  # type: ignore[override]
        """Real images that the next update reads; only one a process when none is due (see ``options.every``)."""
        return self.options.updates * self.options.batch if self._due() else distributed.world_size()

    def _statistics(self, real: ImageSource) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of the latents of a few real images, evenly spaced."""
        index = torch.linspace(0, len(real) - 1, min(len(real), STATISTICS)).long()
        latents = self._encode(real.images(index).to(self.device))
        return latents.mean((0, 2, 3)), latents.std((0, 2, 3))

    @property
    def reads(self) -> frozenset[str]:
        """The protocol of the embedded CLIP, where its image tower is the backbone."""
        return frozenset({embedded_protocol()}) if self._reads_embedded else frozenset()

    def _due(self) -> bool:
        return self.iterations % self.options.every == 0

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, images: Tensor, context: Context) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> frozen features (B, K, P, C) in the compute dtype.

        With augmentation or without a backbone the images themselves; their latents with ``backbone: latents``.
        """
        images = images.to(self.device)
        if self.reads_latents:
            return self._encode(images)
        return self._features(images) if self.keeps_features else images

    @torch.no_grad()
    def embed_latents(self, latents: Tensor, context: Context) -> Tensor:
        """(B, C, h, w) float32 as they are."""
        return latents.to(self.device)

    @torch.no_grad()
    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        self.discriminator.eval()
        features = embedded if self.keeps_features else self._features(embedded)
        return self._reward(self.discriminator(features, context).mean(1))

    @torch.no_grad()
    def score(self, images: Tensor, context: Context) -> Tensor:
        return self.score_embedded(self.embed(images, context), context)

    def _features(self, images: Tensor) -> Tensor:
        if self.backbone is None:
            return images
        size, seed = self.backbone.size, derive(self.seed, REWARD, _CROP, self.iterations)
        offset = random_crop(self.image_size, size, self.options.crop, seed)
        if offset is not None:
            top, left = offset
            images = images[..., top : top + size, left : left + size]
        return self.backbone.features(images)

    def _reward(self, mean_logit: Tensor) -> Tensor:
        centred = mean_logit - self.centre
        return centred.sigmoid() if self.options.output == "sigmoid" else centred

    # --- training -----------------------------------------------------------------------------------------------------

    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        """``options.updates`` Adam steps, or none where no update is due.

        Step u takes every ``updates``-th real image from the u-th on, and all generated images, or when there are at
        least two batches of them, every k-th. Gradients are those of the mean over all processes' samples.

        Returns:
            loss (with the penalty); accuracy_real and accuracy_fake (share of images on the right side of the reward
            0.5); logit_real, logit_fake; reward_real (mean score of the real images); gradient_norm. Each is the mean
            over the steps. Empty where no update is due.
        """
        options, due = self.options, self._due()
        if due:
            self.discriminator.train()
            # Positions among the samples of all processes: the same samples are chosen whatever their number.
            first_real, _ = distributed.position(len(real_context), self.device)
            first_fake, fakes_in_all = distributed.position(len(fake_context), self.device)
            stride = max(1, fakes_in_all // options.batch)
            rows = []
            for u in range(options.updates):
                # The same in every process: each draws the random numbers of all samples and takes its own.
                draw = torch.Generator().manual_seed(derive(seed, REWARD, u, 0))
                chosen_real = _every(options.updates, u, first_real, len(real_context), real.device)
                chosen_fake = _every(stride, u, first_fake, len(fake_context), fake.device)
                fakes = self._with_replay(fake[chosen_fake], fake_context.select(chosen_fake), draw)
                rows.append(self._step(real[chosen_real], real_context.select(chosen_real), *fakes, u, draw))
            if self.replay is not None:
                self.replay.insert(fake, fake_context, draw)
        self.iterations += 1
        return dict(zip(FIGURES, torch.stack(rows).mean(0).tolist(), strict=True)) if due else {}

    def _with_replay(self, fake: Tensor, context: Context, draw: torch.Generator) -> tuple[Tensor, Context]:
        """The generated images of a step; the first of all processes' are replaced by earlier ones, once there are any."""
        if self.replay is None or not len(self.replay):
            return fake, context
        start, total = distributed.position(len(context), self.device)
        replaced = round(self.options.replay_share * total)
        number = max(0, min(replaced - start, len(context)))
        old, old_context = self.replay.draw(replaced, context, draw, slice(start, start + number))
        new = torch.arange(number, len(context), device=fake.device)
        kept = context.select(new)
        plain = Context(len(kept), classes=kept.classes, pooled=kept.pooled)
        return torch.cat([old, fake[new]]), Context.cat([old_context, plain])

    def _inputs(self, embedded: Tensor, draw: torch.Generator) -> Tensor:
        """What the discriminator reads in training."""
        if self.keeps_features:
            return embedded
        if self.options.augment:
            start, total = distributed.position(len(embedded), self.device)
            embedded = augment(embedded, self.options.augment, draw, start=start, total=total)
        return self._features(embedded)

    def _step(
        self,
        real: Tensor,
        real_context: Context,
        fake: Tensor,
        fake_context: Context,
        u: int,
        draw: torch.Generator,
    ) -> Tensor:
        """One Adam step; returns the figures as one tensor, so that an update waits for the device only once."""
        options = self.options
        counts = torch.stack(
            [torch.full((), float(len(context)), device=self.device) for context in (real_context, fake_context)]
        )  # made on the device: to send two numbers there would wait for it
        distributed.sum_over_ranks(counts)
        step = self.iterations // options.every * options.updates + u
        penalised = options.r1 > 0 and step % options.r1_every == 0
        real = real.detach().float().requires_grad_() if penalised else real
        alike = isinstance(self.discriminator, Discriminator) and self.keeps_features and not penalised
        by_head = alike and may_be_helped()  # the same to the last bit, and more calls
        judged: tuple[list[Tensor], list[Tensor]] = [], []
        if by_head:
            judged = self._heads_judge(real, real_context, fake, fake_context)
            logits_real, logits_fake = (torch.cat(kind, 1).detach().requires_grad_() for kind in judged)
        else:
            # The penalty differentiates twice, through the backbone too where it is given pixels: fused attention cannot.
            with sdpa_kernel(SDPBackend.MATH) if penalised and not self.keeps_features else nullcontext():
                logits_real = self.discriminator(self._inputs(real, draw), real_context)
            logits_fake = self.discriminator(self._inputs(fake, draw), fake_context)
        loss = discriminator_loss(options.loss, logits_real, logits_fake, counts, options.label_smoothing)
        if penalised:
            loss = loss + options.r1 * options.r1_every * gradient_penalty(logits_real, real, counts[0])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if by_head:
            _back(judged, [logits_real.grad, logits_fake.grad])
        parameters = list(self.discriminator.parameters())
        distributed.sum_gradients(parameters)
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        self.optimizer.step()
        with torch.no_grad():
            means_real, means_fake = logits_real.detach().mean(1), logits_fake.detach().mean(1)
            means = distributed.sum_over_ranks(torch.stack([means_real.sum(), means_fake.sum()])) / counts
            if options.loss == "relativistic":
                self.centre = means.mean()
            hits = torch.stack([(means_real > self.centre).sum(), (means_fake < self.centre).sum()])
            rest = torch.stack([loss.detach(), *(hits / counts), self._reward(means_real).sum() / counts[0]])
            total, *accuracies, reward_real = distributed.sum_over_ranks(rest)
            return torch.stack([total, *accuracies, *means, reward_real, norm])

    def _heads_judge(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (n, P) of each head, of real and of generated images. Heads know nothing of each other until the loss, so
        that a CPU's thread takes one from input to output, and later back."""
        assert isinstance(self.discriminator, Discriminator)
        parts = zip(
            self.discriminator.parts(real, real_context), self.discriminator.parts(fake, fake_context), strict=True
        )
        # Real images first: each pass advances the power iteration of the head's kernels.
        found = helped(*(partial(_both, *pair) for pair in parts))
        return [logits for logits, _ in found], [logits for _, logits in found]

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Heads with spectral-norm vectors, Adam's moments and steps, counters, replay; not the frozen backbone."""
        out = {f"discriminator.{key}": value.detach() for key, value in self.discriminator.state_dict().items()}
        adam = self.optimizer.state
        for name, parameter in self.discriminator.named_parameters():
            for key, value in adam.get(parameter, {}).items():
                out[f"adam.{key}.{name}"] = value.detach()
        if self.replay is not None:
            out |= {f"replay.{key}": value for key, value in self.replay.state().items()}
        return {**out, "iterations": torch.tensor(self.iterations), "centre": self.centre}

    def load_state(self, state: dict[str, Tensor]) -> None:
        own = self.discriminator.state_dict()
        expected = {f"discriminator.{key}": value.shape for key, value in own.items()}
        expected |= {"iterations": torch.Size([]), "centre": torch.Size([])}
        trained = any(name.startswith("adam.") for name in state)
        if trained:
            for name, parameter in self.discriminator.named_parameters():
                expected[f"adam.step.{name}"] = torch.Size([])
                expected[f"adam.exp_avg.{name}"] = expected[f"adam.exp_avg_sq.{name}"] = parameter.shape
        replay = {key.removeprefix("replay."): value for key, value in state.items() if key.startswith("replay.")}
        wrong = [key for key, shape in expected.items() if key not in state or state[key].shape != shape]
        wrong += sorted(key for key in state.keys() - expected.keys() if not key.startswith("replay."))
        if wrong or bool(replay) != (self.replay is not None):
            raise CheckpointError(
                f"the checkpoint does not fit the adversarial reward: {len(wrong) or len(replay)} tensors are missing, "
                f"misshapen or unknown, first {(wrong or ['replay.*'])[0]!r}. Resume with the reward options that the "
                "run was started with."
            )
        if self.replay is not None:
            self.replay.load_state(replay, self.device)
        self.discriminator.load_state_dict({key: state[f"discriminator.{key}"] for key in own})
        self.optimizer.state = {
            parameter: {
                key: state[f"adam.{key}.{name}"].to(self.device, copy=True) for key in ("step", "exp_avg", "exp_avg_sq")
            }
            for name, parameter in self.discriminator.named_parameters()
            if trained
        }
        self.iterations = int(state["iterations"])
        self.centre = state["centre"].to(self.device).clone()


def _both(real: Callable[[], Tensor], fake: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    return real(), fake()


def _back(judged: tuple[list[Tensor], list[Tensor]], gradients: list[Tensor | None]) -> None:
    """From the gradients (n, K P) of the logits to those of the parameters, head by head."""
    real, fake = gradients
    assert real is not None and fake is not None
    of_heads = (real.chunk(len(judged[0]), 1), fake.chunk(len(judged[1]), 1))

    def back(head: int) -> None:
        # A sum whose gradient is the one that is given: torch imports its compiler to take one as it is.
        torch.add(*((kind[head] * of_heads[k][head]).sum() for k, kind in enumerate(judged))).backward()

    helped(*(partial(back, head) for head in range(len(judged[0]))))


def _backbone_name(options: AdversarialOptions, generator: Generator) -> str:
    if options.backbone != "auto":
        return options.backbone
    return "emoji64-clip" if "emoji64" in generator.name and options.architecture == "small" else "dino"


def _make_backbone(
    options: AdversarialOptions, generator: Generator, published: dict[str, Tensor] | None, offline: bool
) -> Backbone | None:
    """The backbone that the options name, or that of the published discriminator; None for pixels and latents."""
    if published is not None:
        return published_backbone(published, options.pool)
    name = _backbone_name(options, generator)
    if name in NO_BACKBONE:
        return None
    return create_backbone(
        name,
        model=options.backbone_model,
        weights=options.backbone_weights,
        size=options.backbone_size,
        pool=options.pool,
        offline=offline,
    )


def context_sizes(generator: Generator) -> tuple[int | None, int | None]:
    """(number of classes, width of the pooled text), each None where the generator has no such context.

    Raises:
        ConfigError: a text-conditional generator gives no pooled text.
    """
    if generator.context_kind == "class":
        return generator.num_classes, None
    if generator.context_kind == "text":
        pooled = generator.encode_prompts([""]).pooled
        if pooled is None:
            raise ConfigError(f"{generator.name} gives no pooled text, which the adversarial reward reads.")
        return None, pooled.shape[1]
    return None, None


def _every(stride: int, phase: int, first: int, count: int, device: torch.device) -> Tensor:
    """Which of ``count`` samples, numbered from ``first`` on, have a number that leaves ``phase`` modulo ``stride``."""
    return torch.arange(min((phase - first) % stride, count), count, stride, device=device)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
