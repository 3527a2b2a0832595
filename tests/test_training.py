import copy
import itertools
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from ctdl_lib.learning import (
    Step,
    TrainingError,
    autoclip,
    cosine,
    minibatches,
    storage,
    train,
)


def square(net, batch):
    return net(batch).square().mean()


def data(index):
    return torch.ones(4, 2)


def linear():
    torch.manual_seed(1)
    return nn.Linear(2, 1)


def test_a_step_is_a_step_of_adam_by_hand():
    net, reference = linear(), linear()
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.1)
    for step in train(net, square, data, steps=5, lr=0.1):
        optimizer.zero_grad()
        value = square(reference, data(0))
        value.backward()
        optimizer.step()
        assert step.loss == value.item()
    assert torch.equal(net.weight, reference.weight)


def test_terms_are_reported_by_name_and_summed():
    def loss(net, batch):
        return {"fit": square(net, batch), "decay": 0.1 * net.weight.square().sum()}

    for step in train(linear(), loss, data, steps=3):
        assert set(step.terms) == {"fit", "decay"}
        assert step.loss == pytest.approx(sum(step.terms.values()))


def test_the_caller_stops_whenever_it_likes():
    steps = itertools.takewhile(
        lambda step: step.loss > 1e-3, train(linear(), square, data, steps=10_000, lr=0.1)
    )
    assert len(list(steps)) < 200


def test_l_bfgs_solves_least_squares_exactly():
    net, x, y = linear(), torch.randn(30, 2), torch.randn(30, 1)
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )
    list(
        train(
            net,
            lambda net, _: (net(x) - y).square().mean(),
            data,
            steps=10,
            lr=1.0,
            optimizer=optimizer,
        )
    )
    A = torch.cat([x, torch.ones(30, 1)], 1)
    exact = torch.linalg.lstsq(A, y).solution[:, 0]
    assert torch.allclose(torch.cat([net.weight[0], net.bias]), exact, atol=1e-6)


def test_the_gradient_is_clipped_and_its_norm_reported_unclipped():
    net = linear()
    before = net.weight.clone()
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    (step,) = train(
        net,
        lambda net, x: 1e3 * square(net, x),
        data,
        steps=1,
        optimizer=sgd,
        max_grad_norm=0.5,
    )
    assert step.grad_norm > 1
    assert (net.weight - before).norm() <= 0.5


def exploding(net, k):
    """A loss whose gradient is a thousand times as long at two steps."""
    return (1e3 if k in (9.0, 17.0) else 1.0) * (net(torch.ones(3)) - 1e6).sum()


def test_autoclip_bounds_a_gradient_by_the_median_of_those_before():
    net = nn.Linear(3, 1)
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    how = {"steps": 20, "optimizer": sgd, "max_grad_norm": autoclip(2.0, window=5)}
    positions, records = [net.bias.item()], []
    for record in train(net, exploding, float, **how):
        records.append(record)
        positions.append(net.bias.item())
    moved = [a - b for a, b in pairwise(positions)]
    norms = [r.grad_norm for r in records]
    assert norms == pytest.approx([2e3 if k in (9, 17) else 2.0 for k in range(20)])
    assert moved == pytest.approx([2.0 if k in (9, 17) else 1.0 for k in range(20)])


def test_autoclip_remembers_its_window_alone():
    records = [Step(k, 0.0, {}, norm, 0.0) for k, norm in enumerate([100.0, 90.0, 1.0, 3.0, 2.0])]
    assert autoclip(2.0)([]) == math.inf
    assert autoclip(3.0, window=3)(records) == 6.0
    assert autoclip(1.0)(records) == 3.0


def test_autoclip_goes_on_bit_identical(tmp_path):
    def start(checkpoint, until):
        net = linear()
        how = {"steps": 20, "lr": 0.1, "max_grad_norm": autoclip(0.9, window=7)}
        how |= {"checkpoint": checkpoint, "every": 4}
        list(itertools.islice(train(net, noisy, float, **how), until))
        return net.weight.detach()

    whole, path = start(None, None), tmp_path / "run"
    start(path, 10)
    assert torch.equal(whole, start(path, None))


def test_schedules_set_the_rate_of_each_step():
    rate = cosine(0.2, 10, floor=0.1)
    assert [rate(0), rate(5), rate(10)] == pytest.approx([0.2, 0.15, 0.1])
    net = linear()
    adam = torch.optim.Adam(net.parameters(), lr=1.0)
    rates = [
        adam.param_groups[0]["lr"]
        for _ in train(net, square, data, steps=4, lr=rate, optimizer=adam)
    ]
    assert rates == [rate(k) for k in range(4)]


