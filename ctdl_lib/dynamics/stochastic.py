"""Paths of dX = drift dt + diffusion dW by the method of Euler and Maruyama."""

import math
from typing import NamedTuple, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from .inputs import IntegrationError, check_state, checked_method, checked_times, finite
from .stepping import Velocity, clock, equal_steps, normal, same_shape


class Path(NamedTuple):
    """The times (n + 1,), states (n + 1, …) and increments dW (n, …) of a stochastic path."""

    t: Tensor
    x: Tensor
    dW: Tensor  # noqa: N815


def euler_maruyama(
    drift: Velocity,
    diffusion: Velocity | float | Tensor,
    x: Tensor,
    t0: float,
    t1: float,
    *,
    steps: SupportsIndex,
    generator: torch.Generator | None = None,
    dW: Float[Tensor, "n batch ..."] | None = None,
) -> Path:
    """The path Xₖ₊₁ = Xₖ + drift(tₖ, Xₖ) h + diffusion(tₖ, Xₖ) ΔWₖ of dX = drift dt + diffusion dW.

    Args:
        diffusion: a number, a matrix (d, k) or (batch, d, k), or a function (t, x) ↦ one of these.
        generator: draws ΔW ~ N(0, |h| I) on its own device, whatever the device of x.
        dW: given increments (steps, batch, k), instead of `generator`.

    Raises:
        ValueError: both or neither of `generator` and `dW` are given, or an argument has a wrong
            size.
        IntegrationError: the path is not finite.

    Reference: kloeden1992numerical, section 10.2.
    """
    checked_method(steps, None, "euler", "through")
    checked_times(t0, t1, None)
    check_state((x,), "euler")
    if (generator is None) == (dW is None):
        raise ValueError("give exactly one of generator= (to draw the noise) and dW= (the noise)")
    sigma = diffusion if callable(diffusion) else lambda t, x: diffusion
    steps = int(steps)
    h, first = (t1 - t0) / steps, sigma(clock(t0, x), x)
    shape = (steps, *_noise_shape(first, x))
    if dW is None:
        dW = math.sqrt(abs(h)) * normal(shape, generator, x)  # pyright: ignore[reportArgumentType]
    same_shape(dW, shape, "dW")
    path, times = [x], equal_steps("euler", t0, t1, steps, x)
    for (t,), dw in zip(times.stages, dW, strict=True):
        slope = same_shape(drift(t, x), x.shape, "drift(t, x)")
        x = x + h * slope + displacement(sigma(t, x), dw, x)
        path.append(x)
    if not finite((x,)):
        bad = next(k for k, x in enumerate(path) if not finite((x,)))
        raise IntegrationError(f"the path is not finite from t={t0 + bad * h:.6g} on (step {bad})")
    nodes = torch.linspace(t0, t1, steps + 1, dtype=x.dtype, device=x.device)
    return Path(nodes, torch.stack(path), dW)


def _noise_shape(sigma, x: Tensor) -> tuple[int, ...]:
    """The shape of one increment ΔW of all samples."""
    return (len(x), sigma.shape[-1]) if _is_matrix(sigma, x) else tuple(x.shape)


def displacement(sigma: float | Tensor, dw: Tensor, x: Tensor) -> Tensor:
    """The increments σΔW of the states x, where σ is a number, a matrix, or one matrix per sample.

    Raises:
        ValueError: the shape of σ does not fit the shape of x.
    """
    if isinstance(sigma, Tensor) and _is_matrix(sigma, x):
        return (sigma @ dw.unsqueeze(-1)).squeeze(-1)
    return sigma * dw


def _is_matrix(sigma, x: Tensor) -> bool:
    if not isinstance(sigma, Tensor) or sigma.dim() == 0:
        return False
    if sigma.shape[:-1] not in (x.shape[1:], x.shape):
        raise ValueError(
            f"diffusion must be a number or a matrix (d, k) or (batch, d, k) for x of shape"
            f" {tuple(x.shape)}, got {tuple(sigma.shape)}; use diag_embed for a diagonal one"
        )
    return True
