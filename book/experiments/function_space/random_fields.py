"""Random fields with known laws, and solutions of a reaction–diffusion equation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.dynamics.stepping import STAGES, step
from ctdl_lib.generative.diffusion import Schedule, perturb

from .grids import Field, squared_wave_numbers
from .priors import Covariance


@dataclass(frozen=True, eq=False)
class FieldMixture:
    """The mixture Σᵢ wᵢ N(mᵢ, Q) of Gaussian measures on L², with means mᵢ = Q fᵢ.

    Such means lie in the Cameron–Martin space of Q. Therefore the measures have densities with
    respect to each other, and the formulas need no inverse of Q.

    Args of the constructor: the `covariance` Q; the `weights` wᵢ; `f`, which maps n to the values
    of the fᵢ on the grid, (k, n, n).

    Reference: hagemann2023multilevel.
    """

    covariance: Covariance
    weights: Float[Tensor, " k"]
    f: Callable[[int], Tensor]

    def means(self, n: int) -> Float[Tensor, "k {n} {n}"]:
        """The means mᵢ = Q fᵢ on the grid with n² nodes."""
        return self.covariance.apply(self.f(n))

    def sample(
        self, count: int, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "{count} {n} {n}"]:
        """Draw fields mᵢ + η, where i has the probabilities wᵢ and η ~ N(0, Q)."""
        eta = self.covariance.sample(count, n, generator, dtype=dtype)
        i = self.weights.to(generator.device).multinomial(
            count, replacement=True, generator=generator
        )
        return self.means(n).to(eta)[i] + eta

    def score(self, t: float | Tensor, x: Field, schedule: Schedule) -> Field:
        """The preconditioned score Q∇log p_t(x) = a Σᵢ rᵢ(x) mᵢ − x.

        Since a² + s² = 1, component i at time t is N(a mᵢ, Q). Its posterior weight is
        rᵢ ∝ wᵢ exp(a⟨fᵢ, x⟩ − ½a²⟨fᵢ, Q fᵢ⟩).
        """
        n = x.shape[-1]
        f, means = self.f(n).to(x), self.means(n).to(x)
        a = torch.as_tensor(schedule.a(t)).to(x).reshape(-1, 1)
        along = torch.einsum("bij,kij->bk", x, f) / n**2
        norm = (f * means).mean((1, 2))
        share = (self.weights.to(x).log() + a * along - 0.5 * a**2 * norm).softmax(1)
        return torch.einsum("bk,kij->bij", a * share, means) - x

    def noise(self, x: Field, eta: Field, t: Tensor, schedule: Schedule) -> Field:
        """The conditional mean E[η | x(t)] = −s(t) S(t, x(t)) at x(t) = a x + s η."""
        s = schedule.s(t).to(x).reshape(-1, 1, 1)
        return -s * self.score(t, perturb(x, eta, t, schedule), schedule)


@dataclass(frozen=True)
class ReactionDiffusion:
    """The FitzHugh–Nagumo equations u̇ = D_uΔu + u − u³ − k − v, v̇ = D_vΔv + u − v on a torus.

    The torus has side length `side`. The published data have no-flux conditions on the boundary of
    a square instead.

    Reference: takamoto2022pdebench.
    """

    diffusion_u: float = 1e-3
    diffusion_v: float = 5e-3
    k: float = 5e-3
    side: float = 2.0

    def solve(
        self, u: Field, v: Field, duration: float, *, steps: int
    ) -> tuple[Float[Tensor, "batch n n"], Float[Tensor, "batch n n"]]:
        """The fields (u, v) at the time `duration`, by Strang's splitting.

        Each step solves the diffusion exactly in Fourier space for half a step, the reaction by the
        classical Runge–Kutta method, and the diffusion for another half step.

        Raises:
            ValueError: `steps` is below 1, or the solution is not finite.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        h = duration / steps
        n = u.shape[-1]
        rate = (2 * torch.pi / self.side) ** 2 * squared_wave_numbers(n)[:, : n // 2 + 1]
        diffusions = torch.tensor([self.diffusion_u, self.diffusion_v], dtype=torch.float64)
        decay = torch.exp(-0.5 * h * diffusions[:, None, None, None] * rate).to(u)
        state = torch.stack([u, v])
        for _ in range(steps):
            (state,) = step("rk4", self._reaction, STAGES["rk4"], h, (_spread(state, decay),))
            state = _spread(state, decay)
        if not state.isfinite().all():
            raise ValueError(f"the solution is not finite: take more than {steps} steps")
        return state[0], state[1]

    def _reaction(self, t: float, state: tuple[Tensor]) -> tuple[Tensor]:
        u, v = state[0]
        return (torch.stack([u - u**3 - self.k - v, u - v]),)


def _spread(state: Tensor, decay: Tensor) -> Tensor:
    return torch.fft.irfft2(decay * torch.fft.rfft2(state), s=state.shape[-2:])
