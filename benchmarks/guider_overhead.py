"""What ``AdanatGuider`` adds to a step of a modular pipeline, against diffusers' own classifier-free guidance.

Two answers. The floating-point operations of a step on the U-Net of Stable Diffusion XL, counted on the meta device, where
its 2.6 billion weights need no memory. And the wall time on this machine, on a U-Net of the same topology and a quarter of
the width: both guiders take steps in turn through the calls that diffusers' blocks make; what is spent in the guider and in
its hooks is timed inside these steps, since the difference of two whole steps would be lost in their noise.

    python benchmarks/guider_overhead.py [--width 80] [--latents 32] [--batch 1] [--steps 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before torch starts its threads: on busy cores, waiting threads that spin make everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from diffusers import UNet2DConditionModel
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adanat_plugins.diffusion.features import FeatureHook
from adanat_plugins.diffusion.samplers import TIME_SHIFT
from adanat_toolkit.core import GUIDANCE, ActionSpace
from adanat_toolkit.integrations.diffusers import AdanatGuider, guider
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, SamplingPolicy, export_policy

XL_WIDTH, XL_LATENTS = 320, 128
TEXT, POOLED = 2048, 1280


def xl_unet(width: int) -> Any:
    """The U-Net of Stable Diffusion XL, of another first width."""
    model: Any = UNet2DConditionModel
    return model(
        sample_size=XL_LATENTS, block_out_channels=(width, 2 * width, 4 * width), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20), cross_attention_dim=TEXT, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, norm_num_groups=16 if width % 32 else 32,
        projection_class_embeddings_input_dim=POOLED + 6 * 256,
    ).eval()  # fmt: skip


def inputs(batch: int, latents: int, device: torch.device) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Latents, and what the blocks of Stable Diffusion XL give a guider."""
    text, pooled = torch.randn(batch, 77, TEXT, device=device), torch.randn(batch, POOLED, device=device)
    times = torch.full((batch, 6), 1024.0, device=device)
    fields = {"prompt_embeds": (text, -text), "text_embeds": (pooled, -pooled), "time_ids": (times, times)}
    return torch.randn(batch, 4, latents, latents, device=device), fields


def step(unet: Any, chosen: Any, latents: Tensor, fields: Any, index: int, steps: int) -> Tensor:
    """One denoising step as ``StableDiffusionXLLoopDenoiser`` makes it."""
    moment = torch.tensor(500.0, device=latents.device)
    chosen.set_state(step=index, num_inference_steps=steps, timestep=moment)
    batches = chosen.prepare_inputs(fields)
    for one in batches:
        chosen.prepare_models(unet)
        one.noise_pred = unet(
            latents, moment, encoder_hidden_states=one.prompt_embeds,
            added_cond_kwargs={"text_embeds": one.text_embeds, "time_ids": one.time_ids}, return_dict=False,
        )[0]  # fmt: skip
        chosen.cleanup_models(unet)
    guided: Tensor = chosen(batches)[0]
    return guided


def make_guider(folder: Path, width: int, grid: tuple[int, int], steps: int) -> AdanatGuider:
    """A guider of the adaptive policy, with random weights that cost the same."""
    space = ActionSpace((GUIDANCE, TIME_SHIFT)).bind(torch.tensor([[6.5, 0.5]] * steps), acted=["guidance"])
    network = AdaptivePolicy(AdaptiveOptions(), space=space, grid=grid, feature_dim=width)
    made_for: Any = SimpleNamespace(
        name="diffusers:StableDiffusionXLPipeline", fingerprint="0" * 16, grid=grid, feature_dim=width
    )
    facts = {"trajectories": 0, "reward": "none", "seed": 0, "engine": "adanat"}
    policy = SamplingPolicy(network, space)
    export_policy(folder, policy, network.state_dict(), options={}, generator=made_for, facts=facts)
    return AdanatGuider.from_pretrained(folder)


def operations(folder: Path) -> dict[str, float]:
    """Operations of one step of one image: both forwards of the U-Net at 1024 pixels, and the policy's."""
    with torch.device("meta"):
        unet = xl_unet(XL_WIDTH)
        latents, fields = inputs(1, XL_LATENTS, torch.device("meta"))
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        unet(
            latents, torch.zeros(1, device="meta"), encoder_hidden_states=fields["prompt_embeds"][0],
            added_cond_kwargs={name: fields[name][0] for name in ("text_embeds", "time_ids")},
        )  # fmt: skip
    network = make_guider(folder, XL_WIDTH, (16, 16), 16).policy.network
    with FlopCounterMode(display=False) as own, torch.no_grad():
        network(torch.randn(1, 256, XL_WIDTH), torch.zeros(1, dtype=torch.int64))
    forwards, policy = 2 * whole.get_total_flops(), own.get_total_flops()
    parameters = sum(p.numel() for p in unet.parameters())
    return {"unet_parameters": parameters, "unet": forwards, "policy": policy, "share": policy / forwards}


class Clock:
    """Seconds spent inside some methods, nested ones counted once."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._depth, self._cuda = 0.0, 0, device.type == "cuda"

    def now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now() if self._depth == 0 else 0.0
            self._depth += 1
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += self.now() - start

        return run

    @contextmanager
    def on(self, *methods: tuple[Any, str]) -> Iterator[None]:
        """While inside, calls of these methods of classes are timed."""
        before = [(owner, name, owner.__dict__.get(name)) for owner, name in methods]
        for owner, name in methods:
            setattr(owner, name, self.timed(getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, value in before:
                if value is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=XL_WIDTH // 4)
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    device = torch.device(options.device)
    calls = ("set_state", "prepare_inputs", "prepare_models", "cleanup_models", "__call__")
    with tempfile.TemporaryDirectory() as folder:
        counted = operations(Path(folder) / "xl")
        torch.manual_seed(0)
        unet = xl_unet(options.width).to(device)
        latents, fields = inputs(options.batch, options.latents, device)
        side = min(16, options.latents)
        guiders = {
            "own": make_guider(Path(folder) / "own", options.width, (side, side), options.steps + 1),
            "plain": ClassifierFreeGuidance(guidance_scale=7.5),
        }
        spent: dict[str, list[float]] = {name: [] for name in guiders}
        whole: dict[str, list[float]] = {name: [] for name in guiders}
        clock = Clock(device)
        timed = [(kind, name) for kind in (AdanatGuider, ClassifierFreeGuidance) for name in calls]
        with torch.no_grad(), clock.on(*timed, (guider._Watch, "__call__"), (FeatureHook, "_keep")):
            for index in range(options.steps + 1):
                for name, chosen in guiders.items():
                    clock.seconds, start = 0.0, clock.now()
                    step(unet, chosen, latents, fields, index, options.steps + 1)
                    whole[name].append(clock.now() - start)
                    spent[name].append(clock.seconds)
    own, plain = spent["own"][1:], spent["plain"][1:]  # the first step warms up
    base = statistics.median(whole["plain"][1:])
    shares = [(a - b) / base for a, b in zip(own, plain, strict=True)]
    print(
        json.dumps(
            {
                "operations_of_a_step_at_full_size": counted,
                "unet_parameters": sum(p.numel() for p in unet.parameters()),
                "step_seconds": base,
                "guider_ms": {name: 1e3 * statistics.median(values[1:]) for name, values in spent.items()},
                "share": {"median": statistics.median(shares), "least": min(shares), "most": max(shares)},
                **vars(options),
                "torch": torch.__version__,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
