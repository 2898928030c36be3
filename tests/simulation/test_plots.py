from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Literal

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from dovetail.simulation import findings, plots
from tests.simulation import made_up_study as made_up

MEASURED, PREDICTED = made_up.measurements(), made_up.predictions()
HELD_OUT = dict(zip(made_up.NAMES, made_up.HELD_OUT, strict=True))
FOUND, NOTHING = made_up.result().evidence, findings.Evidence((), (), HELD_OUT)

CHARTS: dict[str, Callable[[], Figure]] = {
    "utility": lambda: plots.privacy_utility(FOUND, 3.0),
    "learning": lambda: plots.learning_curve(MEASURED, 3.0),
    "calibration": lambda: plots.calibration(PREDICTED, 3.0),
    "lift": lambda: plots.lift(FOUND, 3.0),
    "gain": lambda: plots.gain(FOUND, 3.0),
}
EMPTY: dict[str, Callable[[], Figure]] = {
    "utility": lambda: plots.privacy_utility(NOTHING, 3.0),
    "learning": lambda: plots.learning_curve([], 3.0),
    "calibration": lambda: plots.calibration([], 3.0),
    "lift": lambda: plots.lift(NOTHING, 3.0),
    "gain": lambda: plots.gain(NOTHING, 3.0),
}


def whiskers(figure: Figure) -> list[ErrorbarContainer]:
    return [
        container
        for container in figure.axes[0].containers
        if isinstance(container, ErrorbarContainer) and container.lines[2]
    ]


@pytest.mark.parametrize("name", CHARTS)
def test_axes_are_labelled_and_the_title_tells_a_number(name: str) -> None:
    figure = CHARTS[name]()
    axes = figure.axes[0]
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert any(letter.isdigit() for letter in plots.title(figure))


@pytest.mark.parametrize("name", ["utility", "calibration", "lift", "gain"])
def test_whiskers_show_the_errors(name: str) -> None:
    assert whiskers(CHARTS[name]())


def test_whiskers_are_as_long_as_the_standard_errors() -> None:
    figure = CHARTS["gain"]()
    (bars,) = whiskers(figure)
    segments = bars.lines[2][0].get_segments()
    lengths = [segment[1][0] - segment[0][0] for segment in segments]
    wanted = [findings.gain(FOUND, name, 3.0) for name in made_up.NAMES]
    assert lengths == pytest.approx([2 * point.standard_error for point in wanted if point])


def test_whiskers_count_held_out_customers_and_not_seeds_alone() -> None:
    points = [findings.gain(FOUND, name, 3.0) for name in made_up.NAMES]
    assert all(p and p.standard_error > p.customers_error > 0 for p in points)
    assert all(p and p.standard_error > p.seeds_error > 0 for p in points)


def test_the_curve_has_a_logarithmic_axis_all_comparisons_and_a_dashed_ceiling() -> None:
    axes = CHARTS["utility"]().axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == list(made_up.EPSILONS)
    drawn = {label for c, label in plots.LABELS.items() if c != "joint_local"}  # nobody shares
    assert {text.get_text() for text in axes.texts} == drawn
    ceiling = findings.mean_own_auc(FOUND, "pooled", None)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert ceiling is not None
    assert [np.ravel(line.get_ydata())[0] for line in dashed] == [ceiling.mean]


def test_labels_beside_the_lines_do_not_touch() -> None:
    axes = CHARTS["utility"]().axes[0]
    low, high = axes.get_ylim()
    places = sorted(text.xy[1] for text in axes.texts if isinstance(text, Annotation))
    assert np.min(np.diff(places)) > 0.11 * (high - low)


def test_one_seed_and_one_epsilon_can_be_drawn() -> None:
    once = [m for m in MEASURED if m.seed == 0 and m.epsilon in (3.0, None)]
    evidence = findings.Evidence(once, (), HELD_OUT)
    figure = plots.privacy_utility(evidence, 3.0)
    assert not whiskers(figure)
    assert "3" in plots.title(figure)
    plots.svg(plots.gain(evidence, 3.0), "gain")


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_measured_is_said_and_not_a_crash(name: str) -> None:
    assert plots.svg(EMPTY[name](), name).startswith("<svg ")


@pytest.mark.parametrize("name", CHARTS)
def test_svg_repeats_itself_and_asks_the_network_for_nothing(name: str) -> None:
    figure = CHARTS[name]()
    text = plots.svg(figure, name)
    assert text == plots.svg(figure, name) == plots.svg(CHARTS[name](), name)
    assert "http" not in text
    assert "<style" not in text


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_file_of_a_figure_repeats_itself_and_carries_no_date(kind: Literal["svg", "png"]) -> None:
    content = plots.file(CHARTS["utility"](), kind)
    assert content == plots.file(CHARTS["utility"](), kind)
    assert b"date>" not in content
    assert b"http://www.w3.org/2000/svg" in content or kind == "png"


class Ids(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name == "id"]


def test_ids_of_two_figures_on_one_page_differ() -> None:
    first, second = (Ids(plots.svg(CHARTS["gain"](), name)).found for name in ("one", "two"))
    assert first
    assert len({*first, *second}) == len(first) + len(second)


def test_ink_follows_the_page_and_lines_have_variables() -> None:
    text = plots.svg(CHARTS["utility"](), "utility")
    assert "currentColor" in text
    assert "var(--joint, #0072b2)" in text
    assert plots.INK not in text


@pytest.mark.parametrize("name", ["a $x^2$ shop", "<script>alert(1)</script>", "a & b", "-->"])
def test_partner_names_are_drawn_as_they_are(name: str) -> None:
    names = (name, *made_up.NAMES[1:])
    figure = plots.gain(made_up.result(names).evidence, 3.0)
    text = plots.svg(figure, "gain")
    assert name in {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert "<script" not in text
    assert "mathdefault" not in text
