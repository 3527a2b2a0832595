"""Loss landscapes: the loss on a plane in the space of weights, and its local minima."""

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import functional_call

Weights = dict[str, Tensor]


def loss_plane(
    model: nn.Module,
    loss: Callable[[Callable], Tensor],
    directions: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    alphas: Float[Tensor, " n"],
    betas: Float[Tensor, " m"],
) -> Float[Tensor, "n m"]:
    """The values loss(θ + α d₁ + β d₂) for all α and β, where θ are the weights of `model`.

    `loss` receives a function that evaluates `model` with the shifted weights.
    """
    theta = {name: p.detach() for name, p in model.named_parameters()}
    first, second = directions
    plane = torch.empty(len(alphas), len(betas), dtype=alphas.dtype)
    with torch.no_grad():
        for i, alpha in enumerate(alphas.tolist()):
            for j, beta in enumerate(betas.tolist()):
                shifted = {k: w + alpha * first[k] + beta * second[k] for k, w in theta.items()}
                plane[i, j] = loss(lambda *x, w=shifted: functional_call(model, w, x))
    return plane


def filter_normalized(
    model: nn.Module, generator: torch.Generator, *, keep: Collection[str] = ()
) -> Weights:
    """A random direction d whose filters have the norms of the model's filters, ‖dᵢ‖ = ‖wᵢ‖.

    A filter has the weights of one output. It is a row of a matrix, in each layer of a stack, and
    of a convolution all that makes one channel. The direction is zero for vectors and for the
    parameters named in `keep`, usually the biases.

    Reference: li2018landscape, section 4.
    """
    direction = {}
    for name, w in model.named_parameters():
        if name in keep or w.dim() < 2:
            direction[name] = torch.zeros_like(w)
            continue
        d = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
        axes = (1, 2, 3) if w.dim() == 4 else -1
        norms = [torch.linalg.vector_norm(v, dim=axes, keepdim=True) for v in (w.detach(), d)]
        direction[name] = d * (norms[0] / norms[1])
    return direction


def interior_minima(values: Float[Tensor, "n m"]) -> Bool[Tensor, "n m"]:
    """Where a value in the interior of a grid is smaller than all its eight neighbours."""
    n, m = values.shape
    inside = values[1:-1, 1:-1]
    minimal = torch.ones_like(inside, dtype=torch.bool)
    for i in range(3):
        for j in range(3):
            if (i, j) != (1, 1):
                minimal &= inside < values[i : n - 2 + i, j : m - 2 + j]
    return nn.functional.pad(minimal, (1, 1, 1, 1))


def rotation_landscape(
    y: Float[Tensor, "3 batch"],
    target: Float[Tensor, "3 batch"],
    layers: int,
    a: Float[Tensor, " n"],
    b: Float[Tensor, " m"],
    *,
    horizon: float = 10.0,
) -> Float[Tensor, "n m"]:
    """The values ½‖Y_N(θ) − C‖² for θ = (a, b), of the network with N equal layers K(θ).

    The layers are Y_{j+1} = Y_j + h tanh(K(θ) Y_j) with h = horizon/N. K(θ) is the circulant matrix
    with the first row (−a − b, a, b), so its columns sum to zero.

    Reference: ruthotto2021numerical, slides on stability.
    """
    return 0.5 * (rotation_network(y, layers, a, b, horizon=horizon) - target).square().sum(
        (-1, -2)
    )


def rotation_network(
    y: Float[Tensor, "3 batch"],
    layers: int,
    a: Float[Tensor, " n"],
    b: Float[Tensor, " m"],
    *,
    horizon: float = 10.0,
) -> Float[Tensor, "n m 3 batch"]:
    """The outputs Y_N(θ) of the network of `rotation_landscape`, for all θ = (a, b) at once."""
    a, b = torch.meshgrid(a, b, indexing="ij")
    first = torch.stack([-a - b, a, b], dim=-1)
    K = torch.stack([first.roll(shift, dims=-1) for shift in range(3)], dim=-2)
    out = y.expand(*a.shape, *y.shape)
    for _ in range(layers):
        out = out + horizon / layers * torch.tanh(K @ out)
    return out


def minimisers(
    y: Float[Tensor, "3 batch"],
    target: Float[Tensor, "3 batch"],
    layers: int,
    starts: Float[Tensor, "starts 2"],
    *,
    low: float = 0.2,
    high: float = 2.0,
) -> Float[Tensor, "minima 2"]:
    """The different minimisers in the open box (low, high)² that descents from `starts` reach.

    A descent is L-BFGS-B. Two ends are the same where they are closer than 1e-3; ends on the
    boundary, and those with a gradient that is not small, are left out.
    """

    def value(theta: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(theta, requires_grad=True)
        loss = rotation_landscape(y, target, layers, at[:1], at[1:])[0, 0]
        loss.backward()
        assert at.grad is not None
        return loss.item(), at.grad.numpy()

    found: list[np.ndarray] = []
    for start in starts.numpy():
        how = {"method": "L-BFGS-B", "jac": True, "bounds": [(low, high)] * 2}
        end = minimize(value, start, **how, options={"ftol": 1e-15, "gtol": 1e-9}).x
        inside = (low < end).all() and (end < high).all()
        flat = np.linalg.norm(value(end)[1]) < 1e-4
        if inside and flat and all(np.linalg.norm(end - other) > 1e-3 for other in found):
            found.append(end)
    return torch.from_numpy(np.array(found).reshape(-1, 2))


def grid(low: float, high: float, n: int) -> Float[Tensor, " n"]:
    """The n ≥ 3 equidistant numbers from low to high, in float64."""
    if n < 3 or not math.isfinite(high - low):
        raise ValueError(f"a grid needs n ≥ 3 and finite ends, got n={n} on [{low}, {high}]")
    return torch.linspace(low, high, n, dtype=torch.float64)
