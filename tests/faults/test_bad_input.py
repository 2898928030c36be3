"""Wrong tables, keys and ledgers at a partner: said clearly in its own log, and nothing is lost."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dovetail.agreement.request import Request
from dovetail.simulation.federation import COORDINATOR
from dovetail.store.records import JobRecord
from tests.faults import books
from tests.faults.host import Host
from tests.faults.trial import PARTNERS, Trial, eventually, request

pytestmark = pytest.mark.long

SECRET = "4711.17"
"""A value that no message may show."""
Spoil = Callable[[str], str]


def first_row(change: Callable[[list[str]], list[str]]) -> Spoil:
    """Changes the first row: id, age, spend, region, bought."""

    def spoil(table: str) -> str:
        head, row, *rest = table.splitlines()
        return "\n".join([head, ",".join(change(row.split(","))), *rest, ""])

    return spoil


def column(name: str, other: str) -> Spoil:
    return lambda table: table.replace(name, other, 1)


TABLES: dict[str, tuple[Spoil, str]] = {
    "empty": (lambda _: "", "is empty"),
    "without rows": (lambda table: table.splitlines()[0] + "\n", "the table is empty"),
    "another table": (lambda _: f"day,visits\n1,{SECRET}\n", "is it the right file"),
    "without its key": (column("id", "number"), "'id'"),
    "no key in a row": (first_row(lambda r: ["", *r[1:]]), "'id'"),
    "NaN": (first_row(lambda r: [*r[:2], "nan", *r[3:]]), "'spend'"),
    "text for a number": (first_row(lambda r: [r[0], f"about {SECRET}", *r[2:]]), "'age'"),
    "label of 2": (first_row(lambda r: [*r[:4], "2"]), "'bought'"),
}


@pytest.fixture(scope="module")
def trial(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A federation in which brand's node is not started yet."""
    with Trial(tmp_path_factory.mktemp("input"), host) as made:
        made.start_coordinator()
        for partner in PARTNERS[1:]:
            made.start_node(partner)
        made.wait_until_connected(PARTNERS[1:])
        yield made


@pytest.fixture
def table(trial: Trial) -> Iterator[Path]:
    """Brand's table, as it was again afterwards."""
    path = trial.folder.parent / "brand.csv"
    before = path.read_text()
    yield path
    path.write_text(before)


def asked_of(trial: Trial, name: str) -> tuple[Request, JobRecord]:
    """A job, and how it ended."""
    asked = request(name)
    trial.hand_in(asked)
    return asked, trial.ended(asked)


def opened_anew(trial: Trial) -> str:
    """What brand's node says when it is started again and has looked at everything."""
    log = trial.log("brand")
    before = len(log.read_text()) if log.exists() else 0
    if "brand" in trial.processes:
        trial.kill("brand")
    trial.restart("brand")
    words = ("cannot open", "open under")
    eventually(lambda: any(word in log.read_text()[before:] for word in words))
    return log.read_text()[before:]


@pytest.mark.parametrize("kind", TABLES)
def test_a_wrong_table_is_refused_and_explained(trial: Trial, table: Path, kind: str) -> None:
    spoil, why = TABLES[kind]
    table.write_text(spoil(table.read_text()))
    shutil.rmtree(trial.home("brand") / "arrays", ignore_errors=True)
    (trial.home("brand") / "brand.ledger").unlink(missing_ok=True)
    said = opened_anew(trial)
    _, job = asked_of(trial, f"table-{list(TABLES).index(kind)}")
    assert job.state == "refused"
    assert job.reason.startswith("brand: paused: ")
    assert why in said
    assert SECRET not in said + job.reason
    assert books.ledger_of(trial, "brand").entries == ()


@pytest.mark.parametrize("kind", ["missing", "a folder without tables"])
def test_a_table_that_is_not_there_is_said_to_be(trial: Trial, table: Path, kind: str) -> None:
    aside = table.rename(table.with_suffix(".aside"))
    if kind != "missing":
        table.mkdir()
    shutil.rmtree(trial.home("brand") / "arrays", ignore_errors=True)
    (trial.home("brand") / "brand.ledger").unlink(missing_ok=True)
    said = opened_anew(trial)
    assert "cannot open" in said
    assert "brand.csv" in said
    if kind != "missing":
        table.rmdir()
    aside.rename(table)


