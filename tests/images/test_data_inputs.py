"""Folders, zips and captions as people have them: read, or refused with the file and the line."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile

from adanat_toolkit.errors import ConfigError, DataError
from adanat_toolkit.images import open_upright
from adanat_toolkit.images.files import _AtOnce
from adanat_toolkit.images.real_images import open_images
from adanat_toolkit.interfaces import Context
from adanat_toolkit.storage import read_prompts, text_lines

from .test_real_images import picture, png, write

SIZE = (8, 8)
IMAGES = {f"{c}/{i}.png": png(picture(10 * c + i)) for c in range(2) for i in range(5)}


def in_folder(folder: str, content: dict[str, bytes] = IMAGES) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in content.items()}


def never(prompts: Any) -> Context:
    raise AssertionError("the encoder ran")


# --- links


def test_linked_class_folders_are_entered_and_loops_are_not(tmp_path: Path) -> None:
    write(tmp_path / "real", IMAGES)
    data = tmp_path / "data"
    data.mkdir()
    for name in "01":
        (data / name).symlink_to(Path("../real") / name)
    (tmp_path / "real/0/again").symlink_to(tmp_path / "real/0")
    (tmp_path / "real/1/all").symlink_to(data)
    source = open_images(data, SIZE, kind="class", num_classes=2)
    assert source.labels is not None and torch.bincount(source.labels).tolist() == [5, 5]
    os.unlink(tmp_path / "real/1/all")
    assert source.fingerprint == open_images(tmp_path / "real", SIZE).fingerprint


def test_a_class_may_be_linked_under_two_names(tmp_path: Path) -> None:
    write(tmp_path / "real", IMAGES)
    (tmp_path / "real/2").symlink_to("0")
    assert len(open_images(tmp_path / "real", SIZE, kind="class", num_classes=3)) == 15


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "data", IMAGES)
    (tmp_path / "data/2").symlink_to("../gone")
    with pytest.raises(DataError, match=r"data/2 is a link to \.\./gone, where nothing is"):
        open_images(tmp_path / "data", SIZE)


def test_links_that_never_end_are_refused(tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"{i}").mkdir()
        for j in range(9):
            (tmp_path / f"{i}/to{j}").symlink_to(tmp_path / f"{j}")
    with pytest.raises(DataError, match="circle of links"):
        open_images(tmp_path, SIZE)


# --- zips


def zip_of(path: Path, content: dict[str, bytes]) -> Path:
    """A zip with these very names, whatever they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


