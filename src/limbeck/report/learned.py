"""What the students of the first seed learned: calibration, classes, features, corruptions, deferral."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from limbeck.comparison.learned import Learned, NetworkLearned
from limbeck.comparison.maps import Maps
from limbeck.report.drawing import COLOUR, MARKERS, SERIES, Look, drawn, looks, sign
from limbeck.report.parts import Figure, Section, Table, short, some

MOST_CLASSES = 20
"""The most classes in a figure."""

MOST_METHODS = 8
"""The most methods in the figure of classes."""

NOT_THERE = "what the students learned is not in the folder"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def chosen(learned: Learned, best: str | None) -> list[NetworkLearned]:
    """The teacher, the student alone and the best method."""
    return [one for one in learned.networks if one.arm in ("teacher", "alone", best)]


def calibration(learned: Learned | None, best: str | None) -> Section:
    """Reliability diagrams, and the calibration error before and after temperature scaling."""
    title = "Calibration"
    if learned is None:
        return Section("calibration", title, missing=[NOT_THERE])
    of = looks(one.arm for one in learned.networks if one.arm != "teacher")
    panels = [_reliability(one, of[one.arm]) for one in chosen(learned, best)]
    rows = [
        [
            one.arm,
            str(samples),
            *(_percent(value) for bin in (before,) for value in (bin.confidence, bin.accuracy)),
        ]
        for one in chosen(learned, best)
        for before in one.calibration.before.bins
        if (samples := before.samples)
    ]
    caption = (
        "Accuracy against confidence on the test split, in bins of equal width: on the diagonal, a network is right as "
        "often as it says. Filled: as trained; open: after temperature scaling, fitted on the validation split. Larger "
        "signs stand for more samples."
    )
    diagram = Figure("reliability", "Reliability", caption, panels, Table(
        ["network", "samples", "confidence, %", "accuracy, %"], rows), width=220)
    errors = Table(
        ["network", "ECE, %", "temperature", "ECE after, %", "cross-entropy", "cross-entropy after"],
        [_calibration_row(one) for one in learned.networks],
    )
    text = ["ECE is the expected calibration error: the mean distance of accuracy and confidence. 0 is best."]
    return Section("calibration", title, text, [diagram], [errors])


def _calibration_row(one: NetworkLearned) -> list[str]:
    found = one.calibration
    after = found.after
    return [
        one.arm,
        _percent(found.before.ece, 2),
        "–" if found.temperature is None else f"{found.temperature:.2f}",
        "–" if after is None else _percent(after.ece, 2),
        f"{found.before.cross_entropy:.4f}",
        "–" if after is None else f"{after.cross_entropy:.4f}",
    ]


def _reliability(one: NetworkLearned, look: Look) -> object:
    found = one.calibration

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=COLOUR["muted"], linewidth=1, linestyle=":")
        for kind, filled in ((found.before, True), (found.after, False)):
            bins = [bin for bin in kind.bins if bin.samples] if kind is not None else []
            most = max((bin.samples for bin in bins), default=1)
            for bin in bins:
                axes.plot(
                    [100 * (bin.confidence or 0.0)],
                    [100 * (bin.accuracy or 0.0)],
                    color=look.colour,
                    marker="o",
                    markersize=3 + 7 * (bin.samples / most) ** 0.5,
                    markerfacecolor=look.colour if filled else "none",
                    alpha=0.75 if filled else 1,
                )
        axes.set(xlim=(-3, 103), ylim=(-3, 103), xticks=[0, 50, 100], yticks=[0, 50, 100], title=short(one.arm))
        axes.set_xlabel("confidence, %")

    after = "" if found.after is None else f", after temperature scaling {_percent(found.after.ece, 2)} %"
    alt = f"{one.arm}: expected calibration error {_percent(found.before.ece, 2)} %{after}"
    return drawn(f"reliability-{one.arm}", alt, (220, 220), draw, margins=(32, 8, 26, 36))


def classes(learned: Learned | None) -> Section:
    """The change of the accuracy of each class, for each method."""
    title = "Change by class"
    methods = [] if learned is None else [one for one in learned.networks if one.class_change is not None]
    if learned is None or not methods:
        return Section("classes", title, missing=[NOT_THERE if learned is None else "there is no student alone"])
    shown, columns = _extreme(methods, len(learned.classes)), methods[:MOST_METHODS]
    changes = np.array([[one.class_change[place] for one in columns] for place in shown], dtype=float) * 100  # type: ignore[index]
    most = float(np.nanmax(np.abs(changes), initial=1.0))

    def draw(axes: Axes) -> None:
        for (row, column), change in np.ndenumerate(changes):
            y = len(shown) - 1 - row
            if not np.isnan(change):
                colour = COLOUR["c1"] if change > 0 else COLOUR["c2"]
                box = axes.axhspan(y - 0.46, y + 0.46, xmin=0, xmax=1, alpha=0.75 * abs(change) / most)
                box.set(facecolor=colour, linewidth=0, bounds=(column - 0.47, y - 0.46, 0.94, 0.92))
                box.set_transform(axes.transData)
            axes.text(column, y, "–" if np.isnan(change) else f"{change:+.1f}", ha="center", va="center")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.6, len(shown) - 0.4))
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(columns)), [short(one.arm) for one in columns], rotation=30, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(shown)), [short(learned.classes[place]) for place in reversed(shown)])
        axes.tick_params(length=0)

    ends = [(float(change), learned.classes[shown[row]], columns[column].arm) for (row, column), change in np.ndenumerate(changes) if not np.isnan(change)]
    alt = "no class has test samples"
    if ends:
        (low, low_class, low_arm), (high, high_class, high_arm) = min(ends), max(ends)
        alt = (
            f"from {low:+.1f} points for class {low_class} with {low_arm} to {high:+.1f} points for class {high_class} "
            f"with {high_arm}"
        )
    longest = max(len(short(learned.classes[place])) for place in shown)
    left, top = 16 + 7 * longest, 20 + 4 * max(len(short(one.arm)) for one in columns)
    panel = drawn("classes", alt, (400, top + 24 * len(shown) + 8), draw, margins=(left, 34, top, 8))
    caption = "Test accuracy of each class minus that of the student alone, in points, for the first seed."
    if len(shown) < len(learned.classes):
        caption += f" Shown are the {len(shown)} classes with the greatest changes."
    every = range(len(learned.classes))
    alone = next((one for one in learned.networks if one.arm == "alone"), None)
    rows = [
        [
            learned.classes[place],
            _percent(alone.class_accuracy[place] if alone else None),
            *(_percent(one.class_change[place]) for one in methods),  # type: ignore[index]
        ]
        for place in every
    ]
    numbers = Table(["class", "alone, %", *(f"{one.arm}, points" for one in methods)], rows)
    return Section("classes", title, figures=[Figure("classes", "Points won and lost", caption, [panel], numbers)])


def _extreme(methods: Sequence[NetworkLearned], count: int) -> list[int]:
    """The classes with the greatest changes, in their order."""
    greatest = [max(abs(one.class_change[place] or 0.0) for one in methods) for place in range(count)]  # type: ignore[index]
    return sorted(sorted(range(count), key=lambda place: -greatest[place])[:MOST_CLASSES])


def features(learned: Learned | None, maps: Maps | None, best: str | None, missing: Sequence[str]) -> Section:
    """The map of the features, and how the networks compare with the teacher."""
    title = "What the student learned"
    if learned is None:
        return Section("features", title, missing=[NOT_THERE])
    figures = []
    if maps is not None:
        arms = [one.arm for one in chosen(learned, best) if one.arm in maps.points]
        figures.append(_map(learned, maps, arms))
    robust = _corruptions(learned, best)
    figures += [robust] if robust is not None else []
    head = ["network", "agrees with teacher, %", "KL to teacher, nats", "CKA with teacher", "NMI of clusters"]
    rows = [
        [one.arm, _percent(one.agreement), *("–" if value is None else f"{value:.3f}" for value in
         (one.kl_to_teacher, one.cka, one.nmi))]
        for one in learned.networks
    ]
    text = [
        "Agreement: the share of test samples with the teacher's prediction. CKA: the similarity of the features to the "
        "teacher's, from 0 to 1. NMI: how well clusters of the features (k-means) are the classes, from 0 to 1."
    ]
    return Section("features", title, text, figures, [Table(head, rows)], missing)


def _map(learned: Learned, maps: Maps, arms: Sequence[str]) -> Figure:
    present = np.unique(maps.labels).tolist()
    shown = list(some(present, 10))
    colours = {label: COLOUR[SERIES[at % len(SERIES)]] for at, label in enumerate(shown)}
    signs = {label: MARKERS[(at + at // len(SERIES)) % len(MARKERS)] for at, label in enumerate(shown)}
    panels, rows = [], []
    for arm in arms:
        points = maps.points[arm]
        centres = {label: np.median(points[maps.labels == label], axis=0) for label in shown}

        def draw(axes: Axes, arm: str = arm, points: object = points, centres: dict[int, object] = centres) -> None:
            for label in shown:
                inside = points[maps.labels == label]  # type: ignore[index]
                axes.plot(*inside.T, color=colours[label], marker=signs[label], markersize=3.2, linestyle="none",
                          markeredgewidth=0, alpha=0.7)
            for label, centre in centres.items():
                axes.text(*centre, short(learned.classes[label]), ha="center", va="center", weight="bold", gid="halo")  # type: ignore[misc]
            axes.set(xticks=[], yticks=[], title=short(arm))
            axes.spines[:].set_visible(True)

        spreads = {label: float(np.linalg.norm(points[maps.labels == label] - centres[label], axis=1).mean()) for label in shown}
        rows += [
            [arm, learned.classes[label], f"{centres[label][0]:.3g}", f"{centres[label][1]:.3g}", f"{spreads[label]:.3g}"]
            for label in shown
        ]
        nmi = next(one.nmi for one in learned.networks if one.arm == arm)
        alt = f"{arm}: features of {len(maps.labels)} test samples; NMI of their clusters with the classes " + (
            "unknown" if nmi is None else f"{nmi:.3f}")
        panels.append(drawn(f"map-{arm}", alt, (300, 280), draw, margins=(6, 6, 26, 6)))
    of_all = "" if len(shown) == len(present) else f" Shown are {len(shown)} of {len(present)} classes."
    caption = (
        f"{len(maps.labels):,} test samples in the two principal components of the features of each network, by class. "
        f"The axes have no unit and differ between networks.{of_all}"
    )
    numbers = Table(["network", "class", "median, 1st", "median, 2nd", "mean distance to it"], rows)
    return Figure("map", "Map of the features", caption, panels, numbers, width=300)


def _corruptions(learned: Learned, best: str | None) -> Figure | None:
    kinds = next((one.corrupted_accuracy for one in learned.networks if one.corrupted_accuracy), None)
    if not kinds:
        return None
    of = looks(one.arm for one in learned.networks if one.arm != "teacher")
    networks = [one for one in chosen(learned, best) if one.corrupted_accuracy]
    panels = []
    for kind in kinds:

        def draw(axes: Axes, kind: str = kind) -> None:
            for one in networks:
                values = [one.clean_accuracy, *(one.corrupted_accuracy or {})[kind]]
                look = of[one.arm]
                axes.plot(range(len(values)), [100 * (value or 0.0) for value in values], color=look.colour,
                          linestyle=look.dash, marker=look.marker, markersize=5, linewidth=1.6)
            axes.set(title=short(kind), xlabel="strength", ylim=(0, 103), xticks=range(6))

        alt = f"{kind}: " + "; ".join(
            f"{one.arm} from {_percent(one.clean_accuracy)} % to {_percent((one.corrupted_accuracy or {})[kind][-1])} %"
            for one in networks
        )
        panels.append(drawn(f"corruption-{kind}", alt, (260, 190), draw, margins=(36, 8, 24, 34)))
    rows = [
        [one.arm, kind, _percent(one.clean_accuracy), *map(_percent, values)]
        for one in learned.networks
        for kind, values in (one.corrupted_accuracy or {}).items()
    ]
    numbers = Table(["network", "corruption", "none", *map(str, range(1, 6))], rows)
    caption = f"Accuracy in % on {learned.corruption_samples:,} corrupted test images, by strength; 0 is not corrupted."
    legend = [(one.arm, sign(of[one.arm], line=True)) for one in networks]
    return Figure("corruptions", "Noise, blur and contrast", caption, panels, numbers, legend, width=260)


def deferral(learned: Learned | None, best: str | None) -> Section:
    """How many inputs the student may answer if the teacher answers the rest."""
    title = "Student first, teacher behind it"
    if learned is None:
        return Section("deferral", title, missing=[NOT_THERE])
    networks = [one for one in learned.networks if one.deferral is not None]
    if not networks:
        return Section("deferral", title, missing=["there is no teacher that could answer"])
    of = looks(one.arm for one in learned.networks if one.arm != "teacher")
    drawn_ones = [one for one in networks if one.arm in ("alone", best)] or networks[:1]

    def draw(axes: Axes) -> None:
        for one in drawn_ones:
            look, found = of[one.arm], one.deferral
            if found is not None:
                curve = list(some(range(len(found.curve)), 200))
                shares = [100 * found.curve[at].share for at in curve]
                axes.plot(shares, [100 * found.curve[at].accuracy for at in curve], color=look.colour,
                          linestyle=look.dash, linewidth=1.8)
                if found.test is not None:
                    axes.plot([100 * found.test.share], [100 * found.test.accuracy], color=look.colour,
                              marker=look.marker, markersize=9, markeredgecolor=COLOUR["paper"])
        axes.set(xlim=(-2, 102), xlabel="answered by the student, %", title="accuracy of both together, %")

    rows = [_deferral_row(one) for one in networks]
    alt = "; ".join(f"{row[0]}: answers {row[2]} % of the inputs, with the teacher {row[3]} % right" for row in rows)
    caption = (
        "The student answers an input if its confidence is above a threshold, else the teacher does. On the left the "
        "teacher answers everything, on the right the student. A sign marks the threshold that was chosen on the "
        "validation split: the lowest at which the pair is not worse than the teacher there"
    )
    margin = networks[0].deferral.margin if networks[0].deferral else 0.0
    caption += f" by more than {100 * margin:.1f} points." if margin else "."
    numbers = Table(
        ["student", "share answered, %", *("accuracy, %",)],
        [
            [one.arm, _percent(one.deferral.curve[at].share), _percent(one.deferral.curve[at].accuracy, 2)]
            for one in drawn_ones
            if one.deferral is not None
            for at in some(range(len(one.deferral.curve)), 21)
        ],
    )
    table = Table(["student", "threshold", "share answered on test, %", "accuracy of both on test, %"], rows)
    panel = drawn("deferral", alt, (400, 270), draw)
    legend = [(one.arm, sign(of[one.arm], line=True)) for one in drawn_ones]
    return Section("deferral", title, figures=[Figure("deferral", "Deferral", caption, [panel], numbers, legend)],
                   tables=[table])


def _deferral_row(one: NetworkLearned) -> list[str]:
    test = one.deferral.test if one.deferral else None
    if test is None:
        return [one.arm, "–", "–", "–"]
    return [one.arm, f"{test.threshold:.3f}", _percent(test.share), _percent(test.accuracy, 2)]
