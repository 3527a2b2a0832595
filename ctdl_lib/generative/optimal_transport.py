"""Optimal transport and mean-field games with a learned potential: ẋ = −∇Φ(t, x)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..dynamics.calculus import standard_normal_log_prob
from ..dynamics.integration import integrate
from ..potentials.potential import Potential


class Characteristic(NamedTuple):
    """A path's position, and what has accumulated along it, one number a sample.

    `log_det` is the integral of ∇·v = −ΔΦ, `transport_cost` that of ½‖v‖², `interaction_cost` that
    of F, and `hjb_residual` that of |∂ₜΦ − ½‖∇Φ‖² + δF/δρ|.
    """

    x: Float[Tensor, "*times batch d"]
    log_det: Float[Tensor, "*times batch"]
    transport_cost: Float[Tensor, "*times batch"]
    interaction_cost: Float[Tensor, "*times batch"]
    hjb_residual: Float[Tensor, "*times batch"]


class MeanFieldCost(NamedTuple):
    """The cost of a density at its samples, and its L² derivative δ/δρ there."""

    value: Float[Tensor, " batch"]
    variation: Float[Tensor, " batch"]


@runtime_checkable
class MeanFieldGame(Protocol):
    """The problem of a crowd that moves from a known density so that the sum of its costs is least.

    minimise  E[∫ ½‖v‖² + F dt + G]  with x(0) ~ ρ₀ and ẋ = v
    """

    def log_initial(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value log ρ₀(x)."""
        ...

    def interaction(
        self, t: float | Tensor, x: Float[Tensor, "batch d"], log_density: Float[Tensor, " batch"]
    ) -> MeanFieldCost:
        """The cost F of being at x, where the logarithm of the density is `log_density`."""
        ...

    def terminal(
        self, x: Float[Tensor, "batch d"], log_density: Float[Tensor, " batch"]
    ) -> MeanFieldCost:
        """The cost G of ending at x."""
        ...


def transport(
    potential: Potential,
    x: Float[Tensor, "batch d"],
    *,
    steps: int,
    game: MeanFieldGame | None = None,
    save_at: Sequence[float] | Tensor | None = None,
) -> Characteristic:
    """The characteristics of ẋ = −∇Φ(t, x) from t = 0 to 1 with their costs, by RK4.

    Without a `game` there is no interaction. The density along a path is ρ₀(x(0)) exp(−log_det).

    Reference: onken2021otflow; ruthotto2020machine.
    """
    zero = x.new_zeros(len(x))
    log_initial = zero if game is None else game.log_initial(x)

    def rates(t: float | Tensor, s: Characteristic) -> Characteristic:
        phi = potential.derivatives(t, s.x)
        kinetic = 0.5 * phi.dx.square().sum(-1)
        if game is None:
            return Characteristic(-phi.dx, -phi.laplacian, kinetic, zero, (phi.dt - kinetic).abs())
        cost = game.interaction(t, s.x, log_initial - s.log_det)
        residual = (phi.dt - kinetic + cost.variation).abs()
        return Characteristic(-phi.dx, -phi.laplacian, kinetic, cost.value, residual)

    start = Characteristic(x, zero, zero, zero, zero)
    return integrate(rates, start, 0.0, 1.0, steps=steps, save_at=save_at)


def ot_flow(
    potential: Potential, x: Float[Tensor, "batch d"], *, steps: int, likelihood: float, hjb: float
) -> dict[str, Float[Tensor, ""]]:
    """The terms of OT-Flow's objective L + α C + β R: transport, likelihood and HJB residual.

    L = E ∫½‖v‖² dt, C = E[−log N(x(1); 0, I) − log_det], R = E ∫|∂ₜΦ − ½‖∇Φ‖²| dt, for samples x
    of the data and the weights α = `likelihood` > 0 and β = `hjb` ≥ 0.

    Raises:
        ValueError: a weight has the wrong sign, or `steps` does not suit `integrate`.

    Reference: onken2021otflow.
    """
    if not likelihood > 0 or not hjb >= 0:
        raise ValueError(
            f"likelihood={likelihood} must be positive and hjb={hjb} not negative: without the"
            " likelihood the best flow stands still"
        )
    end = transport(potential, x, steps=steps)
    nll = -standard_normal_log_prob(end.x) - end.log_det
    return {
        "transport": end.transport_cost.mean(),
        "likelihood": likelihood * nll.mean(),
        "hjb": hjb * end.hjb_residual.mean(),
    }


def mean_field(
    potential: Potential,
    x: Float[Tensor, "batch d"],
    game: MeanFieldGame,
    *,
    steps: int,
    hjb: float,
    terminal_condition: float,
) -> dict[str, Float[Tensor, ""]]:
    """The terms of a mean-field game's objective: its three costs, and two penalties on Φ.

    The penalties weigh E ∫|∂ₜΦ − ½‖∇Φ‖² + δF/δρ| dt and E|Φ(1, x(1)) − δG/δρ|; both vanish at the
    solution, so that any weights ≥ 0 have it as their minimiser. x are samples of ρ₀.

    Raises:
        ValueError: a weight is negative, or `steps` does not suit `integrate`.

    Reference: ruthotto2020machine.
    """
    if not (hjb >= 0 and terminal_condition >= 0):
        raise ValueError(f"{hjb=} and {terminal_condition=} must not be negative")
    end = transport(potential, x, steps=steps, game=game)
    cost = game.terminal(end.x, game.log_initial(x) - end.log_det)
    gap = (potential(1.0, end.x) - cost.variation).abs()
    return {
        "transport": end.transport_cost.mean(),
        "interaction": end.interaction_cost.mean(),
        "terminal": cost.value.mean(),
        "hjb": hjb * end.hjb_residual.mean(),
        "terminal condition": terminal_condition * gap.mean(),
    }
