"""What a released model is and what it cost: for people as a page, for programs as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.cost import cost_of
from dovetail.agreement.record import Fields, require
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.privacy import accountant
from dovetail.privacy.unit import PrivacyUnit

ARRAYS_FILE = "model.safetensors"
CARD_FILE = "card.json"

_FORMAT = 1
_STATED = (
    "format",
    "released",
    "request",
    "terms",
    "charged",
    "simulated",
    "notes",
    "arrays_sha256",
)
_DERIVED = ("request_digest", "terms_digest", "unit", "privacy", "not_protected", "use")

_NOISED_BY = {
    "local": "Each partner's own node added all of the noise before anything left it: neither the "
    "coordinator nor another partner has to be trusted with it.",
    "distributed": "Each partner's own node added a share of the noise and masked what it sent: "
    "the coordinator saw only the sum of all, with all of the noise. This rests on the partners: "
    "on how many of them may leave a round or collude, as the agreement says.",
    "none": "Nobody added noise. This model protects nobody.",
}
_HOW_TO_SCORE = """\
To score rows of your own, with a node's settings or any table that has these columns and the key:

```sh
dovetail node score model --output scores.csv                     # the table of ./node.toml
dovetail node score model --output scores.csv --rows rows.parquet
```

Each customer gets one score and a decile; the label is not needed. Nothing leaves the machine."""
_SIMULATED = (
    "Simulation: the noise was drawn from a public seed and can be subtracted. This model protects "
    "nobody; ε is what the same job would cost with a node's own secret generator."
)


@dataclass(frozen=True)
class ModelCard:
    """What a model is and what it cost; everything else that a card states follows from it.

    Attributes:
        request: the job that trained it.
        terms: under which it did.
        charged: how often, by partner, the request's event was charged to this job.
        released: on which day.
        notes: what else its makers say of it, in sentences; nothing here can check them.
        simulated: whether a simulation trained it, whose noise comes from a public seed.

    Raises:
        SettingError: nobody was charged, or someone who is no partner.
    """

    request: Request
    terms: Terms
    charged: Mapping[str, int]
    released: date
    notes: tuple[str, ...] = ()
    simulated: bool = False

    def __post_init__(self) -> None:
        require(bool(self.charged), "card: charged must name at least one partner")
        for name, count in self.charged.items():
            self.terms.partner(name)
            require(count >= 1, "card: charged must be at least 1 for each partner")

    def epsilon(self, partner: str) -> float:
        """ε of this job for a customer of this partner and no other, at the budget's δ."""
        paid = cost_of(self.request.task, self.terms).alone(self.charged[partner])
        return accountant.epsilon(paid, self.terms.budget.delta)

    def joint_epsilon(self) -> float:
        """ε of this job for a person who may be a customer of every partner, at the budget's δ.

        Where the noise is shared that is what each partner was charged. Where the terms say that
        nobody is a customer of two, the largest of the partners'.
        """
        counts = self.charged.values()
        adds_up = self.terms.customers_overlap and self.request.task.protection != "distributed"
        return self._epsilon(sum(counts) if adds_up else max(counts))

    def noised_by(self) -> str:
        """Who added the noise, in a sentence for people."""
        return _NOISED_BY[self.request.task.protection]

    def use(self) -> tuple[str, ...]:
        """How to read and use the scores, in sentences for people."""
        schema, weight = self.terms.schema, self.request.task.positive_weight
        weighed = (
            f"Training weighed positive rows {weight:g} times, and the released output bias has "
            f"that taken out again. "
            if weight != 1
            else ""
        )
        return (
            f"A score is the estimated probability that {schema.label.name} = 1 for one row, given "
            "columns prepared as listed here.",
            f"Training began at the declared share of ones, {schema.label.prior:g}. {weighed}"
            "Clipping and noise still move probabilities: compare their mean with the share among "
            "rows of your own before using them as probabilities. A ranking needs no such check.",
        )

    def not_protected(self) -> tuple[str, ...]:
        """What the stated ε does not cover, in sentences for people."""
        unit, partners = self.terms.schema.unit, self.terms.partners
        sentences = [_SIMULATED] if self.simulated else []
        sentences += [
            f"What holds for the {unit}s as a whole is learned, and is meant to be; it may say "
            f"something about a {unit} whether or not its rows were used.",
            "The terms are public among the partners: columns, bounds, categories, the declared "
            "share of the label, the declared numbers of customers and the days covered.",
            f"The guarantee rests on each partner's node limiting a {unit}'s rows and adding its "
            "noise as stated; it does not hold against the partner that holds the rows.",
        ]
        if self.terms.customers_overlap and len(partners) > 1:
            sentences.append(
                "Each partner's ε counts that partner's rows only. For one who is a customer of "
                f"all of them, the ε of this job is {self.joint_epsilon():.2f}."
            )
        elif len(partners) > 1:
            sentences.append(
                "Each partner's ε counts that partner's rows only. The partners declared that "
                f"they share no {unit}; for one whom they do share, {self._added_up()}."
            )
        return tuple(sentences)

    def _added_up(self) -> str:
        if self.request.task.protection == "distributed":
            return "one noise covers all that they add, and ε can exceed the sum of these values"
        return "the ε values add up, and so do the δ values"

    def to_record(self) -> dict[str, object]:
        """The card as JSON-able data."""
        terms, delta = self.terms, self.terms.budget.delta
        epsilons = {name: self.epsilon(name) for name in self.charged}
        return {
            "format": _FORMAT,
            "released": self.released.isoformat(),
            "request": requests.to_record(self.request),
            "request_digest": requests.digest(self.request),
            "terms": agreed.to_record(terms),
            "terms_digest": agreed.digest(terms),
            "charged": dict(self.charged),
            "simulated": self.simulated,
            "unit": f"all rows of one {terms.schema.unit}, at one partner",
            "privacy": {"delta": delta, "epsilon": epsilons, "joint": self.joint_epsilon()},
            "not_protected": list(self.not_protected()),
            "use": list(self.use()),
            "notes": list(self.notes),
        }

    def _epsilon(self, count: int) -> float:
        event = cost_of(self.request.task, self.terms).event
        return accountant.epsilon({event: count}, self.terms.budget.delta)