@pytest.mark.parametrize("factor", [None, 0.5, lambda step: 1 / (1 + step)])
def test_the_rates_of_an_optimizer_hold_and_a_schedule_scales_each_group(tmp_path, factor):
    def run(file, until):
        net = linear()
        groups = [{"params": [net.weight], "lr": 1e-2}, {"params": [net.bias], "lr": 1e-4}]
        sgd = torch.optim.SGD(groups)
        how = {"steps": 4, "optimizer": sgd, "checkpoint": file, "every": 1}
        steps = train(net, square, data, lr=factor, **how)
        return [[g["lr"] for g in sgd.param_groups] for _ in itertools.islice(steps, until)]

    scale = factor if callable(factor) else lambda step: factor or 1.0
    wanted = [pytest.approx([1e-2 * scale(k), 1e-4 * scale(k)]) for k in range(4)]
    assert run(None, 4) == wanted
    run(tmp_path / "run", 2)
    assert run(tmp_path / "run", 4)[2:] == wanted[2:]  # a resumed run scales the own rates again


def test_gradient_descent_with_its_own_rate_is_gradient_descent():
    net = linear()
    w = net.weight.detach().clone()
    by_hand = linear()
    list(train(net, square, data, steps=3, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)))
    for k in range(3):
        grads = torch.autograd.grad(square(by_hand, data(k)), list(by_hand.parameters()))
        with torch.no_grad():
            for p, g in zip(by_hand.parameters(), grads, strict=True):
                p -= 0.1 * g
    assert not torch.equal(net.weight, w)
    assert torch.allclose(net.weight, by_hand.weight)
    assert torch.allclose(net.bias, by_hand.bias)


def test_minibatches_visit_every_sample_once_an_epoch():
    batch = minibatches(torch.arange(12), torch.arange(12) * 10, size=4, seed=5)
    for epoch in range(3):
        rows = [batch(3 * epoch + k) for k in range(3)]
        assert sorted(torch.cat([x for x, _ in rows]).tolist()) == list(range(12))
        assert all(torch.equal(10 * x, y) for x, y in rows)
    assert not torch.equal(batch(0)[0], batch(3)[0])
    assert torch.equal(batch(7)[0], minibatches(torch.arange(12), size=4, seed=5)(7)[0])
    with pytest.raises(ValueError, match="size=13"):
        minibatches(torch.arange(12), size=13, seed=0)


@pytest.mark.parametrize("optimizer", [None, "lbfgs", "momentum"])
def test_a_run_that_stops_goes_on_bit_identical(tmp_path, optimizer):
    def start(steps, checkpoint, until):
        net = linear()
        options = {
            None: None,
            "lbfgs": torch.optim.LBFGS(net.parameters(), max_iter=2),
            "momentum": torch.optim.SGD(net.parameters(), momentum=0.9),
        }
        history = list(
            itertools.islice(
                train(
                    net,
                    lambda net, k: (net(torch.ones(2)) - k).square().sum(),
                    float,
                    steps=steps,
                    lr=0.01,
                    optimizer=options[optimizer],
                    checkpoint=checkpoint,
                    every=4,
                ),
                until,
            )
        )
        return net, [(s.index, s.loss, s.grad_norm, s.terms) for s in history]

    whole, history = start(20, None, None)
    path = tmp_path / "run"
    for until in (6, 9, 15):
        start(20, path, until)
    resumed, again = start(20, path, None)
    assert torch.equal(whole.weight, resumed.weight)
    assert history == again
    assert start(20, path, None)[1] == history  # what has ended is only told again


