"""What the lecture on ResNets draws, loaded or trained by one call."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.networks.resnets import ResNet
from ctdl_lib.problems.classification import Samples
from machinery import claims, plotting
from machinery.store import Run, Store, device_of, results_folder

from . import deep, evidence, landscape, limits, planar

SENTENCES = (
    "resnet.ellipses.val_accuracy",
    "resnet.euler.order",
    "resnet.digits.depth_gain",
    f"resnet.digits.skip_gain.{evidence.DEPTH}",
    "resnet.images.skip_gain.longer",
    "landscape.minima.fine",
    "landscape.images.skips.longer",
)


@dataclass(frozen=True)
class Results:
    """The stored networks and controls of one seed, and gradients before any training."""

    nets: dict[str, ResNet]
    narrow: ResNet
    controls: dict[str, list[Tensor]]
    gradients: dict[str, list[list[float]]]
    seed: int


def results(run: Run, device: str = "cpu", seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store, device = Store(evidence.CHAPTER, run), device_of(device)
    seeds = [seed + s for s in deep.SEEDS[: 1 if run == "smoke" else 2]]
    first = seeds[0]
    return Results(
        nets={
            name: planar.fit(store, name.replace(" ", "-"), key, first, device)
            for name, key in planar.RECIPES.items()
        },
        narrow=planar.fit(store, "longer", planar.LONGER, first, device),
        controls=limits.controls(store, seed + limits.DRAWS[0]),
        gradients={k: deep.gradient_ratios(k, seeds, deep.DEPTHS) for k in deep.KINDS},
        seed=first,
    )


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{evidence.CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def draw_panels(found: Results) -> None:
    """Draw data, features and classes of the three data sets."""
    rows = []
    for name, net in found.nets.items():
        y, label = planar.data_of(name, found.seed).train
        u = net.features(y)
        plane = plotting.feature_plane(u, net.K_out, net.b_out)
        rows.append((name, y, label, plane.project(u), plane.classify, _classifier(net)))
    plotting.three_panels(rows)


def _classifier(net: ResNet) -> plotting.Classify:
    return lambda p: metrics.predict(net(p))


def film(net: ResNet, seed: int) -> str:
    """The ellipses after each layer, with the cut of the last one, as an HTML film."""
    y, label = planar.data_of("ellipses", seed).val
    path = net.path(y)
    plane = plotting.feature_plane(path[-1], net.K_out, net.b_out)
    moving = plane.project(path)

    def frame(k: int) -> Figure:
        figure, ax = plt.subplots(figsize=(5, 3.2))
        plotting.regions(ax, plane.classify, plotting.extent_of(moving.flatten(0, 1)))
        plotting.scatter(ax, moving[k], label)
        ax.set(xlabel=f"layer {k} of {net.layers}", xticks=[], yticks=[])
        return figure

    frames = (frame(k) for k in range(len(moving)))
    return plotting.film(frames, "The ellipse leaves its ring until a line parts them.")


def draw_paths(net: ResNet, seed: int) -> None:
    """Draw features against time for the network's layers, and for weights on finer grids."""
    _, axes = plt.subplots(1, 3, figsize=(8.4, 2.8))
    y = planar.data_of("ellipses", seed).val.y[[0, 40, 200, 240, 300]]
    for k, (factor, style) in enumerate(((1, "o"), (16, ""))):
        K, b = (w.repeat_interleave(factor, 0) for w in (net.K, net.b))
        u, path, h = y @ net.K_in.T, [y @ net.K_in.T], net.h / factor
        for matrix, bias in zip(K, b, strict=True):
            u = u + h * torch.tanh(u @ matrix.T + bias)
            path.append(u)
        t = torch.arange(len(path)) * h
        for i, ax in enumerate(axes):
            for j in range(len(y)):
                color = plotting.COLORS[int(j < 2)]
                line = {"ls": "" if style else "-", "marker": style, "ms": 2.5, "lw": 0.9}
                label = None if j else f"{len(K)} layers"
                ax.plot(
                    t, torch.stack(path)[:, j, i], c="black" if k else color, label=label, **line
                )
            ax.set(xlabel="time t", ylabel=f"feature {i + 1}")
    axes[-1].legend(fontsize=7)


