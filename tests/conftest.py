"""What the tests of the library share: double precision, checked shapes, seeded noise."""

import forked_kernels
import matplotlib
import pytest
import torch
from jaxtyping import install_import_hook

forked_kernels.use()

# Before any test imports the library: its annotated shapes are checked at every call.
install_import_hook(["ctdl_lib", "experiments", "machinery"], "typechecker.check")


@pytest.fixture(autouse=True)
def _defaults():
    """Double precision by default, and torch's own seed for its modules."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def as_the_book_computes():
    """Single precision, and figures without a window."""
    torch.set_default_dtype(torch.float32)
    matplotlib.use("Agg")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
