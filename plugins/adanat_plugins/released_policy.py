"""The published AdaNAT and AdaGen policies: a file's actor as an adaptive policy of the toolkit.

AdaNAT's file is one pickled mapping: ``model`` with ``policy.actor.*`` (and critic, and frozen copies), the discriminator,
both optimisers, counters, and ``args``, an ``argparse.Namespace``, which ``torch.load(weights_only=True)`` refuses. The
actor's tensors and the plain values are taken here, and nothing in the file is run. AdaGen's file is the actor alone; what
it was trained with is a :class:`Recipe`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adanat_toolkit.core import ActionSpace, parse_schedule
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import Generator
from adanat_toolkit.limits import MOST_STEPS
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, SamplingPolicy

from .weights import Shapes, flatten, load_into, plain, read_tree, select, strip_prefixes, unwrap

DEFAULT_STEPS = 8
"""Of a file that does not say; the published policies make an image in 8 steps."""

@dataclass(frozen=True)
class Recipe:
    """What a released policy's actions are added to, and how.

    Attributes:
        schedule: text. steps: T where nobody says. smoothing: see ``ActionSpace``. residual: whether they are added at all.
    """

    schedule: str
    steps: int
    smoothing: float = 0.0
    residual: bool = True

    def changed(self, text: str) -> Recipe:
        """With changes such as ``smoothing=0.4,guidance=1.5``: the smoothing, and values of knobs as in a schedule.

        Raises:
            ConfigError: the smoothing is no number.
        """
        made = self
        for part in (part.strip() for part in text.split(",") if part.strip()):
            name, _, value = part.partition("=")
            if name != "smoothing":
                made = replace(made, schedule=f"{made.schedule},{part}")
                continue
            try:
                made = replace(made, smoothing=float(value))
            except ValueError:
                raise ConfigError(f"cannot read {part!r}; write smoothing=S with S in [0, 1).") from None
        return made

    def bind(self, generator: Generator, steps: int, outputs: int) -> ActionSpace:
        """The generator's action space with the first ``outputs`` knobs acted."""
        unbound = generator.action_space
        # Released schedules of times have T + 1 rows, of which an odd T leaves the last one out.
        rows = steps + 1 if "time" in unbound.names else generator.decisions(steps)
        table = parse_schedule(self.schedule, unbound, rows)[: generator.decisions(steps)]
        return unbound.bind(
            table, acted=unbound.names[:outputs], residual=self.residual, smoothing=self.smoothing, steps=steps
        )


ADAGEN = {
    "maskgit:adanat-imagenet-l": Recipe("adanat", 16, 0.8),
    "dit:xl-2-256": Recipe("time=0.9:0.01,guidance=1", 16, 0.4),
    "sit:xl-2-256": Recipe("time=0.01:0.99,guidance=1.5", 16, 0.8),
    "var:d16": Recipe("guidance=1.5,top_k=900,top_p=0.96,token_temperature=1", 10),
    "var:d30": Recipe("guidance=2,top_k=900,top_p=0.96,token_temperature=1", 10),
}
"""AdaGen's settings of each model (its released configurations); its files do not say them."""


def adagen_settings(generator: str) -> dict[str, Any]:
    """What the preset ``adagen`` sets for a generator ``family:variant``: schedule, smoothing and T as released.

    A variant that AdaGen has none of gets its family's smoothing, and keeps its own schedule and T.
    """
    if generator in ADAGEN:
        recipe = ADAGEN[generator]
        return {"steps": recipe.steps, "policy": {"schedule": recipe.schedule, "smoothing": recipe.smoothing}}
    family = generator.partition(":")[0]
    smoothing = next(recipe.smoothing for name, recipe in ADAGEN.items() if name.partition(":")[0] == family)
    return {"policy": {"smoothing": smoothing}}


_COUNTERS = ("global_step", "num_trajectories", "num_agent_updates", "num_discriminator_updates")


@dataclass(frozen=True)
class PolicyFacts:
    """What a published checkpoint says about its policy.

    Attributes:
        feature_dim: width of the generator's features. outputs: acted knobs, in the published order mask ratio, mask
            temperature, token temperature, guidance.
        cells: cells after the policy's halving convolution: 64 for a 16x16 grid.
        residual: whether actions are added to the ``adanat`` schedule (the option ``heu``): False in the ImageNet
            recipe, True in the CC3M one; None where the file does not say.
        bare: the file is AdaGen's, the actor alone.
        steps: the number of generation steps it was trained for, where the file says.
        counters, arguments: the rest, plain values only.
    """

    feature_dim: int
    outputs: int
    cells: int
    residual: bool | None
    steps: int | None
    counters: dict[str, int]
    arguments: dict[str, Any]
    bare: bool


