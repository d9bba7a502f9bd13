"""``AmusedPipeline`` under a policy: all four knobs a sample and step, the pipeline's own ``__call__`` unchanged.

The pipeline asks its transformer for unconditional and conditional logits at once, mixes them with its ``guidance_scale``
and hands the mixture to the scheduler. Hooks keep what the transformer said before it is mixed; the scheduler ignores the
mixture and does the toolkit's step instead, so ``guidance_scale`` only says (above 1) that both halves are run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adanat_plugins.fingerprints import fingerprint_state
from adanat_plugins.generators.amused import SCHEDULE, Amused

from ...core import TOKEN_KNOBS, ActionSpace, Context, Noise
from ...decoding import SamplingPolicy, TokenState
from ...errors import ConfigError
from .following import Actions, noise_of, require_steps


class AmusedNetwork(Amused):
    """A pipeline's transformer as the toolkit's generator sees it; it takes steps, the pipeline does everything else."""

    def __init__(self, pipe: Any) -> None:
        network = pipe.transformer
        config = network.config
        self.name = "amused:512" if config.downsample else "amused:256"
        self.action_space = ActionSpace(TOKEN_KNOBS)
        self.fingerprint = fingerprint_state(network.state_dict())
        self.grid = (config.sample_size, config.sample_size)
        self.image_size = (self.grid[0] * pipe.vae_scale_factor, self.grid[1] * pipe.vae_scale_factor)
        self.mask_id, self.codebook_size = pipe.scheduler.config.mask_token_id, config.codebook_size
        self.feature_dim = config.in_channels
        self.default_schedule = SCHEDULE
        self.device, self.dtype = network.device, network.dtype

    def null_context(self, size: int) -> Context:
        """Asked for only where the pipeline did not run the unconditional half.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the policy guides, and the pipeline was called with guidance_scale of 1 or less, at which it does not run "
            "the empty prompt; call it with guidance_scale=2 (any value above 1: the policy sets the scale itself)."
        )


class AmusedPilot:
    """Steers an ``AmusedPipeline``.

    Args:
        network: see :class:`AmusedNetwork`. policy: of the same. seeds: one a sample, or None: see ``noise_of``.
    """

    def __init__(self, network: AmusedNetwork, policy: SamplingPolicy, seeds: Tensor | None) -> None:
        self.network, self.policy, self.seeds = network, policy, seeds
        self._actions = Actions(policy)
        self._logits: Tensor | None = None
        self._features: Tensor | None = None
        self._noise: Noise | None = None

    def attach(self, pipe: Any) -> list[Any]:
        """Hooks on the pipeline's transformer; their handles."""
        transformer = pipe.transformer
        return [
            transformer.register_forward_hook(self._keep_logits),
            transformer.mlm_layer.layer_norm.register_forward_hook(self._keep_features),
        ]

    def begin(self, scheduler: Any, arguments: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: other steps than the policy's.
        """
        require_steps(len(scheduler.timesteps), self.policy)
        self._actions.restart()
        self._noise = None

    def scaled(self, scheduler: Any, sample: Tensor) -> None:
        """Tokens have no scale."""

    @torch.no_grad()
    def step(
        self,
        scheduler: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *,
        generator: Any = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """The toolkit's step; the last one leaves no cell masked, since the pipeline decodes what it returns.

        Args:
            model_output: the pipeline's mixture of logits, which is not read. sample: (B, h, w) int64.

        Returns:
            ``AmusedSchedulerOutput``, or the tuple of its two values.

        Raises:
            ConfigError: another grid than the policy's, or a guiding policy without unconditional logits.
        """
        from diffusers.schedulers.scheduling_amused import AmusedSchedulerOutput

        size, grid = len(sample), tuple(sample.shape[1:])
        if grid != self.network.grid:
            pixels = "x".join(map(str, self.network.image_size))
            raise ConfigError(
                f"the pipeline makes images of {grid[0]}x{grid[1]} cells and the policy was trained for "
                f"{self.network.grid[0]}x{self.network.grid[1]}; leave height and width out ({pixels} pixels)."
            )
        if self._noise is None:
            self._noise = noise_of(self.seeds, generator, size, sample.device)
        assert self._logits is not None and self._features is not None
        logits = self._logits.flatten(2).transpose(1, 2).float()
        features = self._features.flatten(1, 2)[-size:].float()
        self._logits = self._features = None
        null = logits[:-size] if len(logits) > size else None  # the unconditional half comes first
        step = self._actions.decision
        physical = self._actions.next(features)
        tokens = sample.flatten(1)
        context = Context(size)
        state = TokenState(context, self.policy.steps, tokens, tokens, step, sampler=self.policy.rule)
        state.prediction, state.null_logits = (logits[-size:], features), null
        state = self.network.step(state, physical, self._noise)
        is_last = state.step == self.policy.steps
        drawn = state.proposal.view_as(sample)
        left = drawn if is_last else state.tokens.view_as(sample)
        output: Any = AmusedSchedulerOutput  # whose own annotations take a random generator for tokens
        return output(left, drawn) if return_dict else (left, drawn)

    def _keep_logits(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._logits = output

    def _keep_features(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._features = output
