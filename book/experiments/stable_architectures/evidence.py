"""What the evidence on stable architectures rests on, and the rows that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above,
    above_control,
    below,
    below_control,
    finding,
    spread_of,
    within,
)
from machinery.store import Run, Store, device_of

from ..resnets import convolutional, planar
from . import attacks, competition, growth, images, multilevel, reversal

CHAPTER = "02_stable_architectures"
BOOK = "this book"
SLIDE = "slide Stable architectures"
IMPROVEMENTS = "slide Stable architectures, improvements"
DEEP, CYCLES = 100, 6
TURNS, PERIODS = 16, (2 / 3, 4.0)  # of slopes that vary smoothly
REVERSED = 1  # the index of T = 5 in the final times of the round trips


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    worst: dict[str, list[float]]
    energy: dict[str, list[float]]
    trips: dict[str, list[list[float]]]
    kept: dict[bool, list[int]]
    kept_images: dict[bool, list[int]]
    plane: dict[tuple[str, str], competition.Study]
    linear: list[float]
    twice: competition.Study
    short: dict[str, competition.Study]
    attacks: dict[str, dict[str, Any]]
    bare: dict[str, list[list[float]]]
    races: list[multilevel.Race]
    images: dict[str, images.Study]
    linear_images: list[float]
    store: Store


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says.

    The convolutional networks train on `device`; the others are small and stay on the CPU.
    """
    store, few = Store(CHAPTER, run), 1 if run == "smoke" else None
    seeds = [seed + s for s in competition.SEEDS[:few]]
    pictures = [seed + s for s in images.SEEDS[:few]]
    attacked = attacks.studies(store, seeds)
    decays = {kind: found["decay"] for kind, found in attacked.items() if kind != attacks.LINEAR}
    return Evidence(
        worst=growth.worst(store, seeds),
        energy={m: [growth.energy_error(m, s) for s in seeds] for m in growth.METHODS},
        trips=reversal.round_trips(store, seeds),
        kept={reverse: reversal.kept_bytes(reverse) for reverse in (False, True)},
        kept_images={reverse: images.kept_bytes(reverse) for reverse in (False, True)},
        plane=competition.studies(store, seeds),
        linear=[planar.linear_accuracy("peaks", s) for s in seeds],
        twice=competition.study(store, "peaks", "hamiltonian", seeds, layers=32),
        short={
            kind: competition.study(store, "peaks", kind, seeds, horizon=SHORT) for kind in PAIR
        },
        attacks=attacked,
        bare=attacks.without_layers(store, decays, seeds),
        races=multilevel.races(store, seeds),
        images=images.studies(store, pictures, device_of(device)),
        linear_images=convolutional.linear(store, pictures),
        store=store,
    )


PAIR = ("two-layer hamiltonian", "hamiltonian")
SHORT = 0.5  # a final time in which features of one-layer networks cannot move far


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_growth_rows(e),
        *_resonance_rows(),
        *_competition_rows(e),
        *_image_rows(e),
        *_reversal_rows(e),
        *_attack_rows(e),
        *_multilevel_rows(e),
    ]


def _growth_rows(e: Evidence) -> Iterator[Row]:
    at_rest = {n: [growth.growth_at_rest(K, DEEP)] for n, K in growth.MATRICES.items()}
    yield Claim(
        "stable.layer.growth",
        "The layer σ(Ku + b) is not stable for all K: the growth of a change of u = 0, 100 layers",
        SLIDE,
        ours=at_rest["K₊"],
        criterion=above(1000),
        control=Control("the rotation K₀", at_rest["K₀"]),
        unit="times",
    )
    for kind in ("antisymmetric", "hamiltonian"):
        yield finding(
            f"stable.{kind}.worst",
            f"{kind.capitalize()} layers let no change grow by more than exp(T/2) = 148.4 (T = 10)",
            ours=e.worst[kind],
            criterion=below(growth.HALF_RATE),
            control=Control("ordinary layers", e.worst["resnet"]),
            unit="times",
        )
    yield Claim(
        "stable.parabolic.worst",
        "The parabolic layer lets no change grow, whatever its weights (worst weights found)",
        f"{IMPROVEMENTS}; Ruthotto and Haber 2020, Celledoni et al. 2021",
        ours=e.worst["parabolic"],
        criterion=below(1.001),
        control=Control("antisymmetric layers", e.worst["antisymmetric"]),
        unit="times",
    )
    yield Claim(
        "stable.energy.verlet",
        "Symplectic integrators keep the energy of a Hamiltonian: relative error at T = 200",
        SLIDE,
        ours=e.energy["verlet"],
        criterion=below(0.05),
        control=Control("RK4 with as many evaluations", e.energy["rk4"]),
    )


