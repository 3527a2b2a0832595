"""How much a small change of the input changes the output of a network."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ctdl_lib.metrics import cross_entropy

Function = Callable[[Tensor], Tensor]


def local_lipschitz(f: Function, y: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """The spectral norm ‖∂f/∂y‖₂ at each sample.

    It is the smallest M with ‖f(y + ε) − f(y)‖ ≤ M‖ε‖ + o(‖ε‖). f must treat the samples
    independently. The cost is one backward pass per component of f.

    Reference: haber2017stable.
    """
    y = y.detach().requires_grad_()
    rows = [torch.autograd.grad(out.sum(), y, retain_graph=True)[0] for out in f(y).unbind(-1)]
    return torch.linalg.matrix_norm(torch.stack(rows, 1), ord=2)


def pgd(
    f: Function,
    y: Float[Tensor, "batch d"],
    label: Int[Tensor, " batch"],
    eps: float,
    *,
    steps: int = 10,
    rate: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch d"]:
    """The inputs z after `steps` of projected gradient ascent z ← P(z + rate · sign(∇ℓ)), from y.

    P projects onto the box ‖z − y‖∞ ≤ ε, and ℓ is the cross-entropy of the logits f(z). By default
    `rate` is 2.5 ε/steps. With a `generator`, z starts at a random point of the box.

    Raises:
        ValueError: ε is negative or `steps` is below 1.

    One step with rate ε is the fast gradient sign method.

    Reference: goodfellow2015explaining; madry2018towards.
    """
    if eps < 0 or steps < 1:
        raise ValueError(f"eps must be ≥ 0 and steps ≥ 1, got {eps=} and {steps=}")
    rate = 2.5 * eps / steps if rate is None else rate
    z = y.detach()
    if generator is not None:
        z = z + eps * (2 * torch.rand(z.shape, generator=generator, dtype=z.dtype).to(z) - 1)
    for _ in range(steps):
        z = z.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(f(z), label), z)
        z = torch.clamp(z.detach() + rate * gradient.sign(), y - eps, y + eps)
    return z
