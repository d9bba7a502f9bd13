"""Distilled decoders: what they learn, what their files fit, and that an image depends on its own latents alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adanat_plugins.fingerprints import fingerprint_tokenizer
from adanat_plugins.generators.maskgit import embedded_tokenizer
from adanat_toolkit.commands.distill import distill
from adanat_toolkit.decoding import DecoderCard, DistilledDecoder, load_decoder, read_decoder
from adanat_toolkit.decoding.distilled import KEY, widths_for
from adanat_toolkit.errors import ConfigError, NotFiniteError, WeightsError
from adanat_toolkit.interfaces import Context
from adanat_toolkit.registry import create_generator

from ..helpers.distilling import Teacher
from ..helpers.tiny import TinyGenerator

CPU = torch.device("cpu")
CARD: dict[str, Any] = {
    "generator": "tiny:class", "tokenizer": f"{0:016x}", "latent": (6, 3, 5), "image": (12, 20), "widths": (12, 8),
}  # fmt: skip


def decoder(**changes: Any) -> DistilledDecoder:
    torch.manual_seed(0)
    return DistilledDecoder(DecoderCard(**{**CARD, **changes}))


def test_lessons_that_diverge_leave_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between two looks at the error, and where half precision has no such number."""
    monkeypatch.setattr(sys.modules[distill.__module__], "RATE", 1e12)
    with pytest.raises(NotFiniteError, match=r"tensors of the decoder are not finite .*another --seed"):
        distill(Teacher(), images=64, steps=3, width=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lessons_reduce_the_error_and_the_same_seed_gives_the_same_decoder(dtype: torch.dtype) -> None:
    teacher = Teacher()
    teacher.dtype = dtype
    few, many, again = (distill(teacher, images=128, steps=steps, width=8, seed=1) for steps in (1, 150, 150))
    assert few.figures["psnr"] < many.figures["psnr"] - 5
    assert all(torch.equal(a, b) for a, b in zip(many.decoder.parameters(), again.decoder.parameters(), strict=True))
    other = distill(teacher, images=128, steps=2, width=8, seed=2)
    assert not torch.equal(other.decoder.mean, many.decoder.mean)


@pytest.mark.parametrize("real", [5, 32, 40])
def test_there_are_as_many_lessons_as_asked_for_however_few_real_images_there_are(real: int) -> None:
    class Few:
        fingerprint = "few"

        def __len__(self) -> int:
            return real

        def images(self, index: torch.Tensor) -> torch.Tensor:
            seen.extend(index.tolist())
            return torch.rand(len(index), 3, 12, 20, generator=torch.Generator().manual_seed(0))

        def contexts(self, index: torch.Tensor) -> Context:
            return Context(len(index))

    seen: list[int] = []
    told: list[tuple[str, int, int]] = []
    found = distill(Teacher(), real=Few(), images=64, steps=1, width=8, progress=lambda *said: told.append(said))
    assert found.figures["images"] + found.figures["held_out"] == 64
    assert [said for said in told if said[0] == "images"][-1] == ("images", 64, 64)
    assert len({*seen}) == len(seen) == min(real, 32)


def test_a_file_is_what_was_taught(tmp_path: Path) -> None:
    found = distill(Teacher(), images=64, steps=2, width=8)
    found.decoder.save(tmp_path / "small.safetensors")
    read = load_decoder(tmp_path / "small.safetensors", Teacher())
    latents = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.decode(latents), found.decoder.decode(latents))
    assert read.card == found.decoder.card and read.card.training["psnr"] == found.figures["psnr"]
    assert len(read.fingerprint) == 16


