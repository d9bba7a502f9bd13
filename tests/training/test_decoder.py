"""Training through a distilled decoder: who sees its images and who does not, which one a run has, and that it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.commands.distill import distill
from adanat_toolkit.core import Context, LearnedReward
from adanat_toolkit.decoding import DistilledDecoder
from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.images import MemoryImages
from adanat_toolkit.registry import create_generator, create_reward
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.training import Trainer, validate
from adanat_toolkit.training.decoder import Rebuilt, choose_decoder

from ..helpers.distilling import Teacher

SETTINGS: dict[str, Any] = {
    "steps": 2, "trajectories": 32, "batch": 8, "checkpoint_every": 1, "device": "cpu", "data": {"flip": False},
}  # fmt: skip


class Watcher(LearnedReward):
    """Keeps what it is shown; scores brightness, and learns a number from real images."""

    real_per_update = 8

    def __init__(self) -> None:
        self.fakes: list[Tensor] = []
        self.reals: list[Tensor] = []
        self.level = torch.zeros(())

    def score(self, images: Tensor, context: Context) -> Tensor:
        return self.score_embedded(self.embed(images, context), context)

    def embed(self, images: Tensor, context: Context) -> Tensor:
        self.fakes.append(images)
        return images

    def embed_real(self, images: Tensor, context: Context) -> Tensor:
        self.reals.append(images)
        return images

    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        return embedded.mean((1, 2, 3)) - self.level

    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        self.level = self.level + real.mean() - fake.mean()
        return {"level": float(self.level)}

    def state(self) -> dict[str, Tensor]:
        return {"level": self.level}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.level = state["level"]


class Blind(Watcher):
    """Learns from generated images alone, but is told that it reads real ones."""

    real_per_update = 0

    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        assert real.shape[1:] == fake.shape[1:]
        self.level = self.level - fake.mean()
        return {"none": float(len(real)), "level": float(self.level)}


def test_a_reward_that_asks_for_no_real_images() -> None:
    trainer = Trainer(validate(SETTINGS), Teacher(), Blind(), real())
    assert trainer.step()["reward_model/none"] == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("decoder") / "small.safetensors"
    distill(Teacher(), images=64, steps=20, width=8).decoder.save(file)
    return file


def real() -> MemoryImages:
    draw = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (20, 3, 12, 20), generator=draw, dtype=torch.uint8)
    return MemoryImages(pixels, labels=torch.arange(20) % 5)


def trainer(decoder: str | Path, reward: Watcher | None = None, seed: int = 0, **more: Any) -> Trainer:
    config = validate({**SETTINGS, "decoder": str(decoder), **more})
    return Trainer(config, Teacher(seed), reward or Watcher(), real())


def weights(folder: Path) -> bytes:
    return (folder / "policy" / "policy.safetensors").read_bytes()


def test_the_reward_sees_generated_and_real_images_through_it(small: Path) -> None:
    reward, own = Watcher(), Watcher()
    through, plain = trainer(small, reward), trainer("own", own)
    through.step(), plain.step()
    assert isinstance(through.decoder, DistilledDecoder) and plain.decoder is None
    generator, data = Teacher(), real()
    possible = through.decoder.decode(generator.encode_latents(data.images(torch.arange(20))))
    for image in torch.cat(reward.reals):
        assert (possible - image).abs().amax((1, 2, 3)).min() == 0
    (fakes,), (true,) = reward.fakes, own.fakes
    assert fakes.shape == true.shape and not torch.equal(fakes, true)  # the same tokens, another decoder
    assert (fakes - true).abs().mean() < (fakes - true.flip(0)).abs().mean()


def test_samples_and_readings_never_come_from_it(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(small)
    run.step()
    policy = run.exported()

    def fail(*_: Any) -> Tensor:
        raise AssertionError("the distilled decoder was called")

    monkeypatch.setattr(DistilledDecoder, "decode", fail)
    (samples,) = sample(run.generator, policy, seed_range(0, 4))
    assert isinstance(run.generator, Teacher) and samples.images.shape == (4, 3, 12, 20)
    with pytest.raises(AssertionError, match="distilled"):
        run.step()


def test_a_run_that_broke_off_goes_on_exactly(small: Path, tmp_path: Path) -> None:
    trainer(small).run(tmp_path / "whole")

    def stop(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(small).run(tmp_path / "broken", on_iteration=stop)
    trainer(small).run(tmp_path / "broken")
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")
    trainer("own").run(tmp_path / "own")
    assert weights(tmp_path / "whole") != weights(tmp_path / "own")


def test_a_run_goes_on_with_its_own_decoder_alone(small: Path, tmp_path: Path) -> None:
    done = {"trajectories": 16}
    trainer(small, **done).run(tmp_path / "run")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(small.read_bytes())
    trainer(moved, **done).run(tmp_path / "run")  # where the file lies is no setting
    assert RunFolder(tmp_path / "run").config == {**(RunFolder(tmp_path / "run").config or {}), "decoder": str(moved)}
    distill(Teacher(), images=64, steps=3, width=8).decoder.save(moved)
    for other in (moved, "own"):
        with pytest.raises(CheckpointError, match="another decoder"):
            trainer(other, **done).run(tmp_path / "run")


def test_the_one_that_ships() -> None:
    generator = create_generator("maskgit", {}, device=torch.device("cpu"), dtype=torch.float32, offline=True)
    decoder = choose_decoder("distilled", generator, Watcher())
    assert decoder is not None and decoder.card.image == (64, 64)


class Latent(Watcher):
    reads_latents = True


class SetLevel(Watcher):
    set_level = True


def test_where_it_makes_no_sense_it_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="taught by the tokenizer"):
        trainer(small, seed=1)
    with pytest.raises(ConfigError, match="no distilled decoder ships"):
        trainer("distilled")
    with pytest.raises(ConfigError, match=r"unknown decoder 'distiled'.*distilled"):
        trainer("distiled")
    with pytest.raises(ConfigError, match="reads latents, so nothing is decoded"):
        trainer(small, Latent())
    with pytest.raises(ConfigError, match="sets of images against real ones"):
        trainer(small, SetLevel())
    with pytest.raises(ConfigError, match="engine shows the generator's own images"):
        choose_decoder(str(small), Teacher(), Watcher(), supported=False)


@pytest.mark.parametrize("name", ["fid", "fid:influence", "clip-score:1,fid:0.5"])
def test_frechet_distances_are_of_the_own_images(name: str) -> None:
    """They read no real images of the run, but their reference is of images that no distilled decoder has seen."""
    own = create_generator("muse" if "clip" in name else "maskgit", {}, device=torch.device("cpu"), dtype=torch.float32)
    reward = create_reward(name, {}, generator=own, real=own.real_images(), device=torch.device("cpu"), seed=0)
    with pytest.raises(ConfigError, match="sets of images against real ones"):
        choose_decoder("distilled", own, reward)


def test_codes_of_real_images_are_computed_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, encoded = Teacher(), []
    encode = generator.encode_images
    monkeypatch.setattr(generator, "encode_images", lambda images: (encoded.append(len(images)), encode(images))[1])
    source = Rebuilt(real(), generator, trainer(small).decoder)  # type: ignore[arg-type]
    first = source.images(torch.tensor([3, 5, 3]))
    assert torch.equal(first[0], first[2]) and encoded == [2]
    assert torch.equal(source.images(torch.tensor([5, 6])), torch.stack([first[1], source.images(torch.tensor([6]))[0]]))
    assert encoded == [2, 1]
    assert torch.equal(source.contexts(torch.tensor([6])).classes, torch.tensor([1]))  # type: ignore[arg-type]
