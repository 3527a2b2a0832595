import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ctdl_lib.learning import storage, train
from machinery.claims import Measurement
from machinery.store import LOSSES, ResultError, Store, fetch

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


def test_a_long_history_is_kept_as_means_of_blocks(tmp_path):
    net = nn.Linear(2, 1)
    steps, history = 2 * LOSSES + 1, []

    def watched(steps, checkpoint):
        for step in training(net)(steps, checkpoint):
            history.append(step.loss)
            yield step

    settings = SETTINGS | {"steps": steps}
    record = Store("chapter", "train", folder=tmp_path).fit("net", net, settings, watched)
    assert (record.steps, record.every, len(history)) == (steps, 3, steps)
    wanted = [np.mean(history[k : k + 3]) for k in range(0, steps, 3)]
    assert record.losses == pytest.approx(wanted, rel=1e-5)
    assert len(record.losses) <= LOSSES
    assert load(tmp_path, steps=steps) == record


def test_an_interrupted_fit_starts_again_from_its_own_weights(tmp_path):
    net = nn.Linear(2, 1)
    start = {key: value.clone() for key, value in net.state_dict().items()}

    def interrupted(steps, checkpoint):
        for step in training(net)(steps, checkpoint):
            if step.index == 3:
                raise KeyboardInterrupt
            yield step

    store = Store("chapter", "train", folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.fit("net", net, SETTINGS, interrupted)
    assert all(torch.equal(value, start[key]) for key, value in net.state_dict().items())
    record = store.fit("net", net, SETTINGS, training(net))
    fresh = nn.Linear(2, 1)
    fresh.load_state_dict(start)
    once = Store("chapter", "train", folder=tmp_path / "2").fit(
        "net", fresh, SETTINGS, training(fresh)
    )
    assert record.losses == once.losses
    assert torch.equal(net.weight, fresh.weight)


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


def rows_of(folder):
    return json.loads((folder / "claims" / "chapter.json").read_text())


def test_claims_are_stored_as_data_and_shown_as_a_table(tmp_path):
    row = Measurement("a.b", "a slide", "it works", 99.25, "%", published=98.0, spread=0.5, seeds=5)
    shown = Store("chapter", "saved", folder=tmp_path).claims([row])
    assert rows_of(tmp_path) == [row.row]
    assert "| 98 | 99.25 ± 0.5 % | 5 |" in shown


def test_reading_a_chapter_leaves_stored_claims_alone_where_only_last_digits_differ(tmp_path):
    store = Store("chapter", "saved", folder=tmp_path)
    store.claims([Measurement("a", "a slide", "a number", 1.234)])
    store.claims([Measurement("a", "a slide", "a number", 1.235)])
    assert rows_of(tmp_path)[0]["ours"] == 1.234
    store.claims([Measurement("a", "a slide", "a number", 1.3)])
    assert rows_of(tmp_path)[0]["ours"] == 1.3
    store.claims([Measurement("a", "a slide", "another number", 1.3)])
    assert rows_of(tmp_path)[0]["statement"] == "another number"


# --------------------------------------------------------------------- a folder of the reader's own


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def explore(tmp_path, net=None, **changes):
    net = net or nn.Linear(2, 1)
    store = Store("chapter", "explore", folder=tmp_path / "book", mine=tmp_path / "mine")
    return store.fit("net", net, {**SETTINGS, **changes}, training(net))


def test_exploring_loads_what_matches(tmp_path, capsys):
    net, record = trained(tmp_path / "book")
    other = nn.Linear(2, 1)
    assert explore(tmp_path, other) == record
    assert torch.equal(net.weight, other.weight)
    assert not (tmp_path / "mine").exists()
    assert capsys.readouterr().out == ""


def test_exploring_trains_the_rest_into_a_folder_of_its_own_and_finds_it_there(tmp_path, capsys):
    trained(tmp_path / "book")
    before = contents(tmp_path / "book")
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    record = explore(tmp_path, first, lr=0.2)
    said = capsys.readouterr().out
    assert "lr is 0.1 there and 0.2 here" in said
    assert "mine/chapter, for about 1 s" in said
    assert explore(tmp_path, second, lr=0.2) == record
    assert torch.equal(first.weight, second.weight)
    assert capsys.readouterr().out == ""
    assert contents(tmp_path / "book") == before


def test_a_new_seed_takes_about_as_long_as_a_stored_one(tmp_path, capsys):
    trained(tmp_path / "book")
    path = tmp_path / "book" / "chapter" / "net.json"
    stored = json.loads(path.read_text()) | {"seconds": 40.0}
    path.write_text(json.dumps(stored))
    store = Store("chapter", "explore", folder=tmp_path / "book", mine=tmp_path / "mine")
    net = nn.Linear(2, 1)
    store.fit("net-1", net, {**SETTINGS, "lr": 0.3, "steps": 10}, training(net))
    assert "mine/chapter, for about 80 s" in capsys.readouterr().out


def test_every_setting_that_a_reader_tries_is_kept(tmp_path, capsys):
    first = explore(tmp_path, lr=0.2)
    second = explore(tmp_path, lr=0.3)
    capsys.readouterr()
    assert explore(tmp_path, lr=0.2) == first
    assert explore(tmp_path, lr=0.3) == second
    assert capsys.readouterr().out == ""
    names = [path.suffixes[1:] for path in (tmp_path / "mine" / "chapter").glob("net.*")]
    assert sorted(names) == [[".json"]] * 2 + [[".safetensors"]] * 2  # and no checkpoint


def test_exploring_measures_and_claims_without_touching_the_book(tmp_path):
    book = Store("chapter", "train", folder=tmp_path / "book")
    book.measure("m", {"n": 3}, lambda: {"a": 1})
    book.claims([Measurement("a", "a slide", "a number", 1.0)])
    before = contents(tmp_path / "book")
    store = Store("chapter", "explore", folder=tmp_path / "book", mine=tmp_path / "mine")
    assert store.measure("m", {"n": 3}, dict).numbers == {"a": 1}
    assert store.measure("m", {"n": 4}, lambda: {"a": 2}).numbers == {"a": 2}
    assert "2" in store.claims([Measurement("a", "a slide", "a number", 2.0)])
    again = Store("chapter", "explore", folder=tmp_path / "book", mine=tmp_path / "mine")
    assert again.measure("m", {"n": 4}, lambda: pytest.fail("it measures")).numbers == {"a": 2}
    assert contents(tmp_path / "book") == before


def test_exploring_works_where_the_book_has_no_results(tmp_path):
    record = explore(tmp_path)
    assert len(record.losses) == 5
    assert not (tmp_path / "book").exists()


def test_a_notebook_shows_the_error_without_a_traceback(tmp_path):
    trained(tmp_path)
    with pytest.raises(ResultError) as caught:
        load(tmp_path, lr=0.2)
    (line,) = caught.value._render_traceback_()
    assert 'set run = "explore"' in line


# ------------------------------------------------------------------------- results of a release


def archive(path, name, data=b"{}"):
    with tarfile.open(path, "w:gz") as file:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))
    return path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()


