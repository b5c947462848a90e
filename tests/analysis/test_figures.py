"""Figures: axes that begin at zero."""

from matplotlib.figure import Figure

from jaxrec.analysis.figures import from_zero


def test_an_axis_from_zero_has_room_above_the_highest_point():
    axes = Figure().add_subplot()
    axes.plot([0, 1, 2], [48.5, 47.0, 47.5])
    from_zero(axes)
    bottom, top = axes.get_ylim()
    assert bottom == 0
    assert top > 49.5  # the autoscaled limit of these points is 48.6, on which half of a marker is cut off
