"""The conventions of the notation page, asserted."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import ctdl_lib
from ctdl_lib.dynamics import divergence, hutchinson, integrate
from ctdl_lib.networks import ResNet
from ctdl_lib.potentials import AutodiffPotential, Gradient, Potential, ResNetPotential

FILES = sorted(p for p in Path(ctdl_lib.__file__).parent.rglob("*.py") if p.name != "__init__.py")


def public(path):
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield inner


def test_a_velocity_takes_time_first():
    for velocity in (ResNet.velocity, Potential.forward, Potential.gradient, Potential.derivatives):
        assert list(inspect.signature(velocity).parameters)[1] == "t"


def test_per_sample_scalars_have_shape_batch():
    phi, x = ResNetPotential(3), torch.randn(5, 3)
    for derivatives in (phi.derivatives(0.1, x), phi.gradient(0.1, x)):
        assert derivatives.value.shape == derivatives.dt.shape == (5,)
    assert phi.derivatives(0.1, x).laplacian.shape == (5,)
    assert divergence(lambda x: -x, x).divergence.shape == (5,)
    assert hutchinson(lambda x: -x, x, torch.ones(5, 3)).divergence.shape == (5,)


def test_the_feedback_velocity_descends_the_potential():
    """v = −∇Φ: along ẋ = v the value of a time-independent Φ decreases by ∫‖∇Φ‖² dt."""

    class Quadratic(torch.nn.Module):
        def forward(self, t, x):
            return 0.5 * x.square().sum(-1)

    phi, x = AutodiffPotential(Quadratic()), torch.randn(4, 2)
    end = integrate(lambda t, x: -phi.gradient(t, x).dx, x, 0.0, 1.0, tol=1e-9)
    lost = 0.5 * (1 - torch.exp(torch.tensor(-2.0))) * x.square().sum(-1)
    assert torch.allclose(phi(0.0, x) - phi(0.0, end), lost, atol=1e-7)


def test_time_is_a_number_a_scalar_or_one_value_a_sample():
    phi, x = ResNetPotential(3), torch.randn(5, 3)
    reference = phi.gradient(0.25, x)
    for t in (torch.tensor(0.25), torch.full((5,), 0.25)):
        for a, b in zip(phi.gradient(t, x), reference, strict=True):
            assert torch.allclose(a, b)


def test_accuracy_is_chosen_never_defaulted():
    parameters = inspect.signature(integrate).parameters
    assert parameters["steps"].default is parameters["tol"].default is None
    with pytest.raises(ValueError, match="exactly one"):
        integrate(lambda t, x: x, torch.ones(1), 0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_state_is_kept(dtype):
    x = torch.randn(5, 3, dtype=dtype)
    assert integrate(lambda t, x: -x, x, 0, 1, steps=3).dtype == dtype
    assert integrate(lambda t, x: -x, x, 0, 1, tol=1e-3).dtype == dtype
    phi = ResNetPotential(3).to(dtype)
    assert all(part.dtype == dtype for part in phi.derivatives(0.5, x))


def test_names_of_derivatives():
    assert Gradient._fields == ("value", "dt", "dx")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_returns_says_what_is_returned(path):
    """The first line of a docstring is one sentence that begins with The, Draw, …"""
    verbs = ("Draw", "Fill", "Read", "Refuse", "Set", "Write")
    starts = ("The ", "A ", "An ", "Two ", "Where ", "What ", *(verb + " " for verb in verbs))
    for node in public(path):
        docstring = ast.get_docstring(node)
        assert docstring, f"{path.name}: {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef) and not node.name.startswith(("callback_", "__")):
            first = docstring.split("\n\n")[0]
            assert first.startswith(starts), f"{path.name}: {node.name}: {first}"
            assert first.rstrip().endswith("."), f"{path.name}: {node.name}: {first}"


def test_greek_is_spelled_out_in_names():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            for name in (
                getattr(node, "id", ""),
                getattr(node, "arg", "") or "",
                getattr(node, "name", "") or "",
            ):
                assert str(name).isascii()