def draw_live(
    net: ResNet, curve: Sequence[float], kept: dict[int, dict[str, Tensor]], data: Samples
) -> None:
    """Draw the loss of a training, and the classified plane after the steps that are kept."""
    _, axes = plt.subplots(1, 4, figsize=(8.4, 2.5), width_ratios=(1.5, 1, 1, 1))
    axes[0].semilogy(curve)
    axes[0].set(xlabel="step", ylabel="cross-entropy")
    for ax, (k, state) in zip(axes[1:], kept.items(), strict=False):
        net.load_state_dict(state)
        plotting.regions(ax, _classifier(net), plotting.extent_of(data.y))
        plotting.scatter(ax, *data)
        ax.set(xlabel=f"{k} steps", xticks=[], yticks=[])


def draw_controls(found: Results) -> None:
    """Draw the weight that jumps most without the smoothness penalty, as the layers double."""
    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.0), sharey=True)
    roughest = found.controls[limits.UNSMOOTHED][-1].diff(dim=0).abs().amax(0).argmax()
    for ax, (kind, thetas) in zip(axes, found.controls.items(), strict=True):
        for theta in thetas:
            t = torch.arange(len(theta)) * limits.Settings.horizon / len(theta)
            ax.step(t, theta.flatten(1)[:, roughest], where="post", label=f"{len(theta)} layers")
        ax.set_xlabel(f"time t, {kind}")
    axes[0].set_ylabel("one weight")
    axes[0].legend(fontsize=7)


def draw_gradients(found: Results) -> None:
    """Draw how large the gradient still is at the first layer, against the number of layers."""
    _, ax = plt.subplots(figsize=(6.0, 3.0))
    for kind, marker in zip(deep.KINDS, plotting.MARKERS, strict=False):
        ratios = torch.tensor(found.gradients[kind]).mean(0)
        finite = ratios.isfinite() & (ratios < 1e12)
        depths = torch.tensor(deep.DEPTHS)
        ax.loglog(depths[finite], ratios[finite], marker=marker, label=kind, base=2)
    ax.set(xlabel="layers", ylabel="gradient, first over last layer", yscale="log")
    ax.legend(fontsize=7)


def draw_toy(seed: int, nodes: int = 101) -> None:
    """Draw the landscapes of two weights with 5 and with 100 layers."""
    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    y, target = evidence.toy(seed)
    ticks = landscape.grid(0.2, 2.0, nodes)
    for ax, layers in zip(axes, (evidence.COARSE, evidence.FINE), strict=True):
        surface = landscape.rotation_landscape(y, target, layers, ticks, ticks)
        plotting.landscape(ax, ticks, ticks, surface, torch.zeros_like(surface, dtype=torch.bool))
        ax.set(xlabel=rf"$\theta_1$, {layers} layers", ylabel=r"$\theta_2$")


def draw_narrow(found: Results) -> None:
    """Draw what two features make of the ellipses, and where they err."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    net, (y, label) = found.narrow, planar.fresh(found.seed, 3000)
    u = net.features(y)
    plane = plotting.feature_plane(u, net.K_out, net.b_out)
    image = plane.project(u)
    plotting.regions(left, plane.classify, plotting.extent_of(image))
    plotting.scatter(left, image, label)
    plotting.regions(right, _classifier(net), plotting.extent_of(y))
    wrong = metrics.predict(net(y)) != label
    right.scatter(*y[wrong].T, s=12, c="black", marker="x", linewidths=0.8)
    left.set(xlabel="features after the last layer", xticks=[], yticks=[])
    right.set(xlabel="classes, and the points that are wrong", xticks=[], yticks=[])
