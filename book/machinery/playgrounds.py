"""The playgrounds: their HTML, and the weights and still pictures that a build writes for them.

Their scripts lie in `_static/playground`. Without scripts, or where the pages are opened as files,
a reader sees the still picture.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file
from torch import Tensor

from ctdl_lib.generative import Flow
from ctdl_lib.networks import ConcatSquash
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.densities import TOYS

from . import plotting
from .chapters import BOOK

REACH = 4.6  # the half side of the square that is shown, as in the scripts
FLOWS = {"OT-Flow": "race-OT-Flow-10", "FFJORD": "race-FFJORD-10"}  # both of equal likelihood
STORED = BOOK / "results" / "07_ot_flow"

PLANE = """
<div class="controls">
<label>Flow <select data-part="model"><option>OT-Flow</option>
<option>FFJORD</option></select></label>
<label>Direction <select data-part="way"><option value="forward">data to normal law</option>
<option value="backward">normal law to data</option></select></label>
<label>Runge–Kutta steps <input data-part="steps" type="range" min="1" max="16" value="8">
<output data-part="steps-shown">8</output></label>
<label>Share of the way <input data-part="time" type="range" min="0" max="100" value="100">
<output data-part="time-shown">1.00</output></label>
<button type="button" data-part="play">Play</button>
<button type="button" data-part="drop">Drop 40 points</button>
<button type="button" data-part="clear">Clear</button>
</div>
<canvas data-part="canvas" tabindex="0" role="application" aria-label="The plane. Click to drop a
point, or move a cursor by the arrow keys and drop one by Enter."></canvas>
<p data-part="says" role="status"></p>
"""
MOVING = """
<canvas role="img" aria-label="Points move from a round cloud to eight spots on a circle, on paths
that are nearly straight."></canvas>
<p class="controls"><button type="button" aria-pressed="false">Play</button></p>
"""


@dataclass(frozen=True)
class Playground:
    """A playground: the names of its flows, what replaces the still picture, and its texts."""

    flows: tuple[str, ...]
    template: str
    alt: str
    caption: str


PLAYGROUNDS = {
    "hero": Playground(
        ("OT-Flow",),
        MOVING,
        "Paths of 240 points from a round cloud to eight spots on a circle, nearly straight.",
        "A learned potential Φ moves points along ẋ = −∇Φ(t, x), from the normal law at t = 1 to"
        " the data at t = 0. Circles: one and two standard deviations.",
    ),
    "flow": Playground(
        ("OT-Flow", "FFJORD"),
        PLANE,
        "Two panels with the paths of 40 data points to the normal law. On the left, by OT-Flow,"
        " they are nearly straight; on the right, by FFJORD, many are bent.",
        "Two flows that explain eight Gaussians nearly equally well. Black: where a point starts."
        " Orange: where it is. Grey: the data, or one to three standard deviations of the normal"
        " law.",
    ),
}


def html(name: str, static: str) -> str:
    """The figure of a playground, on a page from which `static` leads to the folder _static."""
    ground, folder = PLAYGROUNDS[name], f"{static}/playground"
    return (
        f'<figure class="playground" data-playground="{name}"'
        f' data-weights="{folder}/{name}.json">\n'
        f'<img src="{folder}/{name}.webp" alt="{ground.alt}">\n'
        f"<template>{ground.template}</template>\n"
        f"<figcaption><p>{ground.caption}</p></figcaption>\n</figure>\n"
        f'<script type="module" src="{folder}/playground.js"></script>'
    )


def velocity_of(name: str) -> ResNetPotential | ConcatSquash:
    """The potential or the network of a flow, with its stored weights."""
    net = ResNetPotential(2) if name == "OT-Flow" else ConcatSquash(2, width=64, hidden=3)
    stored = load_file(STORED / f"{FLOWS[name]}.safetensors")
    kept = {key: value for key, value in stored.items() if key.startswith("velocity.")}
    net.load_state_dict({key.removeprefix("velocity."): value for key, value in kept.items()})
    return net.requires_grad_(False)


def encoded(x: Tensor) -> str:
    """The entries of a tensor as float32, in base64."""
    return base64.b64encode(x.detach().float().contiguous().numpy().tobytes()).decode()


def export(folder: Path) -> None:
    """Write what each playground needs to know, and its still picture."""
    plotting.use_style()
    for name, ground in PLAYGROUNDS.items():
        nets = {flow: velocity_of(flow) for flow in ground.flows}
        flows = {
            flow: {
                "kind": type(net).__name__,
                "weights": {key: encoded(value) for key, value in net.state_dict().items()},
            }
            for flow, net in nets.items()
        }
        x = TOYS["8gaussians"].sample(400, torch.Generator().manual_seed(0))
        known = {"flows": flows, "data": [[round(float(v), 3) for v in row] for row in x]}
        (folder / f"{name}.json").write_text(json.dumps(known), "utf-8")
        draw(nets, x[:240] if len(nets) == 1 else x[:40])
        plt.savefig(folder / f"{name}.webp", dpi=100)
        plt.close()


def draw(nets: dict[str, ResNetPotential | ConcatSquash], x: Tensor) -> None:
    """Draw the paths of data to the normal law by each flow."""
    n = len(nets)
    _, axes = plt.subplots(1, n, figsize=(4.8 * n, 4.8), squeeze=False)
    for ax, (name, net) in zip(axes[0], nets.items(), strict=True):
        flow = Flow(net, 2, solver={"steps": 32}, standardize=False)
        path = flow(x, save_at=torch.linspace(0, 1, 33))
        ax.plot(*path.permute(2, 0, 1), c=plotting.COLORS[0], lw=0.7, alpha=0.6)
        ax.plot(*path[0].T, "o", ms=3, c=plotting.COLORS[1] if n == 1 else "black")
        ax.plot(*path[-1].T, ".", ms=3, c="black" if n == 1 else plotting.COLORS[1])
        ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])
        ax.set_xlabel(name if n > 1 else "")
