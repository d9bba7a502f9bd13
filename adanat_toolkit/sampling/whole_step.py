"""One step of a rollout: what the policy sees and does, and, for token generators, all of the step as one compiled piece."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import REMASK, TOKEN, Context, Generator, Noise, Policy, see, see_statistics, to_gumbel
from ..decoding import SamplingPolicy, StepNoise, TokenGenerator, TokenState
from ..runtime import minimum_rows, padded

log = logging.getLogger("adanat_toolkit")

WHOLE: dict[str, Any] = {"dynamic": False, "fullgraph": True, "mode": "reduce-overhead"}
"""How a step is compiled (arguments of ``torch.compile``): once for each size, as CUDA graphs where there is CUDA."""


def mean_action(network: Policy, features: Tensor | None, step: Tensor) -> Tensor:
    """(B, A): ``network(features, step)``, so that a sample's action does not depend on how few it is taken with."""
    return padded(network, minimum_rows(step.device), features, step)


def value_of(critic: nn.Module, features: Tensor | None, step: Tensor, statistics: Tensor | None) -> Tensor:
    """(B,): a critic's values. statistics: what it reads besides (``policies.StatisticsCritic``), or None."""
    value = critic(features, step) if statistics is None else critic(features, step, statistics)
    return value.squeeze(-1)


class Decision(NamedTuple):
    """What the policy saw and did in a step: seen (B, N, D) or None; mean, action, smoothed (B, A); physical (B, K); value (B,)
    or None without a critic; statistics (B, 1, S) where the critic reads them, else None."""

    seen: Tensor | None
    mean: Tensor
    action: Tensor
    smoothed: Tensor
    physical: Tensor
    value: Tensor | None
    statistics: Tensor | None


def decide(
    generator: Generator,
    policy: SamplingPolicy,
    critic: nn.Module | None,
    state: Any,
    context: Context,
    step: Tensor,
    *,
    wander: Tensor | None,
    smoothed: Tensor | None,
    guided: bool,
    given: Tensor | None = None,
) -> Decision:
    """The policy's action for a state.

    Args:
        step: (B,) int64. wander: (B, A), what exploration adds. smoothed: that of the step before. guided: see
            ``Generator.observe``. given: (B, A), what to take in place of the policy's action.
    """
    network, space = policy.network, policy.space
    seen = see(generator, network, state, context, guided=guided) if given is None else None
    if given is None and (seen is None or network.reads == "context"):
        generator.observe(state, guided=guided)  # else the step asks which samples are guided, and waits for it
    mean = mean_action(network, seen, step) if given is None else given
    action = mean if wander is None else mean + wander
    smoothed = space.smoothed(action, step, smoothed)
    statistics = see_statistics(generator, state) if getattr(critic, "reads_statistics", False) else None
    value = None if critic is None else value_of(critic, seen, step, statistics)
    return Decision(seen, mean, action, smoothed, space.transformed(smoothed, step), value, statistics)


class WholeStep:
    """Forward, guidance, draw, re-masking, policy and critic of a step as one compiled piece, for rollouts of one policy.

    The first step of an image stays as it is: its predictions are looked up. Results are those of separate calls, but for
    rounding, and random numbers still belong to samples: they are drawn outside. What fails to compile is said in one line,
    and steps are taken piece by piece from then on.

    Args:
        options: of ``torch.compile``, in place of :data:`WHOLE`.
    """

    def __init__(
        self,
        generator: TokenGenerator,
        policy: SamplingPolicy,
        critic: nn.Module | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.generator, self.policy, self.critic = generator, policy, critic
        self.options = WHOLE if options is None else options
        self.sizes: set[int] = set()
        """Numbers of samples that it was compiled for."""
        self._compiled = torch.compile(self._step, **self.options)
        self._failed = False
        if "guidance" in generator.action_space.names:
            generator.null_context(1)  # what is kept of it cannot be made while the step is traced

    def fits(self, generator: Generator, policy: SamplingPolicy, critic: nn.Module | None, state: Any) -> bool:
        """Whether it can take the next step of such a rollout."""
        own = self.policy
        same = generator is self.generator and policy.network is own.network and policy.space is own.space
        if not same or critic is not self.critic or self._failed or not isinstance(state, TokenState):
            return False
        return state.sampler is None and state.step > 0

    def __call__(
        self,
        state: TokenState,
        step: Tensor,
        noise: Noise,
        *,
        wander: Tensor | None,
        smoothed: Tensor | None,
        guided: bool,
    ) -> tuple[Decision, TokenState] | None:
        """The decision and the state after the step; None where it failed and nothing has changed."""
        token, remask = noise.uniforms([(TOKEN, state.step), (REMASK, state.step)], (self.generator.cells,))
        context, size = state.context, len(state.context)
        if size not in self.sizes:
            log.warning("compiling the step for %d samples: a minute or two, less when it was done before", size)
        try:
            torch.compiler.cudagraph_mark_step_begin()
            *decided, tokens, proposal = self._compiled(
                state.tokens, state.editable, context.classes, context.states, context.pooled, step, wander, smoothed,
                token, to_gumbel(remask), guided,
            )  # fmt: skip
        except torch.OutOfMemoryError:  # which a smaller micro-batch mends
            raise
        except Exception as error:  # no compiler, a driver too old, a graph that cannot be captured: whatever it is
            self._failed = True
            cause = getattr(error, "inner_exception", error)  # what a backend raised
            reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
            log.warning("the step cannot be compiled as a whole, its parts are run one by one: %s", reason)
            return None
        self.sizes.add(size)
        assert tokens is not None and proposal is not None
        # A CUDA graph writes its results to the same place every time.
        decision = Decision(*(None if value is None else value.clone() for value in decided))  # type: ignore[arg-type]
        after = TokenState(context, state.steps, tokens.clone(), proposal.clone(), state.step + 1, state.editable)
        return decision, after

    @torch.no_grad()
    def _step(
        self,
        tokens: Tensor,
        editable: Tensor | None,
        classes: Tensor | None,
        states: Tensor | None,
        pooled: Tensor | None,
        step: Tensor,
        wander: Tensor | None,
        smoothed: Tensor | None,
        token: Tensor,
        remask: Tensor,
        guided: bool,
    ) -> tuple[Tensor | None, ...]:
        context = Context(tokens.shape[0], classes, states, pooled)
        state = TokenState(context, self.policy.steps, tokens, tokens, step=1, editable=editable)  # not the first one
        decision = decide(
            self.generator,
            self.policy,
            self.critic,
            state,
            context,
            step,
            wander=wander,
            smoothed=smoothed,
            guided=guided,
        )
        after = self.generator.advance(state, decision.physical, StepNoise(token, remask))
        return (*decision, after.tokens, after.proposal)
