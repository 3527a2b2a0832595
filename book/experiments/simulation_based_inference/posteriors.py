"""What is asked of a learned posterior: samples inside of the prior's support, and the mode."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ctdl_lib.generative import TransportMap


@runtime_checkable
class Support(Protocol):
    """A set that contains the data, such as the box of a uniform prior."""

    def inside(self, x: Float[Tensor, "batch d"]) -> Bool[Tensor, " batch"]:
        """Where x lies in the set."""
        ...


class Inside(NamedTuple):
    """Samples that lie in a set, and the share `leakage` of draws that do not."""

    x: Float[Tensor, "batch d"]
    leakage: float


def sample_inside(
    posterior: TransportMap,
    support: Support,
    n: int,
    generator: torch.Generator,
    *,
    attempts: int = 100,
) -> Inside:
    """The first n samples that lie in the `support`, and the share of draws that do not.

    The density restricted to the support is p(x)/(1 − leakage).

    Raises:
        ValueError: fewer than n of attempts·n draws lie inside, or there are several contexts.
    """
    _check_single(posterior, n)
    kept, drawn = [], 0
    while (count := sum(map(len, kept))) < n:
        if drawn >= attempts * n:
            raise ValueError(
                f"of {drawn} samples, {count} lie in the support: train on data from it, or"
                " give a context like those of the training data"
            )
        x = posterior.sample(n, generator)
        kept.append(x[support.inside(x)])
        drawn += n
    x = torch.cat(kept)
    return Inside(x[:n], 1 - len(x) / drawn)


def mode(
    posterior: TransportMap, n: int, generator: torch.Generator, *, steps: int = 100
) -> Float[Tensor, " d"]:
    """The point of largest density that L-BFGS finds from the best of n samples.

    It is the maximum a posteriori estimate, and for a constant prior also the maximum likelihood
    estimate. In a box, the density is unbounded at a face if the law of x̄ is wider than N(0, I).
    The result is then a point on that face.
    """
    _check_single(posterior, n)
    with torch.no_grad():
        x, log_prob = posterior.sample_with_log_prob(n, generator)
        z = posterior.data(x[[int(log_prob.argmax())]])
    z.requires_grad_(True)
    optimizer = torch.optim.LBFGS([z], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss = -posterior.log_prob(posterior.data.inverse(z)).sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        return loss.detach()

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return posterior.data.inverse(z.detach())[0]


def _check_single(posterior: TransportMap, n: int) -> None:
    if n < 1 or (posterior.context is not None and len(posterior.context) > 1):
        raise ValueError("want n ≥ 1 and one row of context: bind it by .given(y[[i]])")
