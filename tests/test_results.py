import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ctdl_lib.learning import train
from machinery.store import Claim, ResultError, Store, table

SETTINGS = {"steps": 5, "lr": 0.1, "shape": (2, 1)}


def training(net):
    return lambda steps, checkpoint: train(
        net,
        lambda net, x: net(x).square().mean(),
        lambda k: torch.ones(3, 2),
        steps=steps,
        lr=0.1,
        checkpoint=checkpoint,
    )


def trained(folder):
    net = nn.Linear(2, 1)
    record = Store("chapter", "train", folder=folder).fit("net", net, SETTINGS, training(net))
    return net, record


def load(folder, net=None, **changes):
    net = net or nn.Linear(2, 1)
    return Store("chapter", "saved", folder=folder).fit(
        "net", net, {**SETTINGS, **changes}, lambda steps, checkpoint: pytest.fail("it trains")
    )


def test_what_was_trained_is_loaded_without_training(tmp_path):
    net, record = trained(tmp_path)
    other = nn.Linear(2, 1)
    assert load(tmp_path, other) == record
    assert torch.equal(net.weight, other.weight)
    assert len(record.losses) == 5
    assert record.settings == {"steps": 5, "lr": 0.1, "shape": [2, 1]}
    assert {"torch", "torchdiffeq", "python"} <= record.versions.keys()
    assert record.device == "cpu"


def test_rounded_weights_are_half_as_large_and_used_at_once(tmp_path):
    net = nn.Linear(2, 1)
    store = Store("chapter", "train", folder=tmp_path)
    store.fit("net", net, SETTINGS, training(net), dtype=torch.float32)
    assert net.weight.dtype == torch.float64
    assert torch.equal(net.weight, net.weight.float().double())
    other = nn.Linear(2, 1)
    load(tmp_path, other)
    assert torch.equal(net.weight, other.weight)
    stored = (tmp_path / "chapter" / "net.safetensors").stat().st_size
    trained(tmp_path)
    assert (tmp_path / "chapter" / "net.safetensors").stat().st_size == stored + 3 * 4


def test_smoke_runs_the_same_code_and_leaves_nothing(tmp_path):
    net = nn.Linear(2, 1)
    record = Store("chapter", "smoke", folder=tmp_path).fit("net", net, SETTINGS, training(net))
    assert len(record.losses) == 3
    Store("chapter", "smoke", folder=tmp_path).claims([])
    assert list(tmp_path.iterdir()) == []


def test_progress_wraps_the_steps(tmp_path):
    seen = []

    def progress(steps, total, desc):
        assert (total, desc) == (5, "net")
        for step in steps:
            seen.append(step.index)
            yield step

    net = nn.Linear(2, 1)
    Store("chapter", "train", folder=tmp_path, progress=progress).fit(
        "net", net, SETTINGS, training(net)
    )
    assert seen == list(range(5))


def test_numbers_are_kept_with_their_settings(tmp_path):
    made = Store("chapter", "train", folder=tmp_path).measure(
        "m", {"n": 3}, lambda: {"a": [1, 2.5]}
    )
    store = Store("chapter", "saved", folder=tmp_path)
    found = store.measure("m", {"n": 3}, lambda: pytest.fail("it measures"))
    assert found == made
    assert found.numbers == {"a": [1, 2.5]}
    with pytest.raises(ResultError, match="n is 3 there and 4 here"):
        store.measure("m", {"n": 4}, dict)


def test_the_checkpoint_stays_until_the_chapter_has_ended(tmp_path):
    trained(tmp_path)
    store = Store("chapter", "train", folder=tmp_path)
    (checkpoint,) = (tmp_path / "chapter").glob("*.checkpoint.safetensors")
    before = checkpoint.stat().st_mtime_ns
    net = nn.Linear(2, 1)
    store.fit("net", net, SETTINGS, training(net))  # after a kill: what was done is not done again
    assert checkpoint.stat().st_mtime_ns == before
    store.claims([])
    assert not checkpoint.exists()


def test_numbers_are_not_measured_again_before_the_chapter_has_ended(tmp_path):
    store = Store("chapter", "train", folder=tmp_path)
    first = store.measure("m", {"n": 3}, lambda: {"a": 1})
    assert store.measure("m", {"n": 3}, lambda: {"a": 2}) == first
    assert store.measure("m", {"n": 4}, lambda: {"a": 2}).numbers == {"a": 2}
    store.claims([])
    assert store.measure("m", {"n": 3}, lambda: {"a": 2}).numbers == {"a": 2}


