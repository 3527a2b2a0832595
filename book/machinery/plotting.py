"""One style for every figure, and the figures that more than one chapter draws."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from cycler import cycler
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from ctdl_lib.metrics import predict

# Okabe and Ito's colours, told apart with any colour vision; markers say the same again.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


MARKERS = ("o", "^", "s", "D", "v", "P", "X")


STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.facecolor": "white",  # opaque: black axes stay legible on a dark page
    "figure.figsize": (6.4, 3.6),
    "font.size": 10,
    "grid.alpha": 0.3,
    "image.cmap": "cividis",
    "legend.frameon": False,
    "lines.markersize": 4,
    "savefig.facecolor": "white",
    "svg.hashsalt": "ctdl",
}


Classify = Callable[[Float[Tensor, "batch 2"]], Int[Tensor, " batch"]]


Extent = tuple[float, float, float, float]


def use_style() -> None:
    """Set matplotlib's defaults to the style of the book."""
    for name, value in STYLE.items():
        mpl.rcParams[name] = value  # pyright: ignore[reportArgumentType]


def scatter(ax: Axes, y: Float[Tensor, "batch 2"], label: Int[Tensor, " batch"]) -> None:
    """Draw labelled points in the plane, each class with a colour and a marker of its own."""
    for k in label.unique().tolist():
        a, b = y[label == k].detach().cpu().T.tolist()
        ax.scatter(a, b, s=7, c=COLORS[k], marker=MARKERS[k], linewidths=0, label=f"class {k}")


def regions(ax: Axes, classify: Classify, extent: Extent, n: int = 201) -> None:
    """Fill the plane with pale colours of the classes and draw the lines between them."""
    left, right, bottom, top = extent
    a, b = torch.linspace(left, right, n), torch.linspace(bottom, top, n)
    plane = torch.cartesian_prod(a, b)
    with torch.no_grad():
        label = classify(plane).cpu().reshape(n, n).T.numpy()
    a, b = a.numpy(), b.numpy()
    colormap, most = ListedColormap(COLORS), len(COLORS) - 1
    ax.pcolormesh(a, b, label, cmap=colormap, vmin=0, vmax=most, alpha=0.25, rasterized=True)
    for k in range(label.max()):
        ax.contour(a, b, label > k, levels=[0.5], colors="black", linewidths=0.8)
    ax.grid(False)


def extent_of(y: Float[Tensor, "batch 2"], margin: float = 0.08) -> Extent:
    """The box (left, right, bottom, top) around the points, with a margin."""
    low, high = y.detach().cpu().amin(0), y.detach().cpu().amax(0)
    pad = margin * (high - low).clamp(min=1e-6)
    (left, bottom), (right, top) = (low - pad).tolist(), (high + pad).tolist()
    return left, right, bottom, top


class FeaturePlane(NamedTuple):
    """A plane in the space of features: how to project onto it, and the classes of its points."""

    project: Callable[[Float[Tensor, "batch width"]], Float[Tensor, "batch 2"]]
    classify: Classify


def feature_plane(
    features: Float[Tensor, "batch width"],
    K_out: Float[Tensor, "outputs width"],
    b_out: Float[Tensor, " outputs"],
) -> FeaturePlane:
    """The plane of the feature space that tells the classes of K_out u + b_out apart best.

    It is spanned by the two leading right singular vectors of K_out; with a single output, by its
    normal and the direction in which the features vary most across it. Then the classifier is
    exact; else it holds for points whose remaining coordinates are those of the mean.
    """
    axes = torch.linalg.svd(K_out, full_matrices=False)[2][:2]
    if len(axes) == 1:
        across = features - features @ axes.T @ axes
        principal = torch.linalg.svd(across - across.mean(0), full_matrices=False)[2][:1]
        axes = torch.cat([axes, principal])
    rest = features.mean(0) - features.mean(0) @ axes.T @ axes

    def classify(p: Float[Tensor, "batch 2"]) -> Int[Tensor, " batch"]:
        return predict((p.to(axes) @ axes + rest) @ K_out.T + b_out)

    return FeaturePlane(lambda u: u @ axes.T, classify)


