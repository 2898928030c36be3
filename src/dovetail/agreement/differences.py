"""What an amendment changes, in words, and whether it allows more or less.

*Looser* is what lets more be asked, spent or learnt, and *stricter* what lets less. Where that
depends, as with a key that is replaced or a partner that comes, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dovetail.agreement import terms as agreed
from dovetail.agreement.party import Partner, Party
from dovetail.agreement.terms import Period, Terms
from dovetail.agreement.wording import column_words, number_words
from dovetail.schema import Column

Tendency = Literal["looser", "stricter", ""]


@dataclass(frozen=True)
class Difference:
    """One change.

    Attributes:
        words: what changes, such as "ε of all jobs together: 3 → 4".
        tendency: whether it allows more or less; empty where that cannot be said.
    """

    words: str
    tendency: Tendency = ""


def differences(old: Terms, new: Terms) -> list[Difference]:
    """All that distinguishes two terms, in the order of the page; empty only for equal ones."""
    return [
        *_versions(old, new),
        *_parties(old, new),
        *_listed(old, new),
        *_days(old, new),
        *_limits(old, new),
        *_choices(old, new),
        *_schema(old, new),
    ]


@dataclass(frozen=True)
class _Limit:
    what: str
    of: Callable[[Terms], float]
    more: Tendency = "looser"


_LIMITS = (
    _Limit("ε of all jobs together", lambda t: t.budget.epsilon),
    _Limit("δ", lambda t: t.budget.delta),
    _Limit("ε of one job", lambda t: t.max_epsilon_per_job),
    _Limit("jobs open at once", lambda t: t.max_concurrent_jobs),
    _Limit("parameters of a model", lambda t: t.max_parameters),
    _Limit("rounds of a job", lambda t: t.max_rounds),
    _Limit("steps of a job", lambda t: t.max_steps),
    _Limit(
        "partners that may drop out of a round",
        lambda t: t.secure_aggregation.dropouts if t.secure_aggregation else 0,
        "",
    ),
    _Limit(
        "partners that may collude",
        lambda t: t.secure_aggregation.colluders if t.secure_aggregation else 0,
        "stricter",
    ),
    _Limit("fewest customers with which a partner answers", lambda t: t.minimum_cohort, "stricter"),
)
_OPPOSITE: dict[Tendency, Tendency] = {"looser": "stricter", "stricter": "looser"}
_LISTS: dict[str, Callable[[Terms], Sequence[str]]] = {
    "purpose": lambda t: t.purposes,
    "kind of request": lambda t: t.requests,
    "kind of model": lambda t: t.model_families,
    "way to add noise": lambda t: t.protections,
}


def _versions(old: Terms, new: Terms) -> Iterator[Difference]:
    yield from _changed("name", old.name, new.name)
    yield from _changed("version", old.version, new.version)
    follows = new.previous == agreed.digest(old)
    if new.previous != old.previous and not follows:
        yield Difference("the second does not amend the first: it names another version before it")


def _parties(old: Terms, new: Terms) -> Iterator[Difference]:
    before = {party.name: (party, duty) for party, duty in old.parties}
    after = {party.name: (party, duty) for party, duty in new.parties}
    for name, (_, duty) in before.items():
        if name not in after:
            yield Difference(f"{name} ({duty}) leaves", "stricter" if duty == "analyst" else "")
    for name, (party, duty) in after.items():
        if name not in before:
            yield Difference(f"{name} ({duty}) joins", "looser" if duty == "analyst" else "")
        else:
            earlier, was = before[name]
            yield from _changed(f"what {name} does", was, duty)
            yield from _party(earlier, party)
    if sorted(before) == sorted(after) and [*before] != [*after]:
        yield Difference("the parties stand in another order")


def _party(old: Party, new: Party) -> Iterator[Difference]:
    if old.key != new.key:
        yield Difference(f"{new.name} signs with another key: {old.key} → {new.key}")
    if old.certificate != new.certificate:
        pins = f"{old.certificate} → {new.certificate}"
        yield Difference(f"{new.name} connects with another certificate: {pins}")
    if isinstance(old, Partner) and isinstance(new, Partner):
        yield from _changed(f"what {new.name} is", old.role, new.role)
        yield from _changed(f"customers of {new.name}", old.customers, new.customers)
        yield from _changed(f"data of {new.name}", old.data_period, new.data_period)


def _listed(old: Terms, new: Terms) -> Iterator[Difference]:
    for what, of in _LISTS.items():
        before, after = of(old), of(new)
        for word in _less(before, after):
            yield Difference(f"no longer: {what} “{word}”", "stricter")
        for word in _less(after, before):
            yield Difference(f"new: {what} “{word}”", "looser")
        if sorted(before) == sorted(after) and list(before) != list(after):
            yield Difference(f"each {what} stands in another place")


def _limits(old: Terms, new: Terms) -> Iterator[Difference]:
    for limit in _LIMITS:
        before, after = limit.of(old), limit.of(new)
        tendency = limit.more if after > before else _OPPOSITE.get(limit.more, "")
        yield from _changed(limit.what, before, after, tendency)


def _days(old: Terms, new: Terms) -> Iterator[Difference]:
    later: Tendency = "stricter" if new.valid_from > old.valid_from else "looser"
    yield from _changed("begins on", str(old.valid_from), str(new.valid_from), later)
    longer: Tendency = "looser" if new.valid_until > old.valid_until else "stricter"
    yield from _changed("ends on", str(old.valid_until), str(new.valid_until), longer)


def _choices(old: Terms, new: Terms) -> Iterator[Difference]:
    periods = get_args(Period)
    oftener = periods.index(new.budget.period) - periods.index(old.budget.period)
    yield from _changed(
        "when the budget refills",
        old.budget.period,
        new.budget.period,
        "looser" if oftener > 0 else "stricter",
    )
    approval: Tendency = "stricter" if new.approval == "manual" else "looser"
    yield from _changed("approval", old.approval, new.approval, approval)
    if old.customers_overlap != new.customers_overlap:
        may = "may" if new.customers_overlap else "may no longer"
        yield Difference(f"one person {may} be a customer of several partners")


def _schema(old: Terms, new: Terms) -> Iterator[Difference]:
    before, after = old.schema, new.schema
    yield from _changed("table", before.name, after.name)
    yield from _changed("column that identifies customers", before.key, after.key)
    yield from _changed("what a customer is", before.unit, after.unit)
    yield from _changed(
        "rows that count for one customer",
        before.max_rows_per_customer,
        after.max_rows_per_customer,
    )
    yield from _changed("what is predicted", before.label.name, after.label.name)
    yield from _changed("expected share of ones", before.label.prior, after.label.prior)
    yield from _columns(before.columns, after.columns)


def _columns(old: Sequence[Column], new: Sequence[Column]) -> Iterator[Difference]:
    before, after = {c.name: c for c in old}, {c.name: c for c in new}
    for name in _less([*before], [*after]):
        yield Difference(f"no longer: column “{name}”", "stricter")
    for name in _less([*after], [*before]):
        yield Difference(f"new: column “{name}”, {column_words(after[name])}", "looser")
    for name in [name for name in after if name in before]:
        if before[name] != after[name]:
            was, is_ = column_words(before[name]), column_words(after[name])
            yield Difference(f"column “{name}”: {was} → {is_}")
    if sorted(before) == sorted(after) and [*before] != [*after]:
        yield Difference("the columns stand in another order")


def _changed(
    what: str, old: float | str, new: float | str, tendency: Tendency = ""
) -> Iterator[Difference]:
    if old != new:
        yield Difference(f"{what}: {_shown(old)} → {_shown(new)}", tendency)


def _less(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return [name for name in names if name not in others]


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else number_words(value)