def test_results_are_fetched_with_their_checksum(tmp_path):
    address, checksum = archive(tmp_path / "a.tar.gz", "claims/chapter.json")
    assert fetch(address, checksum, tmp_path / "results") == tmp_path / "results"
    assert (tmp_path / "results" / "claims" / "chapter.json").read_bytes() == b"{}"


def test_another_file_than_the_promised_one_is_not_unpacked(tmp_path):
    address, _ = archive(tmp_path / "a.tar.gz", "claims/chapter.json")
    with pytest.raises(ResultError, match=r"has the checksum .*, and 000 was expected"):
        fetch(address, "000", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path):
    address, checksum = archive(tmp_path / "a.tar.gz", "../escaped.json")
    with pytest.raises(ResultError, match="no archive that can be unpacked"):
        fetch(address, checksum, tmp_path / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_file_that_is_no_archive_leaves_nothing(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"an error page")
    with pytest.raises(ResultError, match="no archive that can be unpacked"):
        fetch(path.as_uri(), hashlib.sha256(b"an error page").hexdigest(), tmp_path / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_results_that_are_there_are_not_overwritten(tmp_path):
    address, checksum = archive(tmp_path / "a.tar.gz", "claims/chapter.json")
    trained(tmp_path / "results")
    before = contents(tmp_path / "results")
    with pytest.raises(ResultError, match="has something in it"):
        fetch(address, checksum, tmp_path / "results")
    assert contents(tmp_path / "results") == before


def test_without_any_results_the_error_says_how_to_get_them(tmp_path):
    with pytest.raises(ResultError, match=r"no folder .*book's repository, fetch .* or train"):
        load(tmp_path / "nowhere")


# ------------------------------------------------------------------------------- faults


def spoil_record(folder):
    (folder / "chapter" / "net.json").write_text('{"settings": ')


def strange_record(folder):
    (folder / "chapter" / "net.json").write_text('{"settings": {}}')


def change(part, value):
    def spoil(folder):
        path = folder / "chapter" / "net.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))

    return spoil


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
    "a list": (lambda f: (f / "chapter" / "net.json").write_text("[1]"), "is broken"),
    "not UTF-8": (lambda f: (f / "chapter" / "net.json").write_bytes(b"\xff{"), "is broken"),
    "no settings": (change("settings", None), "is broken"),
    "losses that are text": (change("losses", "abc"), "is broken"),
    "seconds that are text": (change("seconds", "abc"), "is broken"),
    "no versions": (change("versions", None), "is broken"),
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
    assert 'run = "explore"' in str(caught.value)


def test_exploring_trains_anew_what_is_broken_and_leaves_it_there(tmp_path):
    trained(tmp_path / "book")
    change("seconds", "abc")(tmp_path / "book")
    before = contents(tmp_path / "book")
    assert len(explore(tmp_path).losses) == 5
    assert contents(tmp_path / "book") == before


@pytest.mark.parametrize("foreign", [[1], {"a": 1}, 1.0, None])
def test_a_checkpoint_that_holds_no_record_is_refused(tmp_path, foreign):
    store = Store("chapter", "train", folder=tmp_path)
    store.measure("m", {"n": 3}, dict)
    (checkpoint,) = (tmp_path / "chapter").glob("m.*.checkpoint.safetensors")
    storage.save(checkpoint, foreign)
    with pytest.raises(ResultError, match=f"{checkpoint} holds no record: delete it and run again"):
        store.measure("m", {"n": 3}, lambda: pytest.fail("it measures"))


def test_claims_that_cannot_be_read_are_named(tmp_path):
    store = Store("chapter", "saved", folder=tmp_path)
    store.claims([Measurement("a", "a slide", "a number", 1.0)])
    path = tmp_path / "claims" / "chapter.json"
    path.write_text("<<<<<<< ours\n" + path.read_text())
    before = contents(tmp_path)
    with pytest.raises(ResultError, match=r"chapter.json is broken .*: delete it and run again"):
        store.claims([])
    assert contents(tmp_path) == before


def test_other_settings_are_named(tmp_path):
    trained(tmp_path)
    with pytest.raises(ResultError, match=r"lr is 0\.1 there and 0\.2 here"):
        load(tmp_path, lr=0.2)
    with pytest.raises(ResultError, match="width is 'absent' there and 3 here"):
        load(tmp_path, width=3)
    with pytest.raises(ResultError, match="size mismatch"):
        load(tmp_path, nn.Linear(3, 1))


def test_an_unknown_run_is_refused():
    with pytest.raises(ValueError, match="one of saved, explore, train, smoke, got 'full'"):
        Store.__init__.__wrapped__(object.__new__(Store), "chapter", "full")


def test_two_processes_that_write_one_result_lose_nothing(tmp_path):
    script = Path(__file__).with_name("interrupted.py")
    done = subprocess.run(
        [sys.executable, script, "compete", tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    temporary = [p for p in (tmp_path / "chapter").iterdir() if p.name.startswith(".net.json.")]
    assert not temporary


def test_a_chapter_trained_twice_at_the_same_time_gives_the_bits_of_one_training(tmp_path):
    """Twenty pairs of processes, of which the second starts at a random moment of the first."""
    seed = str(int.from_bytes(tmp_path.name.encode()[-4:]))
    script = Path(__file__).with_name("interrupted.py")
    done = subprocess.run(
        [sys.executable, script, "pairs", tmp_path, seed],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    resumed, of, *_ = map(int, re.findall(r"\d+", done.stdout))
    assert of == 40
    assert resumed > 4  # so that the two did meet


@pytest.mark.parametrize("name", ["../net", "a/b", "/tmp/net", "..", ".net", ""])
@pytest.mark.parametrize("run", ["saved", "train"])
def test_a_result_cannot_leave_its_folder_and_nothing_is_computed_before(tmp_path, name, run):
    store = Store("chapter", run, folder=tmp_path)
    with pytest.raises(ValueError, match="name must be that of a file"):
        store.measure(name, {}, lambda: pytest.fail("it computes"))
    with pytest.raises(ValueError, match="name must be that of a file"):
        store.fit(name, nn.Linear(2, 1), SETTINGS, lambda *_: pytest.fail("it trains"))
    assert not list(tmp_path.rglob("*"))


def test_settings_may_hold_numbers_of_numpy_and_torch_but_no_nan(tmp_path):
    store = Store("chapter", "train", folder=tmp_path)
    settings = {"lr": np.float32(0.5), "sizes": np.arange(3), "scale": torch.tensor(2.0)}
    store.measure("numbers", settings, lambda: {"found": np.float64(1.5)})
    loaded = Store("chapter", "saved", folder=tmp_path).measure("numbers", settings, pytest.fail)
    assert loaded.settings == {"lr": 0.5, "sizes": [0, 1, 2], "scale": 2.0}
    assert loaded.numbers == {"found": 1.5}
    with pytest.raises(ValueError, match="must not be NaN"):
        store.measure("numbers", {"lr": float("nan")}, pytest.fail)
    with pytest.raises(TypeError, match="plain data, got a object"):
        store.measure("numbers", {"lr": object()}, pytest.fail)


def test_a_fit_has_at_least_one_step(tmp_path):
    net = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        Store("chapter", "train", folder=tmp_path).fit(
            "net", net, SETTINGS | {"steps": 0}, training(net)
        )
