"""One process, two and three compute the same: collectives, training, and resuming with another number of processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from adanat_toolkit.core import Context
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.runtime import distributed, gather
from adanat_toolkit.runtime.distributed import local_slice, mean_and_std, sum_gradients, sum_over_ranks
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.storage.files import load_tensors
from adanat_toolkit.training import Trainer, create_trainer, merge, validate
from adanat_toolkit.training.diversity import context_diversity

from ..helpers.train_process import PRELOADED, SERVER, write_images

TOLERANCE = 1e-5


def _enter(function: Callable[..., None], rank: int, size: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{size}", rank=rank, world_size=size)
    function(folder, *arguments)
    if size > 1:
        dist.destroy_process_group()


def run_ranks(
    size: int, function: Callable[..., None], folder: Path, *arguments: Any, until: Callable[[], bool] | None = None
) -> None:
    """``function(folder, *arguments)`` in ``size`` processes; killed once ``until`` holds, else run to their end."""
    SERVER.set_forkserver_preload(PRELOADED)
    (folder / f"rendezvous{size}").unlink(missing_ok=True)
    ranks = [SERVER.Process(target=_enter, args=(function, rank, size, str(folder), arguments)) for rank in range(size)]
    for process in ranks:
        process.start()
    try:
        while any(p.is_alive() for p in ranks) and not (until is not None and until()):
            assert not any(p.exitcode for p in ranks), "a rank failed; see its traceback above"
            ranks[0].join(0.02)
    finally:
        for process in ranks:
            process.kill() if any(p.exitcode for p in ranks) or until is not None else process.join()
            process.join()
    assert until is not None or [p.exitcode for p in ranks] == [0] * size


# --- collectives ------------------------------------------------------------------------------------------------------


def _collectives(folder: str, total: int) -> None:
    values = torch.randn(total, 3, generator=torch.Generator().manual_seed(0)) + 1000
    start, stop = local_slice(total)
    own = values[start:stop]
    assert torch.equal(gather(own), values)
    assert gather(own.bfloat16()).dtype == torch.bfloat16
    assert distributed.position(len(own)) == (start, total)
    mean, std = mean_and_std(own)
    torch.testing.assert_close(mean, values.double().mean().float())
    torch.testing.assert_close(std, values.double().std().float())
    assert sum_over_ranks(torch.tensor([1.0])).item() == distributed.world_size()
    assert distributed.is_main() == (distributed.rank() == 0)

    # The gradient of a loss over all rows, from shares; a parameter that a rank does not use counts as zero there.
    weight, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    loss = (own @ weight).square().sum() / total
    if distributed.is_main():
        loss = loss + other.sum()
    loss.backward()
    sum_gradients([weight, frozen, other])
    expected = torch.ones(3, requires_grad=True)
    (values @ expected).square().mean().backward()
    torch.testing.assert_close(weight.grad, expected.grad)
    assert other.grad is not None and other.grad.tolist() == [1.0, 1.0] and frozen.grad is None

    # A loss over pairs of samples of different ranks.
    weight, expected = torch.nn.Parameter(torch.ones(3)), torch.ones(3, requires_grad=True)
    everyone = distributed.gather_with_gradient(own @ weight)
    (everyone[:, None] * everyone.flip(0)[None]).tanh().sum().backward()
    sum_gradients([weight])
    product = values @ expected
    (product[:, None] * product.flip(0)[None]).tanh().sum().backward()
    torch.testing.assert_close(weight.grad, expected.grad)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("total", [2, 7])
def test_collectives(size: int, total: int, tmp_path: Path) -> None:
    """With 2 rows and 3 ranks one of them has none."""
    run_ranks(size, _collectives, tmp_path, total)


def _batch(kind: str) -> tuple[Tensor, Context]:
    draw = torch.Generator().manual_seed(4)
    labels = torch.randint(9, (30,), generator=draw)
    embedded = torch.randn(30, 20, generator=draw) + labels[:, None]
    words = {"prompts": tuple(f"a cat in room {label}" for label in labels.tolist())}
    return embedded, Context(30, **({"classes": labels} if kind == "class" else words))


def _diversity(folder: str, expected: dict[str, float]) -> None:
    rows = slice(*local_slice(30))
    for kind, whole in expected.items():
        embedded, context = _batch(kind)
        assert context_diversity(embedded[rows], context.select(rows)) == pytest.approx(whole, rel=1e-5)


def test_diversity_is_that_of_all_processes(tmp_path: Path) -> None:
    """Images of one context count as such wherever they were made."""
    expected = {kind: context_diversity(*_batch(kind)) for kind in ("class", "text")}
    assert None not in expected.values()
    run_ranks(3, _diversity, tmp_path, expected)


def test_slices_cover_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 8):
        for total in (0, 1, 7, 8, 100):
            monkeypatch.setattr(distributed, "world_size", lambda size=size: size)
            slices = []
            for rank in range(size):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                slices.append(local_slice(total))
            assert [i for start, stop in slices for i in range(start, stop)] == list(range(total))
            assert max(b - a for a, b in slices) - min(b - a for a, b in slices) <= 1


def test_mean_and_std_of_large_means() -> None:
    values = torch.tensor([1e6, 1e6 + 1, 1e6 + 2])
    mean, std = mean_and_std(values)
    assert float(mean) == 1e6 + 1 and float(std) == pytest.approx(1, abs=1e-6)
    assert float(mean_and_std(torch.tensor([3.0]))[1]) == 0


# --- training ---------------------------------------------------------------------------------------------------------

BASE: dict[str, Any] = {
    "generator": {"name": "maskgit"}, "steps": 2, "trajectories": 32, "batch": 8, "device": "cpu", "dtype": "float32",
    "seed": 3, "checkpoint_every": 2,
    # Eleven real images are cut into 5 and 6, or 3, 4 and 4: each step takes some of every rank's.
    "reward": {"options": {"batch": 11, "updates": 2}},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "adaptive": {"ppo": {"minibatches": 2}},
    "shared in groups": {"policy": {"name": "shared"}, "ppo": {"group": 2, "gae_lambda": 0.9, "minibatches": 3}},
    "lean, in groups with a shrunk baseline": {
        "policy": {"name": "lean"},
        "ppo": {"group": 2, "group_baseline": "shrunk"},
    },
    "residual with a penalty, engine offline": {
        "engine": "offline",
        "policy": {"name": "residual", "options": {"penalty": 0.01}},
        "fit": {"actions": 2},
    },
    "linear, engine slopes": {"engine": "slopes", "policy": {"name": "linear"}, "fit": {"actions": 2}},
    "paper's rule": {"ppo": {"standardise": "returns", "minibatches": 1}, "reward": {"options": {"loss": "hinge"}}},
    "pairs, and part of the images": {
        "policy": {"name": "shared"},
        "reward": {"options": {"loss": "relativistic", "batch": 3, "r1": 0.1}},
    },
    "earlier images": {"policy": {"name": "shared"}, "reward": {"options": {"replay": 20, "replay_share": 0.6}}},
    "augmented images": {
        "policy": {"name": "shared"},
        "reward": {"options": {"augment": ["color", "translation", "cutout"], "updates": 1}},
    },
}


def _steps(folder: str, settings: Mapping[str, Any], number: int) -> None:
    trainer = create_trainer(validate(settings))
    # Adam divides a gradient by its size, so that the rounding of one near 0 moves a weight by the whole learning rate. With
    # this eps it does not, and a gradient that is wrong by a factor shows in the weights too.
    for optimiser in (trainer.optimiser, getattr(trainer.reward, "optimizer", None)):
        for group in optimiser.param_groups if optimiser is not None else ():
            group["eps"] = 1e-2
    rows = [trainer.step() for _ in range(number)]
    name = f"{folder}/{distributed.world_size()}-{distributed.rank()}"
    save_file({key: value.clone().contiguous() for key, value in trainer.state().items()}, f"{name}.safetensors")
    Path(f"{name}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def compare(what: str, own: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert own.keys() == expected.keys()
    for key in expected:
        size, error = float(expected[key].double().norm()), float((own[key].double() - expected[key].double()).norm())
        # Of the whole tensor: a single weight moves with the sign of a gradient that may be rounding alone.
        assert error < max(TOLERANCE, 1e-3 * size), f"{what}: {key} differs by {error:.2g} of {size:.2g}"


@pytest.mark.parametrize("case", CASES)
def test_many_processes_train_like_one(case: str, images: Path, tmp_path: Path) -> None:
    settings = merge(merge(BASE, CASES[case]), {"data": {"path": str(images)}})
    for size in (1, 2, 3):
        run_ranks(size, _steps, tmp_path, settings, 2)
    alone, rows = load_file(tmp_path / "1-0.safetensors"), json.loads((tmp_path / "1-0.json").read_text())
    assert any(key.startswith("reward.adam.") for key in alone) and any(
        float(v.abs().max()) > 0 for v in alone.values()
    )
    for size in (2, 3):
        ranks = [load_file(tmp_path / f"{size}-{rank}.safetensors") for rank in range(size)]
        for rank in ranks[1:]:
            assert all(torch.equal(rank[key], ranks[0][key]) for key in rank)  # no drift between ranks
        compare(f"{size} processes", ranks[0], alone)
        for own, expected in zip(json.loads((tmp_path / f"{size}-0.json").read_text()), rows, strict=True):
            assert own.keys() == expected.keys()
            for key in expected:
                if not key.startswith("seconds") and key != "trajectories_per_second":
                    assert own[key] == pytest.approx(expected[key], rel=1e-4, abs=TOLERANCE), f"{size}: {key}"


def _run(folder: str, settings: Mapping[str, Any], out: str) -> None:
    Trainer(validate(settings)).run(Path(out))


def test_resume_with_fewer_processes(images: Path, tmp_path: Path) -> None:
    settings = merge(BASE, {"data": {"path": str(images)}})
    first = tmp_path / "moved"
    # Killed at some moment after the first checkpoint is complete.
    run_ranks(3, _run, tmp_path, settings, str(first), until=lambda: 2 in RunFolder(first).checkpoints())
    assert 4 not in RunFolder(first).checkpoints()
    run_ranks(2, _run, tmp_path, settings, str(first))
    run_ranks(1, _run, tmp_path, settings, str(tmp_path / "alone"))
    for name in ("checkpoints/000004", "policy"):
        own, expected = (
            load_tensors(run / name, "policy" if name == "policy" else "state")[0]
            for run in (first, tmp_path / "alone")
        )
        compare("3, then 2 processes", own, expected)
    assert [row["iteration"] for row in RunFolder(first).metrics()] == [1, 2, 3, 4]
    assert not [p for p in first.rglob("*") if p.name.endswith((".tmp", ".old"))]


def test_more_processes_than_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match=r"batch = 8 gives 2 groups of trajectories for 3 processes"):
        Trainer(validate(merge(BASE, {"ppo": {"group": 4}})))