def test_claims_are_stored_as_data_and_shown_as_a_table(tmp_path):
    claim = Claim(
        id="a.b",
        source="haber2017stable",
        says="it works",
        published=98.0,
        ours=99.25,
        spread=0.5,
        seeds=5,
        unit="%",
        verdict="improved",
    )
    shown = Store("chapter", "saved", folder=tmp_path).claims([claim])
    (row,) = json.loads((tmp_path / "claims" / "chapter.json").read_text())
    assert set(row) == {field.name for field in dataclasses.fields(Claim)}
    assert row["ours"] == 99.25
    assert "| 98 | 99.25 ± 0.5 % | 5 | *improved* |" in shown
    assert table([claim]) == shown


def test_a_claim_over_seeds_has_their_mean_and_deviation():
    claim = Claim.over_seeds("a", "talk", "it works", [1, 2, 4], "%", verdict="reproduced")
    assert (claim.ours, claim.spread, claim.seeds) == (2.333, 1.528, 3)


# ------------------------------------------------------------------------------- faults


def spoil_record(folder):
    (folder / "chapter" / "net.json").write_text('{"settings": ')


def strange_record(folder):
    (folder / "chapter" / "net.json").write_text('{"settings": {}}')


def truncate(folder):
    path = folder / "chapter" / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def pickle(folder):
    torch.save(nn.Linear(2, 1).state_dict(), folder / "chapter" / "net.safetensors")


def swap(folder):
    from safetensors.torch import save_file

    save_file(nn.Linear(2, 1).state_dict(), folder / "chapter" / "net.safetensors")


FAULTS = {
    "missing record": (lambda f: (f / "chapter" / "net.json").unlink(), "net.json is missing"),
    "missing weights": (lambda f: (f / "chapter" / "net.safetensors").unlink(), "is missing"),
    "broken record": (spoil_record, "is broken"),
    "a record of something else": (strange_record, "is broken"),
    "truncated weights": (truncate, "truncated or no safetensors"),
    "a pickle": (pickle, "truncated or no safetensors"),
    "weights of another run": (swap, "not the file that its record describes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_result_is_refused_with_the_remedy(name, tmp_path):
    spoil, message = FAULTS[name]
    trained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ResultError, match=message) as caught:
        load(tmp_path)
    assert "make train CHAPTER=chapter" in str(caught.value)


def test_other_settings_are_named(tmp_path):
    trained(tmp_path)
    with pytest.raises(ResultError, match=r"lr is 0\.1 there and 0\.2 here"):
        load(tmp_path, lr=0.2)
    with pytest.raises(ResultError, match="width is 'absent' there and 3 here"):
        load(tmp_path, width=3)
    with pytest.raises(ResultError, match="size mismatch"):
        load(tmp_path, nn.Linear(3, 1))


def test_an_unknown_run_or_verdict_is_refused():
    with pytest.raises(ValueError, match='"saved", "train" or "smoke", got \'full\''):
        Store.__init__.__wrapped__(object.__new__(Store), "chapter", "full")
    with pytest.raises(ValueError, match="verdict must be one of"):
        Claim(id="a", source="", says="", ours=1.0, verdict="great")
    with pytest.raises(ValueError, match="needs its reason"):
        Claim(id="a", source="", says="", ours=1.0, verdict="differs")


def test_two_processes_that_write_one_result_lose_nothing(tmp_path):
    script = Path(__file__).with_name("interrupted.py")
    done = subprocess.run(
        [sys.executable, script, "compete", tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    temporary = [p for p in (tmp_path / "chapter").iterdir() if p.name.startswith(".net.json.")]
    assert not temporary


def test_many_numbers_of_a_claim_stand_below_each_other():
    claim = Claim("a", "talk", "it works", [1.0, 2.0, 3.0], "reproduced", spread=0.1, unit="%")
    assert "| 1,<br>2,<br>3 ± 0.1 % |" in table([claim])
    pair = Claim("a", "talk", "it works", [1.0, 2.0], "reproduced")
    assert "| 1, 2 |" in table([pair])
