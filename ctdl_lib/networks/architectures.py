"""Architectures of residual networks: a velocity with weights and a time-stepping scheme."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..contracts import guard

State = tuple[Tensor, ...]
Part = Callable[[Tensor, Tensor, Tensor], Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Field:
    """A velocity with weights K and biases b, given by one function or in two parts.

    `parts` holds one function (u, K, b) ↦ u̇, or, for a state u = (y, z), the two functions
    (z, K, b) ↦ ẏ and (y, K, b) ↦ ż. `shapes` maps the width of u to the shapes of K and b. `matrix`
    is the map K ↦ A if u̇ = tanh(Au + b), and None otherwise.
    """

    parts: tuple[Part, ...]
    shapes: Callable[[int], dict[str, Shape]]
    matrix: Callable[[Tensor], Tensor] | None = None

    def __call__(self, u: Tensor, K: Tensor, b: Tensor) -> Tensor:
        """The velocity u̇, of the shape of u."""
        if len(self.parts) == 1:
            return self.parts[0](u, K, b)
        y, z = u.chunk(2, dim=-1)
        return torch.cat([self.parts[0](z, K, b), self.parts[1](y, K, b)], -1)


@dataclass(frozen=True)
class Scheme:
    """A time-stepping scheme, which turns a velocity into layers.

    `start(f, u, h, θ₀)` is the first state for the features u, `step(f, state, h, θ)` the next
    state, and `end(state)` the features of a state. `inverse(f, state, h, θ)` is the previous
    state; it is None if that state is known only implicitly. `weights` has the shapes of the
    parameters that the scheme itself adds to every layer.
    """

    start: Callable[..., State]
    step: Callable[..., State]
    end: Callable[[State], Tensor]
    inverse: Callable[..., State] | None = None
    weights: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """A velocity and the time-stepping scheme that turns it into layers."""

    field: Field
    scheme: Scheme

    def shapes(self, width: int) -> dict[str, Shape]:
        """The shapes of the weights of one layer, by name."""
        return {**self.field.shapes(width), **self.scheme.weights}


# --- velocities ---------------------------------------------------------------------------------


def _tanh(u: Tensor, K: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(torch.addmm(b, u, K.mT))


def _square(width: int) -> dict[str, Shape]:
    return {"K": (width, width), "b": (width,)}


def _half(width: int) -> dict[str, Shape]:
    if width % 2:
        raise ValueError(
            f"a Hamiltonian network splits its features into halves (y, z), so width={width} must"
            f" be even: take {width + 1}"
        )
    return {"K": (width // 2, width // 2), "b": (width // 2,)}


def _two_halves(width: int) -> dict[str, Shape]:
    return {name: (2, *shape) for name, shape in _half(width).items()}


def _descent(u: Tensor, K: Tensor, b: Tensor) -> Tensor:
    return -_tanh(u, K, b) @ K


def antisymmetric_field(gamma: float) -> Field:
    """The velocity tanh((K − Kᵀ − γI)u + b).

    Raises:
        ValueError: γ is negative, so that features would grow.

    Reference: haber2017stable.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma={gamma} must be ≥ 0: with a negative one the features grow")

    def matrix(K: Tensor) -> Tensor:
        return K - K.mT - gamma * torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)

    return Field((lambda u, K, b: _tanh(u, matrix(K), b),), _square, matrix)


LAYER = Field((_tanh,), _square, matrix=lambda K: K)
PARABOLIC = Field((_descent,), _square)
HAMILTONIAN = Field((_tanh, lambda y, K, b: -_tanh(y, K.mT, b)), _half)
TWO_LAYER_HAMILTONIAN = Field(
    (
        lambda z, K, b: -_descent(z, K[0], b[0]),
        lambda y, K, b: _descent(y, K[1], b[1]),
    ),
    _two_halves,
)


# --- schemes ------------------------------------------------------------------------------------


def _alone(f: Field, u: Tensor, h: float, theta: State) -> State:
    return (u,)


def _twice(f: Field, u: Tensor, h: float, theta: State) -> State:
    return u, u


def _halves(f: Field, u: Tensor, h: float, theta: State) -> State:
    return tuple(u.chunk(2, dim=-1))


def _last(state: State) -> Tensor:
    return state[-1]


def _replace(f: Field, state: State, h: float, theta: State) -> State:
    return (f(*state, *theta),)


def _euler(f: Field, state: State, h: float, theta: State) -> State:
    (u,) = state
    return (torch.add(u, f(u, *theta), alpha=h),)


