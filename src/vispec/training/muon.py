"""Muon (https://kellerjordan.github.io/posts/muon/) for many matrices of few shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, with all matrices of one shape orthogonalised in one batched product.

    A deep and narrow model has hundreds of equal, small matrices: one at a time, starting the
    operations costs several times more than computing them. The updates and the state are the
    same, so checkpoints of the two can be exchanged.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                self._update(group, shape, parameters)
        return loss

    def _update(self, group: dict[str, Any], shape: torch.Size, parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        if group["nesterov"]:
            momenta = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        updates = orthogonal(
            torch.stack([m.bfloat16() for m in momenta]),
            group["ns_coefficients"],
            group["ns_steps"],
            group["eps"],
        )
        rate = group["lr"]
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        if group["adjust_lr_fn"] == "match_rms_adamw":
            scale = 0.2 * max(shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype)), alpha=-rate * scale)


def orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """The nearest orthogonal matrices, roughly: a quintic Newton-Schulz iteration.

    Args:
        matrices: `[k, m, n]`.
        coefficients: of `x`, `x xᵀ x` and `(x xᵀ)² x` in one round.
        steps: rounds.
        eps: least norm that is divided by.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
