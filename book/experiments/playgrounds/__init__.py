"""The playgrounds: their HTML, and the numbers and still pictures that a build writes for them.

Their scripts lie in `_static/playground`. Without scripts, or where the pages are opened as files,
a reader sees the still picture.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ctdl_lib.dynamics import integrate
from ctdl_lib.generative import Flow
from ctdl_lib.problems.densities import eight_gaussians
from machinery import plotting
from machinery.store import Store

from ..ot_flow import race
from ..ot_flow.evidence import CHAPTER
from . import basin, hill, layers, posterior, wind
from .drawing import REACH, squares
from .weights import weights

FLOWS = ("OT-Flow", "FFJORD")  # of nearly equal likelihood
DATA = eight_gaussians()


# HTML -------------------------------------------------------------------------------------------


def slider(
    name: str, label: str, low: float, high: float, value: float, shown: str, step: float = 1
) -> str:
    """A slider with its label and the place where a script shows its value."""
    bounds = f'min="{low}" max="{high}" step="{step}" value="{value}"'
    output = f'<output data-part="{name}-shown">{shown}</output>'
    return f'<label>{label} <input data-part="{name}" type="range" {bounds}> {output}</label>'


def choice(name: str, label: str, options: dict[str, str]) -> str:
    """A list to choose from, of the values that a script reads and their texts."""
    items = "".join(f'<option value="{value}">{text}</option>' for value, text in options.items())
    return f'<label>{label} <select data-part="{name}">{items}</select></label>'


def button(name: str, label: str) -> str:
    """A button."""
    return f'<button type="button" data-part="{name}">{label}</button>'


def plane(name: str, label: str, *, touched: bool = False) -> str:
    """A canvas, which is a picture or can be touched, with what screen readers say of it."""
    role = 'tabindex="0" role="application"' if touched else 'role="img"'
    return f'<canvas data-part="{name}" {role} aria-label="{label}"></canvas>'


SHARE = slider("time", "Share of the way", 0, 100, 100, "1.00")

# How many layers, with the same weights as functions of time.
LAYERS = {
    "1": "as trained",
    "0.25": "a quarter",
    "0.5": "half as many",
    "2": "twice as many",
    "4": "four times as many",
}


@dataclass(frozen=True)
class Playground:
    """A playground: its controls, its planes, its texts, its still picture, what it has to know."""

    controls: tuple[str, ...]
    planes: tuple[str, ...]
    alt: str
    caption: str
    draw: Callable[[], None]
    known: Callable[[], dict[str, Any]] = dict


def html(name: str, static: str) -> str:
    """The figure of a playground, on a page from which `static` leads to the folder _static."""
    ground, folder = PLAYGROUNDS[name], f"{static}/playground"
    return (
        f'<figure class="playground" data-playground="{name}"'
        f' data-weights="{folder}/{name}.json">\n'
        f'<img src="{folder}/{name}.webp" alt="{ground.alt}">\n'
        f'<template><div class="controls">{" ".join(ground.controls)}</div>\n'
        f'<div class="planes">{"".join(ground.planes)}</div>\n'
        '<p data-part="says" role="status"></p></template>\n'
        f"<figcaption><p>{ground.caption}</p></figcaption>\n</figure>\n"
        f'<script type="module" src="{folder}/playground.js"></script>'
    )


# what a build writes ----------------------------------------------------------------------------


def flow_of(name: str) -> Flow:
    """A stored flow of the race in chapter 7: the first seed, as in its first figure."""
    return race.compete(Store(CHAPTER, "saved"), name, race.SEEDS[0])[0]


def flows(*names: str) -> dict[str, Any]:
    """What flows need: their weights, the size of their plane, and data."""
    nets = {name: flow_of(name).velocity for name in names}
    return {
        "flows": {
            name: {"kind": type(net).__name__, "weights": weights(net)}
            for name, net in nets.items()
        },
        "reach": REACH,
        "data": [[round(float(v), 3) for v in row] for row in sample(400)],
    }


def mixture() -> dict[str, Any]:
    """What the exact score needs: the means and the variance of the data."""
    spread = float(DATA.std[0, 0]) ** 2
    return {"reach": REACH, "means": DATA.means.tolist(), "variance": spread}


def export(folder: Path) -> None:
    """Write what each playground needs to know, and its still picture."""
    plotting.use_style()
    for name, ground in PLAYGROUNDS.items():
        (folder / f"{name}.json").write_text(json.dumps(ground.known()), "utf-8")
        ground.draw()
        plt.savefig(folder / f"{name}.webp", dpi=100)
        plt.close()


# still pictures ---------------------------------------------------------------------------------


def sample(n: int) -> Tensor:
    """Points of the data, the same at each call."""
    return DATA.sample(n, torch.Generator().manual_seed(0))


def draw_flow(ax: Axes, name: str, x: Tensor, starts: str, ends: str) -> None:
    """Draw the paths of data to the normal law by one flow."""
    path = flow_of(name)(x, save_at=torch.linspace(0, 1, 33))
    ax.plot(*path.permute(2, 0, 1), c=plotting.COLORS[0], lw=0.7, alpha=0.6)
    ax.plot(*path[0].T, "o", ms=3, c=starts)
    ax.plot(*path[-1].T, ".", ms=3, c=ends)


def draw_hero(ax: Axes | None = None) -> None:
    """Draw the paths of OT-Flow."""
    draw_flow(ax or squares(1)[0], "OT-Flow", sample(240), plotting.COLORS[1], "black")


def draw_flows() -> None:
    """Draw the paths of both flows."""
    for ax, name in zip(squares(2), FLOWS, strict=True):
        draw_flow(ax, name, sample(40), "black", plotting.COLORS[1])
        ax.set_xlabel(name)


def draw_score() -> None:
    """Draw noise and data."""
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    for ax, x, name in zip(squares(2), (noise, sample(300)), ("noise", "data"), strict=True):
        ax.plot(*x.T, ".", c=plotting.COLORS[1])
        ax.set_xlabel(name)


def draw_solver() -> None:
    """Draw a path of van der Pol's equation, at times that are equally spaced."""
    f = lambda t, x: torch.stack([5 * (x[:, 0] - x[:, 0] ** 3 / 3 - x[:, 1]), x[:, 0] / 5], 1)  # noqa: E731
    times = torch.linspace(0, 20, 400)
    path = integrate(f, torch.tensor([[0.5, 0.3]]), 0.0, 20.0, tol=1e-6, save_at=times)
    squares(1, 2.6)[0].plot(*path[:, 0].T, ".-", c=plotting.COLORS[0], lw=0.7)


