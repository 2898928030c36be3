"""Everything a node needs, checked at real files and a real coordinator; each problem and mend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dovetail.agreement.signing import chain_record
from dovetail.crypto.certificates import certificate_of, new_tls_key
from dovetail.crypto.keyring import load_keyring
from dovetail.crypto.keys import save_private_key
from dovetail.node.checking import Step, check_node
from dovetail.store.desk import Desk
from dovetail.store.ledger import LedgerStore
from tests.loopback import Loopback, loopback
from tests.node.homes import amended, signed
from tests.samples import TASK, terms

GOOD = [
    "settings",
    "keys",
    "desk",
    "coordinator",
    "clock",
    "agreement",
    "policy",
    "table",
    "cohort",
    "budget",
]


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("here")) as made:
        made.start()
        yield made


@pytest.fixture
def home(here: Loopback, tmp_path: Path) -> Path:
    """A copy of the retailer's folder, with its table in it."""
    home = Path(shutil.copytree(here.home("retailer"), tmp_path / "retailer"))
    table = here.home("retailer").parents[1] / "tables" / "retailer.csv"
    shutil.copy(table, home / "customers.csv")
    (home / "node.toml").write_text('name = "retailer"\n[source]\nfiles = "customers.csv"\n')
    return home


def checked(home: Path, clock: Callable[[], datetime] = now) -> list[Step]:
    return list(check_node(home / "node.toml", load_keyring, clock))


def problem(home: Path, clock: Callable[[], datetime] = now) -> Step:
    """The only thing that is not good, and says how to mend it."""
    (found,) = [step for step in checked(home, clock) if not step.good]
    assert found.mend
    return found


def test_a_node_that_can_serve(home: Path) -> None:
    steps = checked(home)
    assert [step.name for step in steps if not step.mend] == GOOD
    assert all(step.good for step in steps)
    assert {step.mend for step in steps} == {"", "look whether that is meant"}


def test_checking_changes_nothing_and_shows_no_value(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    text = " ".join(step.text for step in checked(home))
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    assert "300" not in text, "the number of customers is private"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('name = "retailer"', "source"),
        ("name", "TOML"),
        ('name = "a b"\n[source]\nfiles = "x"', ""),
    ],
)
def test_settings_that_cannot_be_used(text: str, named: str, home: Path) -> None:
    (home / "node.toml").write_text(text)
    (step,) = checked(home)
    assert (step.name, step.good) == ("settings", False)
    assert named in step.text
    assert "node.toml" in step.mend


def test_a_missing_file_of_settings(home: Path) -> None:
    (home / "node.toml").unlink()
    (step,) = checked(home)
    assert "cannot be read" in step.text


@pytest.mark.parametrize("file", ["signing.pem", "tls.pem", "certificate.pem"])
def test_a_missing_key(file: str, home: Path) -> None:
    (home / "keys" / file).unlink()
    steps = checked(home)
    assert [step.name for step in steps] == ["settings", "keys"]
    assert file in steps[-1].text


def test_a_key_that_others_may_read(home: Path) -> None:
    (home / "keys" / "signing.pem").chmod(0o644)
    assert "chmod" in checked(home)[-1].text


def test_the_keys_of_another(here: Loopback, home: Path) -> None:
    shutil.rmtree(home / "keys")
    shutil.copytree(here.home("brand") / "keys", home / "keys")
    steps = {step.name: step for step in checked(home)}
    assert "'brand'" in steps["keys"].text
    assert not steps["keys"].good


@pytest.mark.parametrize(("days", "good"), [(-1, False), (10, True)])
def test_a_certificate_that_ended_or_soon_will(days: int, good: bool, home: Path) -> None:
    tls = new_tls_key()
    (home / "keys" / "tls.pem").unlink()
    save_private_key(home / "keys" / "tls.pem", tls, None)
    certificate = certificate_of(tls, "retailer", now(), days=days)
    (home / "keys" / "certificate.pem").write_bytes(certificate)
    steps = {step.name: step for step in checked(home)}
    assert steps["keys"].good is good
    assert "invitation" in steps["keys"].mend
    assert not steps["coordinator"].good, "it does not know this certificate"


def test_a_paused_node(home: Path) -> None:
    Desk(home / "desk").pause(now())
    assert (problem(home).name, problem(home).mend) == ("desk", "dovetail node resume")


def test_a_coordinator_whose_address_is_missing(home: Path) -> None:
    (home / "keys" / "access.json").unlink()
    bad = [step for step in checked(home) if not step.good]
    assert [step.name for step in bad] == ["coordinator", "agreement"]
    assert "access.json" in bad[0].mend


def test_a_coordinator_that_does_not_answer_is_no_reason_to_stop_looking(
    here: Loopback, home: Path
) -> None:
    access = home / "keys" / "access.json"
    record = json.loads(access.read_text())
    access.write_text(json.dumps({**record, "address": "127.0.0.1:9"}))
    keep(here, home)
    found = problem(home)
    assert found.name == "coordinator"
    assert "whether it runs" in found.mend
    assert [step.name for step in checked(home)][-1] == "budget"


