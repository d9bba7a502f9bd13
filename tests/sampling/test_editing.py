"""Masked editing with the embedded generator of every family."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from adanat_toolkit.commands.sample_folder import sample_to_folder
from adanat_toolkit.core import parse_schedule
from adanat_toolkit.errors import ConfigError, DataError
from adanat_toolkit.interfaces import TokenGenerator
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, SamplingPolicy, load_policy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.sampling import Edit, edit, read_edit
from adanat_toolkit.sampling.editing import editable_cells, start_of_edit

SEEDS = torch.arange(5, 9)
BOX = "16,8,48,40"  # cells of rows 1..4 and columns 2..5


@pytest.fixture(scope="module", params=["maskgit", "mage", "muse"])
def generator(request: pytest.FixtureRequest) -> TokenGenerator:
    return create_generator(request.param, device=torch.device("cpu"), dtype=torch.float32, offline=True)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real image of the embedded data, as a file."""
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    generator = create_generator("maskgit", device=torch.device("cpu"), dtype=torch.float32, offline=True)
    real = generator.real_images()
    assert real is not None
    save(real.images(torch.tensor([40]))[0], file)
    return file


def save(image: Tensor, file: Path) -> None:
    Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(file)


def box_file(folder: Path, box: str = BOX, size: tuple[int, int] = (64, 64), mode: str = "L") -> Path:
    left, top, right, bottom = map(int, box.split(","))
    mask = Image.new("L", size, 0)
    mask.paste(255, (left, top, right, bottom))
    file = folder / f"mask-{mode}.png"
    if mode == "RGBA":  # what a paint program saves: white strokes on nothing
        white = Image.new("RGBA", size, (255, 255, 255, 0))
        white.putalpha(mask)
        mask = white
    mask.save(file)
    return file