@pytest.mark.parametrize("form", ["./{}", ".\\{}", ".//{}", "data/./{}"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_names_as_archivers_write_them(tmp_path: Path, form: str, slash: str) -> None:
    content = {form.format(name).replace("/", slash): data for name, data in IMAGES.items()}
    source = open_images(zip_of(tmp_path / "a.zip", content), SIZE, kind="class", num_classes=2)
    plain = open_images(zip_of(tmp_path / "b.zip", IMAGES), SIZE, kind="class", num_classes=2)
    assert source.fingerprint == plain.fingerprint and source.class_names == ("0", "1")
    assert torch.equal(source.images(torch.arange(10)), plain.images(torch.arange(10)))


@pytest.mark.parametrize("name", ["../out.png", "0/../../out.png", "/etc/out.png", "C:\\out.png", "..\\out.png"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"set\.zip has a member .*out.png.*must stay inside"):
        open_images(zip_of(tmp_path / "set.zip", {**IMAGES, name: png(picture(0))}), SIZE)
    listed = write(tmp_path / "set", {"0.png": png(picture(0)), "metadata.jsonl": json.dumps({"file": name}).encode()})
    with pytest.raises(DataError, match=r"line 1 of metadata\.jsonl .*must stay inside"):
        open_images(listed, SIZE)


@pytest.mark.parametrize("kind", ["set", "set.zip"])
def test_metadata_names_files_in_the_same_forms(tmp_path: Path, kind: str) -> None:
    rows = [{"file": "./0/1.png", "label": 1}, {"file": "1\\2.png", "label": 0}]
    content = {**IMAGES, "metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    source = open_images(write(tmp_path / kind, content), SIZE, kind="class", num_classes=2)
    assert source.labels is not None and source.labels.tolist() == [1, 0]


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has '0/1\.png' twice"):
        open_images(zip_of(tmp_path / "set.zip", {**IMAGES, "./0/1.png": png(picture(0))}), SIZE)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_members_are_named_with_the_zip(tmp_path: Path, method: int) -> None:
    path, bitmap = tmp_path / "set.zip", io.BytesIO()
    picture(0, 64, 64).convert("P").save(bitmap, "BMP")
    with zipfile.ZipFile(path, "w", method) as archive:
        for i in range(3):
            archive.writestr(f"{i}.bmp", bitmap.getvalue())
        at = archive.infolist()[1].header_offset + 60
    whole = path.read_bytes()
    for part in (b"\xff" * 30, bytes(30), b"\x80" + bytes(40)):
        path.write_bytes(whole[:at] + part + whole[at + len(part) :])
        with pytest.raises(DataError, match=r"1\.bmp in .*set\.zip cannot be read"):
            open_images(path, SIZE)


def test_a_member_of_an_unknown_method_is_named(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", {"a.png": png(picture(0))})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(mark) + offset] = 99
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png in .*set\.zip cannot be read"):
        open_images(path, SIZE)


def test_a_member_that_declares_too_much_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", {"a.png": png(picture(0))})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png in .* has 2,147,483,648 bytes; at most"):
        open_images(path, SIZE)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "it is empty"), (b"<html>", "a web page"), (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer")],
)
def test_what_a_zip_holds_instead_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(DataError, match=rf"set\.zip is neither .*{message}"):
        open_images(tmp_path / "set.zip", SIZE)


# --- a folder around everything, and images beside class folders


@pytest.mark.parametrize("kind", ["set", "set.zip"])
def test_a_folder_around_everything_is_no_class(tmp_path: Path, kind: str) -> None:
    plain = open_images(write(tmp_path / f"plain-{kind}", IMAGES), SIZE, kind="class", num_classes=2)
    for around in ("archive", "archive/data"):
        where = tmp_path / around.replace("/", "-")
        where.mkdir()
        wrapped = {**in_folder(around), "README.md": b"about"}
        source = open_images(write(where / kind, wrapped), SIZE, kind="class", num_classes=2)
        assert source.class_names == ("0", "1") and source.fingerprint == plain.fingerprint
        assert torch.equal(source.images(torch.arange(10)), plain.images(torch.arange(10)))


@pytest.mark.parametrize("kind", ["set", "set.zip"])
def test_metadata_inside_a_folder_around_everything(tmp_path: Path, kind: str) -> None:
    rows = [{"file": "0/1.png", "caption": "one"}]
    wrapped = in_folder("archive", {**IMAGES, "metadata.jsonl": json.dumps(rows[0]).encode()})
    source = open_images(write(tmp_path / kind, wrapped), SIZE)
    assert source.captions == ("one",)


def test_a_single_class_is_no_folder_around_everything(tmp_path: Path) -> None:
    one = open_images(write(tmp_path / "flat", in_folder("3", {"a.png": png(picture(0))})), SIZE, kind="class", num_classes=5)
    assert one.labels is not None and one.labels.tolist() == [3]
    deep = in_folder("3", {"train/a.png": png(picture(0)), "val/b.png": png(picture(1))})
    source = open_images(write(tmp_path / "deep", deep), SIZE, kind="class", num_classes=5)
    assert source.labels is not None and source.labels.tolist() == [3, 3]


def test_images_beside_class_folders(tmp_path: Path) -> None:
    content = {**IMAGES, "x.png": png(picture(0)), "y.png": png(picture(0)), "z.png": png(picture(0))}
    message = r"has 3 images \(x.png, y.png, ...\) beside class folders: 2 folders \(0, 1\)\. Every image must"
    with pytest.raises(DataError, match=message):
        open_images(write(tmp_path / "set", content), SIZE)


# --- class folders and the generator's classes

NAMES = ("Animals & Nature / animal-bird", "Animals & Nature / animal-bug", "Food / fruit", "Food / sweets")


def classes(tmp_path: Path, folders: list[str], names: tuple[str, ...] | None = NAMES) -> list[int]:
    write(tmp_path / "set", {f"{name}/a.png": png(picture(0)) for name in folders})
    source = open_images(tmp_path / "set", SIZE, kind="class", num_classes=4, class_names=names)
    assert source.labels is not None
    return source.labels.tolist()


def test_folders_with_names_of_some_classes(tmp_path: Path) -> None:
    assert classes(tmp_path, ["Food_sweets", "animal-bird"]) == [3, 0]  # sorted by name


@pytest.mark.parametrize(
    ("folders", "names", "message"),
    [
        (["cat", "dog", "fruit", "bug"], NAMES, r"3 folders \(bug, cat, ...\) of 4 that stand for no class .* 'Animals"),
        (["photos"], NAMES, r"1 folder \(photos\) of 1 that stand"),
        (["a", "b"], None, "2 class folders, but the generator has 4"),
        (["0", "4"], NAMES, r"labels 0\.\.4 do not fit"),
        (["1", "01"], None, "'01' and '1' for class 1"),
        (["fruit", "Food - fruit"], NAMES, "for class 2; join them"),
    ],
)
def test_folders_that_stand_for_no_class(tmp_path: Path, folders: list[str], names: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        classes(tmp_path, folders, names)


# --- captions and prompts

TEXT = "a red\u2028apple\x85and\x0bmore\x1cof it"


def caption_file(*values: Any) -> str:
    return "\n".join(json.dumps({"file": "a.png", "caption": v}, ensure_ascii=False) for v in values) + "\n"


def with_captions(tmp_path: Path, data: bytes) -> Path:
    return write(tmp_path / "set", {"a.png": png(picture(0)), "metadata.jsonl": data})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_encodings_and_separators_inside_a_line(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    separated = TEXT.replace("\x0b", " ").replace("\x1c", " ")  # control characters are no JSON
    path = with_captions(tmp_path, (mark + caption_file(separated, "größe 大")).encode(encoding))
    assert open_images(path, SIZE).captions == (separated, "größe 大")
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes((mark + f"{TEXT}\r\n\n  größe 大 \rlast").encode(encoding))
    assert read_prompts(prompts) == (TEXT, "größe 大", "last")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (caption_file("a", "b", "größe").encode("latin-1"), "line 3 of {} is not UTF-8"),
        (caption_file("a", "b").encode("utf-16-le"), "line 1 of {} holds a zero byte"),
        (b"\xff\xfe" + "a\nb".encode("utf-16-le") + b"\n", "line 2 of {} is not UTF-16"),
    ],
)
def test_other_encodings_are_refused_with_the_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = with_captions(tmp_path, data)
    with pytest.raises(DataError, match=message.format("metadata.jsonl in .*set")):
        open_images(path, SIZE, kind="text", encode=never)
    (tmp_path / "prompts.txt").write_bytes(data)
    with pytest.raises(DataError, match=message.format(".*prompts.txt")):
        read_prompts(tmp_path / "prompts.txt")


def test_prompts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*no.txt.*one prompt a line"):
        read_prompts(tmp_path / "no.txt")
    (tmp_path / "empty.txt").write_bytes(b"\xef\xbb\xbf\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (caption_file(["a", "b"]), "caption in line 2 .* is a list, not a text; list the image once for each"),
        (caption_file(7), "caption in line 2 .* is a number"),
        (caption_file({"en": "a"}), "caption in line 2 .* is an object"),
        (caption_file(True), "caption in line 2 .* is true or false"),
        ('{"file": "a.png", "caption": "\\ud83d"}', "line 2 .* caption must be text without zero bytes and half characters"),
        ('{"file": ["a.png"], "caption": "b"}', 'line 2 .* names no file: "file" .* is a list'),
        ('{"caption": "b"}', "line 2 .* names no file: .* is nothing"),
        ('["a.png"]', "line 2 .* must be an object, found a list"),
        ("[" * 100_000, "line 2 .* is nested too deeply"),
        ('{"file": ' + "9" * 5000 + "}", "line 2 .* holds an integer of 5000 digits"),
        ('{"file": "a.png", "label": true}', "label in line 2 .* 'True'"),
        ('{"file": "a.png", "label": 1e3}', "label in line 2 .* '1000.0'"),
        ('{"file": "a.png", "label": -1}', "label in line 2 .* '-1'"),
        ('{"file": "a.png", "label": ' + "9" * 30 + "}", "line 2 .* holds an integer of 30 digits"),
    ],
)
def test_captions_are_checked_before_the_encoder(tmp_path: Path, line: str, message: str) -> None:
    path = with_captions(tmp_path, (caption_file("first") + line).encode())
    with pytest.raises(DataError, match=message):
        open_images(path, SIZE, kind="text", encode=never)


# --- what would be left out without a word


@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.jsonl", "dataset.json", "0/metadata.jsonl"])
@pytest.mark.parametrize("kind", ["none", "class"])
def test_tables_that_are_not_read_are_refused(tmp_path: Path, name: str, kind: Any) -> None:
    """StyleGAN's and EDM's dataset.json gives other labels than the folders that the images lie in."""
    write(tmp_path / "set", {**IMAGES, name: b'{"labels": [["0/1.png", 6]]}'})
    with pytest.raises(DataError, match=f"1 table .{name}. with labels or captions .* write a metadata.jsonl"):
        open_images(tmp_path / "set", SIZE, kind=kind, num_classes=2)


def test_images_of_other_kinds_are_read_or_refused(tmp_path: Path) -> None:
    write(tmp_path / "set", {"a.png": png(picture(1)), "b.jfif": png(picture(2)), "c.JPE": png(picture(3))})
    assert len(open_images(tmp_path / "set", SIZE)) == 3
    (tmp_path / "set/d.HEIC").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 file .d.HEIC. that may be images of kinds that are not read"):
        open_images(tmp_path / "set", SIZE)


def test_images_are_read_inside_inference_mode_and_after_it(tmp_path: Path) -> None:
    write(tmp_path / "set", {"a.png": png(picture(1)), "b.png": png(picture(2))})
    plain = open_images(tmp_path / "set", SIZE).images(torch.arange(2))
    with torch.inference_mode():
        source = open_images(tmp_path / "set", SIZE)
        assert torch.equal(source.images(torch.arange(1)), plain[:1])
    assert torch.equal(source.images(torch.arange(2)), plain)


@pytest.mark.parametrize("ending", ["ppm", "pgm", "pbm", "pnm", "apng", "dib"])
def test_images_of_simple_kinds_are_read(tmp_path: Path, ending: str) -> None:
    image = Image.new({"pgm": "L", "pbm": "1"}.get(ending, "RGB"), SIZE[::-1], "white")
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / f"a.{ending}", format={"apng": "PNG", "dib": "DIB"}.get(ending, "PPM"))
    found = open_images(tmp_path / "set", SIZE)
    assert len(found) == 1 and bool((found.images(torch.arange(1)) == 1).all())


@pytest.mark.parametrize("name", ["a.cr3", "a.RAF", "a.orf", "a.hif", "a.j2k", "a.svg", "a.ico", "a.PNG_", "a"])
@pytest.mark.parametrize("zipped", [False, True])
def test_whatever_may_be_an_image_is_not_left_out_without_a_word(tmp_path: Path, name: str, zipped: bool) -> None:
    content = {**IMAGES, f"0/{name}": png(picture(1))}
    path = zipped_set(tmp_path, content) if zipped else write(tmp_path / "set", content)
    with pytest.raises(DataError, match=rf"1 file .0/{name}. that may be images of kinds that are not read; save them as PNG"):
        open_images(path, SIZE)


def zipped_set(folder: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return folder / "set.zip"


def test_what_lies_beside_images_is_left_out(tmp_path: Path) -> None:
    beside = ("README", "LICENSE", "a.txt", "0/a.JSON", "b.csv", "c.npz", "1/d.xmp", "Thumbs.db", "v1. of today", "e.tar.gz")
    write(tmp_path / "set", {**IMAGES, **dict.fromkeys(beside, b"text")})
    assert len(open_images(tmp_path / "set", SIZE)) == 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "0/1.png", "file": "0/2.png"}', "line 1 .* gives the key 'file' twice"),
        ('{"file": "0/1.png", "file_name": "0/2.png"}', 'line 1 .* "file" and "file_name", which differ'),
        ('{"file": "0/1.png", "caption": "a", "text": "b"}', 'line 1 .* "caption" and "text", which differ'),
    ],
)
def test_lines_that_say_two_things_are_refused(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path / "set", {**IMAGES, "metadata.jsonl": line.encode()})
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / "set", SIZE)


