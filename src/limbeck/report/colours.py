"""The colours of the page on light and dark screens, by the names of their CSS variables."""

LIGHT = {
    "page": "#f6f7f8",
    "paper": "#ffffff",
    "ink": "#16191d",
    "muted": "#58606a",
    "line": "#dde1e6",
    "good": "#00755a",
    "bad": "#b04200",
    "c1": "#0072b2",
    "c2": "#d55e00",
    "c3": "#00896a",
    "c4": "#a8508a",
    "c5": "#a87400",
    "c6": "#3a87b8",
    "c7": "#7a7000",
}

DARK = {
    "page": "#0f1215",
    "paper": "#171b20",
    "ink": "#eceff2",
    "muted": "#a3acb6",
    "line": "#343b43",
    "good": "#35c79d",
    "bad": "#f58a4b",
    "c1": "#4a9fe0",
    "c2": "#f07a2a",
    "c3": "#1fc494",
    "c4": "#d98cbb",
    "c5": "#e69f00",
    "c6": "#8fd0f5",
    "c7": "#e5dc52",
}

SERIES = ("c1", "c2", "c3", "c4", "c5", "c6", "c7")
"""Those of the arms, after Okabe and Ito."""
