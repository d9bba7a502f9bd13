"""The contract of generators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core import Context, Generator, Noise, parse_schedule
from ..decoding import TokenGenerator
from ..errors import ConfigError
from .common import require

PROMPTS = ("3d emoji of red apple", "a dog", "blue tree")
SEEDS = (30, 31, 32)


@dataclass(frozen=True)
class GeneratorCase:
    """A generator, and what it is tried with: three samples with different contexts (where it takes any) and seeds."""

    generator: Generator
    steps: int = 3
    tolerance: float = 1e-3
    """How far pixels may differ (from 0 to 1) where only the batch around a sample changed."""
    context: Context = field(init=False)
    noise: Noise = field(init=False)

    def __post_init__(self) -> None:
        generator, noise = self.generator, Noise(torch.tensor(SEEDS, device=self.generator.device))
        if generator.context_kind == "class":
            context = generator.encode_classes([i % (generator.num_classes or 1) for i in range(len(SEEDS))])
        elif generator.context_kind == "text":
            context = generator.encode_prompts(PROMPTS)
        else:
            context = generator.sample_contexts(noise)
        object.__setattr__(self, "context", context)
        object.__setattr__(self, "noise", noise)

    def schedule(self) -> Tensor:
        """(decisions, 3, K) float32: the generator's own schedule for each of the three samples."""
        table = self.generator.bind(None, self.steps).schedule
        assert table is not None
        return table.float().to(self.generator.device)[:, None].expand(-1, len(SEEDS), -1).clone()

    def run(self, actions: Tensor | None = None, rows: Sequence[int] = (0, 1, 2), shift: int = 0) -> Trajectory:
        """Images of some of the three samples, their seeds moved by ``shift``."""
        index = torch.tensor(rows, device=self.generator.device)
        noise, context = Noise(self.noise.seeds[index] + shift), self.context.select(index)
        table = (self.schedule() if actions is None else actions)[:, index]
        state, features = self.generator.reset(context, noise, self.steps), []
        for row in table:
            features.append(self.generator.observe(state).clone())
            state = self.generator.step(state, row, noise)
        return Trajectory(features, self.generator.decode(state), state)


@dataclass(frozen=True)
class Trajectory:
    """Features before each step, the images, and the last state."""

    features: list[Tensor]
    images: Tensor
    state: Any

    def row(self, index: int) -> Tensor:
        """Everything seen of one sample, flat."""
        return torch.cat([x[index].flatten() for x in (*self.features[1:], self.images)])


def generator_declares(case: GeneratorCase) -> None:
    """Its attributes have the declared types and agree with each other."""
    g = case.generator
    require(bool(g.name) and isinstance(g.name, str), f"name is {g.name!r}; it must be text such as 'family:variant'.")
    require(bool(g.fingerprint), f"{g.name}: fingerprint is empty; it must identify weights and architecture.")
    names = g.action_space.names
    require(len(names) > 0, f"{g.name} declares no knob, so there is nothing for a policy to set.")
    require(len(set(names)) == len(names), f"{g.name} declares a knob twice: {list(names)}.")
    require(g.action_space.schedule is None, f"{g.name}: action_space must be unbound; do not call bind on it.")
    for what, size in (("grid", g.grid), ("image_size", g.image_size)):
        require(
            len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size),
            f"{g.name}: {what} is {size}; it must be two positive integers.",
        )
    kinds = ("class", "text", "none")
    require(g.context_kind in kinds, f"{g.name}: context_kind is {g.context_kind!r}; it must be one of {kinds}.")
    require(
        (g.context_kind == "class") == (g.num_classes is not None),
        f"{g.name}: num_classes is {g.num_classes} with context_kind {g.context_kind!r}; class generators alone have it.",
    )
    if g.class_names is not None:
        require(
            len(g.class_names) == g.num_classes,
            f"{g.name}: {len(g.class_names)} class names for {g.num_classes} classes.",
        )
    for part, count in g.parameters_count().items():
        require(count > 0, f"{g.name}: parameters_count()[{part!r}] is {count}; leave out what has none.")
    tried, taken = (2, case.steps, 5), 0
    for steps in tried:
        try:
            rows = g.decisions(steps)
        except ConfigError:  # one that draws scale by scale has no more steps than scales
            continue
        taken += 1
        require(rows >= 1, f"{g.name}: decisions({steps}) is {rows}; an image needs at least one action.")
        shape = parse_schedule(g.default_schedule, g.action_space, rows).shape
        require(shape == (rows, len(names)), f"{g.name}: default_schedule gives {tuple(shape)} for {steps} steps.")
    require(taken > 0, f"{g.name}: decisions refuses {', '.join(map(str, tried))} steps; it must take some number of them.")
    variants = type(g).variants()
    require(
        isinstance(variants, tuple) and len(variants) > 0,
        f"{g.name}: variants() is {variants!r}; it must be a tuple of names, the default first.",
    )


