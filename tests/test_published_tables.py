"""The readers of the five published tables, on tiny files of each format."""

import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from experiments.ot_flow import tabular
from experiments.ot_flow.densities import mean_nll
from experiments.ot_flow.published_tables import PUBLISHED, TableError, published


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def power_file(folder, rng, rows=100):
    """Rounded values, as in the real file: each has the number of its row in column 0."""
    x = np.round(rng.normal(size=(rows, 8)))
    x[:, 0] = np.arange(rows)
    np.save(folder / "data.npy", x)
    return folder / "data.npy", x


def gas_file(folder, rng, rows=100):
    """Eight sensors and eight that are nearly equal to one of them."""
    x = rng.normal(size=(rows, 8))
    alike = np.hstack([x + 1e-3 * rng.normal(size=x.shape), 3 * x + 1])
    frame = pandas.DataFrame(alike, columns=[f"R{i}" for i in range(16)])
    for place, name in ((0, "Time"), (5, "Meth"), (18, "Eth")):
        frame.insert(place, name, rng.normal(size=rows))
    frame.to_csv(folder / "ethylene_CO.csv", index=False)
    return folder / "ethylene_CO.csv", frame


def hepmass_folder(folder, rng, rows=200):
    """27 features of which six take few values; the test has a column more."""
    made = {}
    for name, more in (("1000_train.csv", 0), ("1000_test.csv", 1)):
        x = rng.normal(size=(rows, 27 + more))
        x[:, 3:9] = np.round(np.abs(x[:, 3:9]))
        label = (rng.random(rows) < 0.5).astype(float)
        names = ["# label", *(f"f{i}" for i in range(27 + more))]
        made[name] = pandas.DataFrame(np.column_stack([label, x]), columns=names)
        made[name].to_csv(folder / name, index=False)
    return folder, made


def miniboone_file(folder, rng, rows=100):
    x = rng.normal(size=(rows, 43)) * np.arange(1, 44)
    np.save(folder / "data.npy", x)
    return folder / "data.npy", x


