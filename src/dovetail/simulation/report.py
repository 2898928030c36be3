"""A study and its headline job as one self-contained HTML page, to be forwarded to a colleague.

The page needs no network and no script. It shows the result before it explains, and says what ε
means, what is not protected and who must be trusted. Its numbers are computed from the study, the
ledgers and the model card that it is given; its metrics are a researcher's view and not private.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path

import jinja2
from markupsafe import Markup

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.entry import Entry
from dovetail.agreement.ledger import Ledger
from dovetail.agreement.terms import Budget
from dovetail.privacy import accountant
from dovetail.privacy.event import Spending
from dovetail.schema import Category, Column, Date
from dovetail.simulation import findings, plots
from dovetail.simulation.cell_store import write_whole
from dovetail.simulation.results import ALL, Estimate
from dovetail.simulation.study_result import StudyResult, shown
from dovetail.store.card import ModelCard

FALSE_POSITIVE_RATES = (0.01, 0.05)
_DELTAS = (1e-3, 1e-2, 3e-2, 0.1, 0.2)
_ROUNDS = ("begin", "commit")
ALL_ROWS = "all rows ranked together"
_NAMED = 6  # partners that a headline can name one by one


@dataclass(frozen=True)
class HeadlineJob:
    """The one job of which the page speaks first, as it really ran.

    Attributes:
        epsilon: what it was asked to cost, one of the study's.
        card: of the model that it released.
        ledgers: by partner, the entries of its ledger, oldest first.
        places: what was written where, for people: ("model card", "model/card.json").
    """

    epsilon: float
    card: ModelCard
    ledgers: Mapping[str, Sequence[Entry]]
    places: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class LedgerLine:
    """Entries of one ledger that follow each other: all rounds of a job, or one other entry.

    Attributes:
        first: the first of them.
        kinds: what they are, in words.
        entries: how many they are.
        rounds: the first and the last round concerned, empty where none is.
        epsilon: ε of all that the ledger has charged after them, at the budget's δ.
        given_back: steps that a *cancel* gave back: reserved and never begun.
    """

    first: Entry
    kinds: str
    entries: int
    rounds: str
    epsilon: float
    given_back: int = 0


@dataclass(frozen=True)
class Attack:
    """How well anyone can tell whether one customer took part, at best.

    Attributes:
        epsilon: of the job.
        factor: how many times as likely a conclusion can become: ``e**ε``, plus δ.
        stated: true-positive rates that ε and δ allow, for :data:`FALSE_POSITIVE_RATES`.
        accounted: the same from the events of the job; never above ``stated``.
    """

    epsilon: float
    factor: float
    stated: tuple[float, ...]
    accounted: tuple[float, ...]


def best_true_positive_rate(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """The most that a test for one customer's presence can achieve against (ε, δ)-DP.

    The test may know everything else: all other customers, and the coordinator's view of each of
    the partner's updates.

    Args:
        epsilon: >= 0.
        delta: in [0, 1).
        false_positive_rate: how often it accuses an absent customer, in [0, 1].

    Returns:
        An upper bound on how often it finds a present one, in [0, 1]; attained by some mechanism.

    Source: Wasserman and Zhou (2010), "A statistical framework for differential privacy",
    Theorem 2.4; in this form Dong, Roth and Su (2022), "Gaussian differential privacy", Prop. 2.5.
    """
    bold = delta + math.exp(epsilon) * false_positive_rate
    shy = 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate)
    return max(false_positive_rate, min(1.0, bold, shy))


def attack(epsilon: float, delta: float, spending: Spending) -> Attack:
    """What ``epsilon`` and ``spending`` allow an attacker.

    Every δ has an ε of its own for the same events, and a test is bound by all these pairs at once;
    ``accounted`` takes the least bound over some of them.

    Args:
        epsilon: as stated for the job.
        delta: that belongs to it.
        spending: what the job releases of one partner's customers.
    """
    pairs = [(accountant.epsilon(spending, d), d) for d in (delta, *_DELTAS)]
    rates = FALSE_POSITIVE_RATES
    return Attack(
        epsilon=epsilon,
        factor=math.exp(epsilon),
        stated=tuple(best_true_positive_rate(epsilon, delta, rate) for rate in rates),
        accounted=tuple(
            min(best_true_positive_rate(e, d, rate) for e, d in [(epsilon, delta), *pairs])
            for rate in rates
        ),
    )


def ledger_lines(entries: Sequence[Entry], budget: Budget) -> list[LedgerLine]:
    """A ledger's entries with the running ε, all rounds of a job in one line.

    Args:
        entries: oldest first.
        budget: at whose δ ε is computed.

    Raises:
        LedgerError: the entries are no ledger's.
    """
    ledger = Ledger(budget)
    lines = []
    for _, group in groupby(entries, key=_line_of):
        alike = list(group)
        for entry in alike:
            ledger.apply(entry)
        rounds = sorted({entry.round for entry in alike if entry.round is not None})
        lines.append(
            LedgerLine(
                first=alike[0],
                kinds=", ".join(dict.fromkeys(entry.kind for entry in alike)),
                entries=len(alike),
                rounds="–".join(str(number) for number in dict.fromkeys(rounds[:1] + rounds[-1:])),
                epsilon=ledger.epsilon(),
                given_back=_given_back(ledger, alike[0]),
            )
        )
    return lines


def _line_of(entry: Entry) -> tuple[str, str]:
    return entry.job, "round" if entry.kind in _ROUNDS else entry.kind


def _given_back(ledger: Ledger, entry: Entry) -> int:
    job = ledger.job(entry.job)
    if job is None or entry.kind != "cancel":
        return 0
    return max(0, job.reserved - job.drawn)


def write_report(result: StudyResult, job: HeadlineJob, path: Path) -> None:
    """Write the page.

    Args:
        result: of the study.
        job: the headline job.
        path: the HTML file, which appears when it is complete.

    Raises:
        DataError: the file cannot be written; nothing half is left.
    """
    write_whole(path, page(result, job).encode())


def page(result: StudyResult, job: HeadlineJob) -> str:
    """The page as HTML text; every name in it is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(shown=shown, percent=_percent, kind=_kind, bounds=_bounds)
    source = resources.files(__package__ or "").joinpath("report.html.jinja")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    delta, card = result.study.privacy.delta, job.card
    task = card.request.task
    return template.render(
        study=result.study,
        partners=result.partners,
        headline=headline(result, job.epsilon).replace(" ± ", "\u00a0±\u00a0"),
        rows=[row for row in result.table().rows if row.epsilon == job.epsilon],
        all_rows=result.table().rows,
        everyone=ALL,
        all_rows_label=ALL_ROWS,
        job=job,
        card=card,
        task=task,
        schema=card.terms.schema,
        selected=card.terms.schema.select(task.features),
        delta=delta,
        attacks=_attacks(result, job),
        rates=FALSE_POSITIVE_RATES,
        charts=_charts(result, job.epsilon),
        ledgers={name: ledger_lines(e, card.terms.budget) for name, e in job.ledgers.items()},
        request_digest=requests.digest(card.request),
        terms_digest=agreed.digest(card.terms),
        covered=result.covered,
    )


