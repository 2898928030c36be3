from __future__ import annotations

import json
import shlex
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms, parse_terms
from dovetail.cli.main import app
from dovetail.errors import DataError, SettingError
from dovetail.privacy import accountant
from dovetail.privacy.release import Provenance, Release, release
from dovetail.schema import Category, Date
from dovetail.store.card import ARRAYS_FILE, CARD_FILE, ModelCard
from dovetail.store.model import (
    PAGE_FILE,
    card_for,
    load_model,
    save_fetched,
    save_model,
    save_received,
)

VECTORS = Path(__file__).parent.parent / "vectors"


def read(name: str, place: int = 0) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((VECTORS / name).read_text())["good"][place]["record"]
    return record


@pytest.fixture
def terms() -> Terms:
    return parse_terms(read("terms.json"))


@pytest.fixture
def asked() -> Request:
    return requests.from_record(read("request.json"))


@pytest.fixture
def card(asked: Request, terms: Terms) -> ModelCard:
    return ModelCard(asked, terms, {"retailer": 40, "platform": 44}, date(2024, 5, 31))


@pytest.fixture
def arrays(asked: Request, terms: Terms) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    dice = np.random.default_rng(7)
    schema = terms.schema.select(asked.task.features)
    return {
        parameter.name: dice.normal(size=parameter.shape).astype(np.float32)
        for parameter in asked.task.model.parameters(schema)
    }


def released(arrays: Any, card: ModelCard, **changes: Any) -> Release:
    """A release of these arrays, charged as the card says."""
    origin = Provenance(
        card.request.job, requests.digest(card.request), agreed.digest(card.terms), rounds=40
    )
    return release(
        arrays,
        {name: {card.request.task.event: count} for name, count in card.charged.items()},
        card.terms.budget.delta,
        replace(origin, **changes),
        customers_overlap=card.terms.customers_overlap,
    )


