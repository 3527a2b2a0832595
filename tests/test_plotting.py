import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import pytest
import torch

from machinery import plotting


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

    html = plotting.film(figures(), 'points "moving"')
    assert html == plotting.film(figures(), 'points "moving"')
    assert "http" not in html
    assert "@" not in html.replace("base64,", "")
    assert 'alt="points &quot;moving&quot;"' in html
    assert not plt.get_fignums()


def test_figures_are_opaque_and_colours_as_many_as_markers():
    assert plt.rcParams["savefig.facecolor"] == "white"
    assert len(plotting.COLORS) == len(plotting.MARKERS) == len(set(plotting.COLORS))


def test_one_output_is_classified_in_the_plane_as_in_the_space():
    u, K_out, b_out = torch.randn(40, 5), torch.randn(1, 5), torch.randn(1)
    project, classify = plotting.feature_plane(u, K_out, b_out)
    plane = project(u)
    assert torch.equal(classify(plane), (u @ K_out[0] + b_out > 0).long())
    # an orthonormal basis: lengths can only shrink, and in two dimensions none is lost
    assert (plane.norm(dim=1) <= u.norm(dim=1) + 1e-12).all()
    flat = plotting.feature_plane(u[:, :2], K_out[:, :2], b_out).project(u[:, :2])
    assert torch.allclose(flat.norm(dim=1), u[:, :2].norm(dim=1))


def test_several_outputs_are_classified_by_the_mean_of_the_other_coordinates():
    u, b_out = torch.randn(40, 4), torch.randn(3)
    K_out = torch.cat([torch.randn(3, 2), torch.zeros(3, 2)], 1)  # the rest does not matter
    project, classify = plotting.feature_plane(u, K_out, b_out)
    assert torch.equal(classify(project(u)), (u @ K_out.T + b_out).argmax(1))


def test_a_landscape_marks_its_minima():
    a = torch.linspace(0, 1, 5)
    minima = torch.zeros(5, 5, dtype=torch.bool)
    minima[1, 3] = True
    figure, ax = plt.subplots()
    plotting.landscape(ax, a, a, torch.rand(5, 5), minima)
    assert len(figure.axes) == 2  # the scale
    assert ax.lines[0].get_xydata().tolist() == [[0.25, 0.75]]