def generator_contexts(case: GeneratorCase) -> None:
    """Contexts are drawn by the seeds alone; those of another kind are refused."""
    g = case.generator
    wrong: list[tuple[str, Callable[[], Any]]] = []
    if g.context_kind != "text":
        wrong.append(("encode_prompts", lambda: g.encode_prompts(["a dog"])))
    if g.num_classes is not None:
        wrong.append(("encode_classes with an id too large", lambda: g.encode_classes([g.num_classes or 0])))
    else:
        wrong.append(("encode_classes", lambda: g.encode_classes([0])))
    for what, call in wrong:
        try:
            call()
        except ConfigError:
            continue
        raise AssertionError(f"{g.name}: {what} must raise ConfigError.")
    try:
        drawn = g.sample_contexts(case.noise)
    except ConfigError:
        require(
            g.context_kind == "text" and g.real_images() is None,
            f"{g.name}: sample_contexts refuses; only a text generator without captions may.",
        )
        return
    require(len(drawn) == len(SEEDS), f"{g.name}: sample_contexts gives {len(drawn)} contexts for {len(SEEDS)} seeds.")
    torch.manual_seed(5)
    again = g.sample_contexts(case.noise.select(torch.tensor([2, 0], device=g.device)))
    require(
        [drawn.describe(2), drawn.describe(0)] == [again.describe(0), again.describe(1)],
        f"{g.name}: sample_contexts must depend on each sample's own seed alone.",
    )


def generator_shapes(case: GeneratorCase) -> None:
    """Features and images have the declared shapes, types and ranges, and carry no gradient."""
    g = case.generator
    with torch.enable_grad():
        seen = case.run()
    shape = (len(SEEDS), g.grid[0] * g.grid[1], g.feature_dim)
    for t, features in enumerate(seen.features):
        found = (tuple(features.shape), features.dtype)
        require(found == (shape, torch.float32), f"{g.name}: features are {found}, must be {shape} float32 (B, N, D).")
        require(bool(features.isfinite().all()), f"{g.name}: features of step {t} are not finite.")
        require(not features.requires_grad, f"{g.name}: features carry gradients; observe under torch.no_grad().")
    images, size = seen.images, (len(SEEDS), 3, *g.image_size)
    found = (tuple(images.shape), images.dtype)
    require(found == (size, torch.float32), f"{g.name}: images are {found}, must be {size} float32 (B, 3, H, W).")
    low, high = float(images.min()), float(images.max())
    require(low >= 0 and high <= 1, f"{g.name}: pixels go from {low:g} to {high:g}; they must lie in [0, 1].")
    require(float(images.std()) > 1e-3, f"{g.name}: the images are one flat colour.")
    require(not images.requires_grad, f"{g.name}: images carry gradients; decode under torch.no_grad().")


