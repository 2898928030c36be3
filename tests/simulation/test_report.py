from __future__ import annotations

import html
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import DataError, LedgerError
from dovetail.privacy import accountant
from dovetail.privacy.event import Gaussian, Spending
from dovetail.simulation import findings
from dovetail.simulation.report import (
    FALSE_POSITIVE_RATES,
    _listed,
    attack,
    best_true_positive_rate,
    headline,
    ledger_lines,
    page,
    write_report,
)
from dovetail.simulation.results import Estimate, Measurement
from dovetail.simulation.study_result import StudyResult, shown
from tests.simulation import made_up_study as made_up

RESULT, JOB = made_up.result(), made_up.job()
PAGE = page(RESULT, JOB)
VOID = {"meta", "br", "link", "img", "input", "hr"}
FETCHING = {"script", "link", "img", "iframe", "object", "embed", "image", "source", "video"}

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=y>', "{{ 7*7 }} & co")


class Page(HTMLParser):
    """Checks that every tag is closed in order, and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.captions = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


READ = Page(PAGE)


def test_every_tag_is_closed_in_order() -> None:
    assert READ.open == []


def test_the_page_fetches_nothing() -> None:
    assert "http:" not in PAGE
    assert "https:" not in PAGE
    assert "@import" not in PAGE
    assert not {tag for tag, _ in READ.tags} & FETCHING
    links = [value for _, attrs in READ.tags for name, value in attrs.items() if name == "href"]
    assert all(link and link.startswith("#") for link in links)


def test_the_page_says_its_language_and_has_headings_and_captions() -> None:
    assert ("html", {"lang": "en"}) in READ.tags
    assert READ.count("h1") == 1
    assert READ.count("h2") >= 5
    assert READ.count("caption") == READ.count("table") >= 4
    assert all("scope" in attrs for tag, attrs in READ.tags if tag == "th")


def test_every_figure_has_alternative_text() -> None:
    described = [attrs for _, attrs in READ.tags if attrs.get("role") == "img"]
    assert READ.count("figure") == READ.count("svg") == len(described) == 5
    assert all(len(attrs["aria-label"] or "") > 40 for attrs in described)


def test_no_id_is_used_twice() -> None:
    ids = [attrs["id"] for _, attrs in READ.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    known = set(ids)
    labels = [attrs["aria-labelledby"] for _, attrs in READ.tags if "aria-labelledby" in attrs]
    assert set(labels) <= known


@pytest.mark.parametrize("number", range(3))
def test_the_first_table_holds_what_was_measured(number: int) -> None:
    name = made_up.NAMES[number]
    gain = findings.gain(RESULT.evidence, name, 3.0)
    alone = [m.value for m in _final("alone", name, name)]
    joint = [m.value for m in _final("joint", "all", name)]
    row = next(row for row in READ.rows if row and row[0].startswith(name))
    assert gain is not None
    assert row[1:3] == [f"{made_up.DECLARED[number]:,}", str(made_up.HELD_OUT[number])]
    assert row[3].startswith(f"{sum(alone) / 3:.3f} ± ")
    assert row[4].startswith(f"{sum(joint) / 3:.3f} ± ")
    assert row[5] == f"{gain.mean:+.3f} ± {gain.standard_error:.3f}"
    assert row[6:] == ["3", "0.001"]


def _final(comparison: str, trainer: str, tested: str) -> list[Measurement]:
    wanted = (comparison, trainer, tested, 3.0, True)
    return [
        m
        for m in RESULT.measurements
        if (m.comparison, m.trained_by, m.tested_on, m.epsilon, m.final) == wanted
    ]


def with_gains(*gains: float, names: tuple[str, ...] = made_up.NAMES) -> StudyResult:
    """The made-up study, without noise: every partner's joint AUC is its own plus its gain."""
    wanted = dict(zip(names, gains, strict=True))
    measured = [
        replace(m, value=0.7 + (wanted.get(m.tested_on, 0) if m.comparison == "joint" else 0))
        for m in made_up.measurements(names)
    ]
    return replace(made_up.result(names), measurements=tuple(measured))


def test_the_headline_tells_who_gains_who_loses_and_what_nobody_could_show() -> None:
    result = with_gains(0.2, -0.2, 0.001)
    told = {name: findings.gain(result.evidence, name, 3.0) for name in made_up.NAMES}
    retailer, platform, brand = (f"{name} ({shown(told[name], '+')})" for name in made_up.NAMES)
    sentence = headline(result, 3.0)
    assert f"rises for {retailer}; test AUC falls for {platform}; no difference" in sentence
    assert (
        f"could show for {brand}. Mean over partners, weighted by held-out customers: " in sentence
    )
    assert shown(findings.mean_gain(result.evidence, 3.0), "+") in sentence
    assert html.escape(sentence).replace(" ± ", "\u00a0±\u00a0") in page(result, JOB)
    assert "AUC" not in headline(replace(RESULT, measurements=()), 3.0)


def test_a_headline_of_many_partners_counts_them() -> None:
    found = {str(number): Estimate(0.1, 0.01, 3) for number in range(9)}
    assert _listed(["1", "2"], found) == "2 of 9 partners"


def test_hostile_words_are_shown_and_never_obeyed() -> None:
    result = made_up.result()
    study = replace(result.study, name=HOSTILE[0])
    partners = tuple(replace(p, role=w) for p, w in zip(result.partners, HOSTILE, strict=True))
    job = made_up.job(note="<b>bold</b>")
    terms = replace(job.card.terms, name=HOSTILE[1])
    text = page(
        replace(result, study=study, partners=partners),
        replace(job, card=replace(job.card, terms=terms)),
    )
    read = Page(text)
    assert read.open == []
    assert not {tag for tag, _ in read.tags} & (FETCHING | {"b"})
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert html.escape(HOSTILE[0]) in text
    for word in HOSTILE:
        assert any(word in cell for row in read.rows for cell in row)


