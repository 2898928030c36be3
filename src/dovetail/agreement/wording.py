"""The terms in plain words: a page that a lawyer can read, made from nothing but the terms.

Every sentence follows from a field of the terms or from what every node does; none is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dovetail.agreement.request import Family
from dovetail.agreement.terms import Period, Terms
from dovetail.schema import Category, Column, Date, Number

FAMILIES: dict[Family, str] = {
    "logistic": "logistic regression",
    "mlp": "neural network",
    "embedding_mlp": "neural network with embedded categories",
}
JOBS: dict[Period, str] = {
    "never": "all jobs together",
    "year": "all jobs together that are admitted in one calendar year",
    "quarter": "all jobs together that are admitted in one calendar quarter",
    "month": "all jobs together that are admitted in one calendar month",
}


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        heading: in a few words.
        sentences: paragraphs, each complete.
    """

    heading: str
    sentences: tuple[str, ...]


def page(terms: Terms) -> list[Section]:
    """All that the terms say, in the order in which people ask."""
    return [Section(heading, tuple(write(terms))) for heading, write in _SECTIONS.items()]


def key_facts(terms: Terms) -> list[str]:
    """The few sentences that whoever signs must have seen."""
    return [*_purposes(terms), *_validity(terms), *_spending(terms), *_approval(terms)]


def periods_touched(terms: Terms) -> int:
    """How many times the budget is there in full while the terms hold; 1 where it never refills."""
    first, last = terms.valid_from, terms.valid_until
    years = last.year - first.year
    quarters = 4 * years + (last.month - 1) // 3 - (first.month - 1) // 3
    months = 12 * years + last.month - first.month
    return (
        1 + {"never": 0, "year": years, "quarter": quarters, "month": months}[terms.budget.period]
    )


def number_words(value: float) -> str:
    """A number, exactly."""
    plain = float(value).is_integer() and abs(value) < 1e15
    return f"{value:,.0f}" if plain else repr(value)


def column_words(column: Column) -> str:
    """What a column holds, without its name."""
    if isinstance(column, Category):
        return f"one of {', '.join(column.values)}; anything else counts as “other”"
    if isinstance(column, Date):
        words = f"a day from {column.earliest.isoformat()} to {column.latest.isoformat()}"
    else:
        words = _number_words(column)
    return words + ("; may be missing" if column.nullable else "")


def listed(names: Iterable[str]) -> str:
    """Names as a sentence lists them: "a, b and c"."""
    *some, last = names
    return f"{', '.join(some)} and {last}" if some else last


def _number_words(column: Number) -> str:
    low, high = number_words(column.low), number_words(column.high)
    unit = f" {column.unit}" if column.unit else ""
    scale = ", compared by orders of magnitude" if column.transform == "log" else ""
    return f"a number from {low} to {high}{unit}{scale}"


def _who(terms: Terms) -> list[str]:
    analysts = [analyst.name for analyst in terms.analysts]
    others = f"{listed(analysts)} may ask for jobs as well." if analysts else "Nobody else may."
    return [
        f"{terms.coordinator.name} runs the jobs and may ask for them. It sees nobody's rows.",
        others,
        *(
            f"{partner.name} ({partner.role}) brings about {partner.customers:,} customers, with "
            f"data from {partner.first_day.isoformat()} to {partner.last_day.isoformat()}."
            for partner in terms.partners
        ),
        _customer(terms.schema.unit),
    ]


def _customer(unit: str) -> str:
    what = "" if unit == "customer" else f"one {unit}, "
    return f"A customer is {what}taken with all of its rows at one partner."


def _purposes(terms: Terms) -> list[str]:
    purposes = listed(f"“{purpose}”" for purpose in terms.purposes)
    return [f"Only for {purposes}. Every partner's node refuses a request for anything else."]


def _validity(terms: Terms) -> list[str]:
    return [
        f"From {terms.valid_from.isoformat()} to {terms.valid_until.isoformat()}, both days "
        "included, in universal time (UTC). On any other day nodes answer nothing."
    ]


def _requests(terms: Terms) -> list[str]:
    families = listed(FAMILIES[family] for family in terms.model_families)
    return [
        f"Training a model that predicts “{terms.schema.label.name}” from the columns below: "
        f"{families}, with at most {terms.max_parameters:,} parameters.",
        f"A job has at most {terms.max_rounds:,} rounds and {terms.max_steps:,} steps; at most "
        f"{terms.max_concurrent_jobs:,} jobs are open at a partner at once.",
        f"A partner with fewer than {terms.minimum_cohort:,} customers does not answer.",
        "Nothing else can be asked. A node runs only the program that its own company installed.",
    ]


def _spending(terms: Terms) -> list[str]:
    budget = terms.budget
    return [
        f"For each customer of a partner, {JOBS[budget.period]} cost at most ε = "
        f"{number_words(budget.epsilon)} at δ = {number_words(budget.delta)}; one job alone at "
        f"most ε = {number_words(terms.max_epsilon_per_job)}.",
        _refill(terms),
        _overlap(terms),
    ]


def _cost(terms: Terms) -> list[str]:
    budget = terms.budget
    return [
        *_spending(terms),
        f"What that means: take one customer away, with all of its rows, and the probability of "
        f"anything that anyone may observe of {JOBS[budget.period]} changes by at most a factor of "
        f"{_factor(budget.epsilon)}, but for a probability of {number_words(budget.delta)}. "
        "Smaller is more private.",
        "Each partner's node keeps its own account. It enters what a job costs before it reads a "
        "row, and refuses what does not fit any more. What was spent stays spent when the terms "
        "are amended.",
    ]


