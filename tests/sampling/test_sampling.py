"""Sampling: an image depends on its seed, its context and the policy; no forward is run whose output is not used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from adanat_plugins.generators.var import NextScale
from adanat_toolkit.core import Noise, parse_schedule
from adanat_toolkit.errors import NotFiniteError
from adanat_toolkit.interfaces import Context, ContextKind, Generator, Policy, TokenGenerator
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, SamplingPolicy, load_policy
from adanat_toolkit.policies.networks import SharedOptions, SharedPolicy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.runtime import CPU_CHUNK, DTYPES, in_chunks
from adanat_toolkit.sampling import Samples, mean_action, sample, seed_range

from ..helpers.tiny import CLASSES, PROMPTS, TinyGenerator

CPU = torch.device("cpu")
KINDS: tuple[ContextKind, ...] = ("class", "text", "none")


class Recorder:
    """Notes the tokens that a generator decodes."""

    def __init__(self, generator: TokenGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[Tensor] = []
        decode = generator.decode_tokens

        def noted(tokens: Tensor) -> Tensor:
            self.tokens.append(tokens)
            return decode(tokens)

        monkeypatch.setattr(generator, "decode_tokens", noted)
        monkeypatch.setattr(generator, "thread_safe", False)  # threads would note theirs in any order

    def take(self) -> Tensor:
        out = torch.cat(self.tokens)
        self.tokens.clear()
        return out


def random_policy(
    generator: Generator,
    steps: int,
    kind: str = "adaptive",
    schedule: str = "cosine,guidance=0.5:3,mask_temperature=4.5:0.5",
) -> SamplingPolicy:
    """A policy whose knobs differ between samples."""
    space = generator.bind(schedule, steps)
    common = {"space": space, "grid": generator.grid, "feature_dim": generator.feature_dim}
    policy: Policy
    if kind == "adaptive":
        policy = AdaptivePolicy(AdaptiveOptions(size="small"), **common)
    else:
        policy = SharedPolicy(SharedOptions(), **common)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.8 / max(1, p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1))
    return SamplingPolicy(policy.eval(), space)


def gather(batches: Iterator[Samples]) -> Samples:
    parts = list(batches)
    return Samples(
        torch.cat([p.seeds for p in parts]),
        Context.cat([p.context for p in parts]),
        torch.cat([p.images for p in parts]),
        torch.cat([p.knobs for p in parts]),
    )


# --- the embedded generator -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def embedded(request: pytest.FixtureRequest) -> TokenGenerator:
    generator = create_generator("maskgit", device=CPU, dtype=getattr(torch, request.param))
    assert isinstance(generator, TokenGenerator)
    return generator


def test_batch_size_does_not_change_an_image(embedded: TokenGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(embedded, monkeypatch)
    policy = random_policy(embedded, 3)
    seeds = seed_range(100, 64)
    whole = gather(sample(embedded, policy, seeds, batch=64))
    tokens = recorder.take()
    assert tokens.shape == (64, 64) and len(tokens.unique(dim=0)) == 64
    assert whole.images.shape == (64, 3, 64, 64) and whole.images.min() >= 0 and whole.images.max() <= 1
    assert float(whole.knobs[:, 1].std(0).min()) > 1e-3  # the policy tells samples apart
    few = [3, 40, 41, 62, 0, 17, 25, 63, 8]
    for batch, rows in ((7, list(range(64))), (1, few)):
        own = gather(sample(embedded, policy, seeds[rows], batch=batch))
        assert torch.equal(recorder.take(), tokens[rows]), f"batch {batch}"
        assert torch.equal(own.seeds, seeds[rows])
        assert torch.equal(own.context.classes, whole.context.classes[rows])  # type: ignore[index, arg-type]
        assert torch.allclose(own.knobs, whole.knobs[rows], atol=1e-4)
        # Equal codes; the decoder's own rounding may differ between batch sizes.
        assert torch.allclose(own.images, whole.images[rows], atol=1e-4 if embedded.dtype == torch.float32 else 0.02)


EMBEDDED = ("maskgit", "muse", "mage", "dit", "sit", "var")


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", EMBEDDED)
def test_the_size_of_a_batch_is_not_in_the_bytes_of_an_image(name: str, dtype: str) -> None:
    """Bit for bit, in every compute type, on whatever machine the tests run."""
    generator = create_generator(name, device=CPU, dtype=DTYPES[dtype])
    policy = random_policy(generator, 3, schedule=generator.default_schedule)
    seeds = seed_range(5, 8)
    whole = gather(sample(generator, policy, seeds, batch=8))
    assert float(whole.knobs[:, 1].std(0).max()) > 1e-3  # the policy tells samples apart
    for batch, count in ((7, 8), (2, 2), (1, 3)):
        own = gather(sample(generator, policy, seeds[:count], batch=batch))
        assert torch.equal(own.images, whole.images[:count]), f"batch {batch}"


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_one_image_is_encoded_in_scales_as_many_are(dtype: str) -> None:
    """What each scale of ``var`` adds to a latent is a convolution too, and a single image of it took another kernel."""
    generator = create_generator("var", device=CPU, dtype=DTYPES[dtype])
    assert isinstance(generator, NextScale)
    quantizer = generator.tokenizer.quantizer
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(9, 3, *generator.image_size, generator=draw)
    latents = generator.encode_latents(images)
    for scale, side in enumerate(quantizer.scales):
        codes = torch.randint(quantizer.embedding.num_embeddings, (9, side * side), generator=draw)
        added = quantizer.contribution(codes, scale)
        for count in (1, 2, 3):
            assert torch.equal(quantizer.contribution(codes[:count], scale), added[:count]), f"{count} images, scale {scale}"
    for count in (1, 2, 3):
        assert torch.equal(generator.encode_latents(images[:count]), latents[:count]), count


def test_few_samples_are_computed_as_many_are(embedded: TokenGenerator) -> None:
    """Bit for bit: with few rows matrix libraries take other kernels, which would show in an image's bytes."""
    policy = random_policy(embedded, 3).network
    codes = torch.randint(embedded.codebook_size, (16, 64), generator=torch.Generator().manual_seed(0))
    context = embedded.encode_classes(list(range(16)))
    logits, features = embedded.predict(codes, context)
    images, step = embedded.decode_tokens(codes), torch.zeros(16, dtype=torch.int64)
    actions = mean_action(policy, features, step)
    for count in (1, 2, 3, 5, 9):
        few = embedded.predict(codes[:count], context.select(slice(0, count)))
        assert torch.equal(few[0], logits[:count]) and torch.equal(few[1], features[:count]), count
        assert torch.equal(embedded.decode_tokens(codes[:count]), images[:count]), count
        assert torch.equal(mean_action(policy, features[:count], step[:count]), actions[:count]), count