def load_published_policy(path: Path | str) -> tuple[dict[str, Tensor], PolicyFacts]:
    """The actor's tensors, under the names of ``policies.AdaptiveNetwork``, and what the file says about them.

    Raises:
        WeightsError: the file cannot be read, or holds no actor.
    """
    tree = read_tree(path)
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} is not a published AdaNAT policy: it holds no named tensors.")
    state = strip_prefixes(dict(flatten(unwrap(tree))))
    actor = select(state, "policy.actor.")
    needed = ("dw_conv.weight", "linear1.weight", "linear3.weight", "pw_conv.weight")
    bare = not actor and all(name in state for name in needed)
    if bare:
        actor = state
    if any(name not in actor for name in needed):
        raise WeightsError(
            f"{path} is not a published AdaNAT policy: it holds no model/policy.actor.* tensors, nor AdaGen's bare ones. "
            "Give the file of a policy, not a generator's or a tokenizer's."
        )
    shapes = Shapes(actor, f"{path} is not a published AdaNAT policy", "the shapes of its policy.actor.* tensors")
    hidden, pointwise = (shapes.of(f"{name}_conv.weight", 4)[0] for name in ("dw", "pw"))
    embedded = "x_embedder.weight" in actor  # absent where the features have the policy's own width
    found = plain(tree.get("args", {}))
    arguments = found if isinstance(found, dict) else {}
    heuristic = arguments.get("heu")
    steps = _whole(arguments.get("gen_steps"))
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise WeightsError(f"{path} says that it makes an image in {steps} steps; 1 to {MOST_STEPS:,} are possible.")
    facts = PolicyFacts(
        feature_dim=shapes.of("x_embedder.weight", 2)[1] if embedded else hidden,
        outputs=shapes.of("linear3.weight", 2)[0],
        cells=shapes.of("linear1.weight", 2)[1] // pointwise,
        residual=None if heuristic is None else bool(heuristic),
        steps=steps,
        counters={name: count for name in _COUNTERS if (count := _whole(tree.get(name))) is not None},
        arguments=arguments,
        bare=bare,
    )
    return actor, facts


def _whole(value: Any) -> int | None:
    """A whole number, where there is one."""
    return int(value) if isinstance(value, int | float) and abs(value) < 2**63 else None


def published_policy(
    path: Path | str, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int
) -> tuple[AdaptivePolicy, PolicyFacts]:
    """A published checkpoint as an adaptive policy of a generator; features are read in float32, as published.

    Args:
        space: bound; its acted knobs are the policy's outputs, in order.

    Raises:
        WeightsError: the file is no policy, or was made for another generator (features, grid or number of knobs).
    """
    actor, facts = load_published_policy(path)
    cells = ((grid[0] + 1) // 2) * ((grid[1] + 1) // 2)
    own = (feature_dim, space.size, cells)
    if own != (facts.feature_dim, facts.outputs, facts.cells):
        raise WeightsError(
            f"{path} was made for features of width {facts.feature_dim}, {facts.outputs} knobs and {facts.cells} cells "
            f"after halving; this generator has {own[0]}, {own[1]} and {own[2]}. Use it with the generator it was "
            "trained on."
        )
    options = AdaptiveOptions(size="paper", feature_dtype="float32")
    policy = AdaptivePolicy(options, space=space, grid=grid, feature_dim=feature_dim)
    load_into(policy.actor.network, actor, source=str(path))
    return policy, facts


def read_policy(path: Path, generator: Generator, steps: int | None, changes: str = "") -> SamplingPolicy:
    """A published checkpoint, ready to sample with.

    AdaNAT's actions are added to the ``adanat`` schedule where the file says so (``heu``); where it says nothing, for
    text-conditional generators alone, which is how the published ones were trained. AdaGen's follow :data:`ADAGEN`.

    Args:
        steps: T; None takes the file's own, or the recipe's. changes: of the recipe, see :meth:`Recipe.changed`.

    Raises:
        WeightsError: the file is no policy, or one of another generator. ConfigError: other steps than the file's, or no
            recipe is known for the generator.
    """
    _, facts = load_published_policy(path)
    if steps is not None and facts.steps is not None and steps != facts.steps:
        raise ConfigError(f"the policy {path} makes an image in {facts.steps} steps, not {steps}; leave --steps out.")
    if facts.bare:
        if generator.name not in ADAGEN:
            raise ConfigError(
                f"{path} is a policy of AdaGen, which published none for {generator.name}; it has some for "
                f"{', '.join(ADAGEN)}."
            )
        recipe = ADAGEN[generator.name]
    else:
        residual = generator.context_kind == "text" if facts.residual is None else facts.residual
        recipe = Recipe("adanat", DEFAULT_STEPS, residual=residual)
    recipe = recipe.changed(changes)
    space = recipe.bind(generator, facts.steps or (recipe.steps if steps is None else steps), facts.outputs)
    network, _ = published_policy(path, space=space, grid=generator.grid, feature_dim=generator.feature_dim)
    card: dict[str, Any] = {"kind": "published", "file": path.name, "training": facts.counters}
    card |= {key: getattr(recipe, key) for key in ("residual", "schedule", "smoothing")}
    return SamplingPolicy(network, space, card=card)