def test_too_few_customers_are_refused_by_the_rule_alone(trial: Trial, table: Path) -> None:
    table.write_text("\n".join(table.read_text().splitlines()[:20]) + "\n")
    assert "open under" in opened_anew(trial)
    _, job = asked_of(trial, "too-few")
    few = "fewer customers than the terms' minimum cohort"
    assert (job.state, job.reason) == ("refused", f"brand: cohort: {few}")
    assert books.ledger_of(trial, "brand").entries == ()
    shutil.rmtree(trial.home("brand") / "arrays")


def test_duplicates_are_bounded_and_a_mended_table_is_taken(trial: Trial, table: Path) -> None:
    """Every row four times: a customer counts with ``max_rows_per_customer`` rows all the same."""
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *rows * 4, ""]))
    assert "open under" in opened_anew(trial)
    asked, job = asked_of(trial, "duplicates")
    assert (job.state, job.rounds_done) == ("released", 3)
    eventually(lambda: asked.job not in trial.store.unsettled())
    books.check(trial, asked)


def test_keys_of_another_party_serve_nobody(trial: Trial) -> None:
    keys = trial.home("brand") / "keys"
    aside = keys.rename(keys.with_name("keys.aside"))
    shutil.copytree(trial.home("platform") / "keys", keys)
    trial.kill("brand")
    trial.start_node("brand")
    assert trial.processes["brand"].wait(60) == 2
    assert "the keys belong to 'platform', not to 'brand'" in trial.log("brand").read_text()
    shutil.rmtree(keys)
    aside.rename(keys)
    assert "open under" in opened_anew(trial)


def test_a_ledger_that_was_deleted_is_missed_and_can_be_put_back(trial: Trial) -> None:
    trial.kill("brand")
    ledger = trial.home("brand") / "brand.ledger"
    entries = books.ledger_of(trial, "brand").entries
    aside = ledger.rename(ledger.with_suffix(".aside"))
    assert "the ledger is missing, though this node has run before" in opened_anew(trial)
    _, job = asked_of(trial, "no-ledger")
    assert (job.state, job.reason.startswith("brand: paused")) == ("refused", True)
    assert not ledger.exists()
    trial.kill("brand")
    aside.rename(ledger)
    assert "open under" in opened_anew(trial)
    assert books.ledger_of(trial, "brand").entries == entries


def test_a_damaged_ledger_is_not_worked_with(trial: Trial) -> None:
    trial.kill("brand")
    ledger = trial.home("brand") / "brand.ledger"
    whole = ledger.read_bytes()
    with sqlite3.connect(ledger) as connection:
        connection.execute("DROP TRIGGER entries_refuse_UPDATE")
        connection.execute("UPDATE entries SET count = 1 WHERE kind = 'reserve'")
    connection.close()
    assert "is not what was written (its digest differs)" in opened_anew(trial)
    trial.kill("brand")
    ledger.write_bytes(whole)
    assert "open under" in opened_anew(trial)


def test_an_old_copy_of_a_ledger_is_shown_by_the_permits(trial: Trial) -> None:
    """The node cannot know; whoever holds its permits can, with the command that verifies."""
    ledger = trial.home("brand") / "brand.ledger"
    copy = ledger.with_suffix(".old")
    shutil.copyfile(ledger, copy)
    asked, job = asked_of(trial, "after-the-copy")
    assert job.state == "released"
    eventually(lambda: asked.job not in trial.store.unsettled())
    head = str(trial.store.permits(asked.job)["brand"].record["ledger_head"])

    def verify(file: Path) -> subprocess.CompletedProcess[str]:
        command = ["node", "ledger", "verify", str(file), "--head", head]
        return subprocess.run(
            [sys.executable, "-m", "dovetail", *command],
            capture_output=True,
            text=True,
            check=False,
        )

    assert verify(ledger).returncode == 0
    copy.chmod(0o600)
    cut_off = verify(copy)
    assert cut_off.returncode == 1
    assert "this chain does not hold that digest" in " ".join(cut_off.stderr.split())


def test_afterwards_everything_is_settled_and_works(trial: Trial) -> None:
    trial.kill(COORDINATOR)  # its next start tells at once who does not know yet
    trial.restart(COORDINATOR)
    trial.until_settled()
    asked, job = asked_of(trial, "at-last")
    trial.until_settled()
    books.check(trial, asked)
    assert (job.state, job.rounds_done) == ("released", 3)