def test_accents_are_the_same_in_both_forms(tmp_path: Path) -> None:
    """macOS writes names with accents as signs of their own."""
    line = json.dumps({"file": "caf\u00e9.png", "caption": None, "text": "a"}).encode()
    write(tmp_path / "set", {"cafe\u0301.png": png(picture(1)), "metadata.jsonl": line})
    assert open_images(tmp_path / "set", SIZE).captions == ("a",)
    write(tmp_path / "classes", {"cafe\u0301/1.png": png(picture(1)), "tea/1.png": png(picture(2))})
    found = open_images(tmp_path / "classes", SIZE, kind="class", num_classes=2, class_names=("caf\u00e9", "tea"))
    assert found.labels is not None and found.labels.tolist() == [0, 1]


def test_prompts_from_a_device_are_not_waited_for() -> None:
    with pytest.raises(ConfigError, match="is no regular file"):
        read_prompts("/dev/zero")


def test_a_table_of_line_breaks_takes_no_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png(picture(0)))
        archive.writestr("metadata.jsonl", b"\n" * 2**21)
    with pytest.raises(DataError, match=r"metadata\.jsonl in .* has 2,097,152 bytes and is stored in .* Unpack the zip"):
        open_images(tmp_path / "m.zip", (8, 8))
    lines = text_lines(b"\n" * 2**21, "a text")
    assert next(iter(lines)) == "" and not isinstance(lines, list)  # nor are they all there at once


def test_a_picture_of_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("ghostscript was started"))
    (tmp_path / "cat.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"cat\.png .* is not a readable image \(its format is unknown"):
        open_images(tmp_path, (8, 8)).images(torch.tensor([0]))


def test_an_image_of_too_many_pixels_is_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(picture(0))
    monkeypatch.setattr("adanat_toolkit.images.files.MOST_PIXELS", 63)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("pixels were read"))
    with pytest.raises(ValueError, match="it has 20 x 16 pixels, at most 63 are read"):
        open_upright(data)


def test_what_threads_hold_at_once_is_bounded() -> None:
    at_once, held, most = _AtOnce(10), 0, 0

    def work(units: int) -> None:
        nonlocal held, most
        with at_once.taken(units):
            held += min(units, 10)
            most = max(most, held)
            time.sleep(0.001)
            held -= min(units, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 4, 99, 1, 6] * 8))
    assert 0 < most <= 10
