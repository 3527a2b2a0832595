"""What a chapter has trained and measured, kept with the settings it came from."""

import hashlib
import io
import json
import math
import os
import platform
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Literal
from urllib.request import urlopen

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from ctdl_lib.learning import Step, storage

from . import claims

Run = Literal["saved", "explore", "train", "smoke"]


SMOKE_STEPS = 3
LOSSES = 250  # entries that a new loss history has at most


RUNS = ("saved", "explore", "train", "smoke")
TOLERANCE = 1e-3  # relative; two machines differ by less, and then a stored claim is left alone
BOOK = Path(__file__).resolve().parents[1]


class ResultError(ValueError):
    """A stored result is missing, broken, or was made with other settings."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message. The frames inside of the store help no reader."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Record:
    """How a result came about, and the numbers or the loss history it left."""

    settings: dict[str, Any]
    numbers: dict[str, Any]
    losses: list[float]  # of each step, or the means of blocks of `every` steps
    seconds: float
    device: str
    processor: str
    versions: dict[str, str]
    date: str
    weights: str | None = None  # sha256 of the safetensors file
    steps: int = 0  # how many a training has made

    @property
    def every(self) -> int:
        """The number of steps whose mean is one entry of `losses`."""
        return max(1, math.ceil(self.steps / max(1, len(self.losses))))

    @property
    def hardware(self) -> str:
        """Where it ran, e.g. "cpu, x86_64, torch 2.13.0"."""
        return f"{self.device}, {self.processor}, torch {self.versions['torch']}"


class Store:
    """The results of one chapter, loaded, made or tried out as `run` says.

    - "saved" loads, and refuses what other settings have made;
    - "explore" loads what matches the settings, and trains the rest into a folder of the reader's
      own, where each of the settings tried is found the next time; the book's results and claims
      stay as they are;
    - "train" makes everything anew and writes it;
    - "smoke" executes a few steps of the same code and writes nothing.

    Args of the constructor: the `chapter` (its file's name), `run`, the `folder` of all results (by
    default "results" beside the notebook, or that of the book) and the reader's own, `mine`;
    `progress(steps, total=…, desc=…)` wraps the steps of each training, as `tqdm` does.

    Raises:
        ValueError: `run` is none of the four.
    """

    def __init__(
        self,
        chapter: str,
        run: Run,
        *,
        folder: Path | None = None,
        mine: Path = Path("mine"),
        progress: Callable[..., Iterable[Step]] = lambda steps, total, desc: steps,
    ):
        if run not in RUNS:
            raise ValueError(f"run must be one of {', '.join(RUNS)}, got {run!r}")
        self.chapter, self.run, self.mine = chapter, run, Path(mine)
        self.folder = results_folder() if folder is None else Path(folder)
        self.progress = progress

    def fit(
        self,
        name: str,
        model: nn.Module,
        settings: Mapping[str, Any],
        training: Callable[[int, Path | None], Iterator[Step]],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Record:
        """The record of the trained `model`, whose weights are those of the result afterwards.

        Args:
            settings: all that the weights depend on, `settings["steps"]` among it.
            training: (steps, checkpoint) ↦ the steps of `training.train`.
            dtype: what the weights are rounded to, so that half as many bytes are stored.

        Raises:
            ResultError: with "saved", where the stored result cannot be this one.
        """
        settings = _checked(settings)
        if settings["steps"] < 1:
            raise ValueError(f"steps={settings['steps']} must be at least 1")
        if self.run in ("saved", "explore"):
            found = self._found(name, settings, model, device)
            if found is not None:
                return found
        smoke = self.run == "smoke"
        steps = min(SMOKE_STEPS, settings["steps"]) if smoke else settings["steps"]
        checkpoint = None if smoke else self._checkpoint(name, settings)
        start = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            history = list(self.progress(training(steps, checkpoint), total=steps, desc=name))
        except BaseException:  # the next fit must not begin with half-trained weights
            model.load_state_dict(start)
            raise
        record = _record(settings, {}, history[-1].seconds, device, [s.loss for s in history])
        return record if smoke else self._save(name, record, model, dtype, checkpoint)

    def measure(
        self,
        name: str,
        settings: Mapping[str, Any],
        compute: Callable[[], Mapping[str, Any]],
        *,
        device: str | torch.device = "cpu",
    ) -> Record:
        """The record of numbers that take long to compute, or that a clock has measured.

        With "train" they are computed once, also when the chapter is killed later and goes on.
        """
        settings = _checked(settings)
        if self.run in ("saved", "explore"):
            found = self._found(name, settings, None, device)
            if found is not None:
                return found
        checkpoint = self._checkpoint(name, settings)
        record = None if self.run == "smoke" else _measured(checkpoint)
        if record is None:
            started = time.monotonic()
            numbers = _as_json(compute())
            record = _record(settings, numbers, time.monotonic() - started, device)
        if self.run == "smoke":
            return record
        storage.save(checkpoint, asdict(record))
        return self._save(name, record, None, checkpoint=checkpoint)

    def claims(self, rows: Sequence[claims.Row]) -> str:
        """The rows as Markdown tables; with "saved" and "train" they are also stored.

        With "saved" a stored row is left alone where its numbers differ only in the last digits,
        as they do between machines. This ends a chapter: checkpoints of "train" are deleted.
        """
        if self.run in ("saved", "train"):
            path = self.folder / "claims" / f"{self.chapter}.json"
            new = [row.row for row in rows]
            old = _rows(path) if path.is_file() else None
            if new != old and not (self.run == "saved" and _is_close(old, new)):
                text = json.dumps(new, indent=1, ensure_ascii=False) + "\n"
                storage.write(path, text.encode())
        if self.run == "train":
            for checkpoint in (self.folder / self.chapter).glob("*.checkpoint.safetensors"):
                checkpoint.unlink(missing_ok=True)  # another process may end this chapter, too
        return claims.table(rows)

    def _found(
        self, name: str, settings: dict, model: nn.Module | None, device: str | torch.device
    ) -> Record | None:
        """The stored record; with "explore" the reader's own, or None where it must be trained."""
        if self.run == "saved":
            return self._load(name, settings, model, device)
        reasons = []
        for folder in (self.mine, self.folder):
            try:
                return self._load(name, settings, model, device, folder)
            except ResultError as error:
                reasons.append(str(error).split(";")[0])
        why, where = reasons[-1], self.mine / self.chapter
        duration = self._duration(name, settings)
        print(f"{name}: {why}. Training it into {where}{duration}.", flush=True)
        return None

    def _duration(self, name: str, settings: dict) -> str:
        """How long it will take, judged by the stored result of this name or the most similar."""
        alike = []
        for path in sorted((self.folder / self.chapter).glob("*.json")):
            try:
                stored, _ = self._read(path.stem, settings, False, self.folder)
            except ResultError:
                continue
            if path.stem == name or stored.settings.keys() == settings.keys():
                differing = sum(stored.settings.get(key) != settings[key] for key in settings)
                alike.append((path.stem != name, differing, stored))
        if not alike:
            return ""
        stored = min(alike, key=lambda found: found[:2])[2]
        share = settings.get("steps", 1) / stored.settings.get("steps", 1)
        return f", for about {max(1, round(share * stored.seconds))} s"

    @property
    def _writes(self) -> Path:
        """Where new results go."""
        return self.mine if self.run == "explore" else self.folder

    def _paths(self, name: str, settings: dict, folder: Path) -> tuple[Path, Path]:
        """Record and weights. A reader tries many settings, so there each has its own files."""
        if not re.fullmatch(r"[\w+][\w+. -]*", name):
            raise ValueError(f"a result's name must be that of a file in its folder, got {name!r}")
        is_mine = self.run == "explore" and folder == self.mine
        stem = f"{name}.{_key(settings)}" if is_mine else name
        place = folder / self.chapter
        return place / f"{stem}.json", place / f"{stem}.safetensors"

    def _checkpoint(self, name: str, settings: dict) -> Path:
        """Other settings have another checkpoint, so that none is ever resumed by mistake."""
        path, _ = self._paths(name, settings, self._writes)
        return path.with_name(f"{name}.{_key(settings)}.checkpoint.safetensors")

    def _lock(self) -> FileLock:
        folder = self._writes / self.chapter
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock")

    def _save(
        self,
        name: str,
        record: Record,
        model: nn.Module | None,
        dtype: torch.dtype | None = None,
        checkpoint: Path | None = None,
    ) -> Record:
        """Write weights and record as one: under a lock, and tied together by a hash."""
        record_path, weights_path = self._paths(name, record.settings, self._writes)
        with self._lock():
            if model is not None:
                state = {
                    k: v.detach().to("cpu", dtype if v.is_floating_point() else None).contiguous()
                    for k, v in model.state_dict().items()
                }
                model.load_state_dict(state)  # what is used now is what will be loaded
                data = safetensors_bytes(state)
                storage.write(weights_path, data)
                record = Record(**{**asdict(record), "weights": hashlib.sha256(data).hexdigest()})
            storage.write(record_path, _text(record).encode())
        if self.run == "explore" and checkpoint is not None:
            checkpoint.unlink(missing_ok=True)  # the result itself is found the next time
        return record

    def _load(
        self,
        name: str,
        settings: dict,
        model: nn.Module | None,
        device: str | torch.device,
        folder: Path | None = None,
    ) -> Record:
        folder = folder or self.folder
        try:
            try:
                record, state = self._read(name, settings, model is not None, folder)
            except _TornError:  # a writer was between the two files: wait for it
                with self._lock():
                    record, state = self._read(name, settings, model is not None, folder)
            differing = _differences(record.settings, settings)
            if differing:
                raise ResultError(f"the stored {name!r} was made with other settings: {differing}")
            if model is not None:
                model.load_state_dict(state)
                model.to(device)
        except (ResultError, RuntimeError) as error:
            raise ResultError(f"{error}; {self._remedy}") from None
        return record

    @property
    def _remedy(self) -> str:
        """The ways out when a stored result is not there or is another one."""
        if not self.folder.is_dir():
            return (
                f"there is no folder {self.folder}: run the notebook in the book's repository, "
                'fetch the results with machinery.store.fetch, or train: run = "explore"'
            )
        return (
            'set run = "explore" to train this one into a folder of your own, or train the chapter '
            f"again: make train CHAPTER={self.chapter}"
        )

    def _read(
        self, name: str, settings: dict, with_weights: bool, folder: Path
    ) -> tuple[Record, dict[str, Tensor]]:
        record_path, weights_path = self._paths(name, settings, folder)
        for path in (record_path, weights_path)[: 1 + with_weights]:
            if not path.is_file():
                raise ResultError(f"{path} is missing")
        try:
            record = Record(**json.loads(record_path.read_text()))
            kinds = {"settings": dict, "numbers": dict, "losses": list, "seconds": float}
            kinds |= {"versions": dict, "device": str, "processor": str}
            for part, kind in kinds.items():
                if not isinstance(getattr(record, part), kind):
                    raise TypeError(f"{part} is no {kind.__name__}")
        except (ValueError, TypeError) as error:
            raise ResultError(f"{record_path} is broken ({error})") from error
        if not with_weights:
            return record, {}
        data = weights_path.read_bytes()
        try:
            state = safetensors_load(data)
        except SafetensorError as error:
            raise ResultError(f"{weights_path} is truncated or no safetensors file") from error
        if hashlib.sha256(data).hexdigest() != record.weights:
            raise _TornError(f"{weights_path} is not the file that its record describes")
        return record, state