def keep(here: Loopback, home: Path, *later: int) -> None:
    """The agreement as the node accepted it, or as later versions of it would be."""
    versions = [here.terms]
    for rounds in later:
        versions.append(amended(versions[-1], max_rounds=rounds))
    folder = here.home("retailer").parent
    chain = [signed(folder, version) for version in versions]
    (home / "agreement.json").write_text(json.dumps(chain_record(chain)))


def test_a_clock_that_is_a_day_ahead(home: Path) -> None:
    found = problem(home, lambda: now() + timedelta(days=1))
    assert (found.name, found.text) == ("clock", "86400 s apart from the coordinator's")


def test_a_coordinator_that_shows_an_older_agreement(here: Loopback, home: Path) -> None:
    keep(here, home, 10)
    found = problem(home)
    assert found.name == "agreement"
    assert "older or another" in found.text


def test_an_agreement_that_was_tampered_with(here: Loopback, home: Path) -> None:
    keep(here, home)
    path = home / "agreement.json"
    path.write_text(path.read_text().replace('"minimum_cohort": 50', '"minimum_cohort": 5'))
    found = problem(home)
    assert found.name == "agreement"
    assert found.mend == "these parties have yet to sign: dovetail agreement sign"


def test_terms_that_are_over(here: Loopback, home: Path) -> None:
    far = datetime(3000, 1, 1, tzinfo=UTC)
    bad = {step.name for step in checked(home, lambda: far) if not step.good}
    assert bad == {"keys", "clock", "agreement"}


def test_where_nobody_has_signed_yet(tmp_path: Path) -> None:
    with loopback(tmp_path / "other") as other:
        for path in (other.home("coordinator")).glob("*.signature"):
            path.unlink()
        other.start()
        found = problem(other.home("retailer"))
    assert found.name == "agreement"
    assert "not all parties have signed" in found.text
    assert "sign the agreement" in found.mend


def test_who_was_revoked_is_told_that_the_coordinator_does_not_know_it(tmp_path: Path) -> None:
    with loopback(tmp_path / "other") as other:
        other.start()
        other.parties.revoke("retailer")
        steps = {step.name: step for step in checked(other.home("retailer"))}
    assert not steps["coordinator"].good
    assert "enrolled" in steps["coordinator"].mend


@pytest.mark.parametrize(
    ("policy", "named", "meant"),
    [
        ('refused_columns = ["spnd"]', "'spnd'", "'spend'"),
        ('refused_columns = ["age", "Bought"]', "'Bought'", "'bought'"),
        ('refused_purposes = ["propensty"]', "'propensty'", "'propensity'"),
    ],
)
def test_a_misspelt_name_that_would_refuse_nothing(
    policy: str, named: str, meant: str, home: Path
) -> None:
    toml = home / "node.toml"
    text = toml.read_text()
    toml.write_text(f"{text}[policy]\n{policy}\n")
    found = problem(home)
    assert found.name == "policy"
    assert f"names {named}" in found.text
    assert f"did you mean {meant}?" in found.text
    toml.write_text(f'{text}[policy]\nrefused_columns = ["spend", "bought"]\n')
    assert all(step.good for step in checked(home))


def test_a_table_with_problems_and_one_that_is_missing(home: Path) -> None:
    table = home / "customers.csv"
    good = table.read_text()
    table.write_text(good.replace("age,spend", "years,spent", 1))
    bad = [step for step in checked(home) if not step.good]
    assert [step.name for step in bad] == ["table", "table"]
    assert all("[columns]" in step.mend for step in bad)
    table.unlink()
    assert "[source]" in problem(home).mend


def test_too_few_customers_are_not_counted_out(home: Path) -> None:
    table = home / "customers.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(f"{i},20,5,north,{i % 2}" for i in range(37))]))
    found = problem(home)
    assert found.name == "cohort"
    assert "37" not in found.text
    assert "minimum of 50" in found.text


def test_more_customers_than_the_budgets_delta_allows(home: Path) -> None:
    lines = ["id,age,spend,region,bought", *(f"{i},20,5,north,{i % 2}" for i in range(1000))]
    (home / "customers.csv").write_text("\n".join(lines))
    assert problem(home).text.startswith("the agreement's delta")


def test_a_ledger_that_is_lost_damaged_or_spent(home: Path) -> None:
    (home / "arrays").mkdir()
    assert "newest copy" in problem(home).mend
    budget = terms().budget
    with LedgerStore(home / "retailer.ledger", budget, now) as ledger:
        ledger.reserve("job-1", "a" * 64, TASK.event, 10)
        left = ledger.refresh().remaining(now())
    steps = {step.name: step for step in checked(home)}
    assert steps["budget"].text == f"ε {left:.3f} of {budget.epsilon:g} left"
    path = home / "retailer.ledger"
    path.write_bytes(path.read_bytes().replace(b"job-1", b"job-2"))
    assert problem(home).name == "budget"
