"""Pack the emoji64 images for the wheel: lossy WebP, one stored zip, compact metadata.

    python recipes/pack_emoji64.py IMAGES.zip METADATA.jsonl CLASSES.json plugins/adanat_plugins/emoji64

``IMAGES.zip`` holds 64x64 RGB images in any format Pillow reads; ``METADATA.jsonl`` has one line an image in the order
of the data set. The output is byte-identical for the same input and libwebp version.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

KEYS = ("file", "style", "category", "subcategory", "label", "name", "skin_tone", "unicode", "caption")
QUALITY = 90


def encode(data: bytes) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(out, "WEBP", quality=QUALITY, method=6)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("metadata", type=Path)
    parser.add_argument("classes", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    classes = json.loads(args.classes.read_text())
    rows = [json.loads(line) for line in args.metadata.read_text().splitlines()]
    for row in rows:
        if classes[row["label"]] != f"{row['category']} / {row['subcategory']}":
            raise SystemExit(f"{row['file']}: label {row['label']} is {classes[row['label']]!r}, not its subcategory")
    with zipfile.ZipFile(args.images) as archive:
        data = [archive.read(row["file"]) for row in rows]
    with ThreadPoolExecutor(2) as pool:
        packed = list(pool.map(encode, data, chunksize=64))
    args.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(args.out / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for row, content in zip(rows, packed, strict=True):
            archive.writestr(zipfile.ZipInfo(row["file"]), content)
    lines = "".join(
        json.dumps({key: row[key] for key in KEYS}, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows
    )
    (args.out / "metadata.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    (args.out / "classes.json").write_text(json.dumps(classes, indent=0, ensure_ascii=False) + "\n")
    print(f"{len(rows)} images, {sum(map(len, packed)) / 1e6:.1f} MB, into {args.out}")


if __name__ == "__main__":
    main()
