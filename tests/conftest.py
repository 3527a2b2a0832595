"""What the tests of the library share: double precision, checked shapes, seeded noise."""

import pytest
import torch
from jaxtyping import install_import_hook

# Before any test imports the library: its annotated shapes are checked at every call.
install_import_hook("ctdl_lib", "typechecker.check")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the library's tests run")
    parser.addoption("--dtype", default="float64", choices=["float32", "float64"])


@pytest.fixture(autouse=True)
def _defaults(request):
    """The chosen dtype and device by default, one thread, and torch's own seed for its modules."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(getattr(torch, request.config.getoption("--dtype")))
    torch.set_default_device(request.config.getoption("--device"))
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