def test_a_killed_run_goes_on_bit_identical(tmp_path):
    """Ten SIGKILLs at random moments; the seed of the moments differs from run to run."""
    seed = str(int.from_bytes(tmp_path.name.encode()[-4:]))
    script = Path(__file__).with_name("interrupted.py")
    done = subprocess.run(
        [sys.executable, script, "kill", tmp_path, seed],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "killed 10 times" in done.stdout


def test_what_is_not_finite_stops_training_and_keeps_the_checkpoint(tmp_path):
    def loss(net, k):
        return {
            "fit": net(torch.ones(2)).sum(),
            "penalty": torch.tensor(math.nan if k == 7 else 0.0),
        }

    net, path = linear(), tmp_path / "run"
    with pytest.raises(TrainingError, match="'penalty' of the loss is nan at step 7"):
        list(train(net, loss, int, steps=20, checkpoint=path, every=3))
    kept = storage.load(path)
    assert len(kept["history"]["rows"]) == 6
    assert all(w.isfinite().all() for w in kept["model"].values())


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    net = linear()
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    with pytest.raises(TrainingError, match="gradient is not finite at step 0"):
        list(train(net, lambda net, x: net(x).sum().sqrt(), data, steps=3))
    assert net.weight.isfinite().all()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    list(train(linear(), square, data, steps=4, checkpoint=tmp_path / "run"))
    with pytest.raises(ValueError, match=r"another run .*steps=4, not 5"):
        list(train(linear(), square, data, steps=5, checkpoint=tmp_path / "run"))
    with pytest.raises(ValueError, match="another run"):
        list(train(nn.Linear(3, 1), square, data, steps=4, checkpoint=tmp_path / "run"))


def noisy(net, k):
    return (net(torch.ones(2)) - k).square().sum()


def test_the_average_is_that_of_the_parameters_after_each_step():
    def by_hand(mean, value):
        return 0.9 * mean + 0.1 * value

    raw, averaged = linear(), linear()
    mean = raw.weight.detach().clone()
    for _ in train(raw, noisy, float, steps=7, lr=0.1):
        mean = by_hand(mean, raw.weight.detach())
    list(itertools.islice(train(averaged, noisy, float, steps=7, lr=0.1, average=0.9), 7))
    assert torch.allclose(averaged.weight, mean, atol=1e-6)
    assert not torch.allclose(averaged.weight, raw.weight, atol=1e-3)


def test_a_checkpoint_that_is_deleted_after_a_look_at_it_is_none(tmp_path, monkeypatch):
    """Another process that trains the same may end and clear up at any moment."""
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert len(list(train(linear(), square, data, steps=3, checkpoint=tmp_path / "run"))) == 3


def test_an_average_goes_on_bit_identical(tmp_path):
    def start(checkpoint, until):
        net = linear()
        how = {"steps": 20, "lr": 0.1, "average": 0.9, "checkpoint": checkpoint, "every": 4}
        list(itertools.islice(train(net, noisy, float, **how), until))
        return net.weight.detach()

    whole, path = start(None, None), tmp_path / "run"
    for until in (6, 9, 15):
        start(path, until)
    assert torch.equal(whole, start(path, None))
    assert torch.equal(whole, start(path, None))  # what has ended is only loaded again
    with pytest.raises(ValueError, match="average=1"):
        next(train(linear(), noisy, float, steps=3, average=1.0))
    list(train(linear(), noisy, float, steps=3, checkpoint=tmp_path / "plain"))
    with pytest.raises(ValueError, match="another run"):
        next(train(linear(), noisy, float, steps=3, average=0.9, checkpoint=tmp_path / "plain"))


def test_batches_may_be_a_data_loader_that_starts_again_when_it_ends():
    x = torch.arange(10.0).reshape(10, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4)
    seen = []

    def loss(net, batch):
        seen.append(batch[0].flatten().tolist())
        return net(batch[0]).square().mean()

    list(train(nn.Linear(1, 1), loss, loader, steps=4))
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    list(train(nn.Linear(1, 1), square, [x, 2 * x], steps=5))


def test_batches_that_cannot_start_again_are_refused():
    net = linear()
    with pytest.raises(ValueError, match=r"ended before step 2 .* DataLoader"):
        list(train(net, square, (data(0) for _ in range(2)), steps=3))
    with pytest.raises(ValueError, match="ended before step 0"):
        list(train(net, square, [], steps=3))


def test_a_checkpoint_needs_batches_by_number(tmp_path):
    with pytest.raises(ValueError, match="batches as a function"):
        list(train(linear(), square, [data(0)], steps=3, checkpoint=tmp_path / "run"))


def test_nothing_to_train_is_refused():
    net = linear()
    with pytest.raises(ValueError, match="the loss has no gradient"):
        list(train(net, lambda net, batch: square(net, batch).detach(), data, steps=3))
    with pytest.raises(ValueError, match=r"no parameter of the model.*requires_grad_"):
        list(train(net.requires_grad_(False), square, data, steps=3))


def test_a_checkpoint_of_another_optimizer_leaves_the_model_as_it_was(tmp_path):
    file, net = tmp_path / "run", linear()
    list(train(net, square, data, steps=3, checkpoint=file))
    other = linear()
    before = other.weight.clone()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"made by Adam, not by SGD.* delete it"):
        list(train(other, square, data, steps=3, checkpoint=file, optimizer=optimizer))
    assert torch.equal(other.weight, before)


@pytest.mark.parametrize("foreign", [[1], {"a": 1}, torch.ones(2), 1.0, None])
def test_a_checkpoint_of_another_program_is_refused(tmp_path, foreign):
    storage.save(tmp_path / "run", foreign)
    with pytest.raises(ValueError, match=r"run belongs to another run .*: delete it and run again"):
        next(train(linear(), square, data, steps=3, checkpoint=tmp_path / "run"))


@pytest.mark.parametrize("lost", ["history", "optimizer", "kind", "model"])
@pytest.mark.parametrize("value", [None, "missing"])
def test_a_damaged_checkpoint_leaves_the_model_as_it_was(tmp_path, lost, value):
    file, net = tmp_path / "run", linear()
    list(train(net, square, data, steps=3, checkpoint=file))
    kept = storage.load(file)
    if value is None:
        kept[lost] = None
    else:
        del kept[lost]
    storage.save(file, kept)
    other = linear()
    before = other.weight.clone()
    with pytest.raises(ValueError, match="delete it and run again"):
        list(train(other, square, data, steps=3, checkpoint=file))
    assert torch.equal(other.weight, before)


def test_the_best_weights_are_kept_by_the_loop_of_the_docstring():
    net, best, weights = linear(), math.inf, {}

    def validate(net):
        return float(square(net, data(0)).detach())

    for step in train(net, square, data, steps=50, lr=lambda k: 0.1 if k < 40 else 5.0):
        if step.index % 5 == 4 and (error := validate(net)) < best:
            best, weights = error, copy.deepcopy(net.state_dict())
    assert validate(net) > best
    net.load_state_dict(weights)
    assert validate(net) == best
