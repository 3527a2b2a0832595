"""Networks whose layers are the steps of a differential equation."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ResNet(nn.Module):
    """The network F(y) = K_out u_N + b_out with u₀ = K_in y, uₖ₊₁ = uₖ + h tanh(Kₖuₖ + bₖ).

    Its layers are forward Euler steps of size h = horizon/layers for ∂ₜu = tanh(K(t)u + b(t)).
    At first, K_in embeds the input (ones on the diagonal, zeros elsewhere), and every layer has the
    same weights, drawn from N(0, scale²): K and b are constant in time whatever the number of
    layers. Without `skip`, uₖ₊₁ = tanh(Kₖuₖ + bₖ), and every layer starts with weights of its own,
    drawn from N(0, (5/3)²/width), the usual choice for tanh.

    Args of the constructor: numbers of `inputs`, `outputs`, features (`width`) and `layers`, the
    final time `horizon`, the `scale` of the initial weights; `generator` draws them.

    Reference: he2016resnet, section 3; haber2017stable.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        layers: int,
        horizon: float = 1.0,
        scale: float = 0.1,
        skip: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if min(inputs, outputs, width, layers) < 1:
            raise ValueError(f"{inputs=}, {outputs=}, {width=} and {layers=} must be at least 1")
        self.skip, self.horizon, self.h = skip, horizon, horizon / layers

        def normal(std: float, *shape: int) -> Tensor:
            return std * torch.randn(shape, generator=generator)

        self.K_in = nn.Parameter(torch.eye(width, inputs))
        distinct = 1 if skip else layers
        K = normal(scale if skip else 5 / 3 / math.sqrt(width), distinct, width, width)
        self.K = nn.Parameter(K.repeat(layers // distinct, 1, 1))
        self.b = nn.Parameter(torch.zeros(layers, width))
        self.K_out = nn.Parameter(normal(0.1, outputs, width))
        self.b_out = nn.Parameter(torch.zeros(outputs))

    @property
    def layers(self) -> int:
        """The number N of layers."""
        return len(self.K)

    def forward(self, y: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """The logits K_out u_N + b_out."""
        return self.features(y) @ self.K_out.T + self.b_out

    def features(self, y: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch width"]:
        """The propagated features u_N."""
        if self.skip:
            return propagate(y @ self.K_in.T, self.K, self.b, self.h)
        return self.path(y)[-1]

    def path(self, y: Float[Tensor, "batch inputs"]) -> Float[Tensor, "nodes batch width"]:
        """The features u₀, …, u_N of all layers, stacked."""
        u = [y @ self.K_in.T]
        for K, b in zip(self.K, self.b, strict=True):
            s = torch.tanh(torch.addmm(b, u[-1], K.T))
            u.append(u[-1] + self.h * s if self.skip else s)
        return torch.stack(u)

    def velocity(self, t: Any, u: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """The velocity tanh(K(t)u + b(t)) with weights piecewise constant in time."""
        # Nodes tₖ = k h carry round-off; a millionth of a layer puts each into its own layer.
        k = min(int(float(t) / self.h + 1e-6), self.layers - 1)
        return torch.tanh(torch.addmm(self.b[k], u, self.K[k].T))


def time_smoothness(theta: Float[Tensor, "layers ..."], h: float) -> Float[Tensor, ""]:
    """The value 1/(2h) Σₖ ‖θₖ₊₁ − θₖ‖², which tends to ½∫‖∂ₜθ‖² dt as the layers are refined.

    Reference: haber2017stable.
    """
    return theta.diff(dim=0).square().sum() / (2 * h)


def tikhonov(*parameters: Tensor) -> Float[Tensor, ""]:
    """The value ½ Σ ‖θ‖² over all given parameters."""
    return 0.5 * torch.stack([theta.square().sum() for theta in parameters]).sum()


def prolongate(theta: Float[Tensor, "layers ..."], layers: int) -> Float[Tensor, "finer ..."]:
    """The control θ(t) on a grid of `layers` layers, interpolated linearly between the nodes kh.

    Beyond its last node a control is constant. What is linear in t stays as it is up to there.

    Reference: haber2017stable.
    """
    t = torch.arange(layers, dtype=theta.dtype, device=theta.device) * len(theta) / layers
    k = t.long()
    s = (t - k).reshape(-1, *[1] * (theta.dim() - 1))
    return (1 - s) * theta[k] + s * theta[(k + 1).clamp(max=len(theta) - 1)]


class Control(nn.Module):
    """The control θ (layers, …) as θ = L⁻ᵀφ, where LLᵀ = hI + λ DᵀD/h and D takes differences.

    In φ, the penalty h/2 Σ‖θₖ‖² + λ/(2h) Σ‖θₖ₊₁ − θₖ‖² is ½‖φ‖², so that an optimizer need not
    learn on every grid anew how rough and smooth controls differ.

    Args of the constructor: the `start` θ, the step size h, and λ ≥ 0 (`smoothness`).
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
    """The features u_N of uₖ₊₁ = uₖ + h tanh(Kₖuₖ + bₖ), with the adjoint written out by hand.

    Backward, pₖ = pₖ₊₁ + Kₖᵀqₖ with qₖ = h (1 − tanh²) pₖ₊₁ runs through the layers, and
    ∂L/∂Kₖ = qₖuₖᵀ follows for all layers in one batched product. No second derivatives: use
    `ResNet.path` for those.

    Reference: haber2017stable.
    """
    return _Propagate.apply(u, K, b, h)


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, K, b, h):
        # Features as columns: K @ u is one product without transposes, and the buffers of all
        # layers are allocated once.
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
