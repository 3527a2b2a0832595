"""What a chapter has trained, measured and claims: kept with the settings it came from."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from ctdl_lib.learning import Step, storage
from ctdl_lib.metrics import spread

Run = Literal["saved", "train", "smoke"]


SMOKE_STEPS = 3


VERDICTS = ("reproduced", "improved", "differs", "not reproducible offline")


class ResultError(ValueError):
    """A stored result is missing, broken, or was made with other settings."""


@dataclass(frozen=True)
class Record:
    """How a result came about, and the numbers or the loss history it left."""

    settings: dict[str, Any]
    numbers: dict[str, Any]
    losses: list[float]
    seconds: float
    device: str
    processor: str
    versions: dict[str, str]
    date: str
    weights: str | None = None  # sha256 of the safetensors file

    @property
    def hardware(self) -> str:
        """Where it ran, e.g. "cpu, x86_64, torch 2.13.0"."""
        return f"{self.device}, {self.processor}, torch {self.versions['torch']}"


@dataclass(frozen=True)
class Claim:
    """One row of a chapter's claims table: what was said, what we measured, and the verdict.

    Args of the constructor: a dotted `id`; the `source` and what it `says`; the `published` number
    or None; `ours`, a number or one a seed, with its `spread` (standard deviation) over `seeds`
    seeds; the `unit`; a `verdict` of VERDICTS and, where ours differs, `because`.

    Raises:
        ValueError: an unknown verdict, or a difference without its reason.
    """

    id: str
    source: str
    says: str
    ours: float | list[float]
    verdict: str
    published: float | None = None
    spread: float | None = None
    seeds: int = 1
    unit: str = ""
    because: str | None = None

    @classmethod
    def over_seeds(
        cls,
        id: str,
        source: str,
        says: str,
        values: Sequence[float],
        unit: str = "%",
        **others: Any,
    ) -> "Claim":
        """The claim about the mean of `values`, one a seed, with their standard deviation."""
        mean, std = spread([float(value) for value in values])
        return cls(id, source, says, mean, spread=std, seeds=len(values), unit=unit, **others)

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}, got {self.verdict!r}")
        # Four digits are more than any claim needs, and the same on every machine.
        ours = [_rounded(value) for value in self.ours] if isinstance(self.ours, list) else None
        object.__setattr__(self, "ours", ours or _rounded(self.ours))
        object.__setattr__(self, "spread", _rounded(self.spread))
        if self.verdict in VERDICTS[2:] and not self.because:
            raise ValueError(
                f"{self.id}: the verdict {self.verdict!r} needs its reason in because="
            )


class Store:
    """The results of one chapter, loaded, made or tried out as `run` says.

    "saved" loads and refuses what other settings have made; "train" makes and writes; "smoke"
    executes a few steps of the same code and writes nothing.

    Args of the constructor: the `chapter` (its file's name), `run`, and the `folder` of all
    results; `progress(steps, total=…, desc=…)` wraps the steps of each training, as `tqdm` does.
    """

    def __init__(
        self,
        chapter: str,
        run: Run,
        *,
        folder: Path = Path("results"),
        progress: Callable[..., Iterable[Step]] = lambda steps, total, desc: steps,
    ):
        if run not in ("saved", "train", "smoke"):
            raise ValueError(f'run must be "saved", "train" or "smoke", got {run!r}')
        self.chapter, self.run, self.folder = chapter, run, Path(folder)
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
        settings = _as_json(settings)
        if self.run == "saved":
            return self._load(name, settings, model, device)
        smoke = self.run == "smoke"
        steps = min(SMOKE_STEPS, settings["steps"]) if smoke else settings["steps"]
        checkpoint = None if smoke else self._checkpoint(name, settings)
        history = list(self.progress(training(steps, checkpoint), total=steps, desc=name))
        losses = [float(f"{step.loss:.6g}") for step in history]
        record = _record(settings, {}, losses, history[-1].seconds, device)
        return record if smoke else self._save(name, record, model, dtype)

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
        settings = _as_json(settings)
        if self.run == "saved":
            return self._load(name, settings, None, device)
        checkpoint = self._checkpoint(name, settings)
        if self.run == "train" and checkpoint.exists():
            record = Record(**storage.load(checkpoint))
        else:
            started = time.monotonic()
            numbers = _as_json(compute())
            record = _record(settings, numbers, [], time.monotonic() - started, device)
        if self.run == "smoke":
            return record
        storage.save(checkpoint, asdict(record))
        return self._save(name, record, None)

    def claims(self, claims: Sequence[Claim]) -> str:
        """The claims as a Markdown table; with "saved" and "train" they are also stored.

        This ends a chapter: what "train" kept to go on from is deleted.
        """
        if self.run != "smoke":
            rows = [asdict(claim) for claim in claims]
            path = self.folder / "claims" / f"{self.chapter}.json"
            data = (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
            if not path.is_file() or path.read_bytes() != data:
                storage.write(path, data)
        if self.run == "train":
            for checkpoint in (self.folder / self.chapter).glob("*.checkpoint.safetensors"):
                checkpoint.unlink()
        return table(claims)

    def _paths(self, name: str) -> tuple[Path, Path]:
        stem = self.folder / self.chapter / name
        return stem.with_name(f"{name}.json"), stem.with_name(f"{name}.safetensors")

    def _checkpoint(self, name: str, settings: dict) -> Path:
        """Other settings have another checkpoint, so that none is ever resumed by mistake."""
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / self.chapter / f"{name}.{key}.checkpoint.safetensors"

    def _lock(self) -> FileLock:
        folder = self.folder / self.chapter
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock")

    def _save(
        self, name: str, record: Record, model: nn.Module | None, dtype: torch.dtype | None = None
    ) -> Record:
        """Write weights and record as one: under a lock, and tied together by a hash."""
        record_path, weights_path = self._paths(name)
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
            storage.write(record_path, (json.dumps(asdict(record), indent=1) + "\n").encode())
        return record

    def _load(self, name: str, settings: dict, model: nn.Module | None, device) -> Record:
        remedy = f'train the chapter again: make train CHAPTER={self.chapter}, or run = "train"'
        try:
            try:
                record, state = self._read(name, model is not None)
            except _TornError:  # a writer was between the two files: wait for it
                with self._lock():
                    record, state = self._read(name, model is not None)
            differing = _differences(record.settings, settings)
            if differing:
                raise ResultError(f"the stored {name!r} was made with other settings: {differing}")
            if model is not None:
                model.load_state_dict(state)
                model.to(device)
        except (ResultError, RuntimeError) as error:
            raise ResultError(f"{error}; {remedy}") from error
        return record

    def _read(self, name: str, with_weights: bool) -> tuple[Record, dict[str, Tensor]]:
        record_path, weights_path = self._paths(name)
        for path in (record_path, weights_path)[: 1 + with_weights]:
            if not path.is_file():
                raise ResultError(f"{path} is missing")
        try:
            record = Record(**json.loads(record_path.read_text()))
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


def table(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown table."""
    head = "| claim | published | ours | seeds | verdict |\n|---|---:|---:|---:|---|"
    rows = [
        f"| {_said(c)} | {_number(c.published)} | {_ours(c)} | {c.seeds} | *{c.verdict}* |"
        for c in claims
    ]
    return "\n".join([head, *rows])


def _said(claim: Claim) -> str:
    because = f"<br>*{claim.verdict}, because {claim.because}*" if claim.because else ""
    return f"{claim.says} ({claim.source})<br>`{claim.id}`{because}"


def _ours(claim: Claim) -> str:
    values = claim.ours if isinstance(claim.ours, list) else [claim.ours]
    # a row of many numbers would push the verdict off the page
    text = (",<br>" if len(values) > 2 else ", ").join(_number(value) for value in values)
    deviation = "" if claim.spread is None else f" ± {claim.spread:.2g}"
    return f"{text}{deviation} {claim.unit}".strip()


def _rounded(value):
    return None if value is None else float(f"{value:.4g}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _as_json(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as it will read back from a JSON file (tuples become lists)."""
    return json.loads(json.dumps(dict(mapping)))


def _differences(stored: dict, wanted: dict) -> str:
    missing = "absent"
    return ", ".join(
        f"{key} is {stored.get(key, missing)!r} there and {wanted.get(key, missing)!r} here"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key, missing) != wanted.get(key, missing)
    )


def _record(settings: dict, numbers: dict, losses: list[float], seconds: float, device) -> Record:
    return Record(
        settings=settings,
        numbers=numbers,
        losses=losses,
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
