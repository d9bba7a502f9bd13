"""Policies: ``adaptive`` (AdaNAT's network), ``residual`` (a table plus a small network on the features), ``lean`` (sees
statistics of the prediction), ``context`` (sees the class or prompt), ``shared`` (sees the step only), ``fixed`` (a
hand-made schedule)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..core import ActionSpace, PluginOptions, Policy

STEP_FREQUENCIES = 256


class StepEmbedding(nn.Module):
    """256 sinusoids (128 cosines, then 128 sines) of the raw step index, then Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(STEP_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, step: Tensor) -> Tensor:
        """(B,) integers or floats -> (B, width)."""
        angles = step.float()[:, None] * _frequencies(step.device)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


@lru_cache(maxsize=8)
def _frequencies(device: torch.device) -> Tensor:
    """(128,) float32, kept: every policy asks for the same at every step."""
    half = STEP_FREQUENCIES // 2
    with torch.inference_mode(False):  # it outlives the mode that its maker may have set
        exponent = torch.arange(half, dtype=torch.float32, device=device) / half
        return torch.exp(-math.log(10000.0) * exponent)


class AdaptiveNorm(nn.Module):
    """LayerNorm without affine (eps 1e-6), then x (1 + scale) + shift with (shift, scale) from SiLU of the step embedding."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.width = width
        modulation = nn.Linear(condition, 2 * width)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        if x.ndim == 3:
            shift, scale = shift[:, None], scale[:, None]
        return F.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale) + shift


class AdaptiveNetwork(nn.Module):
    """AdaNAT's policy network (appendix A) for any grid h x w and any feature width.

    The published sizes are hidden 512, pointwise 128, mlp (1024, 512) on a 16x16 grid; state-dict names are the published
    ones. The grid is halved by a depth-wise convolution (rounded up for odd sides).
    """

    def __init__(
        self, in_channels: int, outputs: int, grid: tuple[int, int], hidden: int, pointwise: int, mlp: tuple[int, int]
    ) -> None:
        super().__init__()
        self.grid = grid
        self.x_embedder = nn.Identity() if in_channels == hidden else nn.Linear(in_channels, hidden)
        self.t_embedder = StepEmbedding(hidden)
        self.adaLN1 = AdaptiveNorm(hidden, hidden)
        self.dw_conv = nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, groups=hidden)
        self.pw_conv = nn.Conv2d(hidden, pointwise, 1)
        cells = ((grid[0] + 1) // 2) * ((grid[1] + 1) // 2)
        self.linear1 = nn.Linear(pointwise * cells, mlp[0])
        self.adaLN2 = AdaptiveNorm(mlp[0], hidden)
        self.linear2 = nn.Linear(mlp[0], mlp[1])
        self.adaLN3 = AdaptiveNorm(mlp[1], hidden)
        self.linear3 = nn.Linear(mlp[1], outputs)
        nn.init.zeros_(self.linear3.weight)  # a fresh policy is the schedule itself (or the neutral raw action)
        nn.init.zeros_(self.linear3.bias)

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        """features (B, h * w, in_channels) row-major, step (B,) -> (B, outputs)."""
        c = self.t_embedder(step)
        x = self.adaLN1(self.x_embedder(features), c)
        x = x.transpose(1, 2).unflatten(2, self.grid)
        x = F.gelu(self.pw_conv(F.gelu(self.dw_conv(x)))).flatten(1)
        x = F.gelu(self.adaLN2(self.linear1(x), c))
        x = F.gelu(self.adaLN3(self.linear2(x), c))
        return self.linear3(x)


SIZES: dict[str, tuple[int, int, tuple[int, int]]] = {
    "paper": (512, 128, (1024, 512)),
    "small": (128, 32, (256, 128)),
}
"""Named sizes: hidden width, pointwise channels, MLP widths. ``small`` suits generators of a few million parameters."""


class AdaptiveOptions(PluginOptions):
    size: Literal["auto", "paper", "small"] = "auto"
    """``auto``: small for grids of at most 8 x 8 cells or features narrower than 256 channels, else the paper's."""
    feature_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Features are rounded to this type before the policy reads them, since that is how rollouts store them."""
    step_head: bool = False
    """Add what a small network makes of the step alone: what is best for all samples is then learnt at once, and apart
    from what differs between them. The published network has none."""
    feature_scale: float = Field(1.0, gt=0, le=1e6)
    """Factor of what the network makes of the features. Below 1 it learns more slowly than ``step_head``."""


class AdaptivePolicy(Policy):
    """Sees the step and the generator's features of each sample (AdaNAT section 4.2)."""

    Options = AdaptiveOptions
    kind = "adaptive"
    rounds_features = True

    def __init__(
        self, options: AdaptiveOptions, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int
    ) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        small = grid[0] * grid[1] <= 64 or feature_dim < 256
        self.size = options.size if options.size != "auto" else ("small" if small else "paper")
        self.feature_dtype = torch.bfloat16 if options.feature_dtype == "bfloat16" else torch.float32
        self.arguments: dict[str, Any] = {"in_channels": feature_dim, "grid": grid}
        self.actor = self._network(space.size)
        self.step_head = StepNetwork(SIZES[self.size][0], space.size) if options.step_head else None
        self.feature_scale = options.feature_scale

    def _network(self, outputs: int) -> _Rounded:
        hidden, pointwise, mlp = SIZES[self.size]
        network = AdaptiveNetwork(**self.arguments, outputs=outputs, hidden=hidden, pointwise=pointwise, mlp=mlp)
        return _Rounded(network, self.feature_dtype)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        out = self.feature_scale * self.actor(features, step)
        return out if self.step_head is None else out + self.step_head(None, step)

    def make_critic(self) -> nn.Module:
        return self._network(1)


