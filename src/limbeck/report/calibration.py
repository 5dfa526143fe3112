"""Calibration: accuracy against confidence, before and after temperature scaling."""

from markupsafe import Markup
from matplotlib.axes import Axes

from limbeck.comparison.learned import Learned, NetworkLearned
from limbeck.evaluate.calibration import Reliability
from limbeck.report.drawing import COLOUR, Look, drawn, looks
from limbeck.report.found import Found
from limbeck.report.numbers import decimal, percent, short
from limbeck.report.parts import Figure, Section, Table

TEXT = (
    "A network is calibrated if it is right as often as its confidence says. ECE, the expected calibration error, is "
    "the mean distance between the two. Temperature scaling divides the logits by one number that is fitted on the "
    "validation split."
)
CAPTION = (
    "Accuracy against confidence on the test split, in bins of equal width. A calibrated network lies on the dotted "
    "line. Filled: as trained; open: after temperature scaling. A larger circle stands for more samples."
)


def calibration(found: Found, learned: Learned) -> Section:
    """Reliability diagrams of the teacher, the student alone and the best method, and the errors of all networks."""
    of, shown = looks(found.result), found.shown
    panels = [_panel(one, of[one.arm]) for one in shown]
    rows = [
        [one.arm, state, str(part.samples), percent(part.confidence), percent(part.accuracy)]
        for one in shown
        for state, kind in (("as trained", one.calibration.before), ("scaled", one.calibration.after))
        for part in (kind.bins if kind else ())
        if part.samples
    ]
    numbers = Table(["network", "logits", "samples", "confidence, %", "accuracy, %"], rows)
    diagram = Figure("reliability", "Reliability", CAPTION, panels, numbers, width=220)
    head = ["network", "ECE, %", "temperature", "ECE scaled, %", "cross-entropy", "cross-entropy scaled"]
    errors = Table(head, [_errors(one) for one in learned.networks])
    return Section("calibration", "Calibration", [TEXT], [diagram], tables=[errors])


def _errors(one: NetworkLearned) -> list[str]:
    before, after = one.calibration.before, one.calibration.after
    return [
        one.arm,
        percent(before.ece, 2),
        decimal(one.calibration.temperature, 2),
        percent(after.ece if after else None, 2),
        decimal(before.cross_entropy, 4),
        decimal(after.cross_entropy if after else None, 4),
    ]


def _panel(one: NetworkLearned, look: Look) -> Markup:
    before, after = one.calibration.before, one.calibration.after

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=COLOUR["muted"], linewidth=1, linestyle=":")
        _circles(axes, before, look, filled=True)
        if after is not None:
            _circles(axes, after, look, filled=False)
        axes.set(xlim=(-4, 104), ylim=(-4, 104), xticks=[0, 50, 100], yticks=[0, 50, 100], title=short(one.arm))
        axes.set_xlabel("confidence, %")

    scaled = "" if after is None else f", {percent(after.ece, 2)} % after temperature scaling"
    alt = f"{one.arm}: expected calibration error {percent(before.ece, 2)} %{scaled}"
    return drawn(f"reliability-{one.arm}", alt, (250, 250), draw, margins=(36, 8, 28, 40))


def _circles(axes: Axes, kind: Reliability, look: Look, *, filled: bool) -> None:
    most = max((part.samples for part in kind.bins), default=1)
    for part in kind.bins:
        if part.confidence is not None and part.accuracy is not None:
            axes.plot(
                [100 * part.confidence],
                [100 * part.accuracy],
                color=look.colour,
                marker="o",
                markersize=3 + 7 * (part.samples / most) ** 0.5,
                markerfacecolor=look.colour if filled else "none",
                alpha=0.75 if filled else 1,
            )
