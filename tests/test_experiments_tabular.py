import json
import math

import numpy as np
import pytest
import torch
import zuko
from scipy.stats import multivariate_normal

from ctdl_lib.generative import Standardization
from experiments.ot_flow import tabular
from machinery import claims
from machinery.seeds import seeded
from machinery.store import Store


@pytest.mark.parametrize("name", tabular.TABLES)
def test_a_table_is_divided_without_a_row_in_two_parts(name):
    split = tabular.table(name, seeded(10, 0), jitter=0.1)
    whole = torch.cat(split)
    assert whole.isfinite().all()
    assert whole.shape[1] >= 6
    assert len(whole.unique(dim=0)) == len(whole)  # no row twice, in one part or in two
    assert len(split.val) == len(split.test) == len(whole) // 10
    again, other = (tabular.table(name, seeded(seed, 0), jitter=0.1) for seed in (10, 11))
    assert torch.equal(whole, torch.cat(again))
    assert not torch.equal(split.test, other.test)


@pytest.mark.parametrize("name", tabular.TABLES)
def test_all_splits_hold_the_same_rows(name):
    one, other = (torch.cat(tabular.table(name, seeded(seed, 0), jitter=0.0)) for seed in (10, 11))
    assert torch.equal(one.sum(1).sort().values, other.sum(1).sort().values)


@pytest.mark.parametrize("name", tabular.SOURCES)
def test_the_noise_is_a_tenth_and_no_column_is_nearly_another(name):
    clean, noisy = (
        tabular.table(name, seeded(10, 0), jitter=jitter).train for jitter in (0.0, 0.1)
    )
    noise = ((noisy - clean) / clean.std(0)).std(0)
    assert noise.sub(0.1).abs().max() < 0.01
    apart = torch.cov(noisy.T).inverse().diagonal().rsqrt() / noisy.std(0)
    assert apart.min() > 0.05  # a column is not a linear function of the others


def test_columns_of_cells_do_not_repeat_each_other():
    correlation = np.corrcoef(tabular._measured("cells").T)
    assert np.abs(correlation - np.eye(len(correlation))).max() <= 0.98


def test_there_is_no_other_table():
    with pytest.raises(ValueError, match="concrete, diamonds, cells"):
        tabular.table("rubies", seeded(0, 0), jitter=0.1)


@pytest.mark.parametrize("name", tabular.MODELS)
def test_a_model_is_standardized_by_its_training_rows(name):
    x = tabular.table("concrete", seeded(10, 0), jitter=0.1).train
    model = tabular.built(name, tabular.candidates("concrete", name)[0], 0, x)
    z = model.data(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(9), atol=1e-10, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(9))


@pytest.mark.parametrize("name", ["MAF", "NSF", "CNF"])
def test_the_density_of_a_peer_integrates_to_one_in_the_units_of_the_data(name):
    scale, offset = torch.tensor([3.0, 0.2]), torch.tensor([5.0, -1.0])
    x = torch.randn(200, 2) * scale + offset
    key = tabular.FIXED[name] | {"width": 8}
    model = tabular.built(name, key, 0, x)
    if name == "CNF":
        tabular._solve(model.flow, 1e-6, exact=True)
    model.requires_grad_(False)
    axes = [torch.linspace(-8, 8, 161) * s + m for s, m in zip(scale, offset, strict=True)]
    cell = math.prod((axis[1] - axis[0]).item() for axis in axes)
    mass = model.log_prob(torch.cartesian_prod(*axes)).exp().sum() * cell
    assert mass.item() == pytest.approx(1, abs=5e-3)


def test_a_peer_around_the_reference_is_the_normal_density_of_the_columns():
    x = torch.randn(50, 3) * torch.tensor([2.0, 0.5, 7.0]) + 1
    normal = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1
    )
    peer = tabular.Peer(lambda: normal, Standardization(3).fit(x))
    exact = multivariate_normal(x.mean(0).numpy(), np.diag(x.var(0).numpy())).logpdf(x.numpy())
    np.testing.assert_allclose(peer.log_prob(x).numpy(), exact)


