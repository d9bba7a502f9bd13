"""``adanat train``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import note, print_json, print_result

if TYPE_CHECKING:
    from adanat_toolkit.training import RunConfig


def train(
    context: typer.Context,
    generator: options.FrozenGenerator = None,
    reward: Annotated[
        str | None, typer.Option(metavar="NAME", help="Reward, or a mixture such as adversarial:1,clip-score:0.3.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Kind of policy: adaptive, residual, lean, context or shared.")
    ] = None,
    engine: Annotated[str | None, typer.Option(metavar="NAME", help="What trains: adanat, sb3 or offline.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="T", help="Generation steps of an image.")] = None,
    trajectories: Annotated[int | None, typer.Option(help="Images to generate for training, the unit of work.")] = None,
    batch: Annotated[int | None, typer.Option(help="Trajectories of one iteration.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Images in flight at once.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute type of the generator: auto, float32 or bfloat16.")] = None,
    decoder: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="What the reward sees images through: own, distilled, or a file."),
    ] = None,
    gpus: options.Gpus = None,
    data: options.Data = None,
    weights: options.Weights = None,
    offline: options.Offline = False,
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="Settings to start from, such as demo, gpu, paper or adagen.")
    ] = "default",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Settings as printed by --dry-run; flags override them.")
    ] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also log to tensorboard or wandb (repeatable).")
    ] = None,
    set_: options.Set = None,
    out: options.Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and what the run will need, and stop.")
    ] = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Train a policy. The same command continues an interrupted run."""
    flags: dict[str, Any] = {
        "engine": engine,
        "steps": steps,
        "trajectories": trajectories,
        "batch": batch,
        "micro_batch": micro_batch,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "decoder": decoder,
        "offline": offline or None,
        "tracker": tracker or None,
        "generator": _given(name=generator, options=_given(weights=weights)),
        "reward": _given(name=reward),
        "policy": _given(name=policy),
        "data": _given(path=data),
    }
    from adanat_toolkit.training import resolve

    from .ranks import ranks

    with ranks(context) as here:
        settings = resolve(preset=preset, file=config, flags=_given(**flags), overrides=set_ or ())
        here.start(settings.device)
        _train(settings, out, dry_run=dry_run, quiet=quiet or not here.main, json=json)


def _train(settings: RunConfig, out: Path | None, *, dry_run: bool, quiet: bool, json: bool) -> None:
    from adanat_toolkit.commands.inputs import begin_run
    from adanat_toolkit.runtime import is_main, world_size
    from adanat_toolkit.storage import RunFolder
    from adanat_toolkit.training import Callback

    from .progress import TrainingProgress

    folder, settings, trainer = begin_run(settings, out)
    if dry_run:
        _print_plan(settings.model_dump(mode="json"), trainer.plan(), as_json=json)
        return
    progress = TrainingProgress(settings.iterations, quiet=quiet)

    class Shown(Callback):
        """Says what is done once it is certain: a folder that does not fit was refused before."""

        def on_start(self, iteration: int) -> None:
            several = f" in {world_size()} processes" if world_size() > 1 else ""
            what = (
                f"continuing after iteration {iteration} of {settings.iterations}"
                if iteration
                else f"{settings.iterations} iterations of {settings.batch} trajectories, T={settings.steps}, "
                f"on {trainer.device}{several} in {str(trainer.generator.dtype).removeprefix('torch.')}"
            )
            note(f"{folder}: {what}", quiet=quiet)
            display.enter_context(progress)

        def on_iteration(self, row: dict[str, Any]) -> None:
            progress.update(row)

    try:
        with ExitStack() as display:
            result = trainer.run(folder, callbacks=[Shown()])
    except KeyboardInterrupt:
        done = RunFolder(folder).checkpoints()
        note(
            f"interrupted; the same command continues after iteration {done[-1] if done else 0} of {settings.iterations}",
            quiet=not is_main(),
        )
        raise
    note(f"done: adanat sample --policy {folder}", quiet=quiet)
    if json:
        print_json(result)


def _given(**values: Any) -> dict[str, Any]:
    """The values that are neither None nor empty."""
    return {key: value for key, value in values.items() if value not in (None, {})}


def _print_plan(settings: dict[str, Any], plan: dict[str, Any], *, as_json: bool) -> None:
    """The settings as YAML that --config reads, the plan as comments in it; or both as JSON."""
    if as_json:
        print_json({"config": settings, "plan": plan})
        return
    import yaml

    print_result(yaml.safe_dump(settings, sort_keys=False), end="")
    print_result("#\n# What the run will need:")
    for line in yaml.safe_dump(plan, sort_keys=False).splitlines():
        print_result(f"#   {line}")
