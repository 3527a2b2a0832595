"""What the evidence on ResNets rests on, gathered by one call, and the rows that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ctdl_lib.networks import resnets
from machinery import instruments
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

from . import convolutional, deep, landscape, limits, planar

CHAPTER = "01_resnets"
BOOK = "this book"
EULER = (20, 40, 80, 160)
COARSE, FINE = 5, 100  # layers of the landscapes in two dimensions
DEPTH = 64  # where networks with and without skips are compared, beside the deepest


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    accuracies: dict[str, list[float]]
    linear: dict[str, list[float]]
    narrow: list[planar.Price]
    longer: list[planar.Price]
    wider: list[planar.Price]
    euler: list[list[float]]
    afresh: list[list[float]]
    controls: list[dict[str, list[Tensor]]]
    studies: dict[tuple[str, int], deep.Study]
    peers: dict[str, list[float]]
    gradients: dict[str, list[list[float]]]
    images: dict[str, convolutional.Study]
    linear_images: list[float]
    minima: dict[int, list[int]]
    clock: list[float]
    store: Store

    def study(self, kind: str, layers: int) -> list[float]:
        """The accuracies of one kind of network; of the deepest in a trial run."""
        most = max(n for _, n in self.studies)
        return self.studies[kind, min(layers, most)].accuracies


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store, device = Store(CHAPTER, run), device_of(device)
    few = 1 if run == "smoke" else None
    seeds = [seed + s for s in planar.SEEDS[:few]]
    studies = deep.studies(store, [seed + s for s in deep.SEEDS[:few]])
    pictures = [seed + s for s in convolutional.SEEDS[:few]]
    return Evidence(
        accuracies={name: accuracies(store, name, seeds, device) for name in FITTED},
        linear={name: [planar.linear_accuracy(name, s) for s in seeds] for name in planar.RECIPES},
        **{name: prices(store, name, seeds, device) for name in PRICED},
        euler=[limits.euler_errors(s, EULER) for s in seeds],
        afresh=[limits.euler_errors(s, EULER, afresh=True) for s in seeds],
        controls=[limits.controls(store, seed + s) for s in limits.DRAWS[:few]],
        studies=studies,
        peers=deep.peers(store, seeds),
        gradients={kind: deep.gradient_ratios(kind, seeds, deep.DEPTHS) for kind in deep.KINDS},
        images=convolutional.studies(store, pictures),
        linear_images=convolutional.linear(store, pictures),
        minima=minima(store, seeds),
        clock=adjoint_clock(store),
        store=store,
    )


FITTED = planar.RECIPES | {f"printed-{decay:g}": key for decay, key in planar.PRINTED.items()}
PRICED = {"narrow": planar.NARROW, "longer": planar.LONGER, "wider": planar.WIDER}


def accuracies(store: Store, name: str, seeds: Sequence[int], device: str) -> list[float]:
    """The validation accuracies of the networks `name`."""
    key = FITTED[name]
    return [
        planar.accuracy(
            planar.fit(store, name.replace(" ", "-"), key, s, device),
            planar.data_of(key.data, s).val,
        )
        for s in seeds
    ]


def prices(store: Store, name: str, seeds: Sequence[int], device: str) -> list[planar.Price]:
    """What the networks `name` do with the ellipses, and what it takes; measured once and kept."""
    key, points = PRICED[name], 200 if store.run == "smoke" else 20_000

    def compute() -> dict[str, list[dict[str, float]]]:
        nets = [planar.fit(store, name, key, s, device) for s in seeds]
        return {
            "rows": [asdict(planar.price(n, s, points)) for n, s in zip(nets, seeds, strict=True)]
        }

    settings = asdict(key) | {"seeds": list(seeds), "points": points}
    rows = store.measure(f"price-{name}", settings, compute).numbers["rows"]
    return [planar.Price(**row) for row in rows]


def minima(store: Store, seeds: Sequence[int]) -> dict[int, list[int]]:
    """How many minimisers 200 descents reach in the landscape of two weights."""
    starts = 2 if store.run == "smoke" else 200

    def count(layers: int, seed: int) -> int:
        y, target = toy(seed)
        generator = torch.Generator().manual_seed(seed + 1)
        begin = 0.2 + 1.8 * torch.rand(starts, 2, generator=generator, dtype=torch.float64)
        return len(landscape.minimisers(y, target, layers, begin))

    def compute() -> dict[str, list[int]]:
        return {str(n): [count(n, s) for s in seeds] for n in (COARSE, FINE)}

    found = store.measure("minima", {"starts": starts, "seeds": list(seeds)}, compute).numbers
    return {int(n): counts for n, counts in found.items()}


def toy(seed: int) -> tuple[Tensor, Tensor]:
    """The points Y₀ ∈ ℝ³ˣ²⁰ of the landscape in two dimensions, and C, made by θ = (1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    y = 0.1 * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    return y, landscape.rotation_network(y, 200, one, one)[0, 0]


def adjoint_clock(store: Store) -> list[float]:
    """The time of a training step by autograd over that by `propagate`, five times."""
    rounds = 2 if store.run == "smoke" else 5

    def compute() -> dict[str, list[float]]:
        net, y = resnets.ResNet(2, 1, width=4, layers=1024, horizon=5.0), torch.randn(512, 2)

        def lean(u: Tensor, K: Tensor, b: Tensor, h: float) -> Tensor:
            for matrix, bias in zip(K, b, strict=True):
                u = torch.add(u, torch.tanh(torch.addmm(bias, u, matrix.T)), alpha=h)
            return u

        def step(forward) -> None:
            net.zero_grad()
            u = forward(y @ net.K_in.T, net.K, net.b, net.h)
            (u @ net.K_out.T + net.b_out).square().mean().backward()

        both = {"hand": lambda: step(resnets.propagate), "auto": lambda: step(lean)}
        times = [instruments.interleaved_times(both) for _ in range(rounds)]
        return {"ratios": [t["auto"] / t["hand"] for t in times]}

    return store.measure("adjoint", {"layers": 1024, "width": 4, "batch": 512}, compute).numbers[
        "ratios"
    ]


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_planar_rows(e),
        *_narrow_rows(e),
        *_limit_rows(e),
        *_deep_rows(e),
        *_gradient_rows(e),
        *_image_rows(e),
        *_landscape_rows(e),
    ]


