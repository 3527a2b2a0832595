"""The five tables on which density estimators are compared, read from files the reader has.

Nothing is downloaded, and nothing is unpickled. `published` reads POWER, GAS, HEPMASS, MINIBOONE or
BSDS300 with the preprocessing of the code of papamakarios2017masked, so that likelihoods compare
with published ones. What it returns is what `tabular.table` returns: every model of `tabular` runs
on it.

We read that code (github.com/gpapamak/maf, folder datasets) and the numbers of rows that others
report of it. We had none of the files. The numbers of rows of BSDS300 for validation and test, and
the columns of the files before the preprocessing, are therefore not checked.

Reference: papamakarios2017masked; onken2021otflow.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctdl_lib.problems.datasets import Split

ORIGIN = "data.zip of Papamakarios et al. 2017, https://zenodo.org/record/1161203"
ALIKE = 0.98  # correlation, above which one of two sensors of GAS is dropped
REPEATED = 5  # times that the least value of a feature of HEPMASS may occur

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


class TableError(ValueError):
    """A file is missing, cannot be read, or does not hold the table that it should."""


def published(name: str, path: Path | str, *, complete: bool = True) -> Split:
    """The rows of a published table for training, validation and test.

    Args:
        name: one of `PUBLISHED`.
        path: the file or folder of that name in data.zip, e.g. power/data.npy, hepmass, or
            BSDS300/BSDS300.hdf5. Of the pickle gas/ethylene_CO.pickle an export is read instead:
            `pandas.read_pickle(…).to_csv("ethylene_CO.csv", index=False)`, made where you trust the
            file, or a .npy of its 16 sensors without Meth, Eth and Time. BSDS300 may also be a
            folder with train.npy, validation.npy and test.npy, which needs no h5py.
        complete: whether to refuse other numbers of rows than the published ones.

    Raises:
        ValueError: there is no such table.
        TableError: the file is missing or is another one; the message names it, what it should
            hold, and where it comes from.
        ModuleNotFoundError: the file is .hdf5, and h5py is not installed.
    """
    if name not in PUBLISHED:
        raise ValueError(f"the table must be one of {', '.join(PUBLISHED)}, got {name!r}")
    table = PUBLISHED[name]
    source = _Source(name, Path(path), table)
    parts = table.read(source)
    for part, count in zip(parts, table.rows, strict=True):
        if part.ndim != 2 or part.shape[1] != table.columns:
            raise source.error(f"its rows have the shape {part.shape[1:]} after preprocessing")
        if complete and count is not None and len(part) != count:
            raise source.error(f"a part has {len(part):,} rows, not {count:,}; or complete=False")
        if len(part) == 0 or not np.isfinite(part).all():
            raise source.error("a part has no rows, a NaN, or a column that is constant")
    dtype = torch.get_default_dtype()
    return Split(*(torch.tensor(part, dtype=dtype) for part in parts))


@dataclass(frozen=True)
class Published:
    """A table: its `columns` in the end, its `rows` of the three parts, what its `file` holds.

    A number of rows that no source confirmed is None and is not checked.
    """

    file: str
    columns: int
    rows: tuple[int | None, int | None, int | None]
    holds: str
    read: Callable[["_Source"], Parts]


@dataclass(frozen=True)
class _Source:
    """A table that is read from a path, for the messages of its errors."""

    name: str
    path: Path
    table: Published

    def error(self, what: str) -> TableError:
        table = self.table
        return TableError(
            f"{self.path}: {what}. {self.name} is {table.file}, {table.holds}; it becomes three"
            f" parts of {table.columns} columns, and comes from {ORIGIN}"
        )

    def array(self, path: Path, columns: int) -> np.ndarray:
        """The rows of a .npy file, in float64."""
        try:
            x = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self.error(f"{path.name} cannot be read as .npy ({error})") from error
        shape = getattr(x, "shape", "an archive")
        if len(shape) != 2 or shape[1] != columns or x.dtype.kind not in "fiu":
            raise self.error(f"{path.name} holds {shape}, not (rows, {columns}) of real numbers")
        return x.astype(np.float64)

    def csv(self, path: Path, **how: Any) -> tuple[list[str], np.ndarray]:
        """The names in the first line of a .csv file, and its numbers."""
        try:
            with path.open(encoding="utf-8") as file, warnings.catch_warnings(action="error"):
                names = [name.strip() for name in file.readline().split(",")]
                x = np.loadtxt(file, delimiter=",", comments=None, ndmin=2, **how)
        except (OSError, ValueError, UserWarning) as error:
            raise self.error(f"{path.name} cannot be read as numbers ({error})") from error
        return names, x


# --- one reader a table -------------------------------------------------------------------------


def _tenths(x: np.ndarray) -> Parts:
    """A last tenth of the rows for the test, and a last tenth of the others for validation."""
    rest, test = np.split(x, [len(x) - len(x) // 10])
    train, val = np.split(rest, [len(rest) - len(rest) // 10])
    return train, val, test


def _scaled(parts: Parts) -> Parts:
    """The parts, standardized by the rows that are not for the test, as published."""
    train, val, test = parts
    seen = np.vstack([train, val])
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant column is refused later
        return tuple((part - seen.mean(0)) / seen.std(0) for part in (train, val, test))


def _power(source: _Source) -> Parts:
    """POWER: two columns dropped, rounded values made continuous by uniform noise, rows shuffled.

    By the names that the published code gives its noise, the columns left are power, voltage, three
    meters and a time. The noise is 0.001, 0.01 and 1 wide, and the time has none. The old generator
    of NumPy, with seed 42, gives the published order and noise.
    """
    x = source.array(source.path, 8)
    old = np.random.RandomState(42)
    x = np.delete(x[old.permutation(len(x))], (1, 3), axis=1)
    voltage, power = 0.01 * old.rand(len(x), 1), 0.001 * old.rand(len(x), 1)
    meters = old.rand(len(x), 3)
    return _scaled(_tenths(x + np.hstack([power, voltage, meters, np.zeros((len(x), 1))])))


def _gas(source: _Source) -> Parts:
    """GAS: sensors that repeat another are dropped, and all rows, the test too, standardize."""
    if source.path.suffix == ".pickle":
        raise source.error("a pickle is not read, for it can run any code: export it first")
    if source.path.suffix == ".csv":
        names, x = source.csv(source.path)
        dropped = {"Meth", "Eth", "Time"}
        if not dropped <= set(names) or len(names) != x.shape[1]:
            raise source.error(f"its first line does not name Meth, Eth and Time: {names[:4]}")
        x = x[:, [name not in dropped for name in names]]
    else:
        x = source.array(source.path, 16)
    x = x[:, _not_alike(x)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return _tenths((x - x.mean(0)) / x.std(0, ddof=1))


def _not_alike(x: np.ndarray) -> list[int]:
    """The columns that are left when, from the first, each that is like another is dropped."""
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = np.corrcoef(x.T) > ALIKE
    kept = list(range(x.shape[1]))
    while (several := alike[np.ix_(kept, kept)].sum(1) > 1).any():
        del kept[int(np.argmax(several))]
    return kept


def _hepmass(source: _Source) -> Parts:
    """HEPMASS: the signal (label 1) of mass 1000, without the features that take few values.

    A feature is dropped where its least value occurs more than five times, as published. Of the
    test file only as many columns are read as the other has; its last one has no counterpart.
    """
    _, x = source.csv(source.path / "1000_train.csv")
    _, test = source.csv(source.path / "1000_test.csv", usecols=range(x.shape[1]))
    x, test = (part[part[:, 0] == 1, 1:] for part in (x, test))
    if len(x) < 2:
        raise source.error("1000_train.csv has fewer than two rows whose label is 1")
    many = (x == x.min(0)).sum(0) <= REPEATED
    x, test = x[:, many], test[:, many]
    mean, std = x.mean(0), x.std(0, ddof=1)
    train, val = np.split((x - mean) / std, [len(x) - len(x) // 10])
    return train, val, (test - mean) / std


def _miniboone(source: _Source) -> Parts:
    """MINIBOONE: the file holds no outliers and no repeating features any more."""
    return _scaled(_tenths(source.array(source.path, 43)))


def _bsds300(source: _Source) -> Parts:
    """BSDS300: patches of 8 × 8 pixels less their mean and their last pixel, in three parts.

    They are used as they are: the published code standardizes nothing.
    """
    names = ("train", "validation", "test")
    if source.path.is_dir():
        train, val, test = (source.array(source.path / f"{name}.npy", 63) for name in names)
        return train, val, test
    if source.path.suffix not in (".hdf5", ".h5") or not source.path.is_file():
        raise source.error("there is no such .hdf5 file, and no such folder")
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"h5py reads {source.path}: pip install h5py; or export its three parts elsewhere as"
            " train.npy, validation.npy and test.npy, and give their folder",
            name="h5py",
        ) from error
    try:
        with h5py.File(source.path, "r") as file:
            train, val, test = (np.asarray(file[name], dtype=np.float64) for name in names)
    except (OSError, KeyError) as error:
        raise source.error(f"it has no train, validation and test ({error})") from error
    return train, val, test


PUBLISHED = {
    "POWER": Published(
        "power/data.npy", 6, (1_659_917, 184_435, 204_928), "an array (2,049,280, 8)", _power
    ),
    "GAS": Published(
        "gas/ethylene_CO.pickle, exported to .csv or .npy",
        8,
        (852_174, 94_685, 105_206),
        "1,052,065 rows of 16 sensors, in the .csv also Meth, Eth and Time",
        _gas,
    ),
    "HEPMASS": Published(
        "the folder hepmass",
        21,
        (315_123, 35_013, 174_987),
        "1000_train.csv and 1000_test.csv, a line of names and then a label 0 or 1 and features",
        _hepmass,
    ),
    "MINIBOONE": Published(
        "miniboone/data.npy", 43, (29_556, 3_284, 3_648), "an array (36,488, 43)", _miniboone
    ),
    "BSDS300": Published(
        "BSDS300/BSDS300.hdf5",
        63,
        (1_000_000, None, None),
        "the arrays train, validation and test of 63 columns, train with 1,000,000 rows",
        _bsds300,
    ),
}
