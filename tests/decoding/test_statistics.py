from __future__ import annotations

import math

import pytest
import torch

from adanat_toolkit.core import Generator, Noise
from adanat_toolkit.decoding import prediction_statistics, statistic_names
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.registry import create_generator
from adanat_toolkit.sampling import seed_range


@pytest.fixture(scope="module")
def embedded() -> Generator:
    return create_generator("maskgit", device=torch.device("cpu"), dtype=torch.float32, offline=True)


def test_known_predictions_give_known_numbers() -> None:
    sure = torch.tensor([50.0, 0.0, 0.0, 0.0])
    even = torch.zeros(4)
    logits = torch.stack([torch.stack([sure, even, sure]), torch.stack([even, even, even])])
    unknown = torch.tensor([[True, True, False], [False, False, False]])
    masked = torch.tensor([2 / 3, 0.0])
    values = prediction_statistics(logits, torch.zeros_like(logits), unknown, masked)
    assert statistic_names(True) == ("entropy", "entropy_spread", "confidence", "divergence", "masked")
    # one sure and one even cell: entropies 0 and 1, likeliest tokens 1 and 1/4, divergences log 4 and 0
    assert torch.allclose(values[0], torch.tensor([0.5, 0.5, 0.625, math.log(4) / 2, 2 / 3]), atol=1e-5)
    assert torch.equal(values[1], torch.zeros(5))  # nothing is unknown
    assert torch.equal(prediction_statistics(logits, None, unknown, masked), values[:, [0, 1, 2, 4]])
    assert statistic_names(False) == ("entropy", "entropy_spread", "confidence", "masked")


def test_they_are_the_same_whoever_looked_before(embedded: Generator) -> None:
    noise = Noise(seed_range(0, 3))
    context = embedded.sample_contexts(noise)
    action = embedded.bind(None, 2).schedule[:1].float().expand(3, -1)  # type: ignore[index]
    states = [embedded.step(embedded.reset(context, noise, 2), action, noise) for _ in range(2)]
    embedded.observe(states[0], guided=False)
    first, second = (embedded.statistics(state) for state in states)
    assert first.shape == (3, len(embedded.statistic_names))
    assert torch.allclose(first, second, atol=1e-5)


def test_a_generator_without_them_says_so(embedded: Generator) -> None:
    assert Generator.statistic_names.fget(embedded) == ()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no statistics"):
        Generator.statistics(embedded, None)
