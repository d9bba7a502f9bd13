"""Real images: sources, layouts, preprocessing, augmentation, errors, and the embedded set."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adanat_plugins.emoji64 import data as emoji
from adanat_toolkit.core import Noise, sample_seeds
from adanat_toolkit.errors import DataError
from adanat_toolkit.images import MemoryImages, augment, draw_positions
from adanat_toolkit.images.files import decode_image
from adanat_toolkit.images.real_images import open_images
from adanat_toolkit.interfaces import Context


def picture(seed: int, width: int = 20, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write(path: Path, content: dict[str, bytes]) -> Path:
    """A folder, or a zip when the name ends in .zip."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


CLASSES = {"cat/a.png": png(picture(0)), "cat/deep/b.png": png(picture(1)), "ant/c.png": png(picture(2))}


def encode(prompts: tuple[str, ...] | list[str]) -> Context:
    return Context(len(prompts), prompts=tuple(prompts))


# --- layouts


@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_class_folders(tmp_path: Path, name: str) -> None:
    source = open_images(write(tmp_path / name, CLASSES), (8, 8), kind="class", num_classes=2)
    assert len(source) == 3 and source.class_names == ("ant", "cat")
    context = source.contexts(torch.tensor([0, 2, 2]))
    assert context.classes is not None and context.classes.tolist() == [0, 1, 1]
    images = source.images(torch.tensor([0, 1]))
    assert images.shape == (2, 3, 8, 8) and images.dtype == torch.float32 and 0 <= images.min() <= images.max() <= 1
    expected = decode_image(CLASSES["ant/c.png"], (8, 8))
    assert torch.equal((images[0] * 255).round().to(torch.uint8), expected)
    assert torch.allclose(source.label_frequencies(2), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))


def test_zip_made_of_one_folder(tmp_path: Path) -> None:
    wrapped = {f"archive/{k}": v for k, v in CLASSES.items()} | {"__MACOSX/._a.png": b"", "archive/.DS_Store": b""}
    source = open_images(write(tmp_path / "set.zip", wrapped), (8, 8), kind="class", num_classes=2)
    assert source.class_names == ("ant", "cat")


def test_numbered_folders_are_class_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "set", {f"{i}/x.png": png(picture(i)) for i in (2, 10)})
    source = open_images(path, (8, 8), kind="class", num_classes=11)
    assert source.labels is not None and sorted(source.labels.tolist()) == [2, 10]
    with pytest.raises(DataError, match=r"2\.\.10.*0\.\.4"):
        open_images(path, (8, 8), kind="class", num_classes=5)


def test_flat_and_metadata(tmp_path: Path) -> None:
    content = {f"{i}.png": png(picture(i)) for i in range(3)}
    flat = open_images(write(tmp_path / "flat", content), (8, 8))
    assert len(flat) == 3 and flat.contexts(torch.arange(2)) == Context(2)
    rows = [{"file_name": "2.png", "text": "two", "label": 5}, {"file": "0.png", "caption": "zero", "label": 0}]
    content["metadata.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
    source = open_images(write(tmp_path / "listed", content), (8, 8), kind="text", encode=encode)
    assert source.contexts(torch.tensor([1, 0])).prompts == ("zero", "two")
    assert torch.equal(source.images(torch.tensor([0])), flat.images(torch.tensor([2])))
    labelled = source.conditioned("class", num_classes=6).contexts(torch.arange(2))
    assert labelled.classes.tolist() == [5, 0]


def test_files_read_on_demand_are_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "set.zip", CLASSES)
    seen: list[tuple[int, int]] = []
    cached = open_images(path, (8, 10), progress=lambda *a: seen.append(a))
    lazy = open_images(path, (8, 10), memory_limit=3 * 3 * 80 - 1)
    assert type(lazy) is not type(cached) and lazy.fingerprint == cached.fingerprint and seen[-1] == (3, 3)
    index = torch.tensor([2, 0, 1, 1])
    assert torch.equal(lazy.images(index), cached.images(index))


def test_fingerprint_follows_content_size_and_names(tmp_path: Path) -> None:
    def fingerprint(name: str, content: dict[str, bytes], size: tuple[int, int] = (8, 8)) -> str:
        return open_images(write(tmp_path / name, content), size).fingerprint

    base = fingerprint("a", CLASSES)
    assert base == fingerprint("b", CLASSES)
    assert base != fingerprint("a", CLASSES, (8, 9))
    assert base != fingerprint("c", CLASSES | {"cat/a.png": png(picture(7))})
    assert base != fingerprint("d", {k.replace("ant", "ape"): v for k, v in CLASSES.items()})


# --- preprocessing


def test_centre_crop_then_resize() -> None:
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (10, 0, 30, 20))
    pixels = decode_image(png(wide), (10, 10))
    assert (pixels[2] == 255).all() and (pixels[0] == 0).all()
    same = picture(3, 12, 12)
    assert torch.equal(decode_image(png(same), (12, 12)), torch.from_numpy(np.array(same)).permute(2, 0, 1))


def test_resize_is_antialiased() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    pixels = decode_image(png(Image.fromarray(checks.astype(np.uint8))), (8, 8))
    assert (pixels.float() - 127.5).abs().max() < 3


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode_image(png(clear), (8, 8)) == 255).all()