def _planar_rows(e: Evidence) -> Iterator[Row]:
    slide = "slide ResNet, the classified plane"
    for name in planar.RECIPES:
        yield Claim(
            f"resnet.{name.replace(' ', '')}.val_accuracy",
            f"A ResNet separates the classes of a data set in the plane ({name})",
            slide,
            ours=e.accuracies[name],
            criterion=above(95),
            control=Control("a logistic regression of the coordinates", e.linear[name]),
            unit="%",
        )
    yield Claim(
        "resnet.printed.val_accuracy",
        "The cross-entropy plus α/2 ‖θ‖², as printed, is enough to train it (ellipses, α = 1e-5)",
        "slide ResNet, the objective",
        ours=e.accuracies["printed-1e-05"],
        criterion=above(95),
        control=Control("a logistic regression of the coordinates", e.linear["ellipses"]),
        unit="%",
    )
    yield Measurement.over_seeds(
        "resnet.printed.strong",
        BOOK,
        "the same with α = 1e-3, which is too strong",
        e.accuracies["printed-0.001"],
        "%",
    )


def _narrow_rows(e: Evidence) -> Iterator[Row]:
    short = [p.accuracy for p in e.narrow]
    yield finding(
        "resnet.narrow.accuracy",
        "Two features are enough for 98 % of the ellipses, with injective layers only (T = 10)",
        ours=[p.accuracy for p in e.longer],
        criterion=above(98),
        control=Control("width 2 until T = 2", short),
        unit="%",
    )
    yield finding(
        "resnet.narrow.flow",
        "So is the exact flow of the same weights: the layers approximate a flow of the plane",
        ours=[p.flow for p in e.longer],
        criterion=above(95),
        control=Control("width 2 until T = 2", [p.flow for p in e.narrow]),
        unit="%",
    )
    for part, says, unit in (
        ("error", "More points are wrong with two features than with three, all else equal", "%"),
        ("motion", "Two features need a longer way ∫‖K(t)‖dt than three, all else equal", ""),
    ):
        ours, three = (
            [100 - p.accuracy if part == "error" else p.motion for p in prices]
            for prices in (e.longer, e.wider)
        )
        yield finding(
            f"resnet.narrow.{part}",
            says,
            ours=ours,
            criterion=above_control(),
            control=Control("three features", three),
            unit=unit,
        )
    for name, prices in (("two", e.longer), ("three", e.wider)):
        yield Measurement.over_seeds(
            f"resnet.narrow.noisy.{name}",
            BOOK,
            f"accuracy with {name} features where noise (0.05) is added to the points",
            [p.noisy for p in prices],
        )