def generator_statistics(case: GeneratorCase) -> None:
    """Statistics of the prediction, where it has any, are finite, named, and each sample's own; else they are refused."""
    g = case.generator
    names, state = g.statistic_names, g.reset(case.context, case.noise, case.steps)
    if not names:
        try:
            g.statistics(state)
        except ConfigError:
            return
        raise AssertionError(f"{g.name}: statistics gives something, but statistic_names is empty; name each column.")
    require(len(set(names)) == len(names), f"{g.name}: statistic_names names one twice: {list(names)}.")
    first = torch.tensor([0], device=g.device)
    alone = g.reset(case.context.select(first), Noise(case.noise.seeds[first]), case.steps)
    for row in case.schedule():
        values, own = g.statistics(state), g.statistics(alone)
        found, shape = (tuple(values.shape), values.dtype), (len(SEEDS), len(names))
        require(found == (shape, torch.float32), f"{g.name}: statistics are {found}, must be {shape} float32 (B, K).")
        require(bool(values.isfinite().all()), f"{g.name}: statistics hold a number that is not finite.")
        gap = float((own[0] - values[0]).abs().max())
        require(
            gap <= case.tolerance,
            f"{g.name}: statistics of a sample alone differ by {gap:.3g} from those in a batch; samples must not mix.",
        )
        state, alone = g.step(state, row, case.noise), g.step(alone, row[:1], Noise(case.noise.seeds[first]))


def generator_depends_on_its_seed_alone(case: GeneratorCase) -> None:
    """The same seed and context give the same image, in any batch and whatever the global random state is."""
    g = case.generator
    torch.manual_seed(1)
    first = case.run()
    torch.manual_seed(2)
    again = case.run()
    require(
        torch.equal(first.images, again.images),
        f"{g.name}: two runs with one seed differ; draw from the given noise only, never from torch's global state.",
    )
    for row in range(len(SEEDS)):
        alone = case.run(rows=[row])
        gap = float((alone.images[0] - first.images[row]).abs().max())
        require(
            gap <= case.tolerance,
            f"{g.name}: an image made alone differs by {gap:.3g} from the same one in a batch; samples must not mix.",
        )
        if isinstance(g, TokenGenerator):
            require(
                torch.equal(alone.state.tokens[0], first.state.tokens[row])
                and torch.equal(alone.state.proposal[0], first.state.proposal[row]),
                f"{g.name}: tokens made alone differ from those of the same sample in a batch.",
            )
    require(not torch.equal(case.run(shift=100).images, first.images), f"{g.name}: other seeds give the same images.")


def generator_reads_its_context(case: GeneratorCase) -> None:
    """Another context gives other features."""
    g = case.generator
    if g.context_kind == "none" or len(case.context.distinct()[0]) < 2:
        return
    second = torch.tensor([1], device=g.device)
    same_seed = Noise(case.noise.seeds[:1])
    states = [g.reset(c, same_seed, case.steps) for c in (case.context.select(second - 1), case.context.select(second))]
    for row in case.schedule()[:-1]:  # features of the first state may not depend on it; those of the last one must
        states = [g.step(state, row[:1], same_seed) for state in states]
    gap = (g.observe(states[0]) - g.observe(states[1])).abs().max()
    require(
        float(gap) > 1e-6, f"{g.name} is {g.context_kind}-conditional, but its features do not depend on the context."
    )


def generator_obeys_its_knobs(case: GeneratorCase) -> None:
    """Each declared knob changes the sample it is turned for, and no other sample."""
    g, table = case.generator, case.schedule()
    # From the middle of each range: a schedule may rest where a knob has no effect, such as temperature 0.
    for column, knob in enumerate(g.action_space.knobs):
        if knob.transform == "sigmoid":
            table[:-1, :, column] = table[:-1, :, column].clamp(0.5 * knob.high, 0.8 * knob.high)
    plain = case.run(table)
    for column, knob in enumerate(g.action_space.knobs):
        changed = False
        for value in (0.2 * knob.high, 0.95 * knob.high) if knob.transform == "sigmoid" else (5.0, 0.2):
            turned = table.clone()
            turned[:, 1, column] = value
            result = case.run(turned)
            changed = not torch.equal(result.row(1), plain.row(1))
            for other in (0, 2):
                gap = float((result.row(other) - plain.row(other)).abs().max())
                require(
                    gap <= case.tolerance,
                    f"{g.name}: turning {knob.name} for one sample changes another one by {gap:.3g}; apply it row by row.",
                )
            if changed:
                break
        require(changed, f"{g.name} declares the knob {knob.name}, but turning it changes nothing; leave it out.")


