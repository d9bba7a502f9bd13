"""What the site is built with beside mkdocs: pages and tables made from the code, and formulas without a script.

A page asks for generated text with a comment on a line of its own:

- ``<!-- generated: commands -->``: every command with its arguments and options, from the Typer application.
- ``<!-- generated: options MODULE:CLASS -->``: a table of a pydantic model's settings, from its fields and docstrings.
- ``<!-- generated: presets -->``: the presets.
- ``<!-- generated: figures -->``: the figures of an evaluation, with their titles and directions.

Pages that live elsewhere in the repository (notices) are taken over by :data:`TAKEN`.
"""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).parents[1]
TAKEN = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "emoji64-notice.md": "plugins/adanat_plugins/emoji64/NOTICE.md",
}
"""Page -> file in the repository."""

OWN_OF_TYPER = ("help", "install_completion", "show_completion")

_GENERATED = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


# --- what mkdocs calls ------------------------------------------------------------------------------------------------


def on_files(files: Any, *, config: Any) -> Any:
    from mkdocs.structure.files import File

    for page, source in TAKEN.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    makers = {
        "commands": lambda _: commands_text(),
        "options": options_text,
        "presets": lambda _: presets_text(),
        "figures": lambda _: figures_text(),
    }
    return _GENERATED.sub(lambda found: makers[found[1]](found[2]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show themselves."""
    return _FORMULA.sub(lambda found: _mathml(found[3], block=found[2] == "["), content)


def _mathml(tex: str, *, block: bool) -> str:
    from latex2mathml.converter import convert

    text = convert(html.unescape(tex).strip(), display="block" if block else "inline")
    return f'<div class="formula">{text}</div>' if block else text


# --- commands ---------------------------------------------------------------------------------------------------------


def walk(command: Any, path: tuple[str, ...] = ("adanat",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of a command and everything below it, in the order of the help."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


def application() -> Any:
    """The whole command line as a tree of click commands."""
    import typer.main

    from adanat_cli.main import app

    return typer.main.get_command(app)


def commands_text() -> str:
    parts = []
    for path, command in walk(application()):
        context = command.context_class(command, info_name=path[-1])
        anchor = "-".join(path)
        given = [p for p in command.params if p.name not in OWN_OF_TYPER and not p.hidden]
        rows = [(p, *_described(p, context)) for p in given]
        words = [
            *path,
            "[OPTIONS]",
            *(signature for p, signature, _ in rows if p.param_type_name == "argument"),
            *(["COMMAND"] if getattr(command, "commands", None) else []),
        ]
        parts.append(f"{'#' * max(2, len(path))} {' '.join(path)} {{ #{anchor} }}")
        parts.append(_prose(inspect.cleandoc(command.help or "")))
        parts.append(f"```text\n{' '.join(words)}\n```")
        for kind in ("argument", "option"):
            lines = [
                f"| {_signature(signature, f'{anchor}--' + p.name.rstrip('_').replace('_', '-'))} | {meaning} |"
                for p, signature, meaning in rows
                if p.param_type_name == kind
            ]
            if lines:
                parts.append(f"| {kind} | meaning |\n|---|---|\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _signature(text: str, anchor: str) -> str:
    """``-o, --out FOLDER`` -> names, with an anchor, and value, each as code."""
    found = re.fullmatch(r"((?:--?[\w-]+(?:, )?)+|\S+)(?: (.*))?", text)
    assert found is not None, text
    names, value = found.groups()
    return f"`{names}`{{ #{anchor} }}" + (f" `{value}`" if value else "")


def _described(parameter: Any, context: Any) -> tuple[str, str]:
    """(names and value, meaning with the default) of an argument or option, from its help record."""
    names, text = parameter.get_help_record(context)
    names = re.sub(r"<int range>|<int>|INTEGER RANGE|INTEGER", "N", names)
    names = re.sub(r"<str>|<list\[str\]>", "TEXT", names)
    if parameter.param_type_name == "argument":  # [NAME] <str>
        names = (parameter.metavar or names.split()[0].upper()).strip()
    notes = []
    tail = re.search(r"\s*\[((?:default: |required|x[<>]|\d+<).*)\]$", text)
    if tail is not None:
        text = text[: tail.start()]
        for part in tail[1].split("; "):
            if part == "required":
                notes.insert(0, "**Required.**")
            elif part.startswith("default: "):
                notes.append(f"Default: `{part.removeprefix('default: ')}`.")
            else:
                notes.append(part.replace("x>=", "At least ").replace("x<=", "At most ") + ".")
    return names, " ".join([_prose(text), *notes])


def _prose(text: str) -> str:
    """Help texts as Markdown: options and commands as code, the rest as it is read."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    text = re.sub(r"([*_\[\]])", r"\\\1", text)
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", text)


# --- settings ---------------------------------------------------------------------------------------------------------


def options_text(target: str) -> str:
    """Table of ``MODULE:CLASS``; nested models are written out as ``name.inner``."""
    module, _, name = target.partition(":")
    rows = [
        f"| `{key}` | {_values(field)} | {_default(field)} | {meaning} |"
        for key, field, meaning in fields_of(getattr(importlib.import_module(module), name))
    ]
    table = "\n".join(["| setting | values | default | meaning |", "|---|---|---|---|", *rows])
    return f'<div class="options" markdown>\n\n{table}\n\n</div>'


def fields_of(model: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(key, field, meaning) of every setting of a pydantic model, in order."""
    from pydantic import BaseModel

    meanings = _docstrings(model)
    for name, field in model.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field, meanings.get(name, "")


def _docstrings(model: Any) -> dict[str, str]:
    """The strings below the fields, of the class and those it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not hasattr(cls, "model_fields") or cls.__module__.startswith("pydantic"):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for above, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name) and isinstance(below, ast.Expr):
                text = below.value.value if isinstance(below.value, ast.Constant) else None
                if isinstance(text, str):
                    found[above.target.id] = _restructured(" ".join(inspect.cleandoc(text).split()))
    return found


def _restructured(text: str) -> str:
    """A docstring's sentence as Markdown: code, and pages of this site as links."""
    text = text.replace("``", "`").replace("|", "&#124;").replace("<", "&lt;")
    return re.sub(r"docs/([\w/-]+)\.md", r"[\1](\1.md)", text)


def _values(field: Any) -> str:
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
    parts = [_type(field.annotation)]
    for constraint in field.metadata:
        parts += [f"{sign} {getattr(constraint, key)}" for key, sign in limits.items() if hasattr(constraint, key)]
    return ", ".join(parts)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(a) for a in arguments if a is not NoneType)
    if origin in (tuple, list):
        inner = [a for a in arguments if a is not Ellipsis]
        if Ellipsis in arguments or origin is list:
            return f"list of {_type(inner[0])}"
        return f"{len(inner)} of {_type(inner[0])}"
    if origin is dict:
        return "mapping"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None or default in ({}, ()):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{list(default) if isinstance(default, tuple) else default}`"


def presets_text() -> str:
    import yaml

    from adanat_toolkit.training import BY_POLICY, PRESETS

    def block(title: str, values: dict[str, Any]) -> str:
        body = yaml.safe_dump(values, sort_keys=False).strip() if values else "# the defaults above"
        return f"{title}\n\n```yaml\n{body}\n```"

    parts = []
    for name, values in PRESETS.items():
        parts.append(block(f"**`{name}`**", values))
        parts += [block(f"`{name}` with policy `{policy}` also:", more) for policy, more in BY_POLICY.get(name, {}).items()]
    return "\n\n".join(parts)


# --- figures ----------------------------------------------------------------------------------------------------------


def figures_text() -> str:
    from adanat_toolkit.metrics import TABLE, direction

    reads = {
        "features": "features",
        "probabilities": "the class probabilities of the protocol's network",
        "prompts": "images and prompts",
    }
    rows = [f"| `{name}` | {one.title} | {direction(name)} | {reads[one.reads]} |" for name, one in TABLE.items()]
    return "\n".join(["| figure | in words | direction | computed from |", "|---|---|---|---|", *rows])
