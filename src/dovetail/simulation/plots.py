"""Charts of what a study measured, as figures that stand in a page or a notebook.

Every title states what the chart shows, in numbers of this study. Whiskers are standard errors over
seeds and held-out customers together; the learning curve's band is over seeds alone, calibration's
whiskers over customers alone. Figures are made without ``pyplot`` and its global state. Colours are
those of Okabe and Ito (2008), "Color universal design", told apart by the colour-blind; markers and
dashes repeat the difference.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from dovetail.simulation import findings
from dovetail.simulation.findings import Evidence
from dovetail.simulation.results import Comparison, Estimate, Measurement, Predictions

INK = "#1b1d21"
COLOURS: dict[Comparison, str] = {
    "joint": "#0072b2",
    "joint_local": "#56b4e9",
    "alone": "#d55e00",
    "pooled_dp": "#009e73",
    "pooled": INK,
}
LABELS: dict[Comparison, str] = {
    "joint": "joint",
    "joint_local": "joint, each\nall its noise",
    "alone": "each alone",
    "pooled_dp": "one company,\nsame ε",
    "pooled": "one company,\nno privacy",
}
MARKERS: dict[Comparison, str] = {
    "joint": "o",
    "joint_local": "D",
    "alone": "s",
    "pooled_dp": "^",
    "pooled": "",
}

_SIZE = (5.8, 3.7)  # inches: half a page wide, text of 9.5 pt
_STYLE: Any = {
    "svg.hashsalt": "dovetail",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@mpl.rc_context(_STYLE)
def privacy_utility(evidence: Evidence, headline: float) -> Figure:
    """AUC against ε for every comparison; the ceiling without privacy as a dashed line.

    Args:
        evidence: of the study.
        headline: the ε of which the title speaks.
    """
    epsilons = sorted({m.epsilon for m in evidence.measurements if m.epsilon is not None})
    axes = _axes("ε of the whole job (log scale; smaller protects more)", _OWN_AUC)
    names: dict[Comparison, float] = {
        "alone": 0.95,
        "pooled_dp": 1.0,
        "joint": 1.05,
        "joint_local": 0.98,
    }
    ends: dict[Comparison, float] = {}
    spoken: dict[Comparison, float] = {}
    for comparison, beside in names.items():
        found = [findings.mean_own_auc(evidence, comparison, e) for e in epsilons]
        points = {e: p for e, p in zip(epsilons, found, strict=True) if p is not None}
        if points:
            _line(axes, comparison, [e * beside for e in points], list(points.values()))
            ends[comparison] = points[max(points)].mean
        if headline in points:
            spoken[comparison] = points[headline].mean
    ceiling = findings.mean_own_auc(evidence, "pooled", None)
    if ceiling is not None:
        axes.axhline(ceiling.mean, color=INK, linestyle="--", linewidth=1.2)
        ends["pooled"] = ceiling.mean
    _epsilon_axis(axes, epsilons)
    _label_ends(axes, ends)
    return _titled(axes, _utility_finding(spoken, headline))


@mpl.rc_context(_STYLE)
def learning_curve(measurements: Sequence[Measurement], epsilon: float) -> Figure:
    """AUC on all held-out customers after each round, in a band of ± one standard error."""
    axes = _axes("round of training", "AUC on all held-out customers")
    finding = "No round was measured"
    ends: dict[Comparison, float] = {}
    names: tuple[Comparison, ...] = ("pooled_dp", "joint")
    for comparison in names:
        curve = findings.by_round(measurements, comparison, epsilon)
        if not curve:
            continue
        means = np.array([point.mean for point in curve.values()])
        errors = np.nan_to_num([point.standard_error for point in curve.values()])
        axes.fill_between(
            list(curve), means - errors, means + errors, color=COLOURS[comparison], alpha=0.25, lw=0
        )
        _line(axes, comparison, list(curve), [Estimate(m, 0.0, 1) for m in means])
        ends[comparison] = float(means[-1])
        finding = _round_finding(list(curve), means.tolist(), epsilon)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_ends(axes, ends)
    return _titled(axes, finding)


@mpl.rc_context(_STYLE)
def calibration(predictions: Sequence[Predictions], epsilon: float) -> Figure:
    """What the joint model predicts against what happened, in tenths of the scored rows.

    Whiskers are the sampling error of the observed share, with customers as the unit.
    """
    axes = _axes("predicted probability", "share that responded")
    found = findings.calibration(predictions, epsilon)
    if found is None:
        return _titled(axes, "Nothing was predicted")
    top = 1.08 * float(max(found.predicted.max(), (found.observed + found.errors).max(), 1e-3))
    axes.plot([0, top], [0, top], color=INK, linestyle="--", linewidth=1.2, label="perfect")
    points = [
        Estimate(float(m), float(e), 1) for m, e in zip(found.observed, found.errors, strict=True)
    ]
    _line(axes, "joint", found.predicted.tolist(), points, label="joint model")
    axes.set(xlim=(0, top), ylim=(0, top))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, loc="upper left")
    predicted, observed = found.overall
    return _titled(
        axes, f"The joint model predicts {predicted:.1%} on average; {observed:.1%} responded"
    )


@mpl.rc_context(_STYLE)
def lift(evidence: Evidence, epsilon: float) -> Figure:
    """How many times the average each tenth responds: by joint model, own model, at random.

    Args:
        evidence: of the study.
        epsilon: of the models.
    """
    axes = _axes("tenth of each partner's rows, best-scored first", "response (× average)")
    tenths = np.arange(1, findings.TENTHS + 1)
    best: dict[Comparison, float] = {}
    pairs: tuple[tuple[Comparison, float], ...] = (("alone", 0.09), ("joint", -0.09))
    for comparison, offset in pairs:
        found = findings.lift(evidence, comparison, epsilon)
        if found is not None:
            _line(axes, comparison, (tenths + offset).tolist(), found, label=LABELS[comparison])
            best[comparison] = found[0].mean
    axes.axhline(1, color=INK, linestyle="--", linewidth=1.2, label="at random")
    axes.set_xticks(tenths)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper right")
    return _titled(axes, _lift_finding(best))


@mpl.rc_context(_STYLE)
def gain(evidence: Evidence, epsilon: float) -> Figure:
    """What each partner gains in AUC on its own held-out customers by training jointly.

    Args:
        evidence: of the study.
        epsilon: of the jobs compared.
    """
    axes = _axes("AUC of the joint model less AUC alone, own customers", "")
    pairs = [(name, findings.gain(evidence, name, epsilon)) for name in evidence.held_out]
    found = [(name, point) for name, point in pairs if point is not None]
    at = np.arange(len(found))[::-1]
    means = np.array([point.mean for _, point in found])
    errors = np.nan_to_num([point.standard_error for _, point in found])
    axes.barh(at, means, height=0.5, color=COLOURS["joint"])
    axes.errorbar(means, at, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.4, capsize=4)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(at, [name for name, _ in found])
    axes.set_ylabel("partner")
    axes.grid(visible=False, axis="y")
    return _titled(axes, _gain_finding([point.clear for _, point in found]))


def title(figure: Figure) -> str:
    """The finding that stands over the figure."""
    return " ".join(figure.get_suptitle().split())


def file(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The figure as a file that stands by itself; the same figure gives the same bytes.

    Args:
        figure: made here.
        kind: of the file.
    """
    buffer = io.BytesIO()
    dateless = {"Date": None} if kind == "svg" else None
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format=kind, dpi=200, bbox_inches="tight", metadata=dateless)
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element to stand inside an HTML page.

    Ink becomes the colour of the text around it and each line colour a CSS variable
    (``--joint``, …) with its own value as the fallback, so that a page can serve dark backgrounds.
    Text takes the page's font. The same figure gives the same SVG.

    Args:
        figure: made here.
        name: unique in the page: prefixes every id.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(_NOT_DRAWN, "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("font-family: 'DejaVu Sans'; ", "")
    for comparison, colour in COLOURS.items():
        paint = "currentColor" if colour == INK else f"var(--{comparison}, {colour})"
        text = text.replace(colour, paint)
    return text.replace("<svg ", f"<svg {_SVG_ATTRIBUTES} ", 1).strip()


_NOT_DRAWN = "<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"
_SVG_ATTRIBUTES = 'aria-hidden="true" stroke-linejoin="round" stroke-linecap="butt"'
_OWN_AUC = "AUC on each partner's own customers"


def _axes(x: str, y: str) -> Axes:
    axes = Figure(figsize=_SIZE, layout="constrained").add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return axes


def _titled(axes: Axes, finding: str) -> Figure:
    figure = axes.figure
    assert isinstance(figure, Figure)  # noqa: S101 - these axes stand in no subfigure
    figure.suptitle(textwrap.fill(finding, 60), x=0.01, ha="left")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # else every drawing moves it by a hair
    return figure


def _line(
    axes: Axes,
    comparison: Comparison,
    at: Sequence[float],
    points: Sequence[Estimate],
    label: str | None = None,
) -> None:
    errors = np.nan_to_num([point.standard_error for point in points])
    axes.errorbar(
        at,
        [point.mean for point in points],
        yerr=errors if np.any(errors) else None,
        color=COLOURS[comparison],
        marker=MARKERS[comparison],
        markersize=5,
        linewidth=1.8,
        capsize=3,
        label=label,
    )


def _epsilon_axis(axes: Axes, epsilons: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(epsilons)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if len(epsilons) == 1:
        axes.set_xlim(epsilons[0] / 2, epsilons[0] * 2)


def _label_ends(axes: Axes, ends: Mapping[Comparison, float]) -> None:
    """Names beside the right ends of the lines, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap = 0.12 * (high - low)
    place = high + gap / 2
    for comparison, end in sorted(ends.items(), key=lambda item: -item[1]):
        place = min(end, place - gap)
        axes.annotate(
            LABELS[comparison],
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=COLOURS[comparison],
            annotation_clip=False,
        )


def _utility_finding(means: Mapping[Comparison, float], epsilon: float) -> str:
    if "joint" not in means:
        return f"No joint model was measured at ε = {epsilon:g}"
    alone = f"; alone {means['alone']:.3f}" if "alone" in means else ""
    return f"At ε = {epsilon:g} the joint model reaches AUC {means['joint']:.3f}{alone}"


def _gain_finding(clear: Sequence[int]) -> str:
    if not clear:
        return "No gain was measured"
    gains, losses = clear.count(1), clear.count(-1)
    return f"Beyond two standard errors, {gains} of {len(clear)} partners gain and {losses} lose"


def _round_finding(rounds: Sequence[float], means: Sequence[float], epsilon: float) -> str:
    near = next(r for r, mean in zip(rounds, means, strict=True) if mean >= means[-1] - 0.01)
    return f"At ε = {epsilon:g}, round {near:g} of {rounds[-1]:g} is within 0.01 AUC of the last"


def _lift_finding(best: Mapping[Comparison, float]) -> str:
    if "joint" not in best:
        return "No joint model was scored"
    alone = f"; by own model {best['alone']:.1f} ×" if "alone" in best else ""
    return f"The best tenth responds {best['joint']:.1f} × average{alone}"
