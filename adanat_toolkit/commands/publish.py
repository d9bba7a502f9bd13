"""``adanat publish``: a policy with its model card, in a folder or in a hub repository."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import Generator
from ..decoding import SamplingPolicy
from ..errors import ConfigError, OutputError, ReplacedError
from ..evaluation import RESULT, read_evaluation
from ..images import grid, side_by_side, write_png
from ..limits import check_seeds
from ..policies import load_policy
from ..registry import load
from ..sampling import sample, seed_range
from ..storage import (
    POLICY_FILES,
    RunFolder,
    card_digest,
    holds_files,
    is_hub_id,
    prepare_folder,
    upload_folder,
    write_file,
)

PICTURE = "comparison.png"
CARD = "README.md"
SHOWN = 16
PUBLISHED = (*POLICY_FILES, CARD, PICTURE)
_NO_RESULT = "This is no result of adanat evaluate --out; give its folder."


def publish(
    run: Path,
    target: str,
    generator: Generator,
    *,
    evaluation: Path | None = None,
    licence: str = "apache-2.0",
    public: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Write ``policy.safetensors``, ``policy.json``, ``README.md`` and ``comparison.png``.

    Args:
        run: a run folder or a policy folder. target: a folder, or a hub repository ``owner/name`` (where no folder of that
            name exists); a folder whose name reads like one is written ``./owner/name``.
        generator: the one the policy was trained for, for the pictures.
        evaluation: a folder or file of ``adanat evaluate --out``; None takes ``RUN/evaluation`` where it is. Only figures
            of exactly this policy are printed; without any, the card says so.
        licence: of the policy's weights, as the hub names it. public: whether a new hub repository is.
        seed: first seed of the pictures.

    Returns:
        ``target``, ``url`` (None for a folder), ``files``, ``evaluated``.

    Raises:
        ConfigError: no policy there, another generator, or an evaluation of another policy. CheckpointError: damaged
            files, or (``ReplacedError``) files that a training replaced meanwhile. OutputError: the target cannot be
            written, or is a folder with other things in it.
    """
    check_seeds(seed, SHOWN)
    spec = str(run)
    policy = load_policy(spec, generator)
    card = policy.card
    if card["kind"] in ("fixed", "blend"):
        raise ConfigError("a hand-made schedule or a blend has no weights of its own to publish; give a run folder.")
    inside = RunFolder(run).policy
    source = inside if os.path.exists(inside / "policy.json") else run
    judged = _evaluation_of(card, run, evaluation)
    counted = RunFolder(run).check_counted()
    metrics = RunFolder(run).metrics()[:counted]  # the policy is the checkpoint's
    on_hub = is_hub_id(target) and not target.startswith(("./", "../"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "policy" if on_hub else _folder(Path(target).expanduser())
        prepare_folder(folder)
        files = _policy_files(source, card)
        title = target.rpartition("/")[2] if on_hub else folder.resolve().name
        identifier = target if on_hub else f"./{folder.name}"
        text = model_card(title, identifier, policy, generator, judged, metrics, licence=licence, seed=seed)
        baseline = load_policy("fixed", generator, policy.steps)
        sheets = [_sheet(generator, shown, seed) for shown in (baseline, policy)]
        picture = side_by_side(sheets, ["hand-made schedule", f"this policy ({card['kind']})"])
        # All at once, when nothing is left that can fail: the folder may hold another policy, and its page.
        write_png(folder / PICTURE, picture)
        write_file(folder / CARD, text)
        for name in POLICY_FILES:  # what makes it a policy comes last
            write_file(folder / name, files[name])
        url = upload_folder(folder, target, public=public) if on_hub else None
    return {"target": target, "url": url, "files": list(PUBLISHED), "evaluated": judged is not None}


def model_card(
    title: str,
    identifier: str,
    policy: SamplingPolicy,
    generator: Generator,
    judged: tuple[dict[str, Any], dict[str, Any]] | None,
    metrics: list[dict[str, Any]],
    *,
    licence: str,
    seed: int,
) -> str:
    """The model card in Markdown, with the hub's metadata on top.

    Args:
        identifier: what users give to ``--policy``. judged: the evaluation's facts with its hand-made
            schedules, and this policy's row; None where it was not evaluated. metrics: the run's rows, may be empty.
    """
    card, space = policy.card, policy.space
    training = card["training"]
    kind = load("policy", card["kind"])
    source = {
        "features": "the generator's features",
        "statistics": "statistics of the generator's prediction",
        "context": "its class or prompt",
    }[kind.reads]
    head = [
        "---",
        f"license: {licence}",
        "library_name: adanat-toolkit",
        "tags: [adanat, image-generation, reinforcement-learning, sampling-policy]",
        "---",
        f"# {title}",
        "",
        f"A sampling policy for the frozen generator `{generator.name}`: it chooses {', '.join(space.acted)} at each of "
        f"{space.steps} steps"
        + (f", for every sample by itself from {source}." if kind.needs_features else ".")
        + " The generator is not part of it.",
        "",
        "```sh",
        f"adanat sample --policy {identifier}",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| kind | {_code(card['kind'])} |",
        f"| steps | {space.steps} |",
        f"| knobs it sets | {', '.join(space.acted)} |",
        f"| generator | `{generator.name}`, weights {_code(card['generator']['fingerprint'])} (others are refused) |",
        f"| trained on | {training['trajectories']} images of its own making, reward {_code(training['reward'])}, seed "
        f"{training['seed']}, engine {_code(training['engine'])} |",
        f"| toolkit | adanat-toolkit {_code(card['toolkit'])} |",
        f"| licence of these weights | {licence}; the generator's and its images' licences are its own |",
        "",
    ]
    means = [row.get("reward/mean") if isinstance(row, dict) else None for row in (*metrics[:1], *metrics[-1:])]
    if means and all(isinstance(mean, int | float) for mean in means):
        first, last = means
        head += [
            f"Mean training reward: {first:.4g} in the first iteration, {last:.4g} in the last; a reward that learns moves "
            "its own scale.",
            "",
        ]
    return "\n".join([*head, *_figures(judged), *_pictures(seed)]) + "\n"


def _figures(judged: tuple[dict[str, Any], dict[str, Any]] | None) -> list[str]:
    if judged is None:
        return ["## Figures", "", "This policy was published without an evaluation.", ""]
    facts, row = judged
    baseline: dict[str, Any] = next(
        (b for b in facts["baselines"] if b["steps"] == row["steps"]), {"figures": {}, "intervals": {}}
    )
    lines = ["## Figures", "", "| figure | this policy | hand-made schedule |", "|---|---|---|"]
    for name, value in row["figures"].items():
        if name in baseline["figures"]:
            lines.append(
                f"| {_name(name)} | {_value(row, name, value)} | {_value(baseline, name, baseline['figures'][name])} |"
            )
    ratio, interval = row["ratio"]["frechet"], (row["ratio_interval"] or {}).get("frechet")
    within = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    first, last = facts["seeds"]
    real = facts["real_images"] or "an unknown number of"
    lines += [
        "",
        f"Frechet distance over the hand-made one's: {ratio:.3f}{within}; below 1 is better.",
        "",
        f"Protocol: {facts['images']} images of seeds {first} to {last} against {real} real images; "
        f"features {_code(facts['protocol'])}; hand-made schedule {_code(row['baseline'])}, same seeds and contexts; computed "
        f"on {_code(facts['device'])} in {_code(facts['dtype'])}. Brackets are 95 % intervals.",
        "",
    ]
    lines += [f"- {_name(key)}: {_code(value)}" for key, value in facts["protocol_card"].items()]
    return [*lines, ""]


def _code(value: Any) -> str:
    """A text of a file as a code span, which neither Markdown nor HTML ends: no line breaks, fences longer than its own."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = text if len(text) <= 500 else text[:500] + "..."
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    inside = (text or "-").replace("|", "\\|")  # also inside code a bar would end a table's cell
    return f"{fence}{space}{inside}{space}{fence}"


def _name(name: str) -> str:
    """The name of a figure or fact: as it is where it is a plain word, else as :func:`_code`."""
    return name if re.fullmatch(r"[a-z][a-z0-9_ -]{0,60}", name) else _code(name)


def _value(row: Mapping[str, Any], name: str, value: float | None) -> str:
    if value is None:
        return ""
    pair = row["intervals"].get(name)
    return f"{value:.4g}" + (f" [{pair[0]:.4g}, {pair[1]:.4g}]" if pair is not None and len(pair) == 2 else "")


def _pictures(seed: int) -> list[str]:
    return [
        "## Pictures",
        "",
        f"The same seeds ({seed} to {seed + SHOWN - 1}) and contexts under both, not selected:",
        "",
        f"![images of the hand-made schedule and of this policy]({PICTURE})",
    ]


def _sheet(generator: Generator, policy: SamplingPolicy, seed: int) -> Tensor:
    parts = sample(generator, policy, seed_range(seed, SHOWN))
    return grid(torch.cat([part.images for part in parts]))


def _policy_files(source: Path, card: Mapping[str, Any]) -> dict[str, bytes]:
    """The policy's two files, which are those of the policy that was loaded."""
    files = {name: (source / name).read_bytes() for name in POLICY_FILES}
    weights, text = (files[name] for name in POLICY_FILES)
    if hashlib.sha256(weights).hexdigest() != card["sha256"] or card_digest(json.loads(text)) != card_digest(card):
        raise ReplacedError(f"{source} was replaced while it was read: its run is being trained. Run the command again.")
    return files


def _folder(path: Path) -> Path:
    """A folder that is new, empty, or holds a published policy already."""
    if path.is_dir() and holds_files(path) and not (path / POLICY_FILES[1]).exists():
        raise OutputError(f"{path} is not empty and holds no policy; give another target, so that nothing is mixed up.")
    return path


def _evaluation_of(
    card: Mapping[str, Any], run: Path, evaluation: Path | None
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The evaluation's facts and its row of this very policy."""
    given = evaluation if evaluation is not None else run / "evaluation"
    file = given / RESULT if given.is_dir() else given
    if evaluation is None and not file.is_file():
        return None
    facts = read_evaluation(file, error=ConfigError, remedy=_NO_RESULT)
    for row in facts["policies"]:
        if card_digest(row["card"]) == card_digest(card):
            return facts, row
    raise ConfigError(
        f"{file} judges other policies than the one in {run}: run adanat evaluate --policy {run} --out {given} again."
    )