def draw_stable() -> None:
    """Draw two rings, after 40 layers of Euler's method, and after 40 steps back."""
    angle = torch.linspace(0, 2 * math.pi, 60)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    x = torch.cat([0.5 * ring, 1.5 * ring])
    K = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    for ax, (name, h) in zip(
        squares(3, 3.0), {"before": 0.0, "after": 0.2, "back": -0.2}.items(), strict=True
    ):
        for _ in range(40):
            x = x + h * torch.tanh(x @ K.T)
        ax.plot(*x[:60].T, ".", c=plotting.COLORS[1])
        ax.plot(*x[60:].T, ".", c=plotting.COLORS[0])
        ax.set_xlabel(name)


PLAYGROUNDS = {
    "hero": Playground(
        (button("play", "Play"),),
        (plane("canvas", "Points move from a round cloud to eight spots, nearly straight."),),
        "Paths of 240 points from a round cloud to eight spots on a circle, nearly straight.",
        "A learned potential Φ moves points along ẋ = −∇Φ(t, x), from the normal law at t = 1 to"
        " the data at t = 0. Circles: one and two standard deviations.",
        draw_hero,
        partial(flows, "OT-Flow"),
    ),
    "stable": Playground(
        (
            slider("real", "Real part", -1, 1, 0, "0.00", 0.05),
            slider("imaginary", "Imaginary part", 0, 2, 1, "1.00", 0.05),
            slider("step", "Step h", 0.02, 0.5, 0.2, "0.20", 0.02),
            choice("scheme", "Scheme", {"euler": "Euler", "rk4": "Runge–Kutta"}),
        ),
        (
            plane("before", "Two rings of points, before the layers."),
            plane("middle", "The same points after forty layers."),
            plane("after", "The same points after forty steps back."),
        ),
        "Two rings, the same after forty layers, wider, and after forty steps back, wider still.",
        "Left: the features. Middle: after forty layers u + hσ(Ku). Right: after forty steps back.",
        draw_stable,
    ),
    "solver": Playground(
        (
            slider("tolerance", "Tolerance", 1, 8, 4, "1e-4"),
            slider("stiffness", "μ", 1, 20, 5, "5"),
        ),
        (
            plane(
                "canvas",
                "A closed curve with the steps of the solver. Click, or use the arrow keys, to move"
                " the start.",
                touched=True,
            ),
        ),
        "A path that runs into a closed curve, with slow and fast parts.",
        "Van der Pol’s equation ẋ₁ = μ(x₁ − x₁³/3 − x₂), ẋ₂ = x₁/μ until t = 20. Dots: accepted"
        " steps. Crosses: steps taken back. Large dot: the start.",
        draw_solver,
    ),
    "flow": Playground(
        (
            choice("model", "Flow", {name: name for name in FLOWS}),
            choice(
                "way",
                "Direction",
                {"forward": "data to normal law", "backward": "normal law to data"},
            ),
            slider("steps", "Runge–Kutta steps", 1, 16, 8, "8"),
            SHARE,
            button("play", "Play"),
            button("drop", "Drop 40 points"),
            button("clear", "Clear"),
        ),
        (
            plane(
                "canvas",
                "The plane. Click to drop a point, or move a cursor by the arrow keys and drop one"
                " by Enter.",
                touched=True,
            ),
        ),
        "Two panels with the paths of 40 data points to the normal law. On the left, by OT-Flow,"
        " they are nearly straight; on the right, by FFJORD, many are bent.",
        "Two flows that explain eight Gaussians nearly equally well. Large dots: where a point"
        " starts, and where it is. Grey: the data, or one to three standard deviations of the"
        " normal law.",
        draw_flows,
        partial(flows, *FLOWS),
    ),
    "score": Playground(
        (
            slider("steps", "Steps", 2, 100, 8, "8"),
            choice("grid", "Times", {"t": "even in t", "root": "even in √t"}),
            SHARE,
            button("play", "Play"),
            button("renew", "Other noise"),
        ),
        (
            plane("sde", "Points that follow the reverse SDE, and where the data are."),
            plane("ode", "Points that follow the probability flow, and where the data are."),
        ),
        "On the left a round cloud of points, on the right eight spots on a circle.",
        "Left: the reverse SDE. Right: the probability flow. Both start from the same noise. Grey:"
        " three standard deviations around each Gaussian.",
        draw_score,
        mixture,
    ),
    "posterior": Playground(
        (
            slider("steps", "Runge–Kutta steps", 1, 12, 6, "6"),
            SHARE,
            button("play", "Play"),
            button("renew", "Other noise"),
        ),
        (
            plane(
                "before",
                "Observations of the simulator. Drag the large point, click, or use the arrow"
                " keys.",
                touched=True,
            ),
            plane("after", "The parameters that explain it: a learned sample on two crescents."),
        ),
        "On the left a cloud of observations with one marked. On the right orange points lie on two"
        " grey crescents, and some of them between.",
        "Left: observations that the simulator makes (grey), and yours. Right: the box of the"
        " prior, the exact posterior (grey), and a sample of the network (orange) on its way.",
        posterior.draw,
        posterior.known,
    ),
    "hill": Playground(
        (
            slider("noise", "Noise", 0, 2, 1, "1.0", 0.1),
            slider("time", "Time", 0, 100, 40, "0.40"),
            button("play", "Play"),
            button("renew", "Other noise"),
        ),
        (
            plane(
                "canvas",
                "A hill between a start and a star, with paths. Drag the start, click, or use the"
                " arrow keys.",
                touched=True,
            ),
        ),
        "Paths bend around a hill. Those of the feedback meet in a star, the others end around it.",
        "Orange: paths of the learned feedback. Black: its path without noise. Blue: the controls"
        " of that path, in the noise of the orange ones. Shades: the value function Φ(t, ·),"
        " stronger where it is higher. Circles: the hill. Noise 1 is that of the training.",
        hill.draw,
        hill.known,
    ),
    "basin": Playground(
        (
            choice("moved", "Move the", {"source": "source", "sink": "drain"}),
            choice(
                "stream",
                "Stream",
                {
                    "four": "four whirls",
                    "beside": "two side by side",
                    "above": "two above each other",
                    "one": "one whirl",
                },
            ),
            slider("speed", "Speed", -1.5, 1.5, basin.SPEED, f"{basin.SPEED}", 0.1),
            slider("strength", "Strength of the source", 0.2, 3, basin.STRENGTH, "1.0", 0.1),
            slider("time", "Time", 0, 100, 100, "1.00"),
            button("play", "Play"),
        ),
        (
            plane(
                "before",
                "The concentration with the drain shut. Drag source or drain, click, or use the"
                " arrow keys.",
                touched=True,
            ),
            plane(
                "middle",
                "The concentration with the drain steered. Drag source or drain, click, or use the"
                " arrow keys.",
                touched=True,
            ),
            plane("after", "How wide the drain is open over time, by the policy and at best."),
        ),
        "Three panels. With the drain shut the square is dark, with the drain steered it is paler."
        " The opening of the policy is close to the best one.",
        "Left: concentration with the drain shut. Middle: steered by the policy. Triangle: source."
        " Disc: drain. Right: the opening over time, by the policy (orange) and by the best plan.",
        basin.draw,
        basin.known,
    ),
    "layers": Playground(
        (
            choice("model", "Data", {name: name for name in layers.NAMES}),
            choice("share", "Layers", LAYERS),
            slider("time", "Layer", 0, 100, 100, ""),
            button("play", "Play"),
        ),
        (
            plane(
                "before",
                "Points of two classes in the plane. Drag the black point, click, or use the arrow"
                " keys.",
                touched=True,
            ),
            plane("after", "The same points after some layers, and the cut between the classes."),
        ),
        "On the left an ellipse inside of a ring. On the right the layers have parted them.",
        "Left: data, and what the network says of each point of the plane. Right: the features"
        " after some layers, with the line that parts the classes and the path of the large point.",
        layers.draw,
        layers.known,
    ),
    "wind": Playground(
        (
            slider("wind", "Wind", 0, 0.6, 0.2, "0.20", 0.05),
            SHARE,
            button("play", "Play"),
            button("renew", "Other wind"),
        ),
        (
            plane("side", "Flights of three controllers to a star, from the side."),
            plane("top", "The same flights from above."),
        ),
        "From the side and from above, flights of the open loop end scattered around a star. Those"
        " of the linear feedback and of the network end close to it.",
        "Left: from the side. Right: from above. Orange: the network. Blue: linear feedback. Black,"
        " or white on dark pages: open loop. Bars: an arm of the copter, across its thrust.",
        wind.draw,
        wind.known,
    ),
}
