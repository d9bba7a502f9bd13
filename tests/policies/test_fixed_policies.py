"""``fixed:NAME``: the published samplers as policies, for the embedded generator of every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adanat_toolkit.core import REMASK, TOKEN, Noise
from adanat_toolkit.decoding import PUBLISHED_SAMPLERS, StepKnobs, StepNoise, parse_sampler
from adanat_toolkit.decoding.released_samplers import HaltonSampler, published_sampler
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.interfaces import TokenGenerator
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.sampling import sample

FAMILIES = ("maskgit", "mage", "muse")
SEEDS = torch.arange(20, 23)


@pytest.fixture(scope="module", params=FAMILIES)
def generator(request: pytest.FixtureRequest) -> TokenGenerator:
    return create_generator(request.param, device=torch.device("cpu"), dtype=torch.float32, offline=True)


def images(generator: TokenGenerator, spec: str, steps: int | None = None) -> Tensor:
    policy = load_policy(spec, generator, steps)
    return torch.cat([part.images for part in sample(generator, policy, SEEDS)])


def by_hand(generator: TokenGenerator, name: str, steps: int) -> Tensor:
    """The sampler's own step around plain forwards: no state, no caches."""
    sampler, noise = published_sampler(name), Noise(SEEDS)
    table = sampler.schedule(generator.action_space, steps, generator.cells)
    context, tokens = generator.sample_contexts(noise), torch.full((len(SEEDS), generator.cells), generator.mask_id)
    proposal = tokens
    for step in range(steps):
        row = dict(zip(generator.action_space.names, table[step].float(), strict=True))
        neutral = {"mask_temperature": 0.0, "token_temperature": 1.0, "guidance": 0.0}
        values = {key: torch.as_tensor(row.get(key, neutral.get(key))) for key in StepKnobs._fields}
        knobs = StepKnobs(**{key: value.expand(len(SEEDS)) for key, value in values.items()})
        null = generator.null_context(len(SEEDS)) if values["guidance"] > 0 else None
        unconditional = None if null is None else generator.predict(tokens, null)[0]
        cells = (generator.cells,)
        drawn = StepNoise(noise.uniform(TOKEN, step, cells), noise.gumbel(REMASK, step, cells))
        result = sampler.decide(
            tokens, generator.predict(tokens, context)[0], unconditional, knobs, drawn, generator.mask_id,
            grid=generator.grid,
        )  # fmt: skip
        tokens, proposal = result.tokens, result.proposal
    return generator.decode_tokens(proposal)


@pytest.mark.parametrize("name", sorted(PUBLISHED_SAMPLERS))
def test_a_published_sampler_is_followed_and_leaves_nothing_behind(generator: TokenGenerator, name: str) -> None:
    own = images(generator, "fixed", 3)
    published = images(generator, f"fixed:{name}", 3)
    torch.testing.assert_close(published, by_hand(generator, name, 3), atol=1e-4, rtol=0)
    assert torch.equal(images(generator, "fixed", 3), own)
    assert (published - own).abs().max() > 0.05


@pytest.mark.parametrize("name", sorted(PUBLISHED_SAMPLERS))
def test_steps_default_to_the_authors_number(generator: TokenGenerator, name: str) -> None:
    policy = load_policy(f"fixed:{name}", generator)
    assert policy.steps == PUBLISHED_SAMPLERS[name].default_steps
    assert policy.space.acted == () and not policy.space.residual
    assert (policy.card["sampler"], policy.card["source"]) == (name, PUBLISHED_SAMPLERS[name].source)
    assert isinstance(policy.rule, PUBLISHED_SAMPLERS[name])
    assert load_policy(f"fixed:{name}", generator, 5).steps == 5


def test_options_are_read_with_their_types() -> None:
    assert parse_sampler("halton, guidance=1.5,top_k=50,rotate=true") == HaltonSampler(
        guidance=1.5, top_k=50, rotate=True
    )
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        parse_sampler("halton,topk=3")
    with pytest.raises(ConfigError, match="guidance = 'much'"):
        parse_sampler("halton,guidance=much")


@pytest.mark.parametrize(
    ("spec", "steps", "message"),
    [
        ("fixed:amusd", None, "did you mean 'amused'"),
        ("fixed:cosin", None, "did you mean 'cosine'"),
        ("fixed:maskgit", 0, "at least 1 step"),
        ("fixed:mage,guidance=1", None, "no option 'guidance'"),
        ("fixed:halton,last_temperature=0", 4, "last_temperature = 0; it must be above 0"),
        ("fixed:halton,last_temperature=-1,power=0.5", 4, "last_temperature = -1; it must be above 0"),
        ("fixed:halton-confidence,temperature=0", 4, "has temperature = 0; it must be above 0"),
    ],
)
def test_errors_name_the_remedy(generator: TokenGenerator, spec: str, steps: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_policy(spec, generator, steps)
