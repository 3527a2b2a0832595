"""Packages that only some modules need: they are imported there, and a missing one is explained."""

from importlib import import_module
from types import ModuleType


def needed(name: str, extra: str) -> ModuleType:
    """The module `name`, of a package that the extra `extra` of this library installs.

    Raises:
        ModuleNotFoundError: it is not installed; the message says what installs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # the package is there, and misses another one
        package = {"sklearn": "scikit-learn"}.get(package, package)
        raise ModuleNotFoundError(
            f"{package} is needed here: pip install {package}, or 'ctdl_lib[{extra}]'",
            name=error.name,
        ) from error
