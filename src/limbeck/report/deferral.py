"""How many inputs the student may answer if the teacher answers the rest."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from limbeck.comparison.learned import Learned
from limbeck.evaluate.deferral import Deferral
from limbeck.report.drawing import COLOUR, Look, drawn, looks, sign
from limbeck.report.found import Found
from limbeck.report.numbers import NONE, decimal, percent, some
from limbeck.report.parts import Figure, Section, Table

POINTS, ROWS = 200, 21
"""The most points of a curve, and the most rows of a network in the table behind the figure."""

HEAD = ("student", "threshold", "answered by the student on test, %", "accuracy of both on test, %")


def deferral(found: Found, learned: Learned) -> Section:
    """The curves of the student alone and of the best method, and the choice of every student."""
    title = "Student first, teacher behind it"
    known = {one.arm: one.deferral for one in learned.networks if one.deferral is not None}
    shown = [one.arm for one in found.shown if one.arm in known]
    if not shown:
        return Section("deferral", title, missing=["there is no teacher that could answer"])
    of = looks(found.result)

    def draw(axes: Axes) -> None:
        for arm in shown:
            _draw(axes, known[arm], of[arm])
        axes.set(xlim=(-2, 102), xlabel="answered by the student, %", title="accuracy of both together, %")

    choices = [[arm, *_choice(one)] for arm, one in known.items()]
    alt = "; ".join(
        f"{arm}: the student answers {share} % of the inputs, both together are right for {accuracy} %"
        for arm, _, share, accuracy in choices
        if share != NONE and arm in shown
    )
    margin = known[shown[0]].margin
    loss = f"losing more than {100 * margin:.1f} points to" if margin else "being less accurate than"
    caption = (
        "The student answers an input if its confidence is above a threshold; else the teacher answers. On the left "
        "the teacher answers all inputs, on the right the student. A sign marks the threshold with which the student "
        f"answers most without {loss} the teacher on the validation split. The picture shows the test split."
    )
    panel = drawn("deferral", alt or "no threshold was chosen", (400, 270), draw)
    legend = [(arm, sign(of[arm], line=True)) for arm in shown]
    plot = Figure("deferral", "Deferral", caption, [panel], _numbers(known, shown), legend)
    return Section("deferral", title, figures=[plot], tables=[Table(HEAD, choices)])


def _draw(axes: Axes, one: Deferral, look: Look) -> None:
    joints = [one.curve[at] for at in some(range(len(one.curve)), POINTS)]
    shares, heights = [100 * joint.share for joint in joints], [100 * joint.accuracy for joint in joints]
    axes.plot(shares, heights, color=look.colour, linestyle=look.dash, linewidth=1.8)
    if one.test is not None:
        place, edge = ([100 * one.test.share], [100 * one.test.accuracy]), COLOUR["paper"]
        axes.plot(*place, look.marker, color=look.colour, markersize=9, markeredgecolor=edge)


def _choice(one: Deferral) -> list[str]:
    if one.test is None:
        return [NONE] * 3
    return [decimal(one.test.threshold, 3), percent(one.test.share), percent(one.test.accuracy, 2)]


def _numbers(known: Mapping[str, Deferral], shown: Sequence[str]) -> Table:
    rows = [
        [arm, percent(joint.share), percent(joint.accuracy, 2)]
        for arm in shown
        for at in some(range(len(known[arm].curve)), ROWS)
        for joint in (known[arm].curve[at],)
    ]
    return Table(["student", "answered by the student, %", "accuracy of both, %"], rows)
