"""Which decoder makes the images that a training looks at: the generator's own, or a distilled one."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..core import Context, Generator, ImageSource, RewardModel
from ..decoding import DistilledDecoder, load_decoder
from ..errors import ConfigError, nearest

OWN, DISTILLED = "own", "distilled"


def choose_decoder(
    setting: str, generator: Generator, reward: RewardModel, *, supported: bool = True
) -> DistilledDecoder | None:
    """The distilled decoder that the setting names; None: the generator's own.

    Args:
        supported: whether the engine can show the reward other images than the generator's own.

    Raises:
        ConfigError: a distilled decoder cannot be used, or was taught by another tokenizer. WeightsError: its file is missing
            or damaged.
    """
    if setting == OWN:
        return None
    against = _against(reward, supported)
    if against is not None:
        raise ConfigError(f"decoder = {setting!r} cannot be used: {against}. Use --decoder own.")
    if setting != DISTILLED:
        path = Path(setting).expanduser()
        if path.suffix != ".safetensors":
            known = (OWN, DISTILLED)
            raise ConfigError(
                f"unknown decoder {setting!r}{nearest(setting, known)} Give {', '.join(known)}, or a FILE.safetensors that "
                "`adanat distill` wrote."
            )
    elif generator.distilled_decoder is None:
        raise ConfigError(
            f"no distilled decoder ships for {generator.name}. Make one with `adanat distill --generator {generator.name}` "
            "and give its file, or use --decoder own."
        )
    else:
        path = generator.distilled_decoder
    return load_decoder(path, generator)


def _against(reward: RewardModel, supported: bool) -> str | None:
    """Why a distilled decoder cannot be used, whichever it is."""
    if not supported:
        return "this engine shows the generator's own images"
    if reward.reads_latents:
        return "the reward reads latents, so nothing is decoded"
    if reward.compares_sets or ("real_images" in reward.needs and (reward.set_level or not reward.learns)):
        return "the reward holds sets of images against real ones as they are, which a distilled decoder never makes"
    return None


class Rebuilt:
    """Real images as a distilled decoder shows them: image -> latents -> image. A discriminator whose generated images come
    from that decoder must not find its traces in those alone."""

    def __init__(self, real: ImageSource, generator: Generator, decoder: DistilledDecoder) -> None:
        self.real, self.generator, self.decoder = real, generator, decoder
        self.fingerprint = f"{real.fingerprint}-{decoder.fingerprint}"

    def __len__(self) -> int:
        return len(self.real)

    def images(self, index: Tensor) -> Tensor:
        """(n, 3, H, W) float32 in [0, 1] on the CPU."""
        return self.decoder.decode(self.generator.real_latents(self.real, index)).cpu()

    def contexts(self, index: Tensor) -> Context:
        return self.real.contexts(index)