def adaptive(generator: TokenGenerator, steps: int) -> SamplingPolicy:
    """A learned policy that reacts to the features: random weights."""
    space = generator.action_space.bind(
        parse_schedule(generator.default_schedule, generator.action_space, steps), residual=True
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = AdaptivePolicy(AdaptiveOptions(), space=space, grid=generator.grid, feature_dim=generator.feature_dim)
        torch.nn.init.normal_(policy.actor.network.linear3.weight, std=0.3)
    return SamplingPolicy(policy.eval(), space)


@pytest.mark.parametrize("spec", ["fixed", "fixed:halton", "fixed:amused", "adaptive"])
def test_kept_tokens_are_kept_and_the_rest_is_filled(
    generator: TokenGenerator, picture: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = read_edit(picture, BOX, generator.image_size)
    policy = adaptive(generator, 3) if spec == "adaptive" else load_policy(spec, generator, 3)
    decoded: list[Tensor] = []
    decode = generator.decode_tokens
    monkeypatch.setattr(generator, "decode_tokens", lambda tokens: decoded.append(tokens) or decode(tokens))
    parts = list(edit(generator, policy, Edit(image, mask), SEEDS, batch=3))
    tokens, codes = torch.cat(decoded), generator.encode_images(image[None])[0]
    cells = editable_cells(mask, generator.grid)
    assert cells.view(8, 8).nonzero().tolist() == [[r, c] for r in range(1, 5) for c in range(2, 6)]
    assert torch.equal(tokens[:, ~cells], codes[~cells].expand(len(SEEDS), -1))
    assert (tokens < generator.codebook_size).all()
    inside = tokens[:, cells]
    assert all((inside[i] != inside[j]).float().mean() > 0.3 for i in range(4) for j in range(i))

    # An image does not depend on the batch it is made in.
    alone = next(edit(generator, policy, Edit(image, mask), SEEDS[3:]))
    torch.testing.assert_close(alone.images[0], parts[1].images[0], atol=1e-5, rtol=0)
    assert torch.equal(decoded[-1][0], tokens[3])


def test_the_masking_ratio_is_a_share_of_the_cells_to_fill(generator: TokenGenerator, picture: Path) -> None:
    from adanat_toolkit.core import Noise

    image, mask = read_edit(picture, BOX, generator.image_size)
    start, noise = start_of_edit(generator, image, mask), Noise(SEEDS[:1])
    assert int((start.tokens == generator.mask_id).sum()) == int(start.editable.sum()) == 16
    state = generator.reset(generator.sample_contexts(noise), noise, 2, tokens=start.tokens, editable=start.editable)
    action = torch.tensor(
        [[{"mask_ratio": 0.5, "token_temperature": 1.0}.get(n, 0.0) for n in generator.action_space.names]]
    )
    assert int((generator.step(state, action, noise).tokens == generator.mask_id).sum()) == 8


def test_the_images_own_pixels_outside_the_mask(generator: TokenGenerator, picture: Path) -> None:
    image, mask = read_edit(picture, BOX, generator.image_size)
    policy = load_policy("fixed", generator, 2)
    plain = next(edit(generator, policy, Edit(image, mask), SEEDS[:2])).images
    pasted = next(edit(generator, policy, Edit(image, mask, keep_pixels=True), SEEDS[:2])).images
    assert torch.equal(pasted[:, :, ~mask], image[:, ~mask].expand(2, -1, -1))
    assert torch.equal(pasted[:, :, mask], plain[:, :, mask])
    assert not torch.equal(plain[:, :, ~mask], pasted[:, :, ~mask])  # the tokenizer is not lossless


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_mask_file_says_the_same_as_a_box(picture: Path, tmp_path: Path, mode: str) -> None:
    image, box = read_edit(picture, BOX, (64, 64))
    again, file = read_edit(picture, str(box_file(tmp_path, mode=mode)), (64, 64))
    assert torch.equal(image, again)
    assert torch.equal(box, file)
    assert int(box.sum()) == 32 * 32


def test_a_mask_follows_the_images_crop_and_resize(tmp_path: Path) -> None:
    wide = Image.new("RGB", (400, 200), "black")  # cropped to x in 100..300, then a quarter of the size
    wide.paste((255, 255, 255), (140, 40, 180, 80))
    wide.save(tmp_path / "wide.png")
    image, mask = read_edit(tmp_path / "wide.png", "140,40,180,80", (50, 50))
    white = image.mean(0) > 0.5
    assert torch.equal(mask, white)
    assert mask.nonzero().min(0).values.tolist() == [10, 10]
    one = read_edit(tmp_path / "wide.png", "101,1,102,2", (50, 50))[1]
    assert one.nonzero().tolist() == [[0, 0]]  # a single pixel of the original is enough
    turned = wide.rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned clockwise: the picture as it was
    turned.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_edit(tmp_path / "turned.png", "140,40,180,80", (50, 50))[1], mask)


def test_errors_name_the_value_and_the_remedy(generator: TokenGenerator, picture: Path, tmp_path: Path) -> None:
    size = generator.image_size
    for mask, kind, message in (
        (str(box_file(tmp_path, size=(32, 64))), DataError, "has 32 x 64 pixels and .* has 64 x 64; make the mask"),
        (str(box_file(tmp_path, "0,0,0,0", mode="RGBA")), DataError, "is empty"),
        ("8,8,8,20", ConfigError, "is empty or leaves the image of 64 x 64"),
        ("8,8,20,65", ConfigError, "is empty or leaves the image"),
        ("8,8,20,b", ConfigError, "not LEFT,TOP,RIGHT,BOTTOM"),
        (str(tmp_path / "no.png"), DataError, "cannot read .*no.png"),
        (__file__, DataError, "not a readable image"),
    ):
        with pytest.raises(kind, match=message):
            read_edit(picture, mask, size)
    for image_file in (tmp_path / "no.png", Path(os.devnull), Path("/dev/zero")):  # a device may have no end
        with pytest.raises(DataError, match=f"{image_file}.* Give a PNG"):
            read_edit(image_file, BOX, size)
    image, mask = read_edit(picture, BOX, size)
    with pytest.raises(DataError, match="nothing to fill in"):
        start_of_edit(generator, image, torch.zeros_like(mask))
    with pytest.raises(DataError, match=r"needs \[3, 64, 64\]"):
        start_of_edit(generator, image[:, :32], mask)


def test_a_generator_without_an_encoder_says_so(picture: Path) -> None:
    class Blind(TokenGenerator):
        """A generator whose tokenizer only decodes."""

        name, grid, image_size, mask_id, device = "blind", (8, 8), (64, 64), 5, torch.device("cpu")
        create = variants = sample_contexts = predict = decode_tokens = None  # type: ignore[assignment]

    image, mask = read_edit(picture, BOX, (64, 64))
    with pytest.raises(ConfigError, match="the tokenizer of blind has no encoder"):
        start_of_edit(Blind(), image, mask)


def test_the_command_writes_variants_and_refuses_another_edit_of_the_same_folder(picture: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from adanat_cli.main import app

    out = tmp_path / "out"

    def run(*more: str) -> Any:
        command = ["sample", "--policy", "fixed:maskgit", "--steps", "2", "--num", "2", "--dtype", "float32", "--quiet"]
        return CliRunner().invoke(app, [*command, "--image", str(picture), "--out", str(out), *more])

    assert run("--mask", BOX, "--keep-pixels").exit_code == 0
    original = torch.from_numpy(numpy.array(Image.open(picture)))
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[8:40, 16:48] = True
    for seed in range(2):
        made = torch.from_numpy(numpy.array(Image.open(out / f"00000{seed}.png")))
        assert torch.equal(made[~inside], original[~inside])
        assert not torch.equal(made[inside], original[inside])
    facts = json.loads((out / "samples.json").read_text())["edit"]
    assert facts["masked_pixels"] == 32 * 32 and facts["keep_pixels"]
    for more, message in (
        (("--mask", BOX), "edit.keep_pixels: True -> False"),
        (("--mask", "0,0,9,9", "--keep-pixels"), "edit.content:"),
        ((), "needs both --image and --mask"),
    ):
        failed = run(*more)
        assert failed.exit_code == 1
        assert message in " ".join(failed.output.split())  # lines are wrapped


@pytest.mark.parametrize("name", ["sit", "var"])
def test_an_edit_that_is_refused_leaves_nothing_behind(name: str, picture: Path, tmp_path: Path) -> None:
    generator = create_generator(name, device=torch.device("cpu"), dtype=torch.float32, offline=True)
    policy, what = load_policy("fixed", generator, 2), Edit(*read_edit(picture, BOX, generator.image_size))
    with pytest.raises(ConfigError, match=f"{generator.name} has no tokens, so masked editing does not apply"):
        sample_to_folder(generator, policy, tmp_path / "out", seeds=SEEDS, editing=what)
    assert not (tmp_path / "out").exists()
