import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import pytest
import torch

from ctdl_lib import plotting


@pytest.fixture(autouse=True)
def _restored():
    with mpl.rc_context():
        plotting.use_style()
        yield
    plt.close("all")


def classify(y):
    return (y[:, 0] > 0).long() + (y[:, 1] > 0).long()


def test_the_three_panels_show_every_point_and_every_region():
    y = torch.randn(30, 2)
    label = classify(y)
    figure = plotting.three_panels([("blobs", y, label, y @ torch.ones(2, 2), classify, classify)])
    assert len(figure.axes) == 3
    for ax in (figure.axes[0], figure.axes[2]):
        drawn = sum(
            len(c.get_offsets()) for c in ax.collections if type(c).__name__ == "PathCollection"
        )
        assert drawn == 30
    assert {t.get_text() for ax in figure.axes for t in [ax.xaxis.label]} == {
        "data",
        "features",
        "classes",
    }


def test_the_extent_contains_all_points():
    y = torch.randn(50, 2)
    left, right, bottom, top = plotting.extent_of(y)
    assert (y > torch.tensor([left, bottom])).all()
    assert (y < torch.tensor([right, top])).all()


def test_a_film_is_small_deterministic_and_asks_the_network_for_nothing():
    def figures():
        for k in range(3):
            fig, ax = plt.subplots(figsize=(3, 3))
            ax.plot([0, k])
            yield fig

    html = plotting.film(list(figures()), 'points "moving"')
    assert html == plotting.film(list(figures()), 'points "moving"')
    assert "http" not in html
    assert "@" not in html.replace("base64,", "")
    assert 'alt="points &quot;moving&quot;"' in html
    assert not plt.get_fignums()


def test_figures_are_opaque_and_colours_as_many_as_markers():
    assert plt.rcParams["savefig.facecolor"] == "white"
    assert len(plotting.COLORS) == len(plotting.MARKERS) == len(set(plotting.COLORS))