def _limit_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "resnet.euler.order",
        "The features u_N are those of forward Euler for ∂ₜu = σ(K(t)u + b(t)): error of order h",
        "slide ResNet, discussion",
        ours=[limits.order(errors, EULER) for errors in e.euler],
        criterion=within(0.9, 1.1),
        control=Control(
            "weights drawn anew for each layer", [limits.order(v, EULER) for v in e.afresh]
        ),
    )

    def shrinking(kind: str) -> list[float]:
        found = [limits.change(controls[kind]) for controls in e.controls]
        return [c[-1] / c[-2] if len(c) > 1 else c[-1] for c in found]

    yield Claim(
        "resnet.control.change",
        "Optimal weights have a limit as layers are added: their change per doubling shrinks",
        "slide Stable architectures, convergence; Thorpe and van Gennip 2018",
        ours=shrinking(limits.SMOOTHED),
        criterion=below(0.7),
        control=Control("without the smoothness penalty", shrinking(limits.UNSMOOTHED)),
        unit="times",
    )
    for kind in limits.KINDS:
        sizes = [[theta.square().mean().sqrt().item() for theta in c[kind]] for c in e.controls]
        yield Measurement.over_seeds(
            f"resnet.control.size.{kind}",
            "this book",
            f"root mean square of the weights with most layers over that with fewest ({kind})",
            [size[-1] / size[0] for size in sizes],
            "times",
        )


def _deep_rows(e: Evidence) -> Iterator[Row]:
    slide, most = "slide ResNet, discussion", max(n for _, n in e.studies)
    best = max(e.peers, key=lambda name: sum(e.peers[name]))
    shallow = Control("4 layers", e.study(deep.RESIDUAL, 4))
    others = Control(f"{best}, the best of four other classifiers", e.peers[best])
    for part, says, control in (
        ("depth_gain", "get better with depth (digits, 64 layers against 4)", shallow),
        ("test_accuracy", "are the state of the art (here: dense, 8×8 digits)", others),
    ):
        yield Claim(
            f"resnet.digits.{part}",
            f"ResNets {says}",
            slide,
            ours=e.study(deep.RESIDUAL, DEPTH),
            criterion=above_control(),
            control=control,
            unit="%",
        )
    for layers in (DEPTH, most):
        yield Claim(
            f"resnet.digits.skip_gain.{layers}",
            f"Skips make {layers} layers easy to train: accuracy, at least a point more",
            slide,
            ours=e.study(deep.RESIDUAL, layers),
            criterion=above_control(1.0),
            control=Control(
                "without skips, from orthogonal matrices", e.study(deep.ORTHOGONAL, layers)
            ),
            unit="%",
        )
        yield Measurement.over_seeds(
            f"resnet.digits.plain.{layers}",
            BOOK,
            f"accuracy of {layers} layers without skips, from normal matrices of gain 5/3",
            e.study(deep.USUAL, layers),
        )


def _gradient_rows(e: Evidence) -> Iterator[Row]:
    def fading(kind: str) -> list[float]:
        return [ratios[-1] / ratios[0] for ratios in e.gradients[kind]]

    yield finding(
        "resnet.gradient.depth",
        "At the start, the gradient passes 1,024 layers of a ResNet as it passes 4",
        ours=fading(deep.RESIDUAL),
        criterion=within(0.8, 1.25),
        control=Control("without skips, from orthogonal matrices", fading(deep.ORTHOGONAL)),
        unit="times",
    )
    yield Measurement.over_seeds(
        "resnet.adjoint.speedup",
        BOOK,
        "a step by automatic differentiation over one by the adjoint written by hand",
        e.clock,
        "times",
    )