def _resonance_rows() -> Iterator[Row]:
    fast, slow = (
        [growth.growths(growth.modulated(TURNS, period)).max().item()] for period in PERIODS
    )
    yield Claim(
        "stable.antisymmetric.slow",
        "Antisymmetric layers let no change grow more than twofold if J(t) varies slowly",
        f"{SLIDE}; Haber and Ruthotto 2017",
        ours=slow,
        criterion=below(2),
        control=Control("the same slopes, six times as fast", fast),
        unit="times",
    )
    turning, still = (
        [growth.growths(growth.swinging(CYCLES, slow=slow)).max().item()] for slow in (False, True)
    )
    yield finding(
        "stable.resonance.growth",
        "Eigenvalues on the imaginary axis in every layer do not bound the growth (6 cycles)",
        ours=turning,
        criterion=above(1000),
        control=Control("biases that do not take turns", still),
        unit="times",
    )


def _minus(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _competition_rows(e: Evidence) -> Iterator[Row]:
    resnet = e.plane["peaks", "resnet"].accuracies
    for kind in ("antisymmetric", "hamiltonian"):
        yield Claim(
            f"stable.peaks.{kind}",
            f"Stable networks perform competitively ({kind}, peaks): accuracy minus the ResNet's",
            SLIDE,
            ours=_minus(e.plane["peaks", kind].accuracies, resnet),
            criterion=above(-1.0),
            control=Control("logistic regression", _minus(e.linear, resnet)),
            unit="points",
        )
    yield Claim(
        "stable.peaks.multistep",
        "Multi-step networks perform competitively (peaks): accuracy minus the ResNet's",
        f"{IMPROVEMENTS}; Lu et al. 2018",
        ours=_minus(e.plane["peaks", "multistep"].accuracies, resnet),
        criterion=above(-1.0),
        control=Control("logistic regression", _minus(e.linear, resnet)),
        unit="points",
    )
    yield Claim(
        "stable.expressive.two_layer",
        "Two-layer Hamiltonian networks are more expressive than one-layer ones (peaks, accuracy)",
        f"{IMPROVEMENTS}; Chang et al. 2018",
        ours=e.plane["peaks", PAIR[0]].accuracies,
        criterion=above_control(),
        control=Control("one-layer, twice the layers, equal parameters", e.twice.accuracies),
        unit="%",
    )
    yield finding(
        "stable.expressive.short",
        "Two-layer Hamiltonian networks reach more than one-layer ones in a short time (T = 0.5)",
        ours=e.short[PAIR[0]].accuracies,
        criterion=above_control(1.0),
        control=Control("one-layer", e.short[PAIR[1]].accuracies),
        unit="%",
    )
    for (name, kind), study in e.plane.items():
        yield Measurement.over_seeds(
            f"stable.{name}.{kind}.val_accuracy".replace(" ", "_").replace("-", "_"),
            BOOK,
            f"accuracy on the {name}, {kind}",
            study.accuracies,
            "%",
        )


def _image_rows(e: Evidence) -> Iterator[Row]:
    resnet = e.images[images.RESNET]
    for kind in (images.PARABOLIC, images.SECOND, images.HAMILTONIAN):
        study = e.images[kind]
        yield Claim(
            f"stable.images.{kind.replace('-', '_')}",
            f"PDE layers perform competitively ({kind}, MNIST): accuracy minus the ResNet's",
            f"{SLIDE}; Ruthotto and Haber 2020",
            ours=_minus(study.clean, resnet.clean),
            criterion=above(-1.0),
            control=Control("logistic regression", _minus(e.linear_images, resnet.clean)),
            unit="points",
        )
        for part in ("noisy", "blurred"):
            yield finding(
                f"stable.images.{kind.replace('-', '_')}.{part}",
                f"PDE layers lose less on {part} images than ordinary ones ({kind}): accuracy",
                ours=getattr(study, part),
                criterion=above_control(),
                control=Control("ordinary layers", getattr(resnet, part)),
                unit="%",
            )


def _reversal_rows(e: Evidence) -> Iterator[Row]:
    def errors(kind: str, index: int) -> list[float]:
        return [trip[index] for trip in e.trips[kind]]

    last = len(reversal.TIMES) - 1
    for kind in reversal.KINDS[:-1]:
        yield Claim(
            f"stable.reversal.{kind}",
            f"A {kind} network can be run backward: relative error of 1,000 layers undone, T = 5",
            f"{IMPROVEMENTS}; Chang et al. 2018",
            ours=errors(kind, REVERSED),
            criterion=below(1e-3),
            control=Control("Euler's method with −h", errors("resnet", REVERSED)),
        )
        yield Measurement.over_seeds(
            f"stable.reversal.{kind}.long",
            BOOK,
            f"the same until T = {reversal.TIMES[last]:g}",
            errors(kind, last),
            "",
        )

    def grows(kept: dict[bool, list[int]], reverse: bool) -> list[float]:
        return [kept[reverse][-1] / kept[reverse][0]]

    for name, kept, says in (
        ("dense", e.kept, "1,024 layers and 16"),
        ("images", e.kept_images, "24 convolutional layers a stage and 6"),
    ):
        yield Claim(
            f"stable.memory.{name}",
            f"Layers that are undone need memory that does not grow with depth: bytes, {says}",
            f"{IMPROVEMENTS}; Chang et al. 2018",
            ours=grows(kept, True),
            criterion=within(0.9, 1.1),
            control=Control("features stored", grows(kept, False)),
            unit="times",
        )


def _attack_rows(e: Evidence) -> Iterator[Row]:
    index = attacks.SIZES.index(attacks.JUDGED)

    def kept(kind: str) -> list[float]:
        return [curve[min(index, len(curve) - 1)] for curve in e.attacks[kind]["curves"]]

    for rival, name in (("resnet", "a ResNet"), (attacks.LINEAR, "a linear classifier")):
        yield Claim(
            f"stable.attack.{rival}",
            f"Stable networks resist attacks (antisymmetric against {name}): accuracy, ε = 0.1",
            SLIDE,
            ours=kept("antisymmetric"),
            criterion=above_control(),
            control=Control(f"{name}, as accurate without attack", kept(rival)),
            unit="%",
        )
    for kind, (chosen, strong) in e.bare.items():
        for name, values in (("chosen", chosen), ("strong", strong)):
            yield Measurement.over_seeds(
                f"stable.attack.{kind}.without_layers.{name}",
                BOOK,
                f"labels that stay if all layers are left out, {name} decay, {kind}",
                values,
                "%",
            )
    for kind in attacks.KINDS:
        yield Measurement.over_seeds(
            f"stable.attack.{kind}.accuracy", BOOK, f"the same, {kind}", kept(kind), "%"
        )


def _multilevel_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "stable.multilevel.saving",
        "Training from few layers to many saves work: that of 128 layers alone, over ours",
        f"{IMPROVEMENTS}; Chang et al. 2018, multilevel",
        ours=[multilevel.saving(race) for race in e.races],
        criterion=above(1.0),
        control=Control(
            "16 layers alone, prolonged to 128 at the end",
            [multilevel.saving(race, race.prolonged) for race in e.races],
        ),
        unit="times",
    )
    yield finding(
        "stable.multilevel.coarse",
        "16 layers alone end with a lower loss of their own, after equal work",
        ours=[race.coarse[-1][1] for race in e.races],
        criterion=below_control(),
        control=Control("128 layers, from coarse to fine", [r.many[-1][1] for r in e.races]),
    )


