"""Adam, and the size of gradients, in a few calls for all tensors together.

The numbers are those of ``torch.optim.Adam``, bit for bit on a CPU, and so are the names of its state. torch's own class
imports the compiler when it is made, which takes seconds, and on a CPU it goes through its tensors one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Adam:
    """Adam (Kingma & Ba 2015) without weight decay.

    Args:
        parameters: that are trained. A step leaves out those without a gradient.
        lr: step size. betas: decays of the two moments. eps: is added to the root of the second one.

    Attributes:
        param_groups: one group with ``params``, ``lr``, ``betas`` and ``eps``, which may be changed between steps.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(parameters), "lr": lr, "betas": tuple(betas), "eps": eps}
        ]
        self._moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self._steps: dict[nn.Parameter, int] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; ``set_to_none`` False fills them with zeros instead."""
        for parameter in self._parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients that are there."""
        together: dict[int, list[nn.Parameter]] = {}
        for parameter in self._parameters():
            if parameter.grad is not None:
                if parameter not in self._moments:
                    self._moments[parameter] = (torch.zeros_like(parameter), torch.zeros_like(parameter))
                self._steps[parameter] = self._steps.get(parameter, 0) + 1
                # Nearly always one number for all: they differ where a parameter had no gradient before.
                together.setdefault(self._steps[parameter], []).append(parameter)
        for number, parameters in together.items():
            self._step(parameters, number)

    def _step(self, parameters: list[nn.Parameter], number: int) -> None:
        group = self.param_groups[0]
        (first, second), rate = group["betas"], group["lr"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        values: list[Tensor] = list(parameters)
        means, squares = ([self._moments[parameter][i] for parameter in parameters] for i in (0, 1))
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - second**number))
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(values, means, roots, value=-rate / (1 - first**number))

    @property
    def state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """By parameter ``step`` (a float32 scalar on the CPU), ``exp_avg`` and ``exp_avg_sq``; empty before the first step.

        The moments are those that are trained with. To set it takes the tensors over.
        """
        return {
            parameter: {
                "step": torch.tensor(float(self._steps[parameter]), dtype=torch.float32, device="cpu"),
                "exp_avg": mean,
                "exp_avg_sq": square,
            }
            for parameter, (mean, square) in self._moments.items()
        }

    @state.setter
    def state(self, state: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        self._moments = {parameter: (entry["exp_avg"], entry["exp_avg_sq"]) for parameter, entry in state.items()}
        self._steps = {parameter: int(entry["step"]) for parameter, entry in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state by the parameters' positions, and the groups without them: as ``torch.optim.Adam`` has it."""
        position = {parameter: index for index, parameter in enumerate(self._parameters())}
        group = {key: value for key, value in self.param_groups[0].items() if key != "params"}
        return {
            "state": {position[parameter]: entry for parameter, entry in self.state.items()},
            "param_groups": [{**group, "params": list(position.values())}],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the tensors are taken over, not copied."""
        parameters = self._parameters()
        self.state = {parameters[index]: entry for index, entry in state["state"].items()}
        values = {key: value for key, value in state["param_groups"][0].items() if key != "params"}
        self.param_groups[0].update(values)

    def _parameters(self) -> list[nn.Parameter]:
        parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        return parameters


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all the gradients together, a scalar; they are on one device."""
    return torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(list(gradients)))))


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients in place so that their norm is at most ``limit``; returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = total_norm(gradients)
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
