"""Options of plug-ins."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..settings import CheckedModel


@dataclass(frozen=True)
class NamesSource:
    """Marks an option that says where something comes from: a file, a folder, a hub id or an address. See :data:`Source`."""


Source = Annotated[str | None, NamesSource()]
"""Type of an option that names a source, such as ``weights: Source = None``.

Only the user's own command line names sources. What a run folder of someone else names is shown, and refused unless the
user gives it again.
"""


class PluginOptions(CheckedModel):
    """Base of every plug-in's ``Options``: frozen, unknown keys are rejected with suggestions, numbers are finite and fit
    into 64 bits and float32."""

    @classmethod
    def sources(cls) -> tuple[str, ...]:
        """The options that name sources: those of the type :data:`Source`."""
        fields = cls.model_fields.items()
        return tuple(name for name, field in fields if any(isinstance(m, NamesSource) for m in field.metadata))

    @classmethod
    def harmless(cls, name: str, value: Any) -> bool:
        """Whether a value of someone else's can be taken: a number, a switch, or one of the option's named choices."""
        if name in cls.sources():
            return False
        field = cls.model_fields.get(name)
        return isinstance(value, int | float) or (field is not None and _only_choices(field.annotation))


def _only_choices(annotation: Any) -> bool:
    """Whether a type takes numbers, switches and named choices alone, and no free text."""
    if get_origin(annotation) in (Union, UnionType):
        return all(_only_choices(part) for part in get_args(annotation))
    return get_origin(annotation) is Literal or annotation in (bool, int, float, NoneType)