def generator_in_threads(case: GeneratorCase) -> None:
    """One that says that it is thread-safe makes the same images in several threads at once."""
    g = case.generator
    if not g.thread_safe:
        return
    alone = [case.run(rows=[i]) for i in range(len(SEEDS))]
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        together = list(pool.map(torch.no_grad()(lambda i: case.run(rows=[i])), range(len(SEEDS))))
    for one, other in zip(alone, together, strict=True):
        gap = float((one.row(0) - other.row(0)).abs().max())
        require(
            gap <= case.tolerance,
            f"{g.name} says thread_safe, but in several threads a sample changes by {gap:.3g}; keep what belongs to a sample "
            "in its state, or leave thread_safe False.",
        )


def generator_tokens(case: GeneratorCase) -> None:
    """A token generator starts from all mask, masks less and less, proposes valid codes, and keeps known tokens."""
    g = case.generator
    if not isinstance(g, TokenGenerator):
        return
    require(
        g.mask_id >= g.codebook_size > 1,
        f"{g.name}: mask_id {g.mask_id} must not be a code (0..{g.codebook_size - 1}).",
    )
    state = g.reset(case.context, case.noise, case.steps)
    masked = [int((state.tokens == g.mask_id).sum())]
    require(masked[0] == state.tokens.numel(), f"{g.name}: the first state must be all mask.")
    for row in case.schedule():
        logits = g.predict(state.tokens, state.context)[0]
        shape = (len(SEEDS), g.cells, g.codebook_size)
        found = (tuple(logits.shape), logits.dtype)
        require(found == (shape, torch.float32), f"{g.name}: logits are {found}, must be {shape} float32.")
        require(bool(logits.isfinite().all()), f"{g.name}: logits are not finite.")
        state = g.step(state, row, case.noise)
        masked.append(int((state.tokens == g.mask_id).sum()))
    require(masked == sorted(masked, reverse=True), f"{g.name}: masked cells go {masked}; they must not increase.")
    proposal = state.proposal
    low, high = int(proposal.min()), int(proposal.max())
    require(
        proposal.dtype == torch.int64 and low >= 0 and high < g.codebook_size,
        f"{g.name}: the last proposal is {proposal.dtype} from {low} to {high}, must be int64 codes.",
    )
    editable = torch.zeros(len(SEEDS), g.cells, dtype=torch.bool, device=g.device)
    editable[:, : g.cells // 2] = True
    known = proposal.masked_fill(editable, g.mask_id)
    state = g.reset(case.context, case.noise, case.steps, tokens=known, editable=editable)
    for row in case.schedule():
        state = g.step(state, row, case.noise)
        require(
            torch.equal(state.tokens[~editable], proposal[~editable]),
            f"{g.name}: a known token changed in masked editing.",
        )


GENERATOR_CHECKS: tuple[Callable[[GeneratorCase], None], ...] = (
    generator_declares,
    generator_contexts,
    generator_shapes,
    generator_statistics,
    generator_depends_on_its_seed_alone,
    generator_reads_its_context,
    generator_obeys_its_knobs,
    generator_in_threads,
    generator_tokens,
)


def check_generator(generator: Generator) -> None:
    """Run all of ``GENERATOR_CHECKS``.

    Raises:
        AssertionError: naming what the contract wants.
    """
    case = GeneratorCase(generator)
    for check in GENERATOR_CHECKS:
        check(case)