def card_with_arrays(card: ModelCard, arrays_sha256: str) -> dict[str, object]:
    """The card as JSON-able data, bound to the bytes of its arrays."""
    return {**card.to_record(), "arrays_sha256": arrays_sha256}


def page(card: ModelCard) -> str:
    """The card as a page of Markdown for people."""
    task, terms, schema = card.request.task, card.terms, card.terms.schema
    unit = PrivacyUnit(schema.unit, schema.max_rows_per_customer)
    lines = [
        f"# {task.label}: a model trained together",
        "",
        f"Purpose: {task.purpose}. Released on {card.released.isoformat()} by job "
        f"`{card.request.job}` under {terms.name!r}, version {terms.version}.",
        "",
        "## Privacy",
        "",
        f"{unit.describe()} Here δ = {terms.budget.delta:g}. {card.noised_by()}",
        "",
        "| partner | role | customers (declared) | data | ε of this job |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in card.charged:
        partner = terms.partner(name)
        cells = (name, partner.role, f"{partner.customers:,}", partner.data_period)
        lines.append(f"| {' | '.join(map(_cell, cells))} | {card.epsilon(name):.2f} |")
    lines += ["", "## What is not protected", ""]
    lines += [f"- {sentence}" for sentence in card.not_protected()]
    lines += ["", "## Use", ""]
    lines += [f"- {sentence}" for sentence in card.use()]
    lines += ["", _HOW_TO_SCORE]
    if card.notes:
        lines += ["", "## What its makers say", ""]
        lines += [f"- {_cell(sentence)}" for sentence in card.notes]
    lines += ["", "## Model", "", *_model_lines(card), "", "## Columns and public bounds", ""]
    lines += [f"- {_cell(line)}" for line in _column_lines(card)]
    return "\n".join([*lines, ""])


def _model_lines(card: ModelCard) -> list[str]:
    task = card.request.task
    server = f"server optimiser {task.server_optimizer}"
    hidden = f" with hidden layers of {', '.join(map(str, task.model.hidden))} units"
    shape = hidden if task.model.hidden else ""
    return [
        f"- {task.model.family}{shape}; protection `{task.protection}`",
        f"- {task.rounds} rounds of {task.local_steps} steps, {server}",
        f"- {_bounded(card)}; weight of positive rows {task.positive_weight:g}",
        *_assumed(card),
        f"- request `{requests.digest(card.request)}`",
        f"- terms `{agreed.digest(card.terms)}`",
        f"- arrays: `{ARRAYS_FILE}`, whose SHA-256 stands in `{CARD_FILE}`",
    ]


def _bounded(card: ModelCard) -> str:
    """What is clipped and noised, and what one customer moves of it."""
    task, unit = card.request.task, card.terms.schema.unit
    clip, noise = f"{task.l2_clip_norm:g}", f"noise multiplier {task.noise_multiplier:g}"
    if task.protection == "distributed" and task.local_steps > 1:
        return (
            f"each round: each partner's update over all its steps clipped to {clip} as a whole, "
            f"no {unit}'s gradient by itself; one {unit} moves the sum of all by up to twice that, "
            f"and counts as taking part in every round; {noise}, in clip norms: half as much for "
            f"what one {unit} moves"
        )
    return (
        f"each step: {unit}s sampled with probability {task.sampling_prob:g}, the summed gradient "
        f"of each clipped to {clip}, {noise}"
    )


def _assumed(card: ModelCard) -> list[str]:
    """Where the noise is shared, on how many partners the guarantee rests, in words."""
    assumed = card.terms.secure_aggregation
    if card.request.task.protection != "distributed" or assumed is None:
        return []
    partners = len(card.terms.partners)
    return [
        f"- shared noise: of {partners} partners at most {assumed.dropouts} leave a round before "
        f"its end, and at most {assumed.colluders} tell others what they know; the noise of the "
        f"other {partners - assumed.tolerated} is all that ε counts",
    ]


def _column_lines(card: ModelCard) -> list[str]:
    lines = []
    for column in card.terms.schema.select(card.request.task.features).to_record()["columns"]:
        rest = {
            k: v
            for k, v in column.items()
            if k not in ("name", "type") and v is not False and v not in ("", "linear")
        }
        stated = "; ".join(
            f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in rest.items()
        )
        lines.append(f"{column['name']} ({column['type']}): {stated}")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def card_from_record(record: object) -> tuple[ModelCard, str]:
    """The card in a record that :func:`card_with_arrays` made, and the digest of its arrays.

    Raises:
        SettingError: a field is missing or of another type, or terms or request were changed.
    """
    read = Fields(record, "card", (*_STATED, *_DERIVED))
    require(read.whole("format") == _FORMAT, "card: this version cannot read its format")
    charged = read.raw("charged")
    require(isinstance(charged, dict), "card: charged must be a table of fields")
    names = list(charged) if isinstance(charged, dict) else []
    counts = Fields(charged, "card.charged", names)
    card = ModelCard(
        request=requests.from_record(read.raw("request")),
        terms=agreed.parse_terms(read.raw("terms")),
        charged={name: counts.whole(name) for name in names},
        released=read.day("released"),
        notes=read.texts("notes"),
        simulated=read.flag("simulated"),
    )
    require(read.text("terms_digest") == agreed.digest(card.terms), "card: terms were changed")
    require(read.text("request_digest") == requests.digest(card.request), "card: request changed")
    return card, read.text("arrays_sha256")