class _Rounded(nn.Module):
    """A network whose features are rounded to the type they are stored in, so that collection and update agree."""

    def __init__(self, network: AdaptiveNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        return self.network(features.to(self.dtype).float(), step)


class SharedOptions(PluginOptions):
    hidden: int = Field(128, ge=1, le=4096)
    """Width of the step embedding's MLP."""


class SharedPolicy(Policy):
    """Learned, but the same for all samples: sees the step only (what AutoNAT finds by search)."""

    Options = SharedOptions
    kind = "shared"
    needs_features = False

    def __init__(self, options: SharedOptions, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        self.hidden = options.hidden
        self.actor = StepNetwork(options.hidden, space.size)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        return self.actor(features, step)

    def make_critic(self) -> nn.Module:
        return StepNetwork(self.hidden, 1)


class ContextOptions(PluginOptions):
    hidden: int = Field(64, ge=1, le=4096)
    """Width of its layers."""


class ContextPolicy(Policy):
    """Sees the step and the class or prompt: what is best for a context, whatever has been drawn of the image."""

    Options = ContextOptions
    kind = "context"
    reads = "context"
    feature_dtype = torch.bfloat16
    rounds_features = True

    def __init__(self, options: ContextOptions, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        self.sizes = options.hidden, feature_dim
        self.actor = ContextNetwork(*self.sizes, space.size)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        return self.actor(features, step)

    def make_critic(self) -> nn.Module:
        return ContextNetwork(*self.sizes, 1)


class ContextNetwork(nn.Module):
    """The step's embedding plus the context's, then SiLU, Linear, SiLU, Linear."""

    def __init__(self, hidden: int, width: int, outputs: int) -> None:
        super().__init__()
        self.step = StepEmbedding(hidden)
        self.context = nn.Linear(width, hidden, bias=False)
        nn.init.normal_(self.context.weight)  # vectors have length 1: this is an embedding of unit variance
        self.middle, self.head = nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        """features (B, 1, P), step (B,) -> (B, outputs)."""
        seen = features[:, 0].to(torch.bfloat16).float()  # as they are stored
        x = F.silu(self.step(step) + self.context(seen))
        return self.head(F.silu(self.middle(x)))


class LinearPolicy(Policy):
    """Sees the step and the class or prompt: a table with one row a step, plus a linear map of the context's vector for each
    step. Engine ``slopes`` finds its weights in closed form."""

    kind = "linear"
    reads = "context"

    def __init__(self, options: PluginOptions, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        self.sizes = feature_dim, space.decisions
        self.actor = LinearNetwork(*self.sizes, space.size)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        return self.actor(features, step)

    def make_critic(self) -> nn.Module:
        return LinearNetwork(*self.sizes, 1)


class LinearNetwork(nn.Module):
    """table_t + W_t x, all zero at first."""

    def __init__(self, width: int, decisions: int, outputs: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(decisions, outputs))
        self.weight = nn.Parameter(torch.zeros(decisions, outputs, width))

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        """features (B, 1, P), step (B,) -> (B, outputs)."""
        every = torch.einsum("tap,bp->bta", self.weight, features[:, 0]) + self.table
        return every.gather(1, step[:, None, None].expand(-1, 1, every.shape[2]))[:, 0]


class LeanOptions(PluginOptions):
    hidden: int = Field(32, ge=1, le=512)
    """Width of its one layer."""


class LeanPolicy(Policy):
    """Sees the step and a handful of statistics of the prediction (``Generator.statistics``), with some hundred weights.

    What is best for all samples is a table of its own, one row a step, so that only what differs between samples is left
    to the statistics.
    """

    Options = LeanOptions
    kind = "lean"
    reads = "statistics"

    def __init__(self, options: LeanOptions, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        self.sizes = options.hidden, feature_dim, space.decisions
        self.actor = LeanNetwork(*self.sizes, space.size)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        return self.actor(features, step)

    def make_critic(self) -> nn.Module:
        return LeanNetwork(*self.sizes, 1)


class LeanNetwork(nn.Module):
    """A table over the steps plus Linear(tanh(Linear(statistics) + the step's row of another table))."""

    def __init__(self, hidden: int, width: int, decisions: int, outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(decisions, outputs)
        self.step = nn.Embedding(decisions, hidden)
        self.inner, self.head = nn.Linear(width, hidden), nn.Linear(hidden, outputs, bias=False)
        nn.init.zeros_(self.table.weight)
        nn.init.zeros_(self.step.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        """features (B, 1, K), step (B,) -> (B, outputs)."""
        x = torch.tanh(self.inner(features[:, 0]) + self.step(step))
        return self.table(step) + self.head(x)


class StatisticsCritic(nn.Module):
    """A policy's own critic plus what a small network makes of statistics of the prediction. It begins as its own critic.

    Args:
        own: of ``Policy.make_critic``. count: S, of the statistics. decisions: of the action space.
    """

    reads_statistics = True

    def __init__(self, own: nn.Module, count: int, decisions: int) -> None:
        super().__init__()
        self.own, self.added = own, LeanNetwork(LeanOptions().hidden, count, decisions, 1)

    def forward(self, features: Tensor | None, step: Tensor, statistics: Tensor) -> Tensor:
        """features, step: as its own critic takes them. statistics: (B, 1, S) of ``core.see_statistics``. -> (B, 1)."""
        return self.own(features, step) + self.added(statistics, step)


class ResidualOptions(PluginOptions):
    hidden: int = Field(64, ge=1, le=512)
    """Width of the residual's one layer."""
    rate: float = Field(0.3, gt=0, le=1e3)
    """Learning rate of the residual's last layer, as a multiple of ``ppo.learning_rate``, which is the table's."""
    penalty: float = Field(0.0, ge=0)
    """Is multiplied by the sum of the squared weights of that layer and added to the loss."""


class ResidualPolicy(Policy):
    """What is best for all samples, a table with one row a step, plus a small residual on the features' mean over cells.

    The residual has some thousand weights, a learning rate of its own and a penalty on its size: what all samples have in
    common is learned first, and the features have to earn what they change.
    """

    Options = ResidualOptions
    kind = "residual"
    feature_dtype = torch.bfloat16
    rounds_features = True

    def __init__(
        self, options: ResidualOptions, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int
    ) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        self.sizes = options.hidden, feature_dim, space.decisions
        self.size_penalty = options.penalty
        self.actor = ResidualNetwork(*self.sizes, space.size, options.rate)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        return self.actor(features, step)

    def make_critic(self) -> nn.Module:
        return ResidualNetwork(*self.sizes, 1)

    def penalty(self) -> Tensor | None:
        return self.size_penalty * self.actor.last().square().sum() if self.size_penalty else None


class ResidualNetwork(nn.Module):
    """A table over the steps plus head_t(tanh(Linear(features))), with a head for each step.

    The head's weights are ``rate`` times its parameters. Adam moves every parameter alike, whatever the size of its gradient,
    so that the head learns at ``rate`` times the learning rate.
    """

    def __init__(self, hidden: int, width: int, decisions: int, outputs: int, rate: float = 1.0) -> None:
        super().__init__()
        self.rate, self.outputs = rate, outputs
        self.table = nn.Embedding(decisions, outputs)
        self.inner, self.head = nn.Linear(width, hidden), nn.Linear(hidden, decisions * outputs, bias=False)
        nn.init.zeros_(self.table.weight)
        nn.init.zeros_(self.head.weight)

    def last(self) -> Tensor:
        """(T x A, hidden): the weights of the heads."""
        return self.rate * self.head.weight

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        """features (B, N, D), step (B,) -> (B, outputs)."""
        seen = features.to(torch.bfloat16).float().mean(1)  # rounded as they are stored
        x = torch.tanh(self.inner(F.layer_norm(seen, seen.shape[1:])))
        every = F.linear(x, self.last()).unflatten(1, (-1, self.outputs))
        chosen = every.gather(1, step[:, None, None].expand(-1, 1, self.outputs))[:, 0]
        return self.table(step) + chosen


class StepNetwork(nn.Module):
    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.embedding = StepEmbedding(hidden)
        self.head = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        return self.head(F.silu(self.embedding(step)))


class FixedPolicy(Policy):
    """A hand-made schedule: it acts on no knob, so every knob follows the schedule of its action space."""

    kind = "fixed"
    needs_features = False
    trainable = False

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        return torch.zeros(step.shape[0], 0, device=step.device)


def build_policy(
    policy_class: type[Policy],
    options: PluginOptions,
    *,
    space: ActionSpace,
    grid: tuple[int, int],
    feature_dim: int,
    seed: int,
    statistics: int = 0,
) -> tuple[Policy, nn.Module | None]:
    """A policy and its critic (None when it cannot be trained) with weights that depend on ``seed`` alone.

    Args:
        statistics: how many the critic reads besides what the policy sees (:class:`StatisticsCritic`); 0 for its own critic.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = policy_class(options, space=space, grid=grid, feature_dim=feature_dim)
        critic = policy.make_critic() if policy.trainable else None
        if critic is not None and statistics:
            critic = StatisticsCritic(critic, statistics, space.decisions)
        return policy, critic