# --- errors


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({}, {}, "is empty"),
        ({"notes.txt": b"x"}, {}, "1 files but no image"),
        ({"a.png": png(picture(0)), "b.png": b"not an image"}, {}, "b.png"),
        ({"a.png": png(picture(0)), "b.png": png(picture(1))[:200]}, {}, "b.png"),
        (CLASSES, {"kind": "class", "num_classes": 3}, "2 class folders, but the generator has 3"),
        (CLASSES | {"x.png": png(picture(0))}, {}, "beside class folders"),
        ({"a.png": png(picture(0))}, {"kind": "class", "num_classes": 3}, "no classes"),
        (CLASSES, {"kind": "text", "encode": encode}, "no captions"),
        ({"a.png": png(picture(0)), "metadata.jsonl": b'{"file": "b.png"}'}, {}, "names 'b.png'"),
        ({"a.png": png(picture(0)), "metadata.jsonl": b"{"}, {}, "line 1 of metadata.jsonl"),
    ],
)
@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_bad_data_is_named(tmp_path: Path, name: str, content: dict[str, bytes], options: dict, message: str) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=message):
        open_images(write(tmp_path / name, content), (8, 8), **options)


def test_missing_path_and_damaged_zip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_images(tmp_path / "nowhere", (8, 8))
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match="neither a folder nor a readable"):
        open_images(tmp_path / "bad.zip", (8, 8))
    whole = write(tmp_path / "set.zip", CLASSES).read_bytes()
    at = whole.index(b"IDAT") + 40
    (tmp_path / "flipped.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(DataError, match=r"cat/a\.png"):
        open_images(tmp_path / "flipped.zip", (8, 8))


def test_corrupt_file_found_when_read_on_demand(tmp_path: Path) -> None:
    path = write(tmp_path / "set", {"a.png": png(picture(0)), "b.png": b"no"})
    source = open_images(path, (8, 8), memory_limit=0)
    source.images(torch.tensor([0]))
    with pytest.raises(DataError, match=r"b\.png"):
        source.images(torch.tensor([0, 1]))


def test_memory_images_checks() -> None:
    with pytest.raises(DataError, match="uint8"):
        MemoryImages(torch.zeros(2, 3, 4, 4))
    with pytest.raises(DataError, match="1 labels for 2 images"):
        MemoryImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels=torch.zeros(1))
    one, other = (MemoryImages(torch.full((2, 3, 4, 4), v, dtype=torch.uint8)) for v in (0, 1))
    assert one.fingerprint != other.fingerprint


# --- augmentation


def test_augment_is_per_sample_and_moves_whole_pixels() -> None:
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seeds = sample_seeds(3, 0, 0, 64)
    out = augment(images, seeds, flip=True, shift=2)
    assert torch.equal(out[10:13], augment(images[10:13], seeds[10:13], flip=True, shift=2))
    assert torch.equal(augment(images, 3, flip=True, shift=2), out)
    assert not torch.equal(augment(images, 4, flip=True, shift=2), out)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    crops = [padded[:, :, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    candidates = torch.stack(crops + [c.flip(3) for c in crops])
    # Flipping the image and flipping the crop differ by the mirrored shift, so the 50 candidates cover both orders.
    matches = (candidates == out).flatten(2).all(2)
    assert matches.any(0).all()
    assert 0.25 < matches[25:].any(0).float().mean() < 0.75
    assert matches.any(1).sum() > 25


def test_augment_off_and_out_of_range() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert augment(images, 0) is images
    with pytest.raises(DataError, match="shift 8"):
        augment(images, 0, shift=8)


def test_draw_positions_follows_weights() -> None:
    uniform = (torch.arange(1000).double() + 0.5) / 1000
    counts = torch.bincount(draw_positions(uniform, [1, 0, 3, 4, 0]), minlength=5)
    assert counts.tolist() == [125, 0, 375, 500, 0]


# --- the embedded set


def test_embedded_images() -> None:
    source = emoji.emoji_images()
    assert len(source) == 10934 and emoji.emoji_images() is source
    assert len(emoji.class_names()) == 98 and len(emoji.captions()) == 10934
    assert torch.bincount(emoji.style_labels()).tolist() == [3781, 3781, 3372]
    assert source.contexts(torch.tensor([0])).classes.tolist() == [79]
    assert emoji.class_names()[79] == "Symbols / keycap"
    text = source.conditioned("text", encode).contexts(torch.tensor([0]))
    assert text.prompts == ("noto emoji of hash key",)
    assert source.images(torch.arange(0, 10934, 10))[:, :, 0, 0].mean() > 0.8, "emoji are on white"


def test_embedded_labels_are_drawn_by_frequency() -> None:
    noise = Noise(sample_seeds(0, 0, 0, 20000))
    share = torch.bincount(emoji.sample_labels(noise), minlength=98).double() / 20000
    assert (share - emoji.label_frequencies()).abs().max() < 0.006
    assert set(emoji.sample_captions(Noise(sample_seeds(1, 0, 0, 50)))) <= set(emoji.captions())


def test_images_that_are_kept_are_decoded_once() -> None:
    kept = emoji.emoji_images.__wrapped__()
    index = torch.tensor([7, 3, 7, 900])
    first = kept.images(index)
    assert torch.equal(first[0], first[2]) and torch.equal(first, emoji.emoji_images().images(index))
    kept._files = None  # type: ignore[assignment]
    assert torch.equal(kept.images(index.flip(0)), first.flip(0)), "read from memory, the archive is gone"
    assert torch.equal(kept.conditioned("none").images(index), first)
