"""``AdanatGuider``: a policy as diffusers' modular pipelines take it, in place of classifier-free guidance."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor, nn

from adanat_plugins.diffusion.families import Family
from adanat_plugins.diffusion.features import FeatureHook, check_denoiser

from ...errors import CheckpointError, ConfigError
from ...policies import policy_folder
from ...storage import POLICY_FILES, shortened
from .calls import Calls, calls_of, family_of_denoiser
from .following import Actions, require_steps
from .networks import require_denoiser, require_features, stored_policy


class AdanatGuider(ClassifierFreeGuidance):
    """Guidance that a policy chooses for every sample and step.

    The prediction is cond + g (cond - uncond) with the policy's g; the denoiser's last hidden state of the conditional
    batch, which the policy reads, is taken by a hook while the batch runs. Nothing else of the pipeline changes, so a
    policy that also sets times or fresh noise is refused: :func:`apply` puts those into classic pipelines.

    Its configuration names the policy's folder (``policy``) and the SHA-256 of its files (``policy_hash``), which a folder
    is held to. Saved with a pipeline, the policy's files lie beside the configuration.

    Args:
        policy: a run or policy folder, or a hub id.
        policy_hash: what the files must hash to; None takes them as they are.

    Raises:
        ConfigError: no policy there, or one that sets more than guidance. CheckpointError: damaged files, or other ones.
    """

    _FOLLOWED: ClassVar[str] = "guidance"

    @register_to_config
    def __init__(self, policy: str, policy_hash: str | None = None) -> None:
        BaseGuidance.__init__(self)  # the parent's own would add a guidance scale to the configuration
        self.policy, found = stored_policy(policy)
        if policy_hash is not None and found != policy_hash:
            raise CheckpointError(
                f"the policy at {policy} has the hash {found[:16]}..., and the guider was saved with "
                f"{shortened(policy_hash)[1:17]}...; give the policy that it was saved with."
            )
        self.register_to_config(policy_hash=found)
        more = [name for name in self.policy.space.acted if name != self._FOLLOWED]
        if more:
            raise ConfigError(
                f"the policy at {policy} also sets {', '.join(more)}, and a guider sets guidance alone; use "
                "adanat.apply(pipe, policy) with the classic pipeline, or train with policy.knobs=[guidance]."
            )
        self._actions = Actions(self.policy)
        self._denoiser: nn.Module | None = None
        self._watch: Any = None
        self._hook: FeatureHook | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **_: Any
    ) -> AdanatGuider:
        """The guider of a policy, or one that was saved (alone or with a pipeline).

        Args:
            pretrained_model_name_or_path: a run or policy folder, a hub id of a policy, or the folder of a saved guider or
                pipeline. subfolder: of the pipeline, usually ``guider``.

        Raises:
            ConfigError, CheckpointError: see the class.
        """
        source = os.fspath(pretrained_model_name_or_path)
        place = os.path.join(source, subfolder) if subfolder else source
        expected = None
        if os.path.isfile(os.path.join(place, cls.config_name)):
            config: Any = cls.load_config(place)
            expected = str(config.get("policy_hash"))
        guider = cls(policy=place, policy_hash=expected)
        # How diffusers knows where a component came from: with it, the pipeline's index names the guider.
        guider._diffusers_load_id = "|".join((source, subfolder or "", "null", "null"))
        return guider

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the configuration and beside it the policy's two files."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config: Any = self.config
        source = policy_folder(config.policy)
        assert source is not None
        for name in POLICY_FILES:
            if (source / name).resolve() != (folder / name).resolve():
                shutil.copyfile(source / name, folder / name)
        super().save_pretrained(folder, push_to_hub=push_to_hub, **kwargs)

    def set_state(self, step: int, num_inference_steps: int, timestep: torch.LongTensor) -> None:
        """Told by the pipeline before each step.

        Raises:
            ConfigError: other steps than the policy's.
        """
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            require_steps(num_inference_steps, self.policy)
            self._actions.restart()

    def prepare_inputs(self, data: Any, *more: Any) -> list[Any]:
        """The inputs of the two forwards.

        Raises:
            ConfigError: the pipeline has no unconditional inputs; both forwards would be the same.
        """
        fields = next((value for value in (data, *more) if isinstance(value, dict)), {})
        if self._enabled and not any(isinstance(value, tuple) for value in fields.values()):
            raise ConfigError(
                "the pipeline encoded no unconditional prompt, so guidance would do nothing; call it with "
                "negative_prompt=''."
            )
        batches: list[Any] = super().prepare_inputs(data, *more)
        return batches

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Told before each of the two forwards of a step; the first one is the conditional one.

        Raises:
            ConfigError: a denoiser that the policy was not trained for, or one that is compiled or quantised.
        """
        super().prepare_models(denoiser)
        self._detach()  # what an interrupted call left
        if self._count_prepared == 1 and self._enabled:
            if self._denoiser is not denoiser:
                require_denoiser(denoiser, self.policy)
                self._denoiser = denoiser
            family, calls = family_of_denoiser(denoiser), calls_of(denoiser)
            check_denoiser(family, denoiser)
            self._watch = denoiser.register_forward_pre_hook(_Watch(self, family, calls), with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Told after each forward: the hooks go."""
        super().cleanup_models(denoiser)
        self._detach()

    def _detach(self) -> None:
        """Take the hooks off the denoiser; what they kept stays."""
        for handle in (self._watch, self._hook):
            if handle is not None:
                handle.remove()
        self._watch = None

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction, of the predictions' shape (B, ...) and dtype."""
        if pred_uncond is None or self._hook is None:
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=pred_uncond)
        features, self._hook = self._hook.take(), None
        values = self._actions.next(features)[:, self.policy.space.names.index(self._FOLLOWED)]
        guidance = values.to(pred_cond.dtype).view(-1, *[1] * (pred_cond.ndim - 1))
        pred = pred_cond + guidance * (pred_cond - pred_uncond)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def num_conditions(self) -> int:
        """Two forwards a step: what the policy will say is known only after the first."""
        return 2 if self._enabled else 1


class _Watch:
    """Sees the latents that the denoiser is given, and puts a feature hook of their size on it."""

    def __init__(self, guider: AdanatGuider, family: Family, calls: Calls) -> None:
        self.guider, self.family, self.calls = guider, family, calls

    def __call__(self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents = self.calls.latents_of((args, kwargs))
        patch = self.family.patch(SimpleNamespace(**{self.family.denoiser: denoiser}))
        cells = (latents.shape[2] // patch, latents.shape[3] // patch)
        self.guider._hook = FeatureHook(self.family, denoiser, cells)
        try:
            require_features(self.guider._hook, self.guider.policy)
        except ConfigError:
            self.guider._detach()
            raise