def bsds300_folder(folder, rng, rows=100):
    made = {}
    for name, count in (("train", rows), ("validation", rows // 5), ("test", rows // 4)):
        made[name] = rng.normal(size=(count, 63)).astype(np.float32)
        np.save(folder / f"{name}.npy", made[name])
    return folder, made


FILES = {
    "POWER": power_file,
    "GAS": gas_file,
    "HEPMASS": hepmass_folder,
    "MINIBOONE": miniboone_file,
    "BSDS300": bsds300_folder,
}
each = pytest.mark.parametrize("name", FILES)


def test_the_published_sizes_are_tenths_of_the_whole():
    for name, whole in (("POWER", 2_049_280), ("GAS", 1_052_065), ("MINIBOONE", 36_488)):
        train, val, test = PUBLISHED[name].rows
        assert (test, val) == (whole // 10, (whole - test) // 10)
        assert train == whole - val - test
        assert f"{whole:,}" in PUBLISHED[name].holds
    train, val, _ = PUBLISHED["HEPMASS"].rows
    assert val == (train + val) // 10
    assert {name: table.columns for name, table in PUBLISHED.items()} == {
        **{"POWER": 6, "GAS": 8, "HEPMASS": 21, "MINIBOONE": 43, "BSDS300": 63}
    }


@each
def test_a_table_has_its_columns_and_is_the_same_again(name, tmp_path, rng):
    path, _ = FILES[name](tmp_path, rng)
    split = published(name, path, complete=False)
    assert {part.shape[1] for part in split} == {PUBLISHED[name].columns}
    assert {part.dtype for part in split} == {torch.get_default_dtype()}
    again = published(name, path, complete=False)
    assert all(torch.equal(a, b) for a, b in zip(split, again, strict=True))


def test_power_is_the_published_order_and_noise(tmp_path, rng):
    """The second route shuffles rows in place, as the published code does, and names its noise."""
    path, x = power_file(tmp_path, rng)
    old = np.random.RandomState(42)
    old.shuffle(x)
    noise = {2: 0.01 * old.rand(100), 0: 0.001 * old.rand(100)}
    noise |= dict(zip((4, 5, 6), old.rand(100, 3).T, strict=True))
    wanted = np.stack([x[:, j] + noise.get(j, 0) for j in (0, 2, 4, 5, 6, 7)], 1)
    wanted = (wanted - wanted[:90].mean(0)) / wanted[:90].std(0)
    split = published("POWER", path, complete=False)
    assert [len(part) for part in split] == [81, 9, 10]
    np.testing.assert_allclose(torch.cat(split).numpy(), wanted)


def test_power_has_noise_in_all_columns_but_the_time(tmp_path, rng):
    path, _ = power_file(tmp_path, rng, rows=1000)
    x = torch.cat(published("POWER", path, complete=False))
    assert [len(column.unique()) for column in x.T[:5]] == [1000] * 5
    assert len(x[:, 5].unique()) < 20


def test_gas_keeps_the_last_of_sensors_alike_and_standardizes_by_all_rows(tmp_path, rng):
    path, frame = gas_file(tmp_path, rng)
    split = published("GAS", path, complete=False)
    kept = frame[[f"R{i}" for i in range(8, 16)]]
    wanted = ((kept - kept.mean()) / kept.std()).to_numpy()
    np.testing.assert_allclose(torch.cat(split).numpy(), wanted)  # in the order of the file
    assert [len(part) for part in split] == [81, 9, 10]


def test_gas_without_names_is_the_same_table(tmp_path, rng):
    path, frame = gas_file(tmp_path, rng)
    np.save(tmp_path / "gas.npy", frame.drop(columns=["Meth", "Eth", "Time"]).to_numpy())
    one, other = (published("GAS", p, complete=False) for p in (path, tmp_path / "gas.npy"))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_gas_keeps_sensors_that_are_alike_with_another_sign(tmp_path, rng):
    x = rng.normal(size=(50, 8))
    np.save(tmp_path / "gas.npy", np.hstack([x, -x]))
    with pytest.raises(TableError, match=r"shape \(16,\)"):
        published("GAS", tmp_path / "gas.npy", complete=False)


def test_hepmass_is_the_signal_without_features_of_few_values(tmp_path, rng):
    path, made = hepmass_folder(tmp_path, rng)
    split = published("HEPMASS", path, complete=False)
    train, test = (
        frame[frame["# label"] == 1][[f"f{i}" for i in range(27) if not 3 <= i < 9]]
        for frame in made.values()
    )
    mean, std = train.mean(), train.std()
    assert len(split.val) == len(train) // 10
    for part, wanted in ((torch.cat(split[:2]), train), (split.test, test)):
        np.testing.assert_allclose(part.numpy(), ((wanted - mean) / std).to_numpy())


def test_miniboone_is_standardized_without_the_test(tmp_path, rng):
    path, x = miniboone_file(tmp_path, rng)
    split = published("MINIBOONE", path, complete=False)
    seen = torch.cat(split[:2]).numpy()
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(seen.std(0), 1)
    wanted = (x[90:] - x[:90].mean(0)) / x[:90].std(0)
    np.testing.assert_allclose(split.test.numpy(), wanted)


def test_bsds300_is_used_as_it_is(tmp_path, rng):
    path, made = bsds300_folder(tmp_path, rng)
    split = published("BSDS300", path, complete=False)
    for part, wanted in zip(split, made.values(), strict=True):
        np.testing.assert_array_equal(part.numpy(), wanted)


class Hdf5(dict):
    """What h5py.File gives: a context with arrays by their names."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_bsds300_is_read_by_h5py_where_that_is_installed(tmp_path, rng, monkeypatch):
    _, made = bsds300_folder(tmp_path, rng)
    path = tmp_path / "BSDS300.hdf5"
    path.touch()
    stand_in = SimpleNamespace(File=lambda file, mode: Hdf5(made if mode == "r" else {}))
    monkeypatch.setitem(sys.modules, "h5py", stand_in)
    split = published("BSDS300", path, complete=False)
    np.testing.assert_array_equal(split.test.numpy(), made["test"])
    stand_in.File = lambda file, mode: Hdf5(train=made["train"])
    with pytest.raises(TableError, match="no train, validation and test"):
        published("BSDS300", path, complete=False)


def test_without_h5py_the_error_says_what_to_install_and_the_other_way(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "BSDS300.hdf5").touch()
    with pytest.raises(ModuleNotFoundError, match=r"pip install h5py; or export .* train\.npy"):
        published("BSDS300", tmp_path / "BSDS300.hdf5")


@each
def test_a_missing_file_is_named_with_what_it_holds_and_where_it_is_from(name, tmp_path):
    for path in (tmp_path / "nothing.npy", tmp_path / "nothing.csv", tmp_path / "nothing.hdf5"):
        with pytest.raises(TableError) as caught:
            published(name, path)
        for part in (path, name, PUBLISHED[name].file, "zenodo.org/record/1161203"):
            assert str(part) in str(caught.value)
        assert f"{PUBLISHED[name].columns} columns" in str(caught.value)


@each
def test_other_numbers_of_rows_than_published_are_refused(name, tmp_path, rng):
    path, _ = FILES[name](tmp_path, rng)
    with pytest.raises(TableError, match=r"a part has \d+ rows, not [\d,]+; or complete=False"):
        published(name, path)


def wrong_files(folder):
    """A name of a table, the name of a file in the folder, what it holds, and the complaint."""
    narrow, text = np.zeros((9, 5)), np.full((9, 43), "a")
    yield "POWER", "a.npy", narrow, r"\(9, 5\), not \(rows, 8\)"
    yield "GAS", "b.npy", narrow, r"\(9, 5\), not \(rows, 16\)"
    yield "MINIBOONE", "c.npy", text, "not .* of real numbers"
    yield "MINIBOONE", "d.npy", np.zeros(43), r"holds \(43,\)"
    yield "BSDS300", ".", None, r"train\.npy cannot be read"
    yield "HEPMASS", ".", None, r"1000_train\.csv cannot be read"


def test_wrong_files_are_refused(tmp_path):
    for name, file, x, match in wrong_files(tmp_path):
        if x is not None:
            np.save(tmp_path / file, x)
        with pytest.raises(TableError, match=match):
            published(name, tmp_path / file, complete=False)


def test_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    for file in ("ethylene_CO.pickle", "data.npy"):
        (tmp_path / file).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(TableError, match=r"a pickle is not read|cannot be read as \.npy"):
            published("GAS", tmp_path / file)
    np.save(tmp_path / "objects.npy", np.array([[None] * 43], dtype=object))
    with pytest.raises(TableError, match="cannot be read"):
        published("MINIBOONE", tmp_path / "objects.npy")


@pytest.mark.parametrize(
    "text", ["", "Time,Meth,Eth\n", "A,B\n1,2\n", "Time,Meth,Eth,R\n1,2,x,4\n"]
)
def test_a_csv_that_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "gas.csv").write_text(text)
    with pytest.raises(TableError, match=r"gas\.csv"):
        published("GAS", tmp_path / "gas.csv", complete=False)


def test_hepmass_without_signal_is_refused(tmp_path):
    for file in ("1000_train.csv", "1000_test.csv"):
        (tmp_path / file).write_text("# label,f0,f1\n0,1,2\n0,3,4\n")
    with pytest.raises(TableError, match="fewer than two rows whose label is 1"):
        published("HEPMASS", tmp_path, complete=False)


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_nan_and_a_constant_column_are_refused(tmp_path, rng, value):
    path, x = miniboone_file(tmp_path, rng)
    x[:, 2] = value
    np.save(path, x)
    with pytest.raises(TableError, match="a NaN, or a column that is constant"):
        published("MINIBOONE", path, complete=False)


def test_there_is_no_other_table(tmp_path):
    with pytest.raises(ValueError, match="POWER, GAS, HEPMASS, MINIBOONE, BSDS300, got 'power'"):
        published("power", tmp_path)


@pytest.mark.parametrize("model", tabular.MODELS)
def test_every_model_of_the_chapter_trains_on_such_a_table(model, tmp_path, rng):
    path, _ = power_file(tmp_path, rng, rows=400)
    split = published("POWER", path, complete=False)
    key = tabular.candidates("concrete", model)[0]
    fitted, _ = tabular.trained(model, key, split.train, 0, True)
    assert np.isfinite(mean_nll(fitted, split.test[:5]))
