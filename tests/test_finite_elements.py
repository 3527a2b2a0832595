import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch.autograd import gradcheck, gradgradcheck

from experiments.pde_control.finite_elements import (
    LinearSystems,
    advection_diffusion,
    load,
    mass,
    multiply,
    peclet,
    square,
)

PI = np.pi


def swirl(x, y):
    return np.sin(PI * x) * np.cos(PI * y)


def back(x, y):
    return -np.cos(PI * x) * np.sin(PI * y)


STREAM = swirl, back


def wave(x, y):
    return np.cos(PI * x) * np.cos(2 * PI * y)


def rate_of_wave(x, y, kappa):
    """−κΔu + v·∇u for u = `wave`."""
    along = -PI * np.sin(PI * x) * np.cos(2 * PI * y)
    across = -2 * PI * np.cos(PI * x) * np.sin(2 * PI * y)
    return 5 * PI**2 * kappa * wave(x, y) + swirl(x, y) * along + back(x, y) * across


def norm(basis, values):
    return float(np.sqrt(values @ (mass(basis) @ values)))


def test_a_manufactured_solution_is_found_to_second_order_in_space():
    errors = []
    for nodes in (9, 17, 33):
        basis = square(nodes)
        A, M = advection_diffusion(basis, 0.1, STREAM), mass(basis)
        f = load(basis, lambda x, y: wave(x, y) + rate_of_wave(x, y, 0.1))
        u = LinearSystems([M + A])(torch.from_numpy(f)[None])[0].numpy()
        errors.append(norm(basis, u - wave(*basis.doflocs)))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(abs(orders - 2) < 0.1), orders


def test_implicit_euler_is_of_first_order_in_time():
    basis, errors = square(17), []
    A, M = advection_diffusion(basis, 0.1, STREAM), mass(basis)
    # the discrete solution u = e⁻ᵗ wave, so that only the steps in time are wrong
    w = wave(*basis.doflocs)
    for steps in (20, 40, 80):
        h, u = 1 / steps, torch.from_numpy(w)[None]
        systems = LinearSystems([M + h * A])
        for k in range(1, steps + 1):
            f = np.exp(-k * h) * (A @ w - M @ w)
            u = systems(torch.from_numpy(M @ u[0].numpy() + h * f)[None])
        errors.append(norm(basis, u[0].numpy() - np.exp(-1) * w))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(abs(orders - 1) < 0.05), orders


def test_the_matrices_know_constants_mass_and_energy():
    basis = square(9)
    M, A = mass(basis), advection_diffusion(basis, 0.1, STREAM)
    one = np.ones(M.shape[0])
    assert one @ (M @ one) == pytest.approx(1.0)
    assert abs(A @ one).max() < 1e-14  # a constant is neither diffused nor carried
    u = np.random.default_rng(0).standard_normal(len(one))
    stiffness = advection_diffusion(basis, 0.1)
    # a stream without divergence along the boundary does no work, up to quadrature
    assert u @ (A @ u) == pytest.approx(u @ (stiffness @ u), rel=1e-3)


def systems_and_rhs(batch=3, many=(2,)):
    basis = square(4)
    M = mass(basis)
    matrices = [M + 0.1 * advection_diffusion(basis, k, STREAM) for k in (0.2, 0.4, 0.8)[:batch]]
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(*many, batch, M.shape[0], generator=generator, dtype=torch.float64)
    return matrices, b


def test_a_batch_of_systems_is_solved_as_one_by_one():
    matrices, b = systems_and_rhs()
    x = LinearSystems(matrices)(b)
    for k, matrix in enumerate(matrices):
        dense = np.linalg.solve(matrix.toarray(), b[:, k].numpy().T).T
        assert np.allclose(x[:, k], dense, rtol=1e-12)


def test_autograd_passes_a_solve_twice():
    matrices, b = systems_and_rhs(many=())
    systems = LinearSystems(matrices)
    b.requires_grad_()
    assert gradcheck(systems, (b,), rtol=1e-8)
    assert gradgradcheck(lambda b: systems(b).square().sum(), (b,), rtol=1e-6)


def test_autograd_passes_a_product_twice():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64).requires_grad_()
    A = advection_diffusion(square(4), 0.2, STREAM)  # not symmetric
    assert torch.allclose(multiply(A, x), x @ torch.from_numpy(A.toarray()).T)
    assert multiply(A, x.float()).dtype == torch.float32
    energy = lambda x: (multiply(A, x) * x).sum()  # noqa: E731
    assert gradcheck(lambda x: multiply(A, x), (x,), rtol=1e-8)
    assert gradgradcheck(energy, (x,), rtol=1e-8)
    assert torch.allclose(torch.func.grad(energy)(x), multiply(csr_array(A + A.T), x))


def test_every_solve_is_counted():
    matrices, b = systems_and_rhs()
    systems = LinearSystems(matrices)
    x = systems(b.requires_grad_())
    assert (systems.solves, systems.adjoint_solves) == (6, 0)
    x.sum().backward()
    assert (systems.solves, systems.adjoint_solves) == (6, 6)


def test_single_precision_stays_outside():
    matrices, b = systems_and_rhs()
    single = LinearSystems(matrices)(b.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), LinearSystems(matrices)(b), rtol=1e-5, atol=1e-6)


def test_a_coarse_mesh_is_refused_where_the_stream_is_too_fast():
    basis = square(9)
    assert peclet(basis, 0.05, STREAM) == pytest.approx(1.25, rel=0.02)
    with pytest.raises(ValueError, match=r"Péclet number is 1\.2.*more nodes"):
        advection_diffusion(basis, 0.05, STREAM)
    advection_diffusion(square(17), 0.05, STREAM)


@pytest.mark.parametrize("kappa", [0.0, -0.1])
def test_diffusivity_must_be_positive(kappa):
    with pytest.raises(ValueError, match="must be positive"):
        advection_diffusion(square(4), kappa)


def test_a_mesh_has_cells():
    with pytest.raises(ValueError, match="at least 2"):
        square(1)


def test_a_right_hand_side_must_fit_and_be_finite():
    matrices, b = systems_and_rhs()
    systems = LinearSystems(matrices)
    with pytest.raises(ValueError, match=r"must end with \(3, 16\)"):
        systems(b[:, :2])
    b[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite: check the control"):
        systems(b)
