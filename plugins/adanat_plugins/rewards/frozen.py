"""What the frozen, per-sample rewards share: one forward an image, prompts of any generator, image preparation."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from string import Formatter

from torch import Tensor

from adanat_toolkit.errors import ConfigError
from adanat_toolkit.interfaces import Context, Generator, PluginOptions, RewardModel, Source
from adanat_toolkit.storage import read_prompts

DEFAULT_TEMPLATE = "a photo of a {name}"
IMAGENET = "imagenet"


class FrozenReward(RewardModel):
    """A reward that learns nothing and looks at one image at a time: its embedding is the score itself."""

    thread_safe = True

    @abstractmethod
    def score(self, images: Tensor, context: Context) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B,) float32, higher is better."""

    def embed(self, images: Tensor, context: Context) -> Tensor:
        """(B, 1) float32, the scores: nothing else has to be kept of an image."""
        return self.score(images, context)[:, None]

    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        return embedded[:, 0]


# --- prompts ----------------------------------------------------------------------------------------------------------


class PromptOptions(PluginOptions):
    """How a reward that reads text gets it from a generator that does not."""

    template: str | None = None
    """Prompt of a class: ``{name}`` is the class name, ``{id}`` its number. Default: "a photo of a {name}". For an
    unconditional generator this is the prompt of every image, without fields."""
    class_names: Source = None
    """Text file with one class name a line, or ``imagenet`` for the 1,000 names that open_clip uses; default: the
    generator's own names."""


class Prompts:
    """Prompts of a batch, for any kind of generator.

    Attributes:
        by_class: one prompt a class, for a class-conditional generator; else None.

    Raises:
        ConfigError: the generator has no class names and none are given, their number differs, or the template does not
            fit the generator.
    """

    def __init__(self, owner: str, generator: Generator, options: PromptOptions) -> None:
        kind = generator.context_kind
        self.by_class: tuple[str, ...] | None = None
        self.constant: str | None = None
        if kind == "text":
            if options.template is not None or options.class_names is not None:
                raise ConfigError(
                    f"{generator.name} has prompts of its own, so template and class_names of reward "
                    f"{owner!r} do not apply; leave them out."
                )
        elif kind == "class":
            template = options.template or DEFAULT_TEMPLATE
            names = _class_names(owner, generator, options.class_names)
            self.by_class = tuple(_fill(template, {"name": name, "id": str(i)}) for i, name in enumerate(names))
        else:
            if options.template is None:
                raise ConfigError(
                    f"reward {owner!r} compares images with text, and {generator.name} is unconditional. "
                    'Give one prompt for all images: --set reward.options.template="a photo of a cat".'
                )
            self.constant = _fill(options.template, {})

    def __call__(self, context: Context) -> tuple[str, ...]:
        """The B prompts of a batch.

        Raises:
            ConfigError: the context of a text generator came without its prompts.
        """
        if self.constant is not None:
            return (self.constant,) * len(context)
        if self.by_class is not None:
            assert context.classes is not None
            return tuple(self.by_class[i] for i in context.classes.tolist())
        if context.prompts is None:
            raise ConfigError("these contexts have no prompts; make them with the generator's encode_prompts.")
        return context.prompts


def _fill(template: str, fields: dict[str, str]) -> str:
    try:
        for _, field, _, _ in Formatter().parse(template):
            if field is not None and field not in fields:  # parts of a field, such as {name.upper}, are none either
                raise KeyError(field)
        return Formatter().vformat(template, (), fields)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        known = " and ".join(f"{{{f}}}" for f in fields) or "no fields, since there are no classes"
        raise ConfigError(f"template {template!r} does not fit ({error}); it may use {known}.") from None


def _class_names(owner: str, generator: Generator, source: str | None) -> tuple[str, ...]:
    count = generator.num_classes
    if source is None:
        if generator.class_names is None:
            raise ConfigError(
                f"reward {owner!r} needs the names of the {count} classes of {generator.name}, which has none. Give a "
                f"text file with one name a line: --set reward.options.class_names=FILE (or {IMAGENET!r} for those)."
            )
        names = tuple(generator.class_names)
    elif source == IMAGENET:
        import open_clip

        names = tuple(open_clip.IMAGENET_CLASSNAMES)
    else:
        names = read_prompts(Path(source).expanduser(), what="class name")
    if len(names) != count:
        where = source or generator.name
        raise ConfigError(f"{where} has {len(names)} class names, but {generator.name} has {count} classes.")
    return names


# --- images -----------------------------------------------------------------------------------------------------------