class _TornError(ResultError):
    """Weights and record are of different results."""


def device_of(name: str) -> str:
    """The device that a chapter's parameter names: "auto" takes a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def results_folder() -> Path:
    """The folder of all results: beside the notebook, above it, or in the book."""
    here = Path("results"), Path("..") / "results"
    return next((folder for folder in here if (folder / "claims").is_dir()), BOOK / "results")


def fetch(address: str, sha256: str, folder: Path = Path("results")) -> Path:
    """The folder into which a release's archive of results was unpacked.

    Nothing in this book calls it: a download happens only where a reader asks for it.

    Args:
        address: of a .tar.gz file whose entries are the content of book/results.
        sha256: the checksum that stands beside the archive.

    Raises:
        ResultError: the folder has something in it already, the file is another one than the
            checksum says, or it is no such archive; then nothing is left in the folder.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ResultError(f"{folder} has something in it, which would be overwritten")
    with urlopen(address) as answer:
        data = answer.read()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ResultError(f"{address} has the checksum {found}, and {sha256} was expected")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetched-") as place:
        unpacked = Path(place) / "results"
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
                archive.extractall(unpacked, filter="data")  # refuses paths that lead out of it
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ResultError(f"{address} is no archive that can be unpacked: {error}") from error
        os.replace(unpacked, folder)  # as one: a folder that is there is complete
    return folder