@pytest.mark.parametrize("number", [2, 3])
def test_pixels_do_not_depend_on_threads(embedded: TokenGenerator, number: int, threads: None) -> None:
    """Where threads share one image, its last bits are others, so that a batch of nine had other bytes than one of ten."""
    codes = torch.randint(embedded.codebook_size, (9, 64), generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(1)
    images = embedded.decode_tokens(codes)
    torch.set_num_threads(number)
    for count in (1, 2, 5, 9):
        assert torch.equal(embedded.decode_tokens(codes[:count]), images[:count]), count
    assert torch.get_num_threads() == number


def test_first_state_cache_of_the_embedded_generator(embedded: TokenGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached first predictions are those that a forward would give."""
    context = embedded.encode_classes([5, 97, 5, 0, 33])
    state = embedded.reset(context, Noise(seed_range(0, 5)), 4)
    embedded.observe(state)
    again = embedded.reset(context.select(slice(1, 4)), Noise(seed_range(0, 3)), 4)
    embedded.observe(again)
    monkeypatch.setattr(embedded, "predict", None)  # neither the classes' nor the null context's are computed again
    embedded.observe(embedded.reset(context, Noise(seed_range(0, 5)), 4))
    monkeypatch.undo()
    tokens = torch.full((5, 64), embedded.mask_id)
    logits, features = embedded.predict(tokens, context)
    null = embedded.null_context(5)
    assert null is not None and state.prediction is not None and state.null_logits is not None
    tolerance = 1e-4 if embedded.dtype == torch.float32 else 0.15
    assert torch.allclose(state.prediction[0], logits, atol=tolerance)
    assert torch.allclose(state.prediction[1], features, atol=tolerance)
    assert torch.allclose(state.null_logits, embedded.predict(tokens, null)[0], atol=tolerance)


# --- every kind of context --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["adaptive", "shared", "fixed"])
def test_order_subset_and_batch(kind: ContextKind, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = TinyGenerator(kind)
    recorder = Recorder(generator, monkeypatch)
    if which == "fixed":
        policy = load_policy("fixed:cosine,guidance=0:3,mask_temperature=2:0", generator, 4)
    else:
        policy = random_policy(generator, 4, which)
    seeds = torch.randperm(40, generator=torch.Generator().manual_seed(0)) + 7
    whole = gather(sample(generator, policy, seeds, batch=40))
    tokens = recorder.take()
    for batch in (1, 7, 40):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(batch))[:23]
        own = gather(sample(generator, policy, seeds[order], batch=batch))
        assert torch.equal(recorder.take(), tokens[order])
        assert torch.equal(own.images, whole.images[order])
        assert torch.allclose(own.knobs, whole.knobs[order], atol=1e-5)
        assert own.context.prompts == whole.context.select(order).prompts
    # The same seeds with other contexts, given explicitly.
    if kind == "class":
        given = generator.encode_classes([i % CLASSES for i in range(40)])
        other = gather(sample(generator, policy, seeds, given, batch=9))
        assert other.context.classes.tolist() == given.classes.tolist()  # type: ignore[union-attr]
        same = whole.context.classes == given.classes
        assert torch.equal(other.images[same], whole.images[same])  # type: ignore[index]
        assert not torch.equal(other.images[~same], whole.images[~same])  # type: ignore[index]


@pytest.mark.parametrize("kind", KINDS)
def test_first_states_are_computed_once_per_context(kind: ContextKind, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, plain = TinyGenerator(kind), TinyGenerator(kind)
    plain.first_state_cache_bytes = 0
    noise = Noise(seed_range(0, 30))
    results = []
    for generator in (cached, plain):
        recorder = Recorder(generator, monkeypatch)
        policy = random_policy(generator, 3)
        for _ in range(2):
            gather(sample(generator, policy, noise.seeds, batch=30))
        results.append(recorder.take())
    assert torch.equal(*results)
    distinct = {"class": CLASSES, "text": len(PROMPTS), "none": 1}[kind]
    nulls = 30 if kind != "none" else 0  # a null context is not told apart from no context
    both = [(60, nulls)] * 2
    null = [(1, 1 if nulls else 0)]
    assert plain.forwards == [(distinct, 0), *null, *both, (distinct, 0), *both]
    again = [(distinct, 0)] if kind == "text" else []  # prompts are not kept: there is no end of them
    assert cached.forwards == [(distinct, 0), *null, *both, *again, *both]


def test_a_cache_made_in_inference_mode_is_filled_outside() -> None:
    generator, fresh = TinyGenerator(), TinyGenerator()
    with torch.inference_mode():
        generator.observe(generator.reset(generator.encode_classes([1]), Noise(seed_range(0, 1)), 2))
    context = generator.encode_classes([0, 1])
    state = generator.reset(context, Noise(seed_range(0, 2)), 2)
    assert torch.allclose(generator.observe(state), fresh.predict(state.tokens, context)[1], atol=1e-6)


def test_the_cache_serves_new_classes_beside_known_ones() -> None:
    generator, fresh = TinyGenerator(), TinyGenerator()
    for classes in ([1, 1], [3, 1, 0], [0, 4, 3, 1, 2]):
        context = generator.encode_classes(classes)
        state = generator.reset(context, Noise(seed_range(0, len(classes))), 2)
        expected = fresh.predict(state.tokens, context)
        assert torch.allclose(generator.observe(state), expected[1], atol=1e-6)
        assert state.prediction is not None and torch.allclose(state.prediction[0], expected[0], atol=1e-5)
    assert [rows for rows, nulls in generator.forwards if not nulls] == [1, 2, 2]


# --- forwards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class", "text"])
def test_steps_without_guidance_run_no_unconditional_forward(kind: ContextKind) -> None:
    generator = TinyGenerator(kind)
    policy = load_policy("fixed:cosine,guidance=0/0/2/0", generator, 4)
    gather(sample(generator, policy, seed_range(0, 12), batch=12))
    distinct = CLASSES if kind == "class" else len(PROMPTS)
    assert generator.forwards == [(distinct, 0), (12, 0), (24, 12), (12, 0)]


def test_first_step_with_guidance_reuses_one_null_forward() -> None:
    generator = TinyGenerator()
    policy = load_policy("fixed:cosine,guidance=1", generator, 2)
    gather(sample(generator, policy, seed_range(0, 24), batch=12))
    assert generator.forwards == [(CLASSES, 0), (1, 1), (24, 12), (24, 12)]


def test_shared_policy_looks_at_nothing() -> None:
    """It does not need features, so its steps run one batch of both contexts and nothing else."""
    generator = TinyGenerator()
    policy = random_policy(generator, 3, "shared")
    gather(sample(generator, policy, seed_range(0, 8), batch=8))
    rows = sum(rows for rows, _ in generator.forwards)
    first = len(generator.sample_contexts(Noise(seed_range(0, 8))).distinct()[0])
    assert rows == first + 1 + 2 * 16
    assert sum(nulls for _, nulls in generator.forwards) == 1 + 2 * 8


def test_no_guidance_knob_no_null_context() -> None:
    generator = TinyGenerator(knobs=("mask_ratio", "mask_temperature"))
    policy = random_policy_without_guidance(generator)
    gather(sample(generator, policy, seed_range(0, 6), batch=6))
    assert not any(nulls for _, nulls in generator.forwards) and len(generator.forwards) == 3


def random_policy_without_guidance(generator: TokenGenerator) -> SamplingPolicy:
    space = generator.action_space.bind(parse_schedule("cosine,mask_temperature=2:0", generator.action_space, 3))
    policy = AdaptivePolicy(AdaptiveOptions(), space=space, grid=generator.grid, feature_dim=generator.feature_dim)
    return SamplingPolicy(policy, space)


def test_guidance_zero_of_some_samples() -> None:
    """A sample with guidance 0 in a guided batch is made as it is alone, without the unconditional forward."""
    generator = TinyGenerator()
    noise, context = Noise(seed_range(0, 4)), generator.encode_classes([0, 1, 2, 3])
    action = torch.tensor([[0.5, 1.0, 1.0, g] for g in (0.0, 2.0, 0.0, 1.0)])
    state = generator.step(generator.reset(context, noise, 2), action, noise)
    for row in (0, 2):
        part = slice(row, row + 1)
        alone = generator.step(
            generator.reset(context.select(part), noise.select(part), 2), action[part], noise.select(part)
        )
        assert torch.equal(alone.tokens, state.tokens[part])
    generator.forwards.clear()
    following = generator.step(state, action, noise)
    assert generator.forwards == [(4, 0), (2, 2)]  # the unconditional forward of two samples alone
    all_guided = action.clone()
    all_guided[:, 3] = torch.tensor([1.0, 2.0, 1.0, 1.0])
    whole = generator.step(generator.step(generator.reset(context, noise, 2), action, noise), all_guided, noise)
    assert torch.equal(whole.tokens[[1, 3]], following.tokens[[1, 3]])


def test_a_policy_that_leaves_guidance_to_a_schedule_runs_no_forward_for_none() -> None:
    """A learned policy looks at every state, but the schedule says where nothing is guided."""
    generator = TinyGenerator()
    schedule = parse_schedule("cosine,guidance=0/0/2/0", generator.action_space, 4)
    space = generator.action_space.bind(schedule, acted=("mask_ratio", "mask_temperature"))
    policy = AdaptivePolicy(AdaptiveOptions(), space=space, grid=generator.grid, feature_dim=generator.feature_dim)
    gather(sample(generator, SamplingPolicy(policy, space), seed_range(0, 12), batch=12))
    assert generator.forwards == [(CLASSES, 0), (12, 0), (24, 12), (12, 0)]


def test_exploration_belongs_to_the_sample() -> None:
    generator = TinyGenerator()
    policy = random_policy(generator, 3)
    seeds = seed_range(50, 20)
    whole = gather(sample(generator, policy, seeds, batch=20, sigma=0.5))
    part = gather(sample(generator, policy, seeds[5:8], batch=2, sigma=0.5))
    assert torch.allclose(part.knobs, whole.knobs[5:8], atol=1e-5)
    calm = gather(sample(generator, policy, seeds, batch=20))
    assert not torch.allclose(calm.knobs, whole.knobs, atol=1e-2)


def test_progress_is_reported() -> None:
    generator, done = TinyGenerator(), []
    policy = load_policy("fixed", generator, 2)
    gather(sample(generator, policy, seed_range(0, 10), batch=4, on_batch=done.append))
    assert done == [4, 8, 10]


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "chunk", "minimum"), [(10, 4, 1), (10, 4, 3), (1, 4, 8), (8, 4, 1), (0, 4, 1), (5, None, 8)]
)
def test_chunks(total: int, chunk: int | None, minimum: int) -> None:
    sizes: list[int] = []

    def double(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(x))
        return 2 * x, x + y

    x = torch.arange(total).float()
    if total == 0:
        return
    twice, total_sum = in_chunks(double, x, 10 * x, chunk=chunk, minimum=minimum)
    assert torch.equal(twice, 2 * x) and torch.equal(total_sum, 11 * x)
    assert min(sizes) >= minimum and max(sizes) <= max(minimum, chunk or CPU_CHUNK)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_no_picture(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = TinyGenerator()
    decode = generator.decode_tokens

    def bad(tokens: Tensor) -> Tensor:
        images = decode(tokens).clone()
        images[-1, 0, 0, 0] = value
        return images

    monkeypatch.setattr(generator, "decode_tokens", bad)
    with pytest.raises(NotFiniteError, match=r"1 of 3 images of generator 'tiny:class' are not finite .*of seed 6"):
        list(sample(generator, load_policy("fixed", generator, 2), [4, 5, 6]))