def _factor(epsilon: float) -> str:
    power = f"e^{number_words(epsilon)}"
    if epsilon >= 20:
        return power
    value = math.exp(epsilon)
    return f"{power} (about {value:,.0f})" if value >= 100 else f"{power} (about {value:.3g})"


def _refill(terms: Terms) -> str:
    budget, times = terms.budget, periods_touched(terms)
    if budget.period == "never":
        return "The budget never refills: this is all that may ever be spent."
    return (
        f"The budget refills when a calendar {budget.period} begins (UTC). While the terms hold "
        f"that makes {times:,} budgets, which add up to at most ε = {times * budget.epsilon:g} at "
        f"δ = {times * budget.delta:g}."
    )


def _overlap(terms: Terms) -> str:
    partners, budget = len(terms.partners), terms.budget
    if not terms.customers_overlap:
        return (
            "The partners take it that nobody is a customer of two of them. For somebody who is, "
            f"what the partners spend adds up{_AND_MORE['distributed' in terms.protections]}."
        )
    return (
        f"One person may be a customer of several partners, and what they spend adds up: for a "
        f"customer of all {partners} of them, to at most ε = {partners * budget.epsilon:g} at δ = "
        f"{partners * budget.delta:g} for every budget above. Reports state both."
    )


def _approval(terms: Terms) -> list[str]:
    if terms.approval == "manual":
        return ["At every partner a person says yes to each job that keeps all rules, or no."]
    return [
        "A node answers whatever keeps all rules without asking a person. A partner may still "
        "have its node ask its own people."
    ]


def _noise(terms: Terms) -> list[str]:
    sentences = []
    if "distributed" in terms.protections:
        sentences += _shared(terms)
    if "local" in terms.protections:
        when = "Under" if len(terms.protections) == 1 else "Where a job asks for"
        sentences.append(
            f"{when} “local” protection each partner adds all of its noise itself: nobody has to "
            "trust the coordinator or another partner for it."
        )
    return sentences


def _shared(terms: Terms) -> list[str]:
    assumed, partners = terms.secure_aggregation, len(terms.partners)
    assert assumed is not None  # noqa: S101 - the terms have it with this protection
    stay = partners - assumed.dropouts
    return [
        "Under “distributed” protection the partners share the noise: each adds a part, and masks "
        "what it sends, so that the coordinator sees nothing but the sum of all, with all noise.",
        f"For this the partners trust each other so far: at most {assumed.dropouts:,} of the "
        f"{partners:,} leave before a round has ended, and at most {assumed.colluders:,} tell "
        f"the coordinator or others what they know. With fewer than {stay:,} a round is lost. If "
        f"more than these collude, they see the others under less noise.",
    ]


def _leaves(terms: Terms) -> list[str]:
    return [
        "What leaves: after each round one update of the model. It is a sum over customers, of "
        "which each can move it only by so much, and each partner adds noise to it at home, before "
        "anything leaves.",
        "What leaves as well: a partner's signed yes to a job, with a fingerprint of its account; "
        "or the name of the rule that refused it. A refusal for too few customers says that there "
        "are too few, and not how many.",
        f"What does not leave: rows; “{terms.schema.key}” or anything else that identifies a "
        "customer; the real number of customers; any count, mean or extreme value; how well a "
        "model fits the partner's customers; private keys.",
        f"The coordinator sees {_SEEN['local' in terms.protections]}. The finished model goes to "
        "every partner and to whoever asked for it.",
    ]


def _columns(terms: Terms) -> list[str]:
    schema = terms.schema
    return [
        f"“{schema.key}” says whose a row is, and is used for nothing else. At most "
        f"{schema.max_rows_per_customer:,} rows of a customer count; which ones, is drawn by lot.",
        f"“{schema.label.name}”, which is predicted: 0 or 1. The partners expect a share of "
        f"{schema.label.prior:g} ones.",
        *(f"“{column.name}”: {column_words(column)}." for column in schema.columns),
        "All bounds, values and shares were agreed on here; none is taken from the data. What lies "
        "outside counts as the nearest bound.",
    ]


def _changes(terms: Terms) -> list[str]:
    place = "These are the first terms."
    if terms.version > 1:
        place = f"These terms amend the version with the digest {terms.previous}."
    return [
        f"“{terms.name}”, version {terms.version}. {place}",
        f"Nothing runs before all {len(terms.parties)} parties have signed exactly these terms. An "
        "amendment is a new version that all sign again; nobody goes back to an older one.",
    ]


def _keys(terms: Terms) -> list[str]:
    return [
        "Compare these with what each party reads to you from its own `dovetail keys show`.",
        *(
            f"{party.name} signs with the key {party.key} and connects with the certificate "
            f"{party.certificate}."
            for party, _ in terms.parties
        ),
    ]


_AND_MORE = {True: ", and where they share noise ε can exceed that sum", False: ""}
_SEEN = {True: "each partner's noised updates", False: "the sum of all partners' updates"}
_SECTIONS: dict[str, Callable[[Terms], list[str]]] = {
    "Who takes part": _who,
    "What for": _purposes,
    "From when until when": _validity,
    "What may be asked": _requests,
    "What it may cost": _cost,
    "Who says yes": _approval,
    "Who adds the noise": _noise,
    "What leaves a partner, and what does not": _leaves,
    "Which columns": _columns,
    "How the terms change": _changes,
    "Keys": _keys,
}
