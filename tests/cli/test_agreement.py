"""Agreements drawn up, read and compared by the command, with real keys and files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dovetail.agreement import terms as agreed
from dovetail.agreement.draft import as_toml, template
from dovetail.agreement.enrolment import InvitedDuty
from dovetail.agreement.files import load_terms
from dovetail.cli.outcome import Code
from dovetail.crypto.keyring import load_keyring
from tests.cli.conftest import NAMES, SCHEMA, call, collect, drawn_from, sign

ANSWERS = """Autumn
churn, win back
2027-01-01
2027-12-31
{schema}
web shop
1234
2025-01-01
2026-06-30
loyalty cards
88
2025-01-01
2026-06-30
y
50
2
1e-4
quarter
1.5
automatic
"""


@pytest.mark.parametrize("command", ["new", "show", "diff", "sign", "verify"])
def test_help_teaches_with_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == Code.DONE
    assert f"Example: dovetail agreement {command}" in " ".join(result.stdout.split())
    assert "--json" in result.stdout


def test_a_template_is_filled_in(made: Path) -> None:
    terms = load_terms(made / "spring.toml")
    for party, _ in terms.parties:
        keyring = load_keyring(made / party.name / "keys")
        assert (party.key, party.certificate) == (keyring.signing.public, keyring.pin)
    assert "# Which kinds of requests" in (made / "spring.toml").read_text()


def test_the_schema_comes_along(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "spring.toml"
    result = call("new", output, *drawn_from(made), "--json")
    assert result.exit_code == Code.DONE
    assert (tmp_path / "schema.toml").read_bytes() == SCHEMA.read_bytes()
    terms = load_terms(output)
    assert json.loads(result.stdout) == {
        "file": str(output),
        "name": "Spring coupons",
        "version": 1,
        "digest": agreed.digest(terms),
    }


def test_what_comes_next_is_said(made: Path, tmp_path: Path) -> None:
    result = call("new", tmp_path / "a.toml", *drawn_from(made))
    assert f"dovetail agreement show {tmp_path / 'a.toml'}" in result.stdout
    assert "all 5 parties to sign" in result.stdout


def test_nothing_is_replaced(made: Path, file: Path) -> None:
    before = file.read_bytes()
    result = call("new", file, *drawn_from(made))
    assert result.exit_code == Code.USAGE
    assert "exists already, and an agreement is never replaced" in result.stderr
    (file.parent / "schema.toml").write_text("another = 1\n")
    other = call("new", file.with_name("b.toml"), *drawn_from(made))
    assert "schema.toml: is another schema than" in other.stderr
    assert not file.with_name("b.toml").exists()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("brand.request", "no keys of the partner 'brand' are there"),
        ("analyst.request", "no keys of the analyst 'analyst' are there"),
        ("coordinator.party", "coordinator.party: cannot be read"),
    ],
)
def test_missing_parties_are_named(gone: str, message: str, made: Path, tmp_path: Path) -> None:
    parties = _copy(made / "parties", tmp_path / "parties")
    (parties / gone).unlink()
    output = tmp_path / "spring.toml"
    result = call("new", output, "--from", made / "template.toml", "--parties", parties)
    assert result.exit_code == Code.USAGE
    assert message in result.stderr
    assert not output.exists()


@pytest.mark.parametrize("content", ['{"name": "bra', "{}", "tampered"])
def test_a_bad_request_is_refused(content: str, made: Path, tmp_path: Path) -> None:
    parties = _copy(made / "parties", tmp_path / "parties")
    if content == "tampered":
        record = json.loads((parties / "brand.request").read_text())
        content = json.dumps({**record, "key": "ab" * 32})
    (parties / "brand.request").write_text(content)
    output = tmp_path / "spring.toml"
    result = call("new", output, "--from", made / "template.toml", "--parties", parties)
    assert result.exit_code in (Code.USAGE, Code.BAD)
    assert result.stderr.startswith("error: brand.request: ")
    assert not output.exists()


def test_terms_that_cannot_be_agreed_on_are_not_written(made: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_bytes(SCHEMA.read_bytes())
    bad = tmp_path / "bad.toml"
    bad.write_text(template().replace("delta = 1e-4", "delta = 0.01"))
    result = call("new", tmp_path / "spring.toml", "--from", bad, "--parties", made / "parties")
    assert result.exit_code == Code.USAGE
    assert "spring.toml: terms: delta must be below 1/400" in result.stderr
    assert not (tmp_path / "spring.toml").exists()


def test_parties_are_needed(tmp_path: Path) -> None:
    result = call("new", tmp_path / "spring.toml")
    assert result.exit_code == Code.USAGE
    assert "give --parties FOLDER" in result.stderr


def test_an_amendment_is_the_next_version(made: Path, file: Path) -> None:
    output = file.with_name("spring-2.toml")
    assert call("new", output, "--amend", file).exit_code == Code.DONE
    first, second = load_terms(file), load_terms(output)
    assert (second.version, second.previous) == (2, agreed.digest(first))
    assert replace(second, version=1, previous="") == first
    wider = file.with_name("wider.toml")
    wider.write_text(template().replace("max_rounds = 200", "max_rounds = 300"))
    third = file.with_name("spring-3.toml")
    how = ("--from", wider, "--amend", output, "--parties", made / "parties")
    assert call("new", third, *how).exit_code == Code.DONE
    assert load_terms(third).version == 3
    assert load_terms(third).max_rounds == 300
    assert load_terms(third).coordinator == first.coordinator


def test_without_a_template_it_asks(tmp_path: Path) -> None:
    partners: dict[str, InvitedDuty] = {"cards": "partner", "web": "partner"}
    parties = collect(tmp_path, {"ann": "analyst", **partners})
    output = tmp_path / "autumn.toml"
    typed = ANSWERS.format(schema=SCHEMA)
    result = call("new", output, "--parties", parties, typed=typed)
    assert result.exit_code == Code.DONE, result.output
    terms = load_terms(output)
    assert (terms.name, terms.purposes) == ("Autumn", ("churn", "win back"))
    assert (terms.budget.epsilon, terms.budget.delta) == (2.0, 1e-4)
    assert (terms.budget.period, terms.max_epsilon_per_job) == ("quarter", 1.5)
    assert (terms.approval, terms.minimum_cohort) == ("automatic", 50)
    assert terms.customers_overlap
    assert [(p.name, p.role, p.customers) for p in terms.partners] == [
        ("cards", "web shop", 1200),
        ("web", "loyalty cards", 88),
    ]
    assert [analyst.name for analyst in terms.analysts] == ["ann"]
    assert "# When epsilon is there again" in output.read_text()


def test_defaults_can_be_accepted(tmp_path: Path) -> None:
    parties = collect(tmp_path, {"shop": "partner"})
    (tmp_path / "schema.toml").write_bytes(SCHEMA.read_bytes())
    typed = f"Autumn\nchurn\n\n\n{tmp_path / 'schema.toml'}\n\n5000\n" + "\n" * 12
    result = call("new", tmp_path / "autumn.toml", "--parties", parties, typed=typed)
    assert result.exit_code == Code.DONE, result.output
    terms = load_terms(tmp_path / "autumn.toml")
    assert (terms.approval, terms.budget.delta, terms.minimum_cohort) == ("manual", 1e-5, 100)
    assert terms.in_force(datetime.now(UTC).date())


def test_nobody_at_the_terminal_is_told_of_templates(tmp_path: Path) -> None:
    parties = collect(tmp_path, {"shop": "partner"})
    result = call("new", tmp_path / "autumn.toml", "--parties", parties, typed="Autumn\n")
    assert result.exit_code == Code.USAGE
    assert "give a template with --from" in result.stderr
    assert not (tmp_path / "autumn.toml").exists()


def test_the_page_says_what_the_terms_say(made: Path, file: Path) -> None:
    sign(made, file, "retailer", "brand")
    result = call("show", file)
    assert result.exit_code == Code.DONE
    text = " ".join(result.stdout.split())
    for words in (
        "Spring coupons, version 1",
        agreed.digest(load_terms(file)),
        "Only for “coupon propensity”.",
        "At every partner a person says yes to each job",
        "retailer and brand have signed.",
        "Not signed by coordinator, analyst and platform.",
    ):
        assert words in text


def test_the_page_as_json(made: Path, file: Path) -> None:
    sign(made, file, *NAMES)
    record = json.loads(call("show", file, "--json").stdout)
    assert record["terms"] == agreed.to_record(load_terms(file))
    assert record["signed_by"] == list(NAMES)
    assert record["missing"] == record["unusable"] == []
    assert record["page"][0]["heading"] == "Who takes part"


def test_what_a_party_writes_is_not_taken_for_style(file: Path) -> None:
    file.write_text(file.read_text().replace("grocery retailer", "[bold red]shop[/] :smile:"))
    text = " ".join(call("show", file).stdout.split())
    assert "([bold red]shop[/] :smile:)" in text


def test_a_change_is_said_and_judged(file: Path) -> None:
    terms = load_terms(file)
    other = file.with_name("other.toml")
    budget = replace(terms.budget, epsilon=9.0)
    other.write_text(as_toml(replace(terms, budget=budget, approval="automatic", max_rounds=9)))
    result = call("diff", file, other)
    assert result.exit_code == Code.DONE
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        "looser ε of all jobs together: 8 → 9",
        "stricter rounds of a job: 200 → 9",
        "looser approval: manual → automatic",
    ]
    record = json.loads(call("diff", file, other, "--json").stdout)
    assert not record["equal"]
    assert record["differences"][0]["tendency"] == "looser"


def test_terms_written_otherwise_are_the_same(file: Path) -> None:
    same = file.with_name("same.toml")
    same.write_text(as_toml(load_terms(file)))
    assert call("diff", file, same).stdout == "The two say the same.\n"
    assert json.loads(call("diff", file, same, "--json").stdout)["equal"]


@pytest.mark.parametrize("command", ["show", "verify", "sign", "diff"])
@pytest.mark.parametrize("how", ["missing", "half written", "another file", "not text"])
def test_a_file_that_is_no_agreement_is_refused(
    command: str, how: str, made: Path, file: Path
) -> None:
    content = file.read_bytes()
    damaged = {
        "half written": content[: len(content) // 2],
        "another file": (file.parent / "schema.toml").read_bytes(),
        "not text": b"\xff\xfe",
    }
    file.unlink() if how == "missing" else file.write_bytes(damaged[how])
    more = {"sign": ("--keys", made / "retailer" / "keys", "--yes"), "diff": (file,)}
    result = call(command, file, *more.get(command, ()))
    assert result.exit_code == Code.USAGE
    assert result.stderr.startswith("error: spring.toml: ")
    assert list(file.parent.glob("*.signature")) == []


def test_reading_needs_no_heavy_library(file: Path) -> None:
    heavy: Any = ["torch", "opacus", "duckdb", "flwr", "grpc", "sqlalchemy", "dp_accounting"]
    program = (
        "import sys; from dovetail.cli.main import app\n"
        f"try: app(['agreement', 'show', {str(file)!r}])\n"
        f"except SystemExit: print([n for n in {heavy} if n in sys.modules])"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert child.stdout.splitlines()[-1] == "[]"


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
