import math

import torch
from scipy.integrate import solve_ivp

from experiments.neural_odes.problems import observe, spiral_velocity, van_der_pol


def test_the_spiral_is_what_scipy_finds():
    t = torch.tensor([0.0, 0.1, 0.75, 1.5])
    ours = observe(spiral_velocity, torch.tensor([[2.0, 0.0]]), t).x[:, 0]

    def velocity(t, x):
        a, b = x**3
        return [-0.1 * a - 2 * b, 2 * a - 0.1 * b]

    theirs = solve_ivp(velocity, (0, 1.5), [2.0, 0.0], t_eval=t.numpy(), rtol=1e-11, atol=1e-12)
    assert torch.allclose(ours, torch.tensor(theirs.y.T), atol=1e-8)


def test_van_der_pol_without_damping_is_the_harmonic_oscillator():
    t = torch.tensor([math.pi / 2, math.pi])
    found = observe(van_der_pol(0.0), torch.tensor([[1.0, 0.0]]), t).x[:, 0]
    assert torch.allclose(found, torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), atol=1e-8)


def test_van_der_pol_loses_energy_outside_and_gains_it_inside():
    x = torch.tensor([[0.1, 0.5], [2.0, 0.5]])
    power = (x * van_der_pol(3.0)(0.0, x)).sum(1)  # d/dt ½‖x‖²
    assert float(power[0]) > 0 > float(power[1])


def test_noise_has_the_deviation_that_was_asked_for(generator):
    t, x0 = torch.linspace(0, 1, 50), torch.randn(200, 2, generator=generator)
    clean = observe(spiral_velocity, x0, t)
    noisy = observe(spiral_velocity, x0, t, noise=0.3, generator=generator)
    assert abs(float((noisy.x - clean.x).std()) - 0.3) < 0.01
    assert clean.x.shape == (50, 200, 2)