def test_a_decoder_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    decoder().save(tmp_path / "small.safetensors")
    load_decoder(tmp_path / "small.safetensors", Teacher())
    with pytest.raises(ConfigError, match=r"taught by the tokenizer 0000000000000000 of tiny:class.*that of tiny:class is 0+1"):
        load_decoder(tmp_path / "small.safetensors", Teacher(seed=1))
    with pytest.raises(ConfigError, match=r"is unknown.*adanat distill --generator tiny:class"):
        load_decoder(tmp_path / "small.safetensors", TinyGenerator())
    decoder(image=(24, 40), widths=(12, 10, 8)).save(tmp_path / "large.safetensors")
    with pytest.raises(ConfigError, match="for images of 24x40"):
        load_decoder(tmp_path / "large.safetensors", Teacher())


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    with pytest.raises(WeightsError, match=r"cannot read .*No such file"):
        read_decoder(file)
    decoder().save(file)
    good, state = file.read_bytes(), load_file(file)
    card = DecoderCard(**CARD).model_dump(mode="json")

    def store(tensors: dict[str, torch.Tensor], card: dict[str, Any] | None) -> None:
        save_file(tensors, file, None if card is None else {KEY: json.dumps(card)})

    file.write_bytes(good[:-10])
    with pytest.raises(WeightsError, match="damaged or truncated"):
        read_decoder(file)
    store(state, None)
    with pytest.raises(WeightsError, match="no distilled decoder"):
        read_decoder(file)
    store(state, {**card, "widths": [12, 9]})
    with pytest.raises(WeightsError, match="does not hold the tensors it should"):
        read_decoder(file)
    store(state, {**card, "widths": [12, 10, 8]})
    with pytest.raises(WeightsError, match="3 widths for 2 doublings"):
        read_decoder(file)
    store(state, {**card, "latent": [6, 3, 7]})
    with pytest.raises(WeightsError, match="a whole number of times"):
        read_decoder(file)
    store(state, {**card, "widths": [10**9, 8]})
    with pytest.raises(WeightsError, match="widths"):
        read_decoder(file)
    store({**state, "mean": state["mean"] * torch.nan}, card)
    with pytest.raises(WeightsError, match="not finite"):
        read_decoder(file)


def test_what_cannot_be_taught_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not say which tokenizer"):
        distill(TinyGenerator(), images=64, steps=1)
    with pytest.raises(ConfigError, match="teach nothing"):
        distill(Teacher(), images=3, steps=1)
    odd = Teacher()
    odd.image_size = (9, 15)
    with pytest.raises(ConfigError, match="a whole number of times"):
        widths_for((3, 5), odd.image_size, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    """At the shipped decoder's sizes."""
    small = decoder(latent=(32, 8, 8), image=(64, 64), widths=(64, 48, 32)).placed(CPU, dtype)
    latents = torch.randn(8, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = small.decode(latents)
    assert whole.shape == (8, 3, 64, 64) and whole.dtype == torch.float32 and 0 <= whole.min() <= whole.max() <= 1
    for size in (1, 3):
        assert torch.equal(torch.cat([small.decode(part) for part in latents.split(size)]), whole)


def test_a_tokenizer_has_one_fingerprint_in_every_compute_type() -> None:
    first, second = (embedded_tokenizer(CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert fingerprint_tokenizer(first) == fingerprint_tokenizer(second)
    with torch.no_grad():
        second.model.decoder.conv_out.weight.mul_(1.1)
    assert fingerprint_tokenizer(first) != fingerprint_tokenizer(second)


@pytest.mark.parametrize("name", ["maskgit", "mage", "muse"])
def test_what_ships_fits_the_embedded_generators(name: str) -> None:
    generator: Any = create_generator(name, {}, device=CPU, dtype=torch.float32, offline=True)
    small = load_decoder(generator.distilled_decoder, generator)
    real = generator.real_images()
    index = torch.arange(0, len(real), 1367)
    latents = generator.real_latents(real, index)
    codes = generator.encode_images(real.images(index))
    assert (generator.known_codes(real)[index] == codes).float().mean() > 0.99  # another CPU may round another way
    assert torch.equal(latents, generator.token_vectors(generator.known_codes(real)[index].long()))
    own, made = generator.decode_tokens(generator.known_codes(real)[index].long()), small.decode(latents)
    assert -10 * (own - made).square().mean().log10() > 24


def test_a_changed_decoder_is_refused(tmp_path: Path) -> None:
    decoder().save(tmp_path / "whole.safetensors")
    read_decoder(tmp_path / "whole.safetensors")
    with safe_open(str(tmp_path / "whole.safetensors"), "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    changed = tmp_path / "changed.safetensors"
    save_file({**tensors, "mean": tensors["mean"] + 1}, changed, about)
    with pytest.raises(WeightsError, match="its checksum differs"):
        read_decoder(changed)
    older = {key: value for key, value in about.items() if key != "adanat_digest"}
    save_file({**tensors, "mean": tensors["mean"] + 1}, changed, older)
    read_decoder(changed)
    save_file({**tensors, "std": tensors["std"] * 0}, changed, older)
    with pytest.raises(WeightsError, match="a standard deviation that is not above 0"):
        read_decoder(changed)
