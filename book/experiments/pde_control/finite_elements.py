"""Linear finite elements on the unit square, and sparse linear systems with gradients."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import block_diag, csr_array, sparray
from scipy.sparse.linalg import splu
from skfem import BilinearForm, CellBasis, ElementTriP1, LinearForm, MeshTri
from skfem.helpers import grad
from torch import Tensor

Function = Callable[[np.ndarray, np.ndarray], np.ndarray]


@cache
def square(nodes: int) -> CellBasis:
    """The basis of continuous, piecewise linear functions on (0, 1)² with nodes × nodes nodes.

    The basis is cached for each number of nodes, so do not modify it.

    Raises:
        ValueError: there are fewer than two nodes per axis.
    """
    if nodes < 2:
        raise ValueError(f"nodes={nodes} per axis: a mesh needs at least 2")
    axis = np.linspace(0.0, 1.0, nodes)
    return CellBasis(MeshTri.init_tensor(axis, axis), ElementTriP1())


def mass(basis: CellBasis) -> csr_array:
    """The matrix M of ∫ u w dx."""
    return csr_array(BilinearForm(lambda u, w, _: u * w).assemble(basis))


def advection_diffusion(
    basis: CellBasis, diffusivity: float, velocity: tuple[Function, Function] | None = None
) -> csr_array:
    """The matrix A of ∫ κ ∇u·∇w + (v·∇u) w dx, with no diffusive flux through the boundary.

    Args:
        diffusivity: κ > 0.
        velocity: the two components of v as functions of the arrays x and y.

    Raises:
        ValueError: κ is not positive, or the mesh Péclet number exceeds 1 (see `peclet`). There is
            no stabilisation, so the discrete solution would oscillate.
    """
    if diffusivity <= 0:
        raise ValueError(f"diffusivity={diffusivity} must be positive")
    v = velocity or (_still, _still)
    number = peclet(basis, diffusivity, v)
    if number > 1:
        raise ValueError(
            f"the mesh Péclet number is {number:.2g}, above 1: the solution would oscillate;"
            " take more nodes, a larger diffusivity or a slower velocity"
        )

    def form(u, w, at):
        du, dw = np.asarray(grad(u)), np.asarray(grad(w))
        carried = at["along"] * du[0] + at["across"] * du[1]
        return diffusivity * (du * dw).sum(0) + carried * w

    # `form` is called for each pair of nodes of a triangle; v is evaluated only once
    along, across = (component(*_points(basis)) for component in v)
    return csr_array(BilinearForm(form).assemble(basis, along=along, across=across))


def _still(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def load(basis: CellBasis, f: Function) -> np.ndarray:
    """The vector of ∫ f w dx."""
    return LinearForm(lambda w, at: at["f"] * w).assemble(basis, f=f(*_points(basis)))


def _points(basis: CellBasis) -> np.ndarray:
    """The coordinates (2, triangles, points) of the quadrature points."""
    return np.asarray(basis.global_coordinates())


def peclet(basis: CellBasis, diffusivity: float, velocity: tuple[Function, Function]) -> float:
    """The mesh Péclet number max ‖v‖ h / 2κ over the nodes, where h is the side of a cell."""
    speed = np.hypot(*(component(*basis.doflocs) for component in velocity)).max()
    side = 1 / (np.sqrt(basis.N) - 1)
    return float(speed * side / (2 * diffusivity))


class LinearSystems:
    """The solutions xₖ of Aₖ xₖ = bₖ for a batch of sparse matrices, which are factorised once.

    All matrices form one block-diagonal system, so a call is one sparse solve for the whole batch.
    Solutions can be differentiated with respect to b any number of times; the backward pass solves
    systems with Aₖᵀ. `solves` and `adjoint_solves` count the right-hand sides bₖ.
    """

    def __init__(self, matrices: Sequence[csr_array]):
        self._factors = splu(block_diag(list(matrices), format="csc"))
        self.batch = len(matrices)
        self.size = self._factors.shape[0] // self.batch
        self.solves = self.adjoint_solves = 0

    def __call__(self, b: Float[Tensor, "*many batch n"]) -> Float[Tensor, "*many batch n"]:
        """The solutions xₖ, computed in double precision and returned in the precision of b.

        Raises:
            ValueError: the shape of b does not fit the matrices, or b is not finite.
        """
        if b.shape[-2:] != (self.batch, self.size):
            raise ValueError(
                f"b must end with ({self.batch}, {self.size}) for {self.batch} matrices of size"
                f" {self.size}, got {tuple(b.shape)}"
            )
        if not b.isfinite().all():
            raise ValueError("the right-hand side is not finite: check the control")
        return _Solve.apply(b, self, False)

    def _solve(self, b: Tensor, transposed: bool) -> Tensor:
        rows = b.detach().double().reshape(-1, self.batch * self.size)
        if transposed:
            self.adjoint_solves += len(rows) * self.batch
        else:
            self.solves += len(rows) * self.batch
        x = self._factors.solve(np.ascontiguousarray(rows.numpy().T), "T" if transposed else "N")
        return torch.from_numpy(np.ascontiguousarray(x.T)).view(b.shape).to(b.dtype)


def multiply(matrix: sparray, x: Float[Tensor, "*many n"]) -> Float[Tensor, "*many m"]:
    """The products Ax of a sparse matrix A (m, n) with each row x.

    They are computed in double precision and returned in the precision of x. They can be
    differentiated with respect to x any number of times.
    """
    return _Product.apply(x, matrix)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, b: Tensor, systems: LinearSystems, transposed: bool) -> Tensor:
        ctx.systems, ctx.transposed = systems, transposed
        return systems._solve(b, transposed)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Solve.apply(gradient, ctx.systems, not ctx.transposed), None, None


class _Product(torch.autograd.Function):
    # a separate setup_context makes torch.func work; it costs 30 µs per call
    @staticmethod
    def forward(x: Tensor, matrix: sparray) -> Tensor:
        rows = x.detach().double().reshape(-1, x.shape[-1]).numpy()
        products = np.ascontiguousarray((matrix @ rows.T).T)
        return torch.from_numpy(products).view(*x.shape[:-1], -1).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.matrix = inputs[1]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Product.apply(gradient, ctx.matrix.T), None