def test_the_control_is_the_gaussian_of_scipy():
    split = tabular.table("cells", seeded(10, 0), jitter=0.1)
    train, test = split.train.numpy(), split.test.numpy()
    exact = multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test)
    model = tabular.Gaussian(split.train)
    np.testing.assert_allclose(model.log_prob(split.test).numpy(), exact)
    assert tabular.judged("cells", "Gaussian", {}, 10)["test"] == pytest.approx(-exact.mean())
    drawn = model.sample(200_000, seeded(1, 0))
    torch.testing.assert_close(drawn.T.corrcoef(), split.train.T.corrcoef(), atol=0.02, rtol=0)


def test_every_model_has_four_different_candidates_within_the_seconds():
    for data in tabular.TABLES:
        for name in tabular.MODELS:
            tried = tabular.candidates(data, name)
            assert len({json.dumps(key, sort_keys=True) for key in tried}) == 4
            for key in tried:
                step = tabular.MILLISECONDS[name, key["width"]][tabular.TABLES.index(data)]
                assert key["steps"] * step <= 1000 * tabular.SECONDS * key["share"] + step


def test_the_chosen_candidate_is_the_best_of_the_search(tmp_path, monkeypatch):
    nll = iter([3.0, math.nan, 1.0, 2.0])
    monkeypatch.setattr(tabular, "trained", lambda *how: (None, 0.1))
    monkeypatch.setattr(tabular, "mean_nll", lambda model, x: next(nll))
    store = Store("07_ot_flow", "train", folder=tmp_path)
    found = tabular.searched(store, "concrete", "MAF").numbers["val"]
    assert found == [3.0, math.inf, 1.0, 2.0]
    assert (
        tabular.chosen(store, "concrete", "MAF") == tabular.candidates("concrete", "MAF")[2]
    )  # from the file


def test_a_diverged_candidate_is_never_chosen(tmp_path, monkeypatch):
    def diverge(name, key, *others):
        if key["lr"] > 1e-3:
            raise tabular.TrainingError
        return None, 0.1

    monkeypatch.setattr(tabular, "trained", diverge)
    monkeypatch.setattr(tabular, "mean_nll", lambda model, x: 1.0)
    store = Store("07_ot_flow", "train", folder=tmp_path)
    assert tabular.chosen(store, "cells", "NSF")["lr"] == 1e-3


def test_a_smoke_run_leaves_no_file_and_makes_all_rows(tmp_path):
    store = Store("07_ot_flow", "smoke", folder=tmp_path)
    found = tabular.records(store, seeds=[10])
    assert not list(tmp_path.rglob("*"))
    assert set(found) == set(tabular.TABLES)
    rows = tabular.rows(found)
    assert len({row.id for row in rows}) == len(rows) == 3 * (2 + 6)
    assert all(claims.turns(row) for row in rows if isinstance(row, claims.Claim))
    assert all(len(line.split("|")) == 6 for line in tabular.table_lines(found))
    assert len(list(tabular.cost_lines(found["cells"]))) == 2 + 6


def test_the_gap_is_taken_on_each_split():
    rows = {"OT-Flow": [1.0, 5.0], "MAF": [0.5, 9.0], "NSF": [7.0, 4.0]}
    found = {name: [{"test": v} for v in values] for name, values in rows.items()}
    assert tabular.above_best(found, "OT-Flow", ["MAF", "NSF"]) == [0.5, 1.0]


def test_hutchinson_is_for_training_alone():
    key = tabular.candidates("concrete", "CNF")[0]
    x = tabular.table("concrete", seeded(10, 0), jitter=0.1).train
    model, _ = tabular.trained("CNF", key, x, 10, True)
    assert isinstance(model.flow, zuko.flows.CNF)
    assert model.flow.transform.exact
    assert model.log_prob(x[:5]).equal(model.log_prob(x[:5]))