def _symplectic(f: Field, state: State, h: float, theta: State) -> State:
    y, z = state
    z = torch.add(z, f.parts[1](y, *theta), alpha=h)
    return torch.add(y, f.parts[0](z, *theta), alpha=h), z


def _symplectic_inverse(f: Field, state: State, h: float, theta: State) -> State:
    y, z = state
    y = torch.sub(y, f.parts[0](z, *theta), alpha=h)
    return y, torch.sub(z, f.parts[1](y, *theta), alpha=h)


def _leapfrog(f: Field, state: State, h: float, theta: State) -> State:
    before, u = state
    return u, torch.add(2 * u - before, f(u, *theta), alpha=h * h)


def _leapfrog_inverse(f: Field, state: State, h: float, theta: State) -> State:
    u, after = state
    return torch.add(2 * u - after, f(u, *theta), alpha=h * h), u


def _euler_backward(f: Field, u: Tensor, h: float, theta: State) -> State:
    """The states u₋₁ = u₀ − h f(u₀) and u₀, from which the first midpoint step is an Euler step."""
    return torch.sub(u, f(u, *theta), alpha=h), u


def _midpoint(f: Field, state: State, h: float, theta: State) -> State:
    before, u = state
    return u, torch.add(before, f(u, *theta), alpha=2 * h)


def _midpoint_inverse(f: Field, state: State, h: float, theta: State) -> State:
    u, after = state
    return torch.sub(after, f(u, *theta), alpha=2 * h), u


def _multistep(f: Field, state: State, h: float, theta: State) -> State:
    (before, u), (K, b, kappa) = state, theta
    return u, torch.add(torch.lerp(u, before, kappa), f(u, K, b), alpha=h)


EULER = Scheme(_alone, _euler, _last)
SYMPLECTIC = Scheme(_halves, _symplectic, lambda state: torch.cat(state, -1), _symplectic_inverse)
LEAPFROG = Scheme(_twice, _leapfrog, _last, _leapfrog_inverse)
MIDPOINT = Scheme(_euler_backward, _midpoint, _last, _midpoint_inverse)
MULTISTEP = Scheme(_twice, _multistep, _last, weights={"kappa": ()})


# --- architectures ------------------------------------------------------------------------------

PLAIN = Architecture(LAYER, Scheme(_alone, _replace, _last))
RESNET = Architecture(LAYER, EULER)


def architectures(gamma: float = 0.0) -> dict[str, Architecture]:
    """The architectures of the book by name; `gamma` ≥ 0 is the damping γ of "antisymmetric".

    Let f(u) = tanh(Ku + b) and A = K − Kᵀ − γI. The layers are, for n = 0, 1, …,

    - resnet: uₙ₊₁ = uₙ + h f(uₙ)
    - antisymmetric: uₙ₊₁ = uₙ + h tanh(Auₙ + b)
    - hamiltonian: zₙ₊₁ = zₙ − h tanh(Kᵀyₙ + b), yₙ₊₁ = yₙ + h tanh(Kzₙ₊₁ + b)
    - two-layer hamiltonian: zₙ₊₁ = zₙ − h K₂ᵀtanh(K₂yₙ + b₂), yₙ₊₁ = yₙ + h K₁ᵀtanh(K₁zₙ₊₁ + b₁)
    - leapfrog: uₙ₊₁ = 2uₙ − uₙ₋₁ − h² Kᵀf(uₙ), u₋₁ = u₀
    - midpoint: uₙ₊₁ = uₙ₋₁ + 2h tanh((K − Kᵀ)uₙ + b), with u₁ from an Euler step
    - parabolic: uₙ₊₁ = uₙ − h Kᵀf(uₙ)
    - multistep: uₙ₊₁ = (1 − κₙ)uₙ + κₙuₙ₋₁ + h f(uₙ) with κₙ learned, u₋₁ = u₀

    Reference: haber2017stable; chang2018reversible; ruthotto2020pde; lu2018beyond.
    """
    return {
        "resnet": RESNET,
        "antisymmetric": Architecture(antisymmetric_field(gamma), EULER),
        "hamiltonian": Architecture(HAMILTONIAN, SYMPLECTIC),
        "two-layer hamiltonian": Architecture(TWO_LAYER_HAMILTONIAN, SYMPLECTIC),
        "leapfrog": Architecture(PARABOLIC, LEAPFROG),
        "midpoint": Architecture(antisymmetric_field(0.0), MIDPOINT),
        "parabolic": Architecture(PARABOLIC, EULER),
        "multistep": Architecture(LAYER, MULTISTEP),
    }


guard(__name__)
