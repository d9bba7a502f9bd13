"""Policy networks: any grid, any width, and a fresh policy that is the schedule."""

from __future__ import annotations

import pytest
import torch

from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace, parse_schedule
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, FixedPolicy, build_policy
from adanat_toolkit.policies.networks import AdaptiveNetwork, SharedOptions, SharedPolicy, StepEmbedding

SPACE = ActionSpace(TOKEN_KNOBS)
STEPS = 3
BOUND = SPACE.bind(parse_schedule("cosine,guidance=0:3,mask_temperature=4.5:0", SPACE, STEPS), residual=True)


@pytest.fixture(autouse=True)
def fixed_inputs() -> None:
    torch.manual_seed(0)


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    """Networks start with zeros in places; here every weight matters."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return module


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (5, 7), (1, 1), (3, 2), (1, 9)])
@pytest.mark.parametrize("width", [24, 128])
def test_any_grid_and_width(grid: tuple[int, int], width: int) -> None:
    policy = AdaptivePolicy(AdaptiveOptions(size="small"), space=BOUND, grid=grid, feature_dim=width)
    perturbed(policy)
    features, step = torch.randn(3, grid[0] * grid[1], width), torch.tensor([0, 1, 2])
    out = policy(features, step)
    assert out.shape == (3, 4) and torch.isfinite(out).all()
    assert perturbed(policy.make_critic())(features, step).shape == (3, 1)
    # Every cell counts, and cells are not exchangeable.
    for cell in {0, grid[0] * grid[1] - 1}:
        changed = features.clone()
        changed[:, cell] += torch.linspace(0, 3, width)
        assert not torch.allclose(policy(changed, step), out, atol=1e-5)
    assert policy(features[:0], step[:0]).shape == (0, 4)  # a process without samples in a mini-batch


def test_grid_is_row_major() -> None:
    """The step to a map must put cell i at (i // w, i % w): a depth-wise convolution sees neighbours in a row."""
    network = AdaptiveNetwork(4, 1, (3, 5), hidden=4, pointwise=2, mlp=(8, 8))
    seen = []
    network.dw_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = torch.randn(1, 15, 4)
    network(features, torch.zeros(1))
    normed = torch.nn.functional.layer_norm(features, (4,), eps=1e-6)
    assert torch.allclose(seen[0][0, :, 1, 3], normed[0, 1 * 5 + 3], atol=1e-5)


def test_published_sizes() -> None:
    policy = AdaptivePolicy(AdaptiveOptions(), space=BOUND, grid=(16, 16), feature_dim=768)
    assert policy.size == "paper"
    assert sum(p.numel() for p in policy.parameters()) == 11_876_484
    assert sum(p.numel() for p in policy.make_critic().parameters()) == 11_874_945
    assert AdaptivePolicy(AdaptiveOptions(), space=BOUND, grid=(8, 8), feature_dim=768).size == "small"
    assert AdaptivePolicy(AdaptiveOptions(), space=BOUND, grid=(16, 16), feature_dim=128).size == "small"


@pytest.mark.parametrize("policy_class", [AdaptivePolicy, SharedPolicy])
def test_fresh_policy_is_the_schedule(policy_class: type) -> None:
    policy, critic = build_policy(
        policy_class, policy_class.Options(), space=BOUND, grid=(4, 4), feature_dim=16, seed=3
    )
    step = torch.arange(STEPS)
    raw = policy(torch.randn(STEPS, 16, 16), step)
    assert raw.shape == (STEPS, 4) and not raw.any()
    assert torch.allclose(BOUND.to_physical(raw, step).double(), BOUND.schedule, atol=3e-6)
    assert critic is not None and not critic(torch.randn(STEPS, 16, 16), step).any()


def test_step_embedding_by_hand() -> None:
    embedding = StepEmbedding(6)
    inputs = []
    embedding.mlp.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    embedding(torch.tensor([0, 3]))
    frequency = 10000 ** (-torch.arange(128) / 128)
    expected = torch.cat([torch.cos(3 * frequency), torch.sin(3 * frequency)])
    assert torch.allclose(inputs[0][1], expected, atol=1e-5)
    assert inputs[0][0].tolist() == [1.0] * 128 + [0.0] * 128


def test_features_are_rounded_as_they_are_stored() -> None:
    policy = perturbed(AdaptivePolicy(AdaptiveOptions(), space=BOUND, grid=(4, 4), feature_dim=16))
    features, step = torch.randn(2, 16, 16), torch.tensor([1, 2])
    # What the update reads from the rollout's storage gives the same mean to the last bit as at collection.
    assert torch.equal(policy(features, step), policy(features.bfloat16(), step))
    exact = AdaptivePolicy(AdaptiveOptions(feature_dtype="float32"), space=BOUND, grid=(4, 4), feature_dim=16)
    exact.load_state_dict(policy.state_dict())
    assert not torch.equal(exact(features, step), policy(features, step))
    assert torch.allclose(exact(features, step), policy(features, step), atol=0.05)


def test_shared_policy_ignores_features() -> None:
    policy = perturbed(SharedPolicy(SharedOptions(), space=BOUND, grid=(4, 4), feature_dim=16))
    step = torch.tensor([0, 1, 2, 1])
    out = policy(None, step)
    assert torch.equal(policy(torch.randn(4, 16, 16), step), out)
    assert torch.allclose(out[1], out[3], atol=1e-6) and not torch.allclose(out[0], out[1], atol=1e-3)
    assert not policy.needs_features


def test_the_step_head_is_added_to_what_the_features_say() -> None:
    options = AdaptiveOptions(step_head=True, feature_scale=0.25)
    policy = perturbed(AdaptivePolicy(options, space=BOUND, grid=(4, 4), feature_dim=16))
    features, step = torch.randn(3, 16, 16), torch.tensor([0, 1, 2])
    whole, head = policy(features, step), policy.step_head(None, step)
    torch.testing.assert_close(whole, 0.25 * policy.actor(features, step) + head)
    assert not torch.allclose(head[0], head[1])
    fresh, _ = build_policy(AdaptivePolicy, options, space=BOUND, grid=(4, 4), feature_dim=16, seed=0)
    assert not fresh(features, step).any()  # the schedule itself
    plain = AdaptivePolicy(AdaptiveOptions(), space=BOUND, grid=(4, 4), feature_dim=16)
    assert plain.step_head is None and plain.state_dict().keys() == policy.state_dict().keys() - {
        key for key in policy.state_dict() if key.startswith("step_head.")
    }


def test_fixed_policy_acts_on_nothing() -> None:
    space = SPACE.bind(parse_schedule("linear", SPACE, 2), acted=(), residual=False)
    policy, critic = build_policy(FixedPolicy, FixedPolicy.Options(), space=space, grid=(4, 4), feature_dim=8, seed=0)
    assert critic is None and not policy.trainable and not list(policy.parameters())
    physical = space.to_physical(policy(None, torch.tensor([1, 0])), torch.tensor([1, 0]))
    assert physical[:, 0].tolist() == [0.0, 0.5]


def test_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        policy, critic = build_policy(
            AdaptivePolicy, AdaptiveOptions(), space=BOUND, grid=(4, 4), feature_dim=16, seed=seed
        )
        assert critic is not None
        return torch.cat([p.flatten() for module in (policy, critic) for p in module.parameters()])

    torch.manual_seed(1)
    first, state = weights(5), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(weights(5), first) and not torch.equal(weights(6), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