def _percent(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f} ± {spread_of(values):.1f} %"


def plane_table(e: Evidence) -> str:
    """What the architectures reach in the plane, as a Markdown table."""
    head = ["", *(f"{name}, rate, T | accuracy" for name in competition.DATA)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (2 * len(competition.DATA))]
    for kind in competition.KINDS:
        cells = []
        for name in competition.DATA:
            study = e.plane[name, kind]
            cells += [f"{study.lr:g}, {study.horizon:g}", _percent(study.accuracies)]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def image_table(e: Evidence) -> str:
    """What the convolutional networks reach, as a Markdown table."""
    lines = [
        "| | rate, T | parameters | clean | noisy | blurred |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, study in e.images.items():
        cells = [f"{study.rate:g}, {study.horizon:g}", f"{study.parameters:,}"]
        cells += [_percent(values) for values in (study.clean, study.noisy, study.blurred)]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def attack_table(e: Evidence) -> str:
    """The chosen decays, and the mean accuracies under attacks in percent, as a Markdown table."""
    sizes = attacks.SIZES[: len(e.attacks[attacks.LINEAR]["curves"][0])]
    lines = ["| % | decay | " + " | ".join(f"ε = {eps:g}" for eps in sizes) + " |"]
    lines.append("|---|---:|" + "---:|" * len(sizes))
    for kind, study in e.attacks.items():
        columns = zip(*study["curves"], strict=True)
        cells = " | ".join(f"{sum(column) / len(column):.1f}" for column in columns)
        lines.append(f"| {kind} | {study['decay']:g} | {cells} |")
    return "\n".join(lines)


def decay_table(e: Evidence) -> str:
    """The accuracies without and under attack in percent, by decay, as a Markdown table.

    The last two columns have the labels that stay without the layers, with the chosen decay and
    with the strong one.
    """
    decays = attacks.DECAYS[: len(e.attacks[attacks.LINEAR]["scores"])]
    heads = [*(f"{decay:g}" for decay in decays), "bare, chosen", "bare, 0.1"]
    lines = ["| % | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for kind, study in e.attacks.items():
        cells = [f"{clean:.0f}, {kept:.0f}" for clean, kept in study["scores"]]
        cells += [f"{sum(v) / len(v):.0f}" for v in e.bare.get(kind, [])] or ["", ""]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
