"""A node opened from its folder: its customers prepared, its ledger checked, its models kept."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import Request
from dovetail.agreement.signing import request_record
from dovetail.agreement.terms import Terms
from dovetail.coordinator.round import initial_arrays
from dovetail.errors import (
    AgreementError,
    DataError,
    DovetailError,
    LedgerError,
    PolicyError,
    SchemaError,
    SettingError,
)
from dovetail.flower.actions import Contribution
from dovetail.node.opening import OpenNode, arrays_folder, kept_terms
from dovetail.node.settings import NodeSettings, load_settings
from dovetail.store.model import load_model
from tests.node.homes import (
    REQUEST,
    agree,
    amended,
    asked,
    key_of,
    keyring,
    released,
    terms_of,
    write_homes,
)
from tests.samples import TASK

TODAY = date(2026, 5, 1)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_homes(tmp_path) / "retailer"


def settings_of(home: Path) -> NodeSettings:
    return load_settings(home / "node.toml")


def opened(home: Path, terms: Terms | None = None, *, child: bool = False, **more: Any) -> OpenNode:
    keys = keyring(home)
    return OpenNode(settings_of(home), terms or terms_of(home), keys, child=child, **more)


def one_round(node: OpenNode, job: str = "job-1") -> Contribution:
    request = Request(job, TASK)
    node.node.propose(request_record(asked(node.terms, request)))
    arrays = initial_arrays(TASK, node.terms.schema)
    return node.node.train(requests.to_record(request), 1, arrays, {})


def test_a_node_opens_from_its_folder_and_contributes(home: Path) -> None:
    with opened(home) as node:
        contribution = one_round(node)
    assert all(np.isfinite(array).all() for array in contribution.arrays.values())
    assert contribution.weight == 300
    for name in ("retailer.ledger", "arrays.secret"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "arrays").stat().st_mode) == 0o700


def test_rounds_are_computed_in_a_process_that_can_be_killed(home: Path) -> None:
    with opened(home, child=True) as node:
        contribution = one_round(node)
    assert all(np.isfinite(array).all() for array in contribution.arrays.values())


def test_a_second_start_reads_the_prepared_customers(home: Path) -> None:
    opened(home).close()
    (home / "customers.csv").unlink()
    with opened(home) as node:
        one_round(node)


def test_the_table_is_read_again_where_that_is_asked_for(home: Path) -> None:
    opened(home).close()
    (home / "customers.csv").write_text("id,age,spend,region,bought\n1,20,5,north,0\n2,2,5,north,1")
    with opened(home, anew=True) as node, pytest.raises(PolicyError) as caught:
        one_round(node)
    assert caught.value.rule == "cohort"
    (home / "customers.csv").unlink()
    with pytest.raises(DataError):
        opened(home, anew=True)


def test_two_rounds_draw_different_noise(home: Path) -> None:
    with opened(home) as node:
        drawn = [one_round(node, job).arrays["output.weight"] for job in ("job-1", "job-2")]
    assert not np.array_equal(drawn[0], drawn[1])


def test_sql_over_named_files(home: Path) -> None:
    text = (home / "node.toml").read_text()
    query = (
        '[source]\nquery = "SELECT * FROM rows WHERE spend > 10"\n'
        'tables = { rows = "customers.csv" }\n'
    )
    (home / "node.toml").write_text(text.partition("[source]")[0] + query)
    with opened(home) as node:
        one_round(node)


def test_columns_under_the_partners_own_names(home: Path) -> None:
    table = home / "customers.csv"
    table.write_text(table.read_text().replace("id,age,spend", "hh_key,years,spend", 1))
    with (home / "node.toml").open("a") as file:
        file.write('[columns]\nid = "hh_key"\nage = "years"\n')
    with opened(home) as node:
        one_round(node)


def test_the_policy_of_the_file_holds(home: Path) -> None:
    with (home / "node.toml").open("a") as file:
        file.write("[policy]\nmax_epsilon_per_job = 0.1\n")
    with opened(home) as node, pytest.raises(PolicyError, match=r"this partner allows 0\.1"):
        one_round(node)


def test_what_people_decided_at_the_desk_holds(home: Path) -> None:
    with (home / "node.toml").open("a") as file:
        file.write('[policy]\napproval = "manual"\n')
    with opened(home) as node, pytest.raises(PolicyError) as caught:
        one_round(node)
    assert caught.value.rule == "approval"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [("id,age,spend", "id,age,spent", SchemaError), ("\n0,", "\n,", SchemaError)],
    ids=["column", "key"],
)
def test_a_table_that_does_not_fit_opens_nothing_until_it_is_mended(
    old: str, new: str, error: type[DovetailError], home: Path
) -> None:
    table = home / "customers.csv"
    good = table.read_text()
    table.write_text(good.replace(old, new, 1))
    with pytest.raises(error):
        opened(home)
    assert list((home / "arrays").iterdir()) == []
    table.write_text(good)
    with opened(home) as node:
        one_round(node)


def test_a_source_that_is_not_there_is_named(home: Path) -> None:
    (home / "customers.csv").unlink()
    with pytest.raises(DataError, match=r"customers\.csv"):
        opened(home)


def test_each_schema_has_customers_of_its_own(home: Path) -> None:
    opened(home).close()
    known = terms_of(home)
    other = replace(known, schema=replace(known.schema, max_rows_per_customer=2))
    with opened(home, other) as node:
        one_round(node)
    assert len(list((home / "arrays").iterdir())) == 2


def test_customers_prepared_under_another_schema_are_not_used(home: Path) -> None:
    opened(home).close()
    settings, known = settings_of(home), terms_of(home)
    other = replace(known, schema=replace(known.schema, max_rows_per_customer=2))
    arrays_folder(settings, known.schema).rename(arrays_folder(settings, other.schema))
    with pytest.raises(SettingError, match="another schema"):
        opened(home, other)


def test_a_node_that_ran_before_does_not_begin_with_an_empty_ledger(home: Path) -> None:
    opened(home).close()
    (home / "retailer.ledger").unlink()
    with pytest.raises(SettingError, match=r"retailer\.ledger: the ledger is missing"):
        opened(home)


def test_a_damaged_ledger_opens_nothing(home: Path) -> None:
    with opened(home) as node:
        one_round(node)
    path = home / "retailer.ledger"
    path.write_bytes(path.read_bytes().replace(b"job-1", b"job-2"))
    with pytest.raises(LedgerError):
        opened(home)


def test_spending_carries_over_to_amended_terms(home: Path) -> None:
    with opened(home) as node:
        one_round(node)
        spent = dict(node.ledger.refresh().spending())
    with opened(home, amended(terms_of(home), max_rounds=10)) as node:
        assert dict(node.ledger.refresh().spending()) == spent


def test_a_model_of_a_job_that_this_partner_took_part_in_is_kept(home: Path) -> None:
    with opened(home) as node:
        one_round(node)
        record, made = released(node.terms)
        node.node.keep(record, made.value)
        node.node.keep(record, made.value)
    arrays, card = load_model(home / "models" / "job-1")
    assert card.request == REQUEST
    for name, array in made.value.items():
        np.testing.assert_array_equal(arrays[name], array)


Edit = Callable[[dict[str, object]], object]


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda card: card.update(request_digest="0" * 64), SettingError),
        (lambda card: card.update(terms_digest="0" * 64), SettingError),
        (lambda card: card.update(arrays_sha256="0" * 64), DataError),
        (lambda card: card.update(more=1), SettingError),
        (lambda card: card.clear(), SettingError),
    ],
    ids=["request", "terms", "arrays", "more", "nothing"],
)
def test_a_card_that_was_changed_is_not_kept(
    edit: Edit, error: type[DovetailError], home: Path
) -> None:
    with opened(home) as node:
        one_round(node)
        record, made = released(node.terms)
        edit(record)
        with pytest.raises(error):
            node.node.keep(record, made.value)
    assert not (home / "models").exists()


@pytest.mark.parametrize(
    "request_", [Request("job-9", TASK), Request("job-1", replace(TASK, seed=5))]
)
def test_a_model_of_a_job_that_nobody_here_knows_is_not_kept(request_: Request, home: Path) -> None:
    with opened(home) as node:
        one_round(node)
        record, made = released(node.terms, request_)
        with pytest.raises(PolicyError, match="took part in no such job"):
            node.node.keep(record, made.value)
    assert not (home / "models").exists()


def test_a_model_that_is_kept_is_not_replaced_by_another(home: Path) -> None:
    with opened(home) as node:
        one_round(node)
        card, made = released(node.terms)
        node.node.keep(card, made.value)
        kept = (home / "models" / "job-1" / "model.safetensors").read_bytes()
        node.node.keep({**card, "released": "2026-05-02"}, made.value)
        notes = {**card, "notes": ["It was trained on all of them."]}
        other = {name: array + np.float32(1) for name, array in made.value.items()}
        changed, _ = released(node.terms, arrays=other)
        for record, arrays in ((notes, made.value), (changed, other)):
            with pytest.raises(SettingError, match="another model is kept as 'job-1'"):
                node.node.keep(record, arrays)
        assert (home / "models" / "job-1" / "model.safetensors").read_bytes() == kept
        (home / "models" / "job-1" / "card.json").write_text("{")
        with pytest.raises(DataError, match="cannot be read"):
            node.node.keep(card, made.value)


def test_what_is_trusted_is_kept_and_checked_anew(tmp_path: Path, home: Path) -> None:
    settings, keys = settings_of(home), keyring(home)
    first = terms_of(home)
    agree(tmp_path, first, amended(first, max_rounds=10))
    kept = kept_terms(settings, keys)
    assert [signed.terms.version for signed in kept.trusted.chain] == [1, 2]
    (home / "agreement.json").unlink()
    assert kept_terms(settings, keys).trusted.newest is None
    assert kept_terms(settings, keys).follow(kept.trusted.chain)
    assert kept_terms(settings, keys).trusted.newest == kept.trusted.newest


Tamper = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda r: r["agreements"][0]["terms"].update(minimum_cohort=1),
        lambda r: r["agreements"][0]["terms"]["budget"].update(epsilon=80.0),
        lambda r: r["agreements"][0]["signatures"].pop(),
        lambda r: r["agreements"][0]["signatures"][0].update(signature="0" * 128),
        lambda r: r["agreements"].reverse(),
    ],
)
def test_an_agreement_that_was_tampered_with_is_not_trusted(
    tamper: Tamper, tmp_path: Path, home: Path
) -> None:
    first = terms_of(home)
    agree(tmp_path, first, amended(first, max_rounds=10))
    record = json.loads((home / "agreement.json").read_text())
    tamper(record)
    (home / "agreement.json").write_text(json.dumps(record))
    with pytest.raises(AgreementError):
        kept_terms(settings_of(home), keyring(home))


def test_terms_that_pin_another_key_for_this_partner_are_never_in_force(home: Path) -> None:
    with pytest.raises(AgreementError, match="pin another key"):
        kept_terms(settings_of(home), keyring(home.parent / "brand")).trusted.in_force(TODAY)
    assert key_of(home.parent, "retailer").public == terms_of(home).partner("retailer").key


@pytest.mark.parametrize("content", ["{", "[]", '{"agreements": 7}'])
def test_a_file_that_is_no_agreement_is_named(content: str, home: Path) -> None:
    (home / "agreement.json").write_text(content)
    with pytest.raises(SettingError, match="agreement"):
        kept_terms(settings_of(home), keyring(home))


def test_the_terms_digest_is_what_a_permit_names(home: Path) -> None:
    with opened(home) as node:
        permit = node.node.propose(request_record(asked(node.terms)))
    assert isinstance(permit["permit"], dict)
    assert permit["permit"]["terms_digest"] == agreed.digest(terms_of(home))


@pytest.mark.parametrize("policy", ['refused_columns = ["agee"]', 'refused_purposes = ["resle"]'])
def test_a_node_whose_policy_names_what_nobody_knows_does_not_open(policy: str, home: Path) -> None:
    toml = home / "node.toml"
    toml.write_text(f"{toml.read_text()}[policy]\n{policy}\n")
    with pytest.raises(SettingError, match="which the agreement does not know"):
        opened(home)