def headline(result: StudyResult, epsilon: float) -> str:
    """The study's finding in two sentences: who gains, who loses, and where nothing shows."""
    evidence, names = result.evidence, result.held_out_customers
    gains = {name: findings.gain(evidence, name, epsilon) for name in names}
    found = {name: gain for name, gain in gains.items() if gain is not None}
    mean = findings.mean_gain(evidence, epsilon)
    if mean is None or not found:
        return f"{len(names)} partners trained one model together under ε = {epsilon:g}."
    unseen = f"no difference that these {result.schema.unit}s could show for "
    verdicts = ((1, "test AUC rises for "), (-1, "test AUC falls for "), (0, unseen))
    told = [
        said + _listed([name for name in found if found[name].clear == clear], found)
        for clear, said in verdicts
        if any(gain.clear == clear for gain in found.values())
    ]
    return (
        f"Training together rather than alone, under ε = {epsilon:g}: {'; '.join(told)}. "
        f"Mean over partners, weighted by held-out {result.schema.unit}s: {shown(mean, '+')}."
    )


def _listed(names: Sequence[str], gains: Mapping[str, Estimate]) -> str:
    if len(gains) > _NAMED:
        return f"{len(names)} of {len(gains)} partners"
    return ", ".join(f"{name} ({shown(gains[name], '+')})" for name in names)


def _attacks(result: StudyResult, job: HeadlineJob) -> list[Attack]:
    """One line per ε of the study, all with the headline job's sampling and steps."""
    task, delta = job.card.request.task, result.study.privacy.delta
    lines = []
    for epsilon, noise in sorted(result.noise_multipliers.items()):
        event = type(task.event)(
            task.event.sampling_prob, task.l2_clip_norm, noise * task.l2_clip_norm
        )
        lines.append(attack(epsilon, delta, {event: task.steps}))
    return lines


def _charts(result: StudyResult, epsilon: float) -> list[dict[str, str | Markup]]:
    evidence = result.evidence
    figures = {
        "utility": plots.privacy_utility(evidence, epsilon),
        "gain": plots.gain(evidence, epsilon),
        "lift": plots.lift(evidence, epsilon),
        "calibration": plots.calibration(result.predictions, epsilon),
        "learning": plots.learning_curve(result.measurements, epsilon),
    }
    explanations = _explanations(result)
    return [
        {
            "name": name,
            "finding": plots.title(figure),
            "explanation": explanations[name],
            "svg": Markup(plots.svg(figure, name)),  # noqa: S704 - ours, and escaped by matplotlib
        }
        for name, figure in figures.items()
    ]


def _explanations(result: StudyResult) -> dict[str, str]:
    whiskers = f"Whiskers: ± one standard error over {result.covered}."
    return {
        "utility": "AUC against ε: each partner alone, the joint model, and one imaginary company "
        "that holds all rows, under the same ε and with no privacy. Each point is the mean of the "
        f"partners' own AUCs, weighted by held-out {result.schema.unit}s, so not the "
        f"“{ALL_ROWS}” row. {whiskers} The lines share seeds and {result.schema.unit}s: "
        "whiskers that overlap do not mean that nothing differs.",
        "gain": "AUC of the joint model less AUC of the partner's own, paired by seed and "
        f"{result.schema.unit}. {whiskers}",
        "lift": f"How many times the average response each tenth of a partner's "
        f"{result.schema.unit}s' rows shows, when ranked by the joint model and by its own. "
        f"{whiskers}",
        "calibration": "Predicted probability against the share that responded, in tenths of the "
        "scored rows; a perfect model lies on the dashed line. Whiskers: ± one standard error of "
        f"the share over the held-out {result.schema.unit}s.",
        "learning": "AUC of all held-out rows ranked together, after each round. Bands: ± one "
        "standard error over seeds alone.",
    }


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _bounds(column: Column) -> str:
    if isinstance(column, Category):
        return ", ".join(column.values)
    if isinstance(column, Date):
        return f"{column.earliest.isoformat()} to {column.latest.isoformat()}"
    scale = ", log scale" if column.transform == "log" else ""
    return f"{column.low:g} to {column.high:g} {column.unit}".strip() + scale


def _kind(column: Column) -> str:
    return type(column).__name__.lower()
