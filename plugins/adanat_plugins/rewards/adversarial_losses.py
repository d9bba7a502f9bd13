"""Losses of the adversarial reward: on logits (n, P) of n real and m generated images at P positions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adanat_toolkit.runtime import distributed

Loss = Literal["bce", "hinge", "relativistic"]


def discriminator_loss(kind: Loss, real: Tensor, fake: Tensor, counts: Tensor, smoothing: float = 0.0) -> Tensor:
    """This process's share of the loss; the shares of all processes add up to the loss.

    ``bce``: softplus(-real) + softplus(fake). ``hinge``: relu(1 - real) + relu(1 + fake) (Lim & Ye 2017). Both are
    means over positions and images. ``relativistic``: softplus(-(real_i - fake_j)) on the images' mean logits, averaged
    over all pairs of a real and a generated image of all processes (Jolicoeur-Martineau 2018).

    Args:
        counts: (2,) numbers of real and generated images of all processes.
        smoothing: target of real images is 1 - smoothing (``bce`` only; Salimans et al. 2016, section 3.4).
    """
    if kind == "relativistic":
        reals, fakes = (distributed.gather_with_gradient(logits.mean(1)) for logits in (real, fake))
        loss = F.softplus(fakes[None, :] - reals[:, None]).mean()
        # Every process has the whole value, but only its own samples' gradients.
        return loss - loss.detach() * (1 - 1 / distributed.world_size())
    if kind == "hinge":
        on_real, on_fake = F.relu(1 - real), F.relu(1 + fake)
    else:
        on_real, on_fake = F.softplus(-real), F.softplus(fake)
        if smoothing:
            on_real = (1 - smoothing) * on_real + smoothing * F.softplus(real)
    return on_real.mean(1).sum() / counts[0] + on_fake.mean(1).sum() / counts[1]


def gradient_penalty(logits: Tensor, inputs: Tensor, count: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018): half the squared gradient of the images' mean logits, this process's share of the
    mean.

    Args:
        logits: (n, P) of ``inputs`` (n, ...), which require gradients. count: number of real images of all processes.
    """
    (gradient,) = torch.autograd.grad(logits.mean(1).sum(), inputs, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum() / count
