"""Networks whose layers are the steps of a differential equation."""

import copy
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .architectures import EULER, PLAIN, RESNET, Architecture, State
from .embeddings import Time

NO_INVERSE = (
    "the layers of this architecture have no explicit inverse: choose a Hamiltonian, leapfrog or"
    " midpoint architecture"
)


class ResNet(nn.Module):
    """The network F(y) = K_out u_N + b_out whose features start with u₀ = K_in y.

    The `architecture` defines the layers uₖ ↦ uₖ₊₁. By default they are forward Euler steps of size
    h = horizon/layers for ∂ₜu = tanh(K(t)u + b(t)). Initially K_in has ones on its diagonal and
    zeros elsewhere, and b is zero. All layers start with the same K, whose entries are drawn from
    N(0, scale²), so K is constant in time for any number of layers. The layers
    uₖ₊₁ = tanh(Kₖuₖ + bₖ) of `architectures.PLAIN` start with different Kₖ, whose entries are drawn
    from N(0, (5/3)²/width), the usual choice for tanh.

    Args of the constructor: the numbers of `inputs`, `outputs`, features (`width`) and `layers`;
    the final time `horizon`; the `scale` of the initial weights; `generator` draws them. With
    `reverse` the backward pass stores no features: it recomputes them by inverting the layers.

    Raises:
        ValueError: a size is below 1, `width` is odd but the architecture needs an even one, or
            `reverse` is set for an architecture without an explicit inverse.

    Reference: he2016resnet, section 3; haber2017stable; chang2018reversible.
    """

    K: nn.Parameter
    b: nn.Parameter

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        layers: int,
        architecture: Architecture = RESNET,
        horizon: float = 1.0,
        scale: float = 0.1,
        reverse: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if reverse and architecture.scheme.inverse is None:
            raise ValueError(NO_INVERSE)
        self.architecture, self.reverse = architecture, reverse
        self.horizon, self.h = horizon, horizon / layers
        plain = architecture is PLAIN

        def normal(std: float, *shape: int) -> Tensor:
            return std * torch.randn(shape, generator=generator)

        self.K_in = nn.Parameter(torch.eye(width, inputs))
        shapes = architecture.shapes(width)
        K = normal(
            5 / 3 / math.sqrt(width) if plain else scale, layers if plain else 1, *shapes["K"]
        )
        self.K = nn.Parameter(K if plain else K.repeat(layers, *[1] * len(shapes["K"])))
        for name in list(shapes)[1:]:
            self.register_parameter(name, nn.Parameter(torch.zeros(layers, *shapes[name])))
        self.K_out = nn.Parameter(normal(0.1, outputs, width))
        self.b_out = nn.Parameter(torch.zeros(outputs))

    @property
    def layers(self) -> int:
        """The number N of layers."""
        return len(self.K)

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return self.K_in.shape[1]

    @property
    def width(self) -> int:
        """The number of features."""
        return self.K_in.shape[0]

    @property
    def theta(self) -> tuple[Tensor, ...]:
        """The weights of all layers: K, b, and any further weights of the architecture."""
        return tuple(getattr(self, name) for name in self.architecture.shapes(self.width))

    def forward(self, y: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """The logits K_out u_N + b_out."""
        return self.features(y) @ self.K_out.T + self.b_out

    def features(self, y: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch width"]:
        """The features u_N of the last layer."""
        f, scheme = self.architecture.field, self.architecture.scheme
        if scheme is EULER and f.matrix is not None:
            return propagate(y @ self.K_in.T, f.matrix(self.K), self.b, self.h)
        if self.reverse:
            state = reversible(self.architecture, self.h, self.start(y), self.theta)
        else:
            for state in self.states(y):  # noqa: B007
                pass
        return scheme.end(state)

    def path(self, y: Float[Tensor, "batch inputs"]) -> Float[Tensor, "nodes batch width"]:
        """The features u₀, …, u_N of all layers, stacked."""
        return torch.stack([self.architecture.scheme.end(state) for state in self.states(y)])

    def start(self, y: Float[Tensor, "batch inputs"]) -> State:
        """The first state of the time-stepping scheme, for the features K_in y."""
        first = tuple(w[0] for w in self.theta)
        return self.architecture.scheme.start(
            self.architecture.field, y @ self.K_in.T, self.h, first
        )

    def states(self, y: Float[Tensor, "batch inputs"]) -> Iterator[State]:
        """The states of all layers, one by one, from the first to the last."""
        f, step, state = self.architecture.field, self.architecture.scheme.step, self.start(y)
        yield state
        for theta in zip(*(w.unbind() for w in self.theta), strict=True):
            state = step(f, state, self.h, theta)
            yield state

    def reversed_states(self, state: State) -> Iterator[State]:
        """The states of all layers, one by one, from the last to the first, by inverting layers."""
        f, inverse = self.architecture.field, self.architecture.scheme.inverse
        if inverse is None:
            raise ValueError(NO_INVERSE)
        yield state
        for theta in zip(*(w.unbind()[::-1] for w in self.theta), strict=True):
            state = inverse(f, state, self.h, theta)
            yield state

    def velocity(self, t: Time, u: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """The velocity ∂ₜu with weights piecewise constant in time, e.g. tanh(K(t)u + b(t))."""
        # A node tₖ = k h may be rounded down; the small shift assigns it to layer k.
        k = int(float(t) / self.h + 8 * torch.finfo(u.dtype).eps * self.layers)
        k = min(max(k, 0), self.layers - 1)
        return self.architecture.field(u, self.K[k], self.b[k])

    def refined(self, layers: int) -> "ResNet":
        """The network with weights interpolated in time to N, 2N, 4N, … `layers`.

        Raises:
            ValueError: `layers` is not N times a power of two.
        """
        doublings = math.log2(layers / self.layers)
        if doublings < 0 or not doublings.is_integer():
            raise ValueError(
                f"layers={layers} must be {self.layers} times a power of two: take"
                f" {self.layers * 2 ** max(1, round(doublings))}"
            )
        finer = copy.deepcopy(self)
        finer.h = self.horizon / layers
        for name in self.architecture.shapes(self.width):
            theta = prolongate(getattr(self, name).detach(), layers)
            setattr(finer, name, nn.Parameter(theta))
        return finer


def time_smoothness(theta: Float[Tensor, "layers ..."], h: float) -> Float[Tensor, ""]:
    """The value 1/(2h) Σₖ ‖θₖ₊₁ − θₖ‖², which converges to ½∫‖∂ₜθ‖² dt as h → 0.

    Reference: haber2017stable.
    """
    return theta.diff(dim=0).square().sum() / (2 * h)


def tikhonov(*parameters: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The value ½ Σ ‖θ‖² over all given parameters."""
    return 0.5 * torch.stack([theta.square().sum() for theta in parameters]).sum()


def prolongate(theta: Float[Tensor, "layers ..."], layers: int) -> Float[Tensor, "finer ..."]:
    """The control θ(t) on a grid of `layers` layers, interpolated linearly between the nodes kh.

    After the last node the interpolant is constant.

    Reference: haber2017stable.
    """
    t = torch.arange(layers, dtype=theta.dtype, device=theta.device) * len(theta) / layers
    k = t.long()
    s = (t - k).reshape(-1, *[1] * (theta.dim() - 1))
    return (1 - s) * theta[k] + s * theta[(k + 1).clamp(max=len(theta) - 1)]


class Control(nn.Module):
    """The control θ = L⁻ᵀφ (layers, …), parametrised by φ, where LLᵀ = hI + λ DᵀD/h.

    D takes differences of successive layers. As a function of φ, the penalty
    h/2 Σ‖θₖ‖² + λ/(2h) Σ‖θₖ₊₁ − θₖ‖² is ½‖φ‖², so it is well conditioned on every grid.

    Args of the constructor: the initial θ (`start`); the step size h; λ ≥ 0 (`smoothness`).
    """

    upper: Tensor

    def __init__(self, start: Float[Tensor, "layers ..."], h: float, smoothness: float = 1.0):
        super().__init__()
        eye = torch.eye(len(start), dtype=start.dtype, device=start.device)
        D = eye.diff(dim=0)
        upper = torch.linalg.cholesky(h * eye + smoothness / h * D.T @ D).mT
        self.register_buffer("upper", upper, persistent=False)
        self.h, self.shape = h, start.shape
        self.phi = nn.Parameter(upper @ start.reshape(len(start), -1))

    def forward(self) -> Float[Tensor, "layers ..."]:
        """The control θ."""
        return torch.linalg.solve_triangular(self.upper, self.phi, upper=True).view(self.shape)


def propagate(
    u: Float[Tensor, "batch width"],
    K: Float[Tensor, "layers width width"],
    b: Float[Tensor, "layers width"],
    h: float,
) -> Float[Tensor, "batch width"]:
    """The features u_N of uₖ₊₁ = uₖ + h tanh(Kₖuₖ + bₖ), with a hand-written backward pass.

    The backward pass computes qₖ = h (1 − tanh²) pₖ₊₁ and pₖ = pₖ₊₁ + Kₖᵀqₖ layer by layer. Then
    ∂L/∂Kₖ = qₖuₖᵀ follows for all layers in one batched product. It cannot be differentiated again:
    use `ResNet.path` for second derivatives.

    Reference: haber2017stable.
    """
    return _Propagate.apply(u, K, b, h)


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, K, b, h):
        # Features are columns, so that K @ u needs no transpose. One allocation serves all layers.
        layers, width = b.shape
        states = u.new_empty(layers + 1, width, u.shape[0])
        slopes = u.new_empty(layers, width, u.shape[0])
        states[0] = u.T
        for Kk, bk, v, s, v_next in zip(
            K.unbind(),
            b.unsqueeze(-1).unbind(),
            states[:-1].unbind(),
            slopes.unbind(),
            states[1:].unbind(),
            strict=True,
        ):
            torch.addmm(bk, Kk, v, out=s).tanh_()
            torch.add(v, s, alpha=h, out=v_next)
        ctx.save_for_backward(K, states, slopes)
        ctx.h = h
        return states[-1].T.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        K, states, tanh = ctx.saved_tensors
        q = torch.mul(tanh, tanh).neg_().add_(1).mul_(ctx.h)  # the slopes hσ′ of all layers
        p = grad.T.contiguous()
        for Kk, qk in zip(reversed(K.mT.unbind()), reversed(q.unbind()), strict=True):
            qk.mul_(p)
            p.addmm_(Kk, qk)
        return p.T, torch.bmm(q, states[:-1].mT), q.sum(-1), None


def reversible(
    architecture: Architecture, h: float, state: State, theta: tuple[Tensor, ...]
) -> State:
    """The last state, with a backward pass that stores no features but inverts the layers.

    Args:
        state: the first state of the time-stepping scheme.
        theta: the weights of all layers, (layers, …) each.

    Raises:
        ValueError: the architecture has no explicit inverse.

    Reference: chang2018reversible.
    """
    if architecture.scheme.inverse is None:
        raise ValueError(NO_INVERSE)
    return _Reversible.apply(architecture, h, *state, *theta)


class _Reversible(torch.autograd.Function):
    """The layers of an invertible architecture as one function that stores the last state only."""

    @staticmethod
    def forward(ctx, architecture, h, *tensors):
        n = len(tensors) - len(architecture.shapes(2))
        state, theta = tensors[:n], tensors[n:]
        for layer in zip(*(w.unbind() for w in theta), strict=True):
            state = architecture.scheme.step(architecture.field, state, h, layer)
        ctx.save_for_backward(*state, *theta)
        ctx.architecture, ctx.h, ctx.n = architecture, h, n
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        f, scheme, n = ctx.architecture.field, ctx.architecture.scheme, ctx.n
        state, theta = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        gradients = tuple(torch.empty_like(w) for w in theta)
        for k in reversed(range(len(theta[0]))):
            layer = tuple(w[k] for w in theta)
            state = scheme.inverse(f, state, ctx.h, layer)
            with torch.enable_grad():
                inputs = tuple(x.detach().requires_grad_() for x in (*state, *layer))
                following = scheme.step(f, inputs[:n], ctx.h, inputs[n:])
            pulled = torch.autograd.grad(following, inputs, grads)
            grads = pulled[:n]
            for gradient, new in zip(gradients, pulled[n:], strict=True):
                gradient[k] = new
        return None, None, *grads, *gradients