def _key(settings: dict) -> str:
    """A short name of settings, other for other settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _measured(checkpoint: Path) -> Record | None:
    """The record that a chapter left there before it was killed."""
    try:
        return Record(**storage.load(checkpoint))
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise ResultError(f"{checkpoint} holds no record: delete it and run again") from error


def _rows(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ResultError(f"{path} is broken ({error}): delete it and run again") from error


def _is_close(old: Any, new: Any) -> bool:
    """Whether two stored values are equal but for the last digits of their numbers."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_is_close(old[key], new[key]) for key in old)
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_is_close, old, new))
    if isinstance(old, int | float) and isinstance(new, int | float):
        return math.isclose(old, new, rel_tol=TOLERANCE)
    return old == new


def _text(record: Record) -> str:
    """The record as JSON, with a line for each of its parts."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(record).items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _as_json(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as it will read back from a JSON file (tuples become lists)."""
    return json.loads(json.dumps(dict(mapping), default=_number))


def _number(value: Any) -> Any:
    """A number or an array of NumPy or torch as Python's."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    raise TypeError(f"settings and numbers must be plain data, got a {type(value).__name__}")


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON; NaN is refused, since it would never be equal to what was stored."""
    found = _as_json(settings)
    if "NaN" in json.dumps(found):
        raise ValueError(f"settings must not be NaN, got {found}")
    return found


def _differences(stored: dict, wanted: dict) -> str:
    missing = "absent"
    return ", ".join(
        f"{key} is {stored.get(key, missing)!r} there and {wanted.get(key, missing)!r} here"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key, missing) != wanted.get(key, missing)
    )


def blocks(losses: Sequence[float]) -> list[float]:
    """The means of at most `LOSSES` blocks of losses, all but the last one equally long."""
    every = max(1, math.ceil(len(losses) / LOSSES))
    parts = (losses[k : k + every] for k in range(0, len(losses), every))
    return [float(f"{fmean(part):.6g}") for part in parts]


def _record(
    settings: dict, numbers: dict, seconds: float, device, losses: Sequence[float] = ()
) -> Record:
    return Record(
        settings=settings,
        numbers=numbers,
        losses=blocks(losses),
        steps=len(losses),
        seconds=round(seconds, 2),
        device=str(device),
        processor=_processor(device),
        versions={name: version(name) for name in ("torch", "torchdiffeq", "numpy")}
        | {"python": platform.python_version()},
        date=datetime.now(UTC).date().isoformat(),
    )


def _processor(device) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine()