@pytest.mark.parametrize("field", ["job", "request_digest", "terms_digest"])
def test_a_release_of_another_job_is_not_saved_under_this_card(
    field: str, tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    with pytest.raises(SettingError, match="not of the job"):
        save_model(tmp_path / "model", released(arrays, card, **{field: "other"}), card)
    assert not (tmp_path / "model").exists()


def test_a_card_that_says_less_than_was_charged_is_not_saved(
    tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    dearer = released(arrays, replace(card, charged={**card.charged, "retailer": 41}))
    with pytest.raises(SettingError, match="charged otherwise"):
        save_model(tmp_path / "model", dearer, card)


def test_the_page_says_who_noised_how_to_use_it_and_what_its_makers_add(
    tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    noted = replace(card, notes=("Bounds were | guessed.",))
    save_model(tmp_path, released(arrays, noted), noted)
    text = (tmp_path / PAGE_FILE).read_text()
    assert noted.noised_by() in text
    assert all(sentence in text for sentence in noted.use())
    assert "Bounds were \\| guessed." in text
    assert requests.digest(card.request) in text
    assert agreed.digest(card.terms) in text
    assert load_model(tmp_path)[1] == noted


def test_what_was_saved_is_loaded(tmp_path: Path, arrays: Any, card: ModelCard) -> None:
    save_model(tmp_path / "new" / "model", released(arrays, card), card)
    loaded, described = load_model(tmp_path / "new" / "model")
    assert described == card
    assert loaded.keys() == arrays.keys()
    assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)


def test_nothing_but_the_model_is_left_in_the_folder(
    tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    for _ in range(2):
        save_model(tmp_path, released(arrays, card), card)
    assert {file.name for file in tmp_path.iterdir()} == {ARRAYS_FILE, CARD_FILE, PAGE_FILE}


def test_the_card_states_what_it_cost_and_what_it_rests_on(
    tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    save_model(tmp_path, released(arrays, card), card)
    record = json.loads((tmp_path / CARD_FILE).read_text())
    event = card.request.task.event
    assert record["privacy"]["epsilon"]["retailer"] == accountant.epsilon({event: 40}, 1e-4)
    assert record["privacy"]["epsilon"]["platform"] == accountant.epsilon({event: 44}, 1e-4)
    assert record["privacy"]["joint"] == record["privacy"]["epsilon"]["platform"]
    assert record["privacy"]["delta"] == 1e-4
    assert record["unit"] == "all rows of one household, at one partner"
    assert record["terms_digest"] == agreed.digest(card.terms)
    assert record["terms"]["schema"]["columns"][0]["high"] == 2000.0


def test_the_page_for_people_states_the_same(tmp_path: Path, arrays: Any, card: ModelCard) -> None:
    save_model(tmp_path, released(arrays, card), card)
    page = (tmp_path / PAGE_FILE).read_text()
    for stated in (
        "coupon propensity",
        "`spring-2017`",
        "δ = 0.0001",
        f"| retailer | grocery retailer | 1,300 | 2016-11-21 to 2017-12-31 | "
        f"{card.epsilon('retailer'):.2f} |",
        "spend (number): low 0.0; high 2000.0; unit USD; transform log",
        "at most 5 rows; ε bounds what adding or removing one",
        "## What is not protected",
        agreed.digest(card.terms),
    ):
        assert stated in page


def test_the_card_of_a_simulation_says_first_that_it_protects_nobody(
    tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    simulated = replace(card, simulated=True)
    save_model(tmp_path, released(arrays, simulated), simulated)
    page = (tmp_path / PAGE_FILE).read_text()
    assert "## What is not protected\n\n- Simulation: the noise was drawn from a public" in page
    assert load_model(tmp_path)[1] == simulated
    assert not any("Simulation" in sentence for sentence in card.not_protected())


def test_the_example_on_the_card_scores_rows(
    tmp_path: Path, arrays: Any, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", released(arrays, card), card)
    text = (tmp_path / "model" / PAGE_FILE).read_text()
    example = text.partition("```sh\n")[2].partition("```")[0]
    schema = card.terms.schema
    columns = [schema.key, *(column.name for column in schema.columns)]
    values = [
        c.values[0] if isinstance(c, Category) else c.earliest if isinstance(c, Date) else c.low
        for c in schema.columns
    ]
    lines = [",".join(map(str, (f"k{key}", *values))) for key in range(7)]
    (tmp_path / "rows.csv").write_text("\n".join([",".join(columns), *lines]))
    (tmp_path / "node.toml").write_text('name = "retailer"\n[source]\nfiles = "rows.csv"\n')
    monkeypatch.chdir(tmp_path)
    for line in example.replace("rows.parquet", "rows.csv").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "dovetail"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        scored = (tmp_path / "scores.csv").read_text().splitlines()
        assert scored[0].startswith(schema.key)
        assert {row.partition(",")[0] for row in scored[1:]} == {f"k{key}" for key in range(7)}
        (tmp_path / "scores.csv").unlink()


def test_what_travels_is_saved_as_it_was_released(
    tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    made = released(arrays, card)
    save_model(tmp_path / "here", made, card)
    record = json.loads(json.dumps(card_for(made, card)))
    assert save_received(tmp_path / "received", record, arrays) == card
    content = (tmp_path / "here" / ARRAYS_FILE).read_bytes()
    assert save_fetched(tmp_path / "fetched", record, content) == card
    for place in ("received", "fetched"):
        for file in (ARRAYS_FILE, CARD_FILE, PAGE_FILE):
            assert (tmp_path / place / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_a_card_of_another_release_does_not_travel(arrays: Any, card: ModelCard) -> None:
    with pytest.raises(SettingError, match="not of the job"):
        card_for(released(arrays, card, job="other"), card)


@pytest.mark.parametrize("fault", ["changed", "nan", "shape", "missing"])
def test_arrays_that_the_card_does_not_describe_are_not_saved(
    fault: str, tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    record = card_for(released(arrays, card), card)
    weight = arrays["output.weight"].copy()
    weight[0, 0] = np.nan if fault == "nan" else weight[0, 0] + 1
    changed = {
        "changed": {**arrays, "output.weight": weight},
        "nan": {**arrays, "output.weight": weight},
        "shape": {**arrays, "output.weight": weight.T},
        "missing": {"output.weight": weight},
    }[fault]
    with pytest.raises((DataError, SettingError)):
        save_received(tmp_path / "model", record, changed)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [b"", b"no model", bytes(1000)])
def test_bytes_that_are_no_model_are_not_saved(
    content: bytes, tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    record = card_for(released(arrays, card), card)
    with pytest.raises(DataError, match="damaged"):
        save_fetched(tmp_path / "model", record, content)
    assert not (tmp_path / "model").exists()


def test_where_customers_overlap_the_card_says_what_they_pay_together(asked: Request) -> None:
    overlapping = parse_terms(read("terms.json", 1))
    card = ModelCard(asked, overlapping, {"retailer": 40, "platform": 40}, date(2024, 5, 31))
    assert card.joint_epsilon() == accountant.epsilon({asked.task.event: 80}, 1e-4)
    assert any(f"is {card.joint_epsilon():.2f}" in line for line in card.not_protected())


@pytest.mark.parametrize("charged", [{}, {"brand": 40}, {"retailer": 0}])
def test_a_card_needs_partners_who_were_charged(
    charged: dict[str, int], asked: Request, terms: Terms
) -> None:
    with pytest.raises(SettingError):
        ModelCard(asked, terms, charged, date(2024, 5, 31))


@pytest.mark.parametrize("fault", ["float64", "shape", "missing", "surplus"])
def test_arrays_that_do_not_fit_the_card_are_not_written(
    fault: str, tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    name = "output.weight"
    if fault == "float64":
        arrays[name] = arrays[name].astype(np.float64)
    elif fault == "shape":
        arrays[name] = arrays[name].T
    elif fault == "missing":
        del arrays[name]
    else:
        arrays["customers"] = np.ones(3, np.float32)
    with pytest.raises(SettingError):
        save_model(tmp_path / "model", released(arrays, card), card)
    assert not (tmp_path / "model").exists()


def test_arrays_of_another_model_are_refused(tmp_path: Path, arrays: Any, card: ModelCard) -> None:
    save_model(tmp_path / "one", released(arrays, card), card)
    arrays["output.bias"] = arrays["output.bias"] + 1
    save_model(tmp_path / "two", released(arrays, card), card)
    (tmp_path / "two" / ARRAYS_FILE).replace(tmp_path / "one" / ARRAYS_FILE)
    with pytest.raises(DataError, match="not the model its card describes"):
        load_model(tmp_path / "one")


def test_arrays_cut_short_are_refused(tmp_path: Path, arrays: Any, card: ModelCard) -> None:
    save_model(tmp_path, released(arrays, card), card)
    content = (tmp_path / ARRAYS_FILE).read_bytes()
    (tmp_path / ARRAYS_FILE).write_bytes(content[:-4])
    with pytest.raises(DataError, match="not the model its card describes"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "cannot read its format"),
        (("terms", "budget", "delta"), 1e-6, "terms were changed"),
        (("terms", "schema", "columns", 0, "high"), 9.0, "terms were changed"),
        (("request", "task", "noise_multiplier"), 9.0, "request changed"),
        (("charged",), [], "charged must be a table"),
        (("charged", "retailer"), 0.5, "retailer must be a whole number"),
        (("epsilon",), 0.1, "unknown field 'epsilon'"),
        (("released",), "yesterday", "released must be a day"),
    ],
)
def test_a_card_that_was_changed_is_refused(
    path: tuple[Any, ...], value: object, message: str, tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    save_model(tmp_path, released(arrays, card), card)
    record = json.loads((tmp_path / CARD_FILE).read_text())
    place = record
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (tmp_path / CARD_FILE).write_text(json.dumps(record))
    with pytest.raises(SettingError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("file", [ARRAYS_FILE, CARD_FILE])
def test_a_missing_file_is_named_by_its_folder(
    file: str, tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    save_model(tmp_path / "model", released(arrays, card), card)
    (tmp_path / "model" / file).unlink()
    with pytest.raises(DataError, match="model folder 'model' cannot be read"):
        load_model(tmp_path / "model")


def test_a_card_that_is_no_json_is_refused(tmp_path: Path, arrays: Any, card: ModelCard) -> None:
    save_model(tmp_path, released(arrays, card), card)
    (tmp_path / CARD_FILE).write_bytes(b'{"format": 1')
    with pytest.raises(DataError, match="is not JSON"):
        load_model(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, arrays: Any, card: ModelCard
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="model folder 'model' cannot be written"):
        save_model(tmp_path / "file" / "model", released(arrays, card), card)
