"""Every weights file the toolkit knows: what it is, where it is published, under which licence, where to put it.

Nothing here is downloaded without being asked: a file is taken from the weights folder or from the path that the user
names, and fetched from the hub only where the user names a hub id. Published files keep their published names.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.storage import why_not_fetched

from ..emoji64 import FOLDER

FOLDER_VARIABLE = "ADANAT_WEIGHTS"
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILE_ENDINGS = (".pth", ".ckpt", ".pt", ".bin", ".safetensors", ".msgpack")


def weights_folder() -> Path:
    """Where third-party weights are looked for: ``$ADANAT_WEIGHTS``, or ``~/.cache/adanat/weights``."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "adanat" / "weights"


@dataclass(frozen=True)
class Asset:
    """One file (or diffusers folder) that a variant needs.

    Attributes:
        variants: the generator variants (or rewards, or feature protocols) that use it.
        role: what it holds: generator, tokenizer, generator and tokenizer, text encoder, policy, pipeline.
        file: path below the weights folder; for embedded files the name in the package.
        parameters: number of parameters, where known.
        source: where it is published. obtain: how to get it. licence: of the weights.
        sha256: None where nothing trustworthy states it.
        hub: hub id that publishes it under the last part of ``file``, so that ``--weights HUB_ID`` works.
    """

    variants: tuple[str, ...]
    role: str
    file: str
    source: str
    licence: str
    obtain: str
    parameters: int | None = None
    sha256: str | None = None
    hub: str | None = None
    embedded: bool = False

    @property
    def path(self) -> Path:
        """Where the file is looked for."""
        return (FOLDER if self.embedded else weights_folder()) / self.file

    def present(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def size_text(self) -> str:
        """The size on disk, or what its parameters take in float32; "unknown" without either."""
        if self.path.is_file():
            return _megabytes(self.path.stat().st_size)
        return f"about {_megabytes(4 * self.parameters)} in float32" if self.parameters else "unknown"

    def row(self) -> dict[str, Any]:
        """JSON-able description, for ``adanat weights``."""
        return {
            "variants": list(self.variants),
            "role": self.role,
            "file": self.file,
            "path": str(self.path),
            "present": self.present(),
            "embedded": self.embedded,
            "size": self.size_text(),
            "parameters": self.parameters,
            "source": self.source,
            "licence": self.licence,
            "sha256": self.sha256,
            "obtain": self.obtain,
            "hub": self.hub,
        }

    def missing(self, where: Path | None = None) -> WeightsError:
        """The error for an absent file: which one, where it is published, its licence, where to put it."""
        remote = f" or give --weights {self.hub}" if self.hub else ""
        return WeightsError(
            f"{' and '.join(self.variants)} needs its {self.role} weights, and {where or self.path} does not exist.\n"
            f"  published: {self.source}\n  licence: {self.licence}\n"
            f"  size: {self.size_text()}\n  obtain: {self.obtain}\n"
            f"Put it at {self.path} (or set {FOLDER_VARIABLE} to another folder), or name it with --weights PATH"
            f"{remote}."
        )


_OWN_LICENCE = "Apache-2.0 (trained on the embedded images alone, see emoji64/NOTICE.md)"
_ADANAT = "the README of https://github.com/LeapLabTHU/AdaNAT (links to a file host)"
_ADANAT_LICENCE = "none stated: the repository has no licence file; ask its authors before you redistribute"
_ADANAT_OBTAIN = "follow the README's link and save the file under the name given here (the name is ours)"
_MAGE = "the README of https://github.com/LTH14/mage (links to a file host)"
_MAGE_LICENCE = "MIT for the code; the weights' own terms are not stated"
_GOOGLE = "https://storage.googleapis.com/maskgit-public/checkpoints/"
_GOOGLE_LICENCE = "Apache-2.0 for the code (google-research/maskgit); the weights' own terms are not stated"


def _embedded(variants: tuple[str, ...], role: str, file: str, parameters: int, sha256: str) -> Asset:
    return Asset(
        variants, role, file, "inside this package", _OWN_LICENCE, "nothing to do", parameters, sha256, embedded=True
    )


def _google(side: int, role: str, name: str, parameters: int) -> Asset:
    return Asset(
        (f"maskgit:google-{side}",), role, f"google/{name}", _GOOGLE + name, _GOOGLE_LICENCE,
        "download the address above; the file has no suffix", parameters,
    )


def _adanat(variant: str, role: str, file: str, parameters: int) -> Asset:
    return Asset((variant,), role, file, _ADANAT, _ADANAT_LICENCE, _ADANAT_OBTAIN, parameters)


_VAR = ("var:d16", "var:d30")
_VAR_HUB = "FoundationVision/var"
_VAR_LICENCE = "MIT (repository)"


def _var(variants: tuple[str, ...], role: str, name: str, parameters: int) -> Asset:
    return Asset(
        variants, role, f"var/{name}", f"https://huggingface.co/{_VAR_HUB}", _VAR_LICENCE, f"download {name}", parameters,
        hub=_VAR_HUB,
    )


_HALTON = ("maskgit:halton-256", "maskgit:halton-384")
_HALTON_HUB = "llvictorll/Halton-MaskGIT"
_BIGG = "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
_VQGAN_VARIANTS = ("maskgit:adanat-imagenet-l", "maskgit:adanat-imagenet-s", "muse:adanat-cc3m")

_LATENT = ("dit:xl-2-256", "sit:xl-2-256")

ASSETS: tuple[Asset, ...] = (
    _embedded(("maskgit:emoji64",), "generator", "maskgit.safetensors", 4_562_177,
              "a3be719b73388f433c50a6784373dce75e68985f89f45c5dcb85a4daaa98dfe2"),
    _embedded(("mage:emoji64",), "generator", "mage.safetensors", 4_050_345,
              "3ad7c1e4065702306dc0ed035be086ebd8517b89f9406fb799d6a1e2c28c9a21"),
    _embedded(("muse:emoji64",), "generator", "muse.safetensors", 4_567_361,
              "605e4e2eb24ac5d3da772c3b6d48b83bd529d11c7e4ea18e7600e62d11b79646"),
    _embedded(("muse:emoji64",), "text encoder", "clip.safetensors", 4_081_153,
              "3cdc5df24753fa335448d0d7faa5b0c3de7bbb8339a232b593629446f8c4098b"),
    _embedded(("sit:emoji64", "dit:emoji64"), "generator", "sit.safetensors", 4_191_032,
              "cee87a724b6982987671272f95d5839c26a7835b537c5101506698f390fd3c69"),
    _embedded(("var:emoji64",), "generator", "var.safetensors", 2_973_252,
              "c5ad3e4ae2aaf8fc7c1f0514ed2280a0b48de3bd6c61facb449e07a4bc17fdea"),
    _embedded(("var:emoji64",), "quantiser", "var_quantizer.safetensors", 56_448,
              "6e2d646a693d2210d8a30cc8ba8318fe04099d60f47d980a3febff8c6822f3e4"),
    _embedded(tuple(f"{name}:emoji64" for name in ("maskgit", "mage", "muse", "dit", "sit", "var")), "tokenizer",
              "tokenizer.safetensors", 6_663_619,
              "83b6fc23c8f35c78d29700696a4bbc5f575269afdb8c07d53401536d12b75ebe"),
    _embedded(tuple(f"{name}:emoji64" for name in ("maskgit", "mage", "muse")), "distilled decoder", "decoder.safetensors",
              363_980, "467be7361b5b2adbdc326a3b8c5559c30bdae884a32d3fa6aac2789a535dde46"),
    _adanat("maskgit:adanat-imagenet-l", "generator", "adanat/imagenet-l.pth", 193_655_297),
    Asset(("maskgit:adanat-imagenet-s",), "generator", "adanat/imagenet-s.pth",
          "not published with AdaNAT, as far as is known; the architecture is inferred (12 + 1 blocks of width 512)",
          _ADANAT_LICENCE, "ask its authors, or use imagenet-l", 45_546_497),
    _adanat("muse:adanat-cc3m", "generator", "adanat/cc3m.pth", 503_628_929),
    Asset(_VQGAN_VARIANTS, "tokenizer", "mage/vqgan_jax_strongaug.ckpt", _MAGE, _MAGE_LICENCE,
          "follow the README's link to the pre-trained VQGAN tokenizer", 54_515_587),
    Asset(("muse:adanat-cc3m",), "text encoder", f"{_BIGG}/open_clip_model.safetensors", f"https://huggingface.co/{_BIGG}",
          "MIT (model card)", f"download open_clip_model.safetensors, or give text_encoder={_BIGG}", hub=_BIGG),
    _adanat("maskgit:adanat-imagenet-l", "policy", "adanat/imagenet-l-policy.pth", 47_502_858),
    _adanat("muse:adanat-cc3m", "policy", "adanat/cc3m-policy.pth", 48_289_290),
    Asset(("mage:vit-b",), "generator and tokenizer", "mage/mage-vitb-1600.pth", _MAGE, _MAGE_LICENCE,
          "follow the README's link to the ViT-Base checkpoint", 200_989_804),
    Asset(("mage:vit-l",), "generator and tokenizer", "mage/mage-vitl-1600.pth", _MAGE, _MAGE_LICENCE,
          "follow the README's link to the ViT-Large checkpoint", 464_407_148),
    Asset(_HALTON[:1], "generator", "halton/ImageNet_256_base.pth", f"https://huggingface.co/{_HALTON_HUB}",
          "MIT (repository)", "download ImageNet_256_base.pth", 142_224_641, hub=_HALTON_HUB),
    Asset(_HALTON[1:], "generator", "halton/ImageNet_384_large.pth", f"https://huggingface.co/{_HALTON_HUB}",
          "MIT (repository)", "download ImageNet_384_large.pth", 479_984_641, hub=_HALTON_HUB),
    Asset(_HALTON, "tokenizer", "halton/vq_ds16_c2i.pt", "https://huggingface.co/FoundationVision/LlamaGen",
          "not checked: see the model card", "download vq_ds16_c2i.pt", 71_883_403, hub="FoundationVision/LlamaGen"),
    _google(256, "generator", "maskgit_imagenet256_checkpoint", 172_457_193),
    _google(256, "tokenizer", "tokenizer_imagenet256_checkpoint", 54_515_587),
    _google(512, "generator", "maskgit_imagenet512_checkpoint", 173_047_017),
    _google(512, "tokenizer", "tokenizer_imagenet512_checkpoint", 54_515_587),
    _var(_VAR[:1], "generator", "var_d16.pth", 310_283_520),
    _var(_VAR[1:], "generator", "var_d30.pth", 2_010_020_356),
    _var(_VAR, "tokenizer", "vae_ch160v4096z32.pth", 108_948_355),
    Asset(("amused:256",), "pipeline", "amused/amused-256", "https://huggingface.co/amused/amused-256",
          "not checked: see the model card", "download the whole folder", hub="amused/amused-256"),
    Asset(("amused:512",), "pipeline", "amused/amused-512", "https://huggingface.co/amused/amused-512",
          "not checked: see the model card", "download the whole folder", hub="amused/amused-512"),
    Asset(_LATENT[:1], "generator", "dit/DiT-XL-2-256x256.pt", "the README of https://github.com/facebookresearch/DiT",
          "CC-BY-NC-4.0 (repository): not for commercial use", "follow the README's link to DiT-XL/2 at 256x256",
          675_129_632),
    Asset(_LATENT[1:], "generator", "sit/SiT-XL-2-256.pt", "the README of https://github.com/willisma/SiT",
          "MIT (repository)", "follow the README's link to SiT-XL/2 at 256x256", 675_129_632),
    Asset(_LATENT, "tokenizer", "stable-diffusion/autoencoder_kl.pth",
          "the README of https://github.com/LeapLabTHU/AdaGen (Stable Diffusion's autoencoder in its original layout)",
          "not checked: see where it is published", "follow the README's link; diffusers' layout does not fit", 83_653_863),
)


def asset(variant: str, role: str) -> Asset:
    """The file that a variant needs for a role, such as ``asset("mage:vit-b", "generator and tokenizer")``."""
    return next(a for a in ASSETS if variant in a.variants and a.role == role)




def resolve(spec: str | None, wanted: Asset, *, offline: bool) -> Path:
    """The file or folder to load.

    Args:
        spec: None for the asset's own place; or a file; or a folder that holds it (a diffusers folder is taken itself);
            or a hub id ``owner/name[@revision]``, which is fetched (offline: taken from the hub's cache).

    Raises:
        WeightsError: it is not there, could not be fetched, or would have to be fetched while offline. The message says
            which file, where it is published, its licence and where to put it.
    """
    if spec is None:
        if not wanted.present():
            raise wanted.missing()
        return wanted.path
    path = Path(spec).expanduser()
    if path.is_file():
        return path
    name = Path(wanted.file).name
    if path.is_dir():
        inside = [path / wanted.file, path / name]
        return next((p for p in inside if p.exists()), path)
    match = _HUB_ID.fullmatch(spec)
    if match is None or spec.endswith(_FILE_ENDINGS) or spec.startswith((".", "~")):
        raise wanted.missing(path)
    return _from_hub(match["repo"], match["revision"], None if wanted.role == "pipeline" else name, wanted, offline)


def _from_hub(repo: str, revision: str | None, name: str | None, wanted: Asset, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if name is None:
            return Path(snapshot_download(repo, revision=revision, local_files_only=offline))
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=offline))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such repository, gated, no cache
        what = f"{name} of hub id {repo}" if name else f"hub id {repo}"
        why = f"cannot fetch {what}: {why_not_fetched(error)}"
        if offline:
            why = f"--offline forbids fetching {what}, and it is not in the hub's cache"
        raise WeightsError(f"{why}.\n{wanted.missing(Path(repo))}") from None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
