"""The features of the networks: a map, their likeness to the teacher's, and the accuracy on corrupted images."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray

from limbeck.comparison.learned import Learned, NetworkLearned
from limbeck.comparison.maps import Maps
from limbeck.report.drawing import Look, drawn, looks, series, sign
from limbeck.report.found import Found
from limbeck.report.numbers import decimal, percent, short, some
from limbeck.report.parts import Figure, Section, Table

MOST_CLASSES = 10
"""The most classes in the map: more cannot be told apart."""

TEXT = (
    "Agreement is the share of test samples with the teacher's prediction. CKA says how similar the features are to "
    "the teacher's, NMI how well clusters of the features (k-means) match the classes; both are from 0 to 1."
)

HEAD = ("network", "agreement, %", "KL to teacher, nats", "CKA with teacher", "NMI of clusters")


def features(found: Found, learned: Learned, maps: Maps | None) -> Section:
    """The map and the corruptions for the teacher, the student alone and the best method; figures of all networks."""
    figures = []
    if maps is not None:
        figures.append(_map(learned, maps, [one.arm for one in found.shown if one.arm in maps.points]))
    if any(one.corrupted_accuracy for one in found.shown):
        figures.append(_corruptions(found, learned))
    rows = [
        [one.arm, percent(one.agreement), *(decimal(value, 3) for value in (one.kl_to_teacher, one.cka, one.nmi))]
        for one in learned.networks
    ]
    missing = found.missing.get("maps", [])
    return Section("features", "What the student learned", [TEXT], figures, (), [Table(HEAD, rows)], missing)


def _map(learned: Learned, maps: Maps, arms: Sequence[str]) -> Figure:
    present = np.unique(maps.labels).tolist()
    shown = list(some(present, MOST_CLASSES))
    of = {label: series(at) for at, label in enumerate(shown)}
    panels, rows = [], []
    for arm in arms:
        of_classes = {label: maps.points[arm][maps.labels == label] for label in shown}
        panels.append(_map_panel(arm, of_classes, of, learned))
        for label, points in of_classes.items():
            centre = np.median(points, axis=0)
            spread = float(np.linalg.norm(points - centre, axis=1).mean())
            rows.append([arm, learned.classes[label], *(decimal(float(value), 2) for value in (*centre, spread))])
    caption = (
        f"{len(maps.labels):,} test samples in the first two principal components of each network's features. Here the "
        "colours are those of the classes. The axes have no unit and differ between networks."
    )
    if len(shown) < len(present):
        caption += f" Shown are {len(shown)} of {len(present)} classes."
    head = ["network", "class", "centre, 1st component", "centre, 2nd component", "mean distance to it"]
    legend = [(learned.classes[label], sign(look)) for label, look in of.items()]
    return Figure("map", "Map of the features", caption, panels, Table(head, rows), legend, width=260)


def _map_panel(
    arm: str, of_classes: Mapping[int, NDArray[np.float32]], of: Mapping[int, Look], learned: Learned
) -> Markup:
    def draw(axes: Axes) -> None:
        for label, points in of_classes.items():
            look = of[label]
            axes.plot(*points.T, look.marker, color=look.colour, markersize=4, markeredgewidth=0, alpha=0.7)
        axes.set(xticks=[], yticks=[], title=short(arm))
        axes.spines[:].set_visible(True)

    nmi = next((one.nmi for one in learned.networks if one.arm == arm), None)
    samples = sum(map(len, of_classes.values()))
    alt = f"{arm}: features of {samples:,} test samples. NMI of their clusters with the classes: {decimal(nmi, 3)}"
    return drawn(f"map-{arm}", alt, (300, 280), draw, margins=(6, 6, 26, 6))


def _corruptions(found: Found, learned: Learned) -> Figure:
    of = looks(found.result)
    values = {one.arm: _by_strength(one) for one in learned.networks}
    shown = [one.arm for one in found.shown if values[one.arm]]
    panels = []
    for kind in values[shown[0]]:

        def draw(axes: Axes, kind: str = kind) -> None:
            for arm in shown:
                look, heights = of[arm], values[arm][kind]
                style = f"{look.marker}{look.dash}"
                axes.plot(range(len(heights)), heights, style, color=look.colour, markersize=5, linewidth=1.6)
            axes.set(title=_name(kind), xlabel="strength", ylim=(0, 104), xticks=range(len(values[shown[0]][kind])))

        said = (f"{arm} from {values[arm][kind][0]:.1f} % to {values[arm][kind][-1]:.1f} %" for arm in shown)
        alt = f"accuracy with {_name(kind)}: {'; '.join(said)}"
        panels.append(drawn(f"corruption-{kind}", alt, (300, 215), draw, margins=(38, 8, 26, 38)))
    rows = [
        [arm, _name(kind), *(decimal(value, 1) for value in heights)]
        for arm, kinds in values.items()
        for kind, heights in kinds.items()
    ]
    strengths = max(len(row) for row in rows) - 3
    numbers = Table(["network", "corruption", "none", *(str(at + 1) for at in range(strengths))], rows)
    caption = (
        f"Accuracy in % on {learned.corruption_samples:,} corrupted test images by strength; at 0 they are as given."
    )
    legend = [(arm, sign(of[arm], line=True)) for arm in shown]
    return Figure("corruptions", "Noise, blur and contrast", caption, panels, numbers, legend, width=260)


def _by_strength(one: NetworkLearned) -> dict[str, list[float]]:
    """By corruption, the accuracy in % without it and for each strength."""
    kinds, clean = one.corrupted_accuracy or {}, one.clean_accuracy
    return {kind: [100 * value for value in (clean, *values)] for kind, values in kinds.items() if clean is not None}


def _name(kind: str) -> str:
    return kind.replace("_", " ")