@pytest.mark.parametrize(
    "said",
    [
        "not private",
        "What is not protected",
        "Who must be trusted",
        "<code>local</code>",
        "floating-point",
        "Side channels",
        "Several runs",
        "declared numbers of customers",
        "Drawn at random.",
        "standard error over 3 noise seeds and the held-out customers",
        "How the settings were chosen",
        "compare their mean with the share",
        "This model protects nobody",
        "closed; nothing was left to give back",
        "so not the “all rows ranked together” row",
        '<th scope="row">all rows ranked together</th>',
    ],
)
def test_what_the_page_must_say(said: str) -> None:
    assert said in PAGE


def test_the_attack_table_is_computed_from_the_job() -> None:
    event = replace(JOB.card.request.task.event, noise_std=made_up.NOISE[1.0] * 0.5)
    found = attack(1.0, made_up.DELTA, {event: made_up.ROUNDS})
    row = next(row for row in READ.rows if len(row) == 6 and row[0] == "1")
    assert row[1] == f"× {math.e:.4g}"
    pairs = zip(found.stated, found.accounted, strict=True)
    wanted = [f"{100 * rate:.3g} %" for pair in pairs for rate in pair]
    assert row[2:] == wanted


def test_randomised_response_attains_the_bound() -> None:
    """Its likelihood ratio is e^ε or e^-ε: its best test accuses on the one answer, or more."""
    epsilon = 1.5
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert best_true_positive_rate(epsilon, 0, 1 - truth) == pytest.approx(truth)
    half = best_true_positive_rate(epsilon, 0, (1 - truth) / 2)
    assert half == pytest.approx(truth / 2)


def test_some_known_rates() -> None:
    assert best_true_positive_rate(0, 0, 0.05) == pytest.approx(0.05)
    assert best_true_positive_rate(0, 0.1, 0.05) == pytest.approx(0.15)
    assert best_true_positive_rate(1, 1e-4, 0.01) == pytest.approx(0.01 * math.e + 1e-4)
    assert best_true_positive_rate(3, 0, 0.05) == pytest.approx(1 - 0.95 * math.exp(-3))
    assert best_true_positive_rate(50, 0, 0.01) == pytest.approx(1)


@given(
    epsilon=st.floats(0, 20),
    delta=st.floats(0, 0.5),
    rate=st.floats(0, 1),
    more=st.floats(0, 5),
)
def test_rates_are_rates_and_grow_with_every_argument(
    epsilon: float, delta: float, rate: float, more: float
) -> None:
    found = best_true_positive_rate(epsilon, delta, rate)
    assert rate <= found <= 1
    assert found <= best_true_positive_rate(epsilon + more, delta, rate) + 1e-12
    assert found <= best_true_positive_rate(epsilon, min(1, delta + more), rate) + 1e-12


@pytest.mark.parametrize("noise", [0.8, 2.0])
def test_the_accounted_rate_lies_between_a_real_attack_and_the_stated_bound(noise: float) -> None:
    """Against one Gaussian mechanism the best test is known: Φ(Φ⁻¹(α) + 1/σ)."""
    spending: Spending = {Gaussian(1.0, noise): 1}
    found = attack(accountant.epsilon(spending, 1e-5), 1e-5, spending)
    for rate, stated, accounted in zip(
        FALSE_POSITIVE_RATES, found.stated, found.accounted, strict=True
    ):
        real = NormalDist().cdf(NormalDist().inv_cdf(rate) + 1 / noise)
        assert real <= accounted <= min(stated, 1.35 * real)


def test_ledger_lines_add_up() -> None:
    entries = made_up.entries(JOB.card.request)
    lines = ledger_lines(entries, JOB.card.terms.budget)
    assert [line.kinds for line in lines] == ["reserve", "begin, commit", "cancel"]
    assert [line.rounds for line in lines] == ["", f"1–{made_up.ROUNDS}", ""]
    assert sum(line.entries for line in lines) == len(entries)
    cost = accountant.epsilon({JOB.card.request.task.event: made_up.ROUNDS}, made_up.DELTA)
    assert lines[-1].epsilon == pytest.approx(cost)


@pytest.mark.parametrize(("begun", "said"), [(4, "2 steps"), (5, "1 step"), (0, "6 steps")])
def test_a_job_that_ended_early_gives_steps_back(begun: int, said: str) -> None:
    entries = made_up.entries(JOB.card.request, begun)
    (*_, last) = ledger_lines(entries, JOB.card.terms.budget)
    assert last.kinds == "cancel"
    assert last.given_back == made_up.ROUNDS - begun
    ended = replace(JOB, ledgers={made_up.NAMES[0]: entries})
    assert f"closed; {said} given back" in page(RESULT, ended)


def test_a_ledger_that_was_tampered_with_makes_no_report() -> None:
    entries = made_up.entries(JOB.card.request)
    with pytest.raises(LedgerError):
        ledger_lines(entries[:3] + entries[4:], JOB.card.terms.budget)


def test_the_file_holds_the_page_and_a_page_repeats_itself(tmp_path: Path) -> None:
    write_report(RESULT, JOB, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == PAGE
    with pytest.raises(DataError, match=r"report\.html"):
        write_report(RESULT, JOB, tmp_path / "missing" / "report.html")
