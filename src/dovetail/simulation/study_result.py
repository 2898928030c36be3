"""Everything that one study measured, as rows, as a table and as a chart.

The researcher's own view, not private: see :mod:`dovetail.simulation.results`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dovetail.schema import Schema
from dovetail.simulation import findings
from dovetail.simulation.results import ALL, Comparison, Estimate, Measurement, Predictions
from dovetail.simulation.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "–"


@dataclass(frozen=True)
class StudyPartner:
    """One partner of a study.

    Attributes:
        name: its name.
        role: what it is, for people.
        declared_customers: what its terms say: the training customers to two significant digits.
        training_customers: how many it has for training. Known here, private in production.
        held_out_customers: how many were held out, never trained on.
        data_period: the days that its data covers.
    """

    name: str
    role: str
    declared_customers: int
    training_customers: int
    held_out_customers: int
    data_period: str


@dataclass(frozen=True)
class ComparisonRow:
    """Test AUC at one partner's held-out customers, or at all of them, for one ε.

    Attributes:
        partner: the partner, or ``all``.
        customers: its training customers.
        epsilon: of every private job in this row.
        delta: likewise.
        alone: the partner's own model; ``None`` in the row for all.
        joint: the joint model.
        gain: joint less alone, paired by seed and customer; ``None`` where alone is.
        pooled_dp: one company with all rows, under the same ε.
        pooled: one company with all rows, without privacy.
    """

    partner: str
    customers: int
    epsilon: float
    delta: float
    alone: Estimate | None
    joint: Estimate
    gain: Estimate | None
    pooled_dp: Estimate
    pooled: Estimate


HEADINGS = (
    "ε",
    "partner",
    "trained on",
    "alone",
    "joint",
    "gain",
    "one company, same ε",
    "one company, no privacy",
)


class ComparisonTable:
    """The rows of :meth:`StudyResult.table`; prints as text, and as HTML in a notebook."""

    def __init__(self, rows: Iterable[ComparisonRow], caption: str) -> None:
        self.rows = tuple(rows)
        self.caption = caption

    def cells(self) -> list[tuple[str, ...]]:
        """The table's body as text, under :data:`HEADINGS`."""
        return [
            (
                f"{row.epsilon:g}",
                row.partner,
                f"{row.customers:,}",
                shown(row.alone),
                shown(row.joint),
                shown(row.gain, sign="+"),
                shown(row.pooled_dp),
                shown(row.pooled),
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        lines = [HEADINGS, *self.cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
        text = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([self.caption, *(line.rstrip() for line in text)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in self.cells()
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class StudyResult:
    """What a study measured.

    Attributes:
        study: what was asked.
        schema: the columns that every partner brought.
        partners: who took part, in the study's order.
        noise_multipliers: for each ε, the noise per unit of sensitivity that it asks for.
        measurements: one metric of one model on one test set each.
        predictions: scores of every final model on all held-out rows.
    """

    study: Study
    schema: Schema
    partners: tuple[StudyPartner, ...]
    noise_multipliers: Mapping[float, float]
    measurements: tuple[Measurement, ...]
    predictions: tuple[Predictions, ...]

    def table(self) -> ComparisonTable:
        """Alone, joint and pooled side by side: mean test AUC ± standard error."""
        return self._table

    @property
    def covered(self) -> str:
        """What a standard error of this study is taken over, in words: for captions."""
        seeds, held_out = len(self.study.seeds), f"the held-out {self.schema.unit}s"
        return f"{held_out} (one seed)" if seeds == 1 else f"{seeds} noise seeds and {held_out}"

    @cached_property
    def evidence(self) -> findings.Evidence:
        """All that was measured, with what was computed of its uncertainty so far."""
        return findings.Evidence(self.measurements, self.predictions, self.held_out_customers)

    def plot(self) -> Figure:
        """Privacy against utility, with standard errors."""
        from dovetail.simulation.plots import privacy_utility

        return privacy_utility(self.evidence, self.study.privacy.epsilons[0])

    @property
    def held_out_customers(self) -> dict[str, int]:
        """Number of held-out customers by partner."""
        return {partner.name: partner.held_out_customers for partner in self.partners}

    def to_record(self) -> dict[str, Any]:
        """All but the predictions as JSON-able data; metrics that are undefined are absent."""
        return {
            "not_private": "metrics over raw rows: the researcher's view, for this machine only",
            "study": self.study.to_record(),
            "schema": self.schema.to_record(),
            "partners": [vars(partner) for partner in self.partners],
            "noise_multipliers": [
                {"epsilon": epsilon, "noise_multiplier": noise}
                for epsilon, noise in self.noise_multipliers.items()
            ],
            "standard_error": f"over {self.covered}, in quadrature: seeds_error, customers_error",
            "table": [_row_record(row) for row in self.table().rows],
            "measurements": [vars(measurement) for measurement in self.measurements],
        }

    def _tested(self) -> list[tuple[str, int]]:
        named = [(partner.name, partner.training_customers) for partner in self.partners]
        return [*named, (ALL, sum(customers for _, customers in named))]

    @cached_property
    def _table(self) -> ComparisonTable:
        rows = [
            self._row(epsilon, name, customers)
            for epsilon in self.study.privacy.epsilons
            for name, customers in self._tested()
        ]
        return ComparisonTable(
            rows,
            f"{self.study.name}: test AUC ± standard error over {self.covered}, "
            f"δ = {self.study.privacy.delta:g} (the researcher's view, not private)",
        )

    def _row(self, epsilon: float, name: str, customers: int) -> ComparisonRow:
        def auc(comparison: Comparison, e: float | None = epsilon) -> Estimate:
            return findings.auc(self.evidence, comparison, e, name) or _UNKNOWN

        own = name != ALL
        return ComparisonRow(
            partner=name,
            customers=customers,
            epsilon=epsilon,
            delta=self.study.privacy.delta,
            alone=findings.auc(self.evidence, "alone", epsilon, name, name) if own else None,
            joint=auc("joint"),
            gain=findings.gain(self.evidence, name, epsilon) if own else None,
            pooled_dp=auc("pooled_dp"),
            pooled=auc("pooled", None),
        )


_UNKNOWN = Estimate(float("nan"), float("nan"), 0)


def shown(value: Estimate | None, sign: str = "") -> str:
    """An estimate for people: three digits, and its standard error where it has one."""
    if value is None or value.seeds == 0:
        return MISSING
    mean = f"{value.mean:{sign}.3f}"
    error = value.standard_error
    return mean if math.isnan(error) else f"{mean} ± {error:.3f}"


def _row_record(row: ComparisonRow) -> dict[str, Any]:
    def plain(value: object) -> object:
        if not isinstance(value, Estimate):
            return value
        numbers = {**vars(value), "standard_error": value.standard_error}
        return {k: None if math.isnan(v) else v for k, v in numbers.items()}

    return {name: plain(value) for name, value in vars(row).items()}
