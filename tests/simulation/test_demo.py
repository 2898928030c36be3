from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from dovetail.agreement.terms import Budget
from dovetail.data.tidy import ColumnType, read_parquet, write_parquet
from dovetail.errors import DataError, SettingError
from dovetail.schema import Number
from dovetail.simulation import complete_journey
from dovetail.simulation.demo import JOB, DemoResult, Watch, run_demo
from dovetail.simulation.metrics import auc
from dovetail.simulation.report import ledger_lines
from dovetail.simulation.results import select
from dovetail.store.model import load_model

TODAY = date(2024, 5, 1)
NUMBERS = [c for c in complete_journey.schema().columns if isinstance(c, Number)]
TELLING = next(c for c in NUMBERS if c.name == "baskets_84_days")
HOUSEHOLDS = 300  # of each partner


def few_mailings(destination: Path) -> None:
    """A small table of the demo's shape, in which one column tells the label."""
    dice, rows = np.random.default_rng(0), []
    schema = complete_journey.schema()
    for number, (group,) in enumerate(complete_journey.PARTNERS.values()):
        for household in range(HOUSEHOLDS):
            told = dice.random()
            row: dict[str, object] = dict.fromkeys(c.name for c in schema.columns)
            row |= {c.name: c.low + (c.high - c.low) * dice.random() for c in NUMBERS}
            row[TELLING.name] = TELLING.low + (TELLING.high - TELLING.low) * told
            row |= {"household_id": f"{number}-{household}", "home_store_group": group}
            rows.append({**row, schema.label.name: int(dice.random() < told)})
    columns: dict[str, ColumnType] = dict.fromkeys(rows[0], "text")
    columns |= dict.fromkeys((c.name for c in NUMBERS), "number")
    columns[schema.label.name] = "whole"
    write_parquet(rows, columns, destination)


def small_demo(folder: Path, watch: Watch | None = None) -> DemoResult:
    return run_demo(folder, TODAY, epsilons=(8.0,), seeds=1, watch=watch, build=few_mailings)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, list[str]]:
    said: list[str] = []
    watch = Watch(
        step=said.append,
        note=said.append,
        job=lambda event: said.append(f"{event.partner} {event.kind}".strip()),
    )
    return small_demo(tmp_path_factory.mktemp("demo"), watch), said


def test_everything_it_names_is_there(shown: tuple[DemoResult, list[str]]) -> None:
    found, _ = shown
    assert {"report", "results", "model", "model card"} < set(found.places)
    assert all(path.is_file() for path in found.places.values())
    assert "Coupon redemption" in found.places["report"].read_text(encoding="utf-8")
    assert len(read_parquet(found.places["results"])) == len(found.result.measurements)


def test_it_says_what_happens_in_order(shown: tuple[DemoResult, list[str]]) -> None:
    _, said = shown
    kinds = [word.split()[-1] for word in said]
    assert said[0].startswith("Building")
    assert said[1] == f"{3 * HOUSEHOLDS} mailings"
    assert kinds.index("permitted") < kinds.index("round") < kinds.index("released")
    assert said[-1] == "Writing the report"


def test_the_model_was_paid_for_at_every_partner(shown: tuple[DemoResult, list[str]]) -> None:
    found, _ = shown
    arrays, card = load_model(found.places["model"].parent)
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert card == found.job.card
    assert card.released == TODAY
    for name, entries in found.job.ledgers.items():
        spent = ledger_lines(entries, Budget(8.0, card.terms.budget.delta))[-1].epsilon
        assert 7.9 < spent <= 8
        assert card.epsilon(name) == pytest.approx(spent)
        commits = [entry for entry in entries if entry.kind == "commit"]
        assert len(commits) == card.request.task.rounds
        assert {entry.job for entry in entries} == {JOB}


def test_what_was_resampled_is_what_was_measured(shown: tuple[DemoResult, list[str]]) -> None:
    result = shown[0].result
    for model in result.predictions:
        wanted = select(
            result.measurements,
            comparison=model.comparison,
            epsilon=model.epsilon,
            trained_by=model.trained_by,
        )
        assert auc(model.labels, model.scores) == pytest.approx(wanted[model.seed])
    assert all(row.joint.customers_error > 0 for row in result.table().rows)


def test_the_card_says_how_settings_were_chosen_and_what_partners_are(
    shown: tuple[DemoResult, list[str]],
) -> None:
    card, report = (shown[0].places[what].read_text() for what in ("model card", "report"))
    for said in ("This model protects nobody", "No ε covers these choices", "advertising platform"):
        assert said in card
        assert said in report


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    ledger = tmp_path / "ledgers" / "retailer.ledger"
    ledger.parent.mkdir()
    ledger.write_text("a real one")
    with pytest.raises(SettingError, match="something else than a demo"):
        small_demo(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [ledger]


def test_the_joint_model_learns(shown: tuple[DemoResult, list[str]]) -> None:
    """The chance of this AUC for a model that learnt nothing is below one in a million."""
    found, _ = shown
    (row,) = [row for row in found.result.table().rows if row.partner == "all"]
    held_out = sum(partner.held_out_customers for partner in found.result.partners)
    assert row.joint.mean > 0.5 + 5 * math.sqrt(1 / (3 * held_out))


def test_a_second_demo_in_the_same_folder_begins_afresh(
    shown: tuple[DemoResult, list[str]],
) -> None:
    first, _ = shown
    second = small_demo(first.places["report"].parent)
    assert first.result.measurements == second.result.measurements
    for entries in second.job.ledgers.values():
        assert [entry.kind for entry in entries].count("reserve") == 1


@pytest.mark.parametrize(
    ("epsilons", "seeds", "named"),
    [
        ((0.0,), 1, "epsilon"),
        ((-1.0,), 1, "epsilon"),
        ((math.nan,), 1, "epsilon"),
        ((3.0,), 0, "seeds"),
    ],
)
def test_bad_settings_write_nothing(
    tmp_path: Path, epsilons: tuple[float, ...], seeds: int, named: str
) -> None:
    with pytest.raises(SettingError, match=named):
        run_demo(tmp_path / "new", TODAY, epsilons=epsilons, seeds=seeds, build=few_mailings)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match="taken"):
        small_demo(tmp_path / "taken")


@pytest.mark.long
def test_the_headline_job_between_processes(tmp_path: Path) -> None:
    said: list[str] = []
    watch = Watch(job=lambda event: said.append(event.kind))
    found = run_demo(
        tmp_path, TODAY, epsilons=(8.0,), seeds=1, watch=watch, build=few_mailings, processes=True
    )
    assert said[0] == "submitted"
    assert said[-1] == "released"
    assert all(path.is_file() for path in found.places.values())
    _, card = load_model(found.places["model"].parent)
    assert card == found.job.card
    assert not card.simulated
    for name, entries in found.job.ledgers.items():
        kinds = [entry.kind for entry in entries]
        assert kinds.count("commit") == card.request.task.rounds
        assert kinds[-1] == "cancel", "the job's end was heard"
        spent = ledger_lines(entries, Budget(8.0, card.terms.budget.delta))[-1].epsilon
        assert card.epsilon(name) == pytest.approx(spent)


@pytest.mark.long
def test_the_real_demo(tmp_path: Path) -> None:
    found = run_demo(tmp_path, TODAY, seeds=1)
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [partner["name"] for partner in record["partners"]] == list(complete_journey.PARTNERS)
    assert found.job.epsilon == 3
    assert all(row.joint.mean > 0.7 for row in found.result.table().rows)
