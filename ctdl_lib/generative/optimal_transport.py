"""Optimal transport and mean-field games with a learned potential: ẋ = −∇Φ(t, x)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

from ..dynamics.calculus import standard_normal_log_prob
from ..dynamics.integration import integrate
from ..potentials.potential import Potential


class Characteristic(NamedTuple):
    """The positions x(t) of paths, and integrals along each path.

    The integrands are ∇·v = −ΔΦ (`log_det`), ½‖v‖² (`transport_cost`), F (`interaction_cost`) and
    |∂ₜΦ − ½‖∇Φ‖² + δF/δρ| (`hjb_residual`).
    """

    x: Float[Tensor, "*times batch d"]
    log_det: Float[Tensor, "*times batch"]
    transport_cost: Float[Tensor, "*times batch"]
    interaction_cost: Float[Tensor, "*times batch"]
    hjb_residual: Float[Tensor, "*times batch"]


class MeanFieldCost(NamedTuple):
    """The cost at each sample of a density ρ, and its L² derivative δ/δρ there."""

    value: Float[Tensor, " batch"]
    variation: Float[Tensor, " batch"]


@runtime_checkable
class MeanFieldGame(Protocol):
    """The problem min E[∫ ½‖v‖² + F dt + G(x(1))] subject to ẋ = v and x(0) ~ ρ₀.

    The costs F and G at a point may depend on the density of the samples there.
    """

    def log_initial(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value log ρ₀(x)."""
        ...

    def interaction(
        self, t: float | Tensor, x: Float[Tensor, "batch d"], log_density: Float[Tensor, " batch"]
    ) -> MeanFieldCost:
        """The cost F at (t, x), where the log density is `log_density`."""
        ...

    def terminal(
        self, x: Float[Tensor, "batch d"], log_density: Float[Tensor, " batch"]
    ) -> MeanFieldCost:
        """The cost G at the end points x."""
        ...


def transport(
    potential: Potential,
    x: Float[Tensor, "batch d"],
    *,
    steps: int,
    game: MeanFieldGame | None = None,
    save_at: Sequence[float] | Shaped[Tensor, " count"] | None = None,
) -> Characteristic:
    """The characteristics of ẋ = −∇Φ(t, x) from t = 0 to 1 with their costs, by RK4.

    Without a `game`, F is zero. The density along a path is ρ₀(x(0)) exp(−log_det).

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
    """The terms L, α C and β R of OT-Flow's objective: transport, likelihood and HJB residual.

    L = E ∫½‖v‖² dt, C = E[−log N(x(1); 0, I) − log_det] and R = E ∫|∂ₜΦ − ½‖∇Φ‖²| dt. The
    expectations are means over the data x, and the weights are α = `likelihood` and β = `hjb`.

    Raises:
        ValueError: α is not positive, β is negative, `integrate` refuses `steps`, or the potential
            belongs to a `Flow` that standardizes its data: `Flow.objective` takes these.

    Reference: onken2021otflow.
    """
    if potential.standardized:
        raise ValueError(
            "the flow of this potential standardizes its data: use flow.objective(x, …) with data"
            " in their own units"
        )
    return ot_flow_terms(potential, x, steps=steps, likelihood=likelihood, hjb=hjb)


def ot_flow_terms(
    potential: Potential, x: Float[Tensor, "batch d"], *, steps: int, likelihood: float, hjb: float
) -> dict[str, Float[Tensor, ""]]:
    """The terms of `ot_flow` for data x in the coordinates of the potential."""
    if not likelihood > 0 or not hjb >= 0:
        raise ValueError(
            f"likelihood={likelihood} must be positive and hjb={hjb} not negative: without the"
            " likelihood, the optimal velocity is zero"
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
    """The terms of the objective of a mean-field game: three costs and two penalties.

    The penalties are E ∫|∂ₜΦ − ½‖∇Φ‖² + δF/δρ| dt, with the weight `hjb`, and
    E|Φ(1, x(1)) − δG/δρ|, with the weight `terminal_condition`. Both are zero at the solution,
    which is the minimiser for all weights ≥ 0. x are samples of ρ₀.

    Raises:
        ValueError: a weight is negative, or `integrate` refuses `steps`.

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