def _landscape_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "landscape.minima.fine",
        "Small steps make the loss simple: minimisers that 200 descents reach, 100 layers",
        "slide Stable architectures, motivation: well-posed training; Ruthotto and Haber 2021",
        ours=e.minima[FINE],
        criterion=below(1.5),
        control=Control("5 layers", e.minima[COARSE]),
        unit="minima",
    )
    skips, without = convolutional.SKIPS, "without skips"
    minima = {kind: convolutional.minima(e.images[kind]) for kind in convolutional.SLICED}
    for kind, name in ((convolutional.NONE, "equal"), (convolutional.LONGER, "longer")):
        yield Claim(
            f"landscape.images.skips.{name}",
            "Skips smooth the loss landscape: interior minima of a slice, 56 convolutional layers",
            "slide ResNet, the landscapes of Li et al. 2018",
            ours=minima[skips],
            criterion=below_control(1.0),
            control=Control(kind, minima[kind]),
            unit="minima",
        )
    yield finding(
        "landscape.images.depth",
        f"The depth makes the slice ragged: fewer minima with 20 layers {without}",
        ours=minima[convolutional.SHALLOW],
        criterion=below_control(1.0),
        control=Control(f"56 layers {without}", minima[convolutional.NONE]),
        unit="minima",
    )


def _image_rows(e: Evidence) -> Iterator[Row]:
    skips = e.images[convolutional.SKIPS].accuracies
    yield Claim(
        "resnet.images.stages",
        "Concatenated residual networks that halve the resolution twice read images (MNIST)",
        "slide ResNet, discussion: practice",
        ours=skips,
        criterion=above(95),
        control=Control("logistic regression of the pixels", e.linear_images),
        unit="%",
    )
    for kind, name in (
        (convolutional.ORTHOGONAL, "equal"),
        (convolutional.TANH, "tanh"),
        (convolutional.LONGER, "longer"),
    ):
        yield Claim(
            f"resnet.images.skip_gain.{name}",
            "Skips make 56 convolutional layers easy to train: accuracy, at least a point more",
            "slide ResNet, discussion",
            ours=skips,
            criterion=above_control(1.0),
            control=Control(kind, e.images[kind].accuracies),
            unit="%",
        )
    yield finding(
        "resnet.images.depth_loss",
        "Without skips, 56 convolutional layers are worse than 20",
        ours=e.images[convolutional.SHALLOW].accuracies,
        criterion=above_control(1.0),
        control=Control("56 layers without skips", e.images[convolutional.NONE].accuracies),
        unit="%",
    )


def price_table(e: Evidence) -> str:
    """What two and three features do with the ellipses, means over seeds, as a Markdown table."""
    head = ["", "accuracy", "flow", "noisy", "stretch", "∫‖K‖dt", "largest h‖K‖"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    cases = {"2, T = 2": e.narrow, "2, T = 10": e.longer, "3, T = 10": e.wider}
    for name, prices in cases.items():
        parts = [asdict(p) for p in prices]
        means = {key: sum(p[key] for p in parts) / len(parts) for key in parts[0]}
        cells = [f"{means[key]:.1f} %" for key in ("accuracy", "flow", "noisy")]
        cells += [f"{means['stretch']:.0f}", f"{means['motion']:.1f}", f"{means['steepest']:.2f}"]
        lines.append(f"| width {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def digits_table(e: Evidence) -> str:
    """The test accuracies of networks and of other classifiers, as a Markdown table."""
    lines = ["| | layers | learning rate | accuracy |", "|---|---:|---:|---:|"]
    for (kind, layers), study in e.studies.items():
        lines.append(f"| {kind} | {layers} | {study.rate:g} | {_percent(study.accuracies)} |")
    lines += [f"| {name} | | | {_percent(values)} |" for name, values in e.peers.items()]
    return "\n".join(lines)


def images_table(e: Evidence) -> str:
    """What convolutional networks reach, means over seeds, as a Markdown table."""
    head = "| 56 layers | learning rate | training images | test images | minima of a slice |"
    lines = [head, "|---|---:|---:|---:|---:|"]
    for kind, study in e.images.items():
        both = f"{_percent(study.fitted)} | {_percent(study.accuracies)}"
        minima = ", ".join(map(str, convolutional.minima(study))) if any(study.planes) else ""
        lines.append(f"| {kind} | {study.rate:g} | {both} | {minima} |")
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f} ± {spread_of(values):.2f} %"