def three_panels(
    rows: Sequence[tuple[str, Tensor, Tensor, Tensor, Classify, Classify]],
) -> Figure:
    """The figure of data, propagated features with what separates them, and the classified plane.

    Each row is (name, points (batch, 2), labels, features (batch, 2), a classifier of points in the
    plane of the features, and one of points in the plane of the data).
    """
    fig, axes = plt.subplots(len(rows), 3, figsize=(8.4, 2.7 * len(rows)), squeeze=False)
    for (left, middle, right), row in zip(axes, rows, strict=True):
        name, y, label, features, separate, classify = row
        scatter(left, y, label)
        regions(middle, separate, extent_of(features))
        scatter(middle, features, label)
        regions(right, classify, extent_of(y))
        scatter(right, y, label)
        left.set_ylabel(name)
        for ax, title in zip((left, middle, right), ("data", "features", "classes"), strict=True):
            ax.set_xlabel(title)
            ax.set(xticks=[], yticks=[])
    return fig


def landscape(
    ax: Axes,
    a: Float[Tensor, " n"],
    b: Float[Tensor, " m"],
    values: Float[Tensor, "n m"],
    minima: Bool[Tensor, "n m"],
) -> None:
    """Draw the logarithm of positive values on a grid, with a scale, and dots where minima are."""
    x, y, heights = a.numpy(), b.numpy(), values.clamp(min=1e-12).log10().double()
    # A deep hole or a high peak must not use up all colours.
    low, high = heights.quantile(torch.tensor([0.02, 0.98]).double()).tolist()
    levels = torch.linspace(low, high, 41).tolist()
    drawn = ax.contourf(x, y, heights.T.numpy(), levels=levels, extend="both")
    i, j = minima.nonzero().T.numpy()
    ax.plot(x[i], y[j], ".", color="white", markersize=3)
    ax.figure.colorbar(drawn, ax=ax, format="%.1f")


def film(figures: Iterable[Figure], alt: str, *, dpi: int = 75, per_second: int = 8) -> str:
    """The figures as an HTML film with play, slider, speed and loop, no request leaving the page.

    It starts at rest, so that nothing moves on a reader who did not ask for it; the figures are
    closed. `alt` describes it to those who cannot see it.
    """
    frames = [_png(figure, dpi) for figure in figures]
    name = "film" + hashlib.sha256("".join(frames).encode()).hexdigest()[:8]
    values = {
        "name": name,
        "alt": alt.replace('"', "&quot;"),
        "first": frames[0],
        "last": str(len(frames) - 1),
        "frames": json.dumps(frames),
        "pause": str(1000 // per_second),
    }
    html = _PLAYER
    for key, value in values.items():
        html = html.replace(f"@{key}@", value)
    return html


def _png(figure: Figure, dpi: int) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png", metadata={"Software": None})
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


_PLAYER = """<div id="@name@" style="text-align:center">
<img alt="@alt@" src="data:image/png;base64,@first@" style="max-width:100%;background:white">
<div><button type="button" aria-label="play or pause the film">&#9654;</button>
<input type="range" min="0" max="@last@" value="0" aria-label="frame of the film" style="width:60%">
<label>speed
<select><option>0.5</option><option selected>1</option><option>2</option></select></label>
<label><input type="checkbox"> loop</label>
</div></div>
<script>
(() => {
  const frames = @frames@;
  const [image, button, slider, speed, loop] =
    ["img", "button", "[type=range]", "select", "[type=checkbox]"].map(
      part => document.querySelector("#@name@ " + part));
  let timer = null;
  const show = k => { slider.value = k; image.src = "data:image/png;base64," + frames[k]; };
  const stop = () => { clearInterval(timer); timer = null; button.innerHTML = "&#9654;"; };
  const play = () => {
    if (+slider.value === frames.length - 1) show(0);
    button.innerHTML = "&#10074;&#10074;";
    timer = setInterval(() => {
      const last = +slider.value === frames.length - 1;
      show(last ? 0 : +slider.value + 1);
      if (!loop.checked && +slider.value === frames.length - 1) stop();
    }, @pause@ / +speed.value);
  };
  button.onclick = () => timer ? stop() : play();
  slider.oninput = () => { stop(); show(+slider.value); };
  speed.onchange = () => { if (timer) { stop(); play(); } };
})();
</script>
"""
