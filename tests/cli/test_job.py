"""An analyst's commands, against a coordinator and nodes over real mutual TLS."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from click.testing import Result
from typer.testing import CliRunner

from dovetail.agreement.files import read_request
from dovetail.agreement.request import TrainingTask
from dovetail.agreement.signing import SignedTerms, chain_from_record, chain_record, sign_as
from dovetail.cli.main import app
from dovetail.cli.outcome import Code
from dovetail.coordinator import app as apps
from dovetail.crypto.keyring import load_keyring, make_keyring
from dovetail.simulation.federation import COORDINATOR
from dovetail.store.desk import Desk
from dovetail.store.model import load_model
from tests.coordinator.nodes import NAMES, now
from tests.loopback import Loopback, loopback
from tests.node.homes import amended
from tests.samples import TASK, terms

GENTLE = replace(TASK, noise_multiplier=6.0)
FRESH = (f"job-{number}" for number in itertools.count(1))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == Code.DONE, result.output
    return result.stdout


class Club:
    """A federation with an analyst, who has keys and is named in the agreement."""

    def __init__(self, here: Loopback, folder: Path) -> None:
        self.here, self.folder = here, folder
        own = here.home(COORDINATOR)
        done("coordinator", "invite", "ann", "--analyst", "-f", own, "-o", folder)
        self.keys = folder / "ann" / "keys"
        done("keys", "new", self.keys, "--invitation", folder / "ann.invitation")
        request = folder / "ann" / "ann.request"
        done("coordinator", "enrol", request, "-f", own)
        here.federation.terms = replace(here.terms, analysts=(read_request(request).party,))
        keyrings = {name: here.keyring(name) for name in (COORDINATOR, *NAMES)}
        here.federation.sign(here.terms, {**keyrings, "ann": load_keyring(self.keys)})
        here.start()
        here.attend(*NAMES)

    def job(self, *words: object, keys: Path | None = None) -> Result:
        return call("job", *words, "--keys", keys or self.keys)

    def done(self, *words: object) -> str:
        result = self.job(*words)
        assert result.exit_code == Code.DONE, result.output
        return result.stdout

    def file(self, task: TrainingTask = GENTLE, **more: Any) -> tuple[str, Path]:
        """A job of a name that was never used, in a file."""
        name = next(FRESH)
        path = self.folder / f"{name}.toml"
        path.write_text(tomlkit.dumps({"job": name, **more, "task": asdict(task)}))
        return name, path

    def released(self) -> str:
        name, file = self.file()
        self.done("submit", file, "--json")
        return name


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apps, "TIDY_SECONDS", 0.05)
        patch.setattr("dovetail.node.attending.LOOK_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def club(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Club]:
    folder = tmp_path_factory.mktemp("club")
    with loopback(folder / "here", terms(max_epsilon_per_job=2.0)) as here:
        yield Club(here, folder)


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Club]:
    """A federation in which people say yes to each job."""
    folder = tmp_path_factory.mktemp("careful")
    with loopback(folder / "here", terms(approval="manual")) as here:
        yield Club(here, folder)


def test_a_preview_says_what_it_costs_and_charges_nothing(club: Club) -> None:
    name, file = club.file()
    shown = " ".join(club.done("preview", file).split())
    for word in (*NAMES, "yes", "ε = ", "δ = 0.001"):
        assert word in shown
    record = json.loads(club.done("preview", file, "--json"))
    assert set(record["partners"]) == set(NAMES)
    assert record["joint_epsilon"] == pytest.approx(record["partners"]["brand"]["epsilon"])
    assert club.job("show", name).exit_code == Code.USAGE


def test_a_preview_names_the_rule_that_would_refuse(club: Club) -> None:
    _, file = club.file(replace(TASK, noise_multiplier=0.5))
    result = club.job("preview", file)
    assert result.exit_code == Code.BAD
    assert "no (epsilon)" in result.stdout


def test_a_job_is_submitted_watched_and_its_model_fetched(club: Club) -> None:
    name, file = club.file()
    output = club.folder / f"model of {name}"
    result = club.job("submit", file, "--output", output)
    assert result.exit_code == Code.DONE, result.output
    assert result.stdout.strip() == f"{name}: released"
    assert "permitted" in result.stderr
    assert load_model(output)[1].request.task == GENTLE
    again = club.folder / f"again {name}"
    club.done("fetch", name, "--output", again)
    for path in output.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_submitting_again_is_harmless(club: Club) -> None:
    name, file = club.file()
    for _ in range(2):
        assert json.loads(club.done("submit", file, "--json"))["state"] == "released"
    events = [json.loads(line) for line in club.done("watch", name, "--json").splitlines()]
    kinds = [event["kind"] for event in events]
    assert kinds.count("submitted") == 1
    assert kinds.count("round") == TASK.rounds


def test_another_job_of_the_same_name_is_refused(club: Club) -> None:
    name, file = club.file()
    club.done("submit", file, "--json")
    file.write_text(tomlkit.dumps({"job": name, "task": asdict(replace(GENTLE, seed=9))}))
    result = club.job("submit", file)
    assert result.exit_code == Code.USAGE
    assert f"another job is named '{name}'" in result.stderr


def test_quorum_and_deadline_come_from_options_or_the_file(club: Club) -> None:
    _, file = club.file(quorum=3, deadline=120.0)
    record = json.loads(club.done("submit", file, "--json"))
    assert (record["quorum"], record["deadline"]) == (3, 120.0)
    _, file = club.file(quorum=3)
    record = json.loads(club.done("submit", file, "--json", "--quorum", 1, "--deadline", 60))
    assert (record["quorum"], record["deadline"]) == (1, 60.0)
    _, file = club.file(quorum=4)
    assert club.job("submit", file).exit_code == Code.USAGE


def test_a_refused_job_ends_with_its_reason(club: Club) -> None:
    name, file = club.file(replace(GENTLE, purpose="resale"))
    result = club.job("submit", file)
    assert result.exit_code == Code.BAD
    assert f"{name}: refused: " in result.stdout
    assert "purpose" in result.stdout
    assert club.job("watch", name).exit_code == Code.BAD
    assert club.job("fetch", name, "-o", club.folder / "none").exit_code == Code.USAGE


def test_jobs_are_listed_and_shown(club: Club) -> None:
    name = club.released()
    listed = json.loads(club.done("list", "--json", "--limit", 1))["jobs"]
    assert [job["job"] for job in listed] == [name]
    assert name in club.done("list", "--state", "released")
    assert name not in club.done("list", "--state", "failed", "--state", "refused")
    shown = club.done("show", name)
    assert "asked_by     ann" in shown
    assert "3 of 3, 0 lost" in shown
    assert json.loads(club.done("show", name, "--json"))["request"]["job"] == name
    assert len(json.loads(club.done("permits", name))["permits"]) == 3


def test_who_is_connected(club: Club) -> None:
    record = json.loads(club.done("nodes", "--json"))
    assert {p["name"] for p in record["parties"] if p["connected"]} == set(NAMES)
    shown = club.done("nodes")
    assert shown.count("connected") == 3
    assert "ann" in shown


def test_the_agreement_is_fetched_with_its_signatures(club: Club, tmp_path: Path) -> None:
    club.done("agreement", "--output", tmp_path / "all.json")
    (signed,) = chain_from_record(json.loads((tmp_path / "all.json").read_text()))
    assert signed.terms == club.here.terms
    assert signed.missing() == ()
    assert json.loads(club.done("agreement")) == json.loads((tmp_path / "all.json").read_text())
    nowhere = club.job("agreement", "--output", tmp_path / "none" / "all.json")
    assert nowhere.exit_code == Code.USAGE
    assert "cannot be written" in nowhere.stderr


def test_the_coordinators_own_keys_ask_as_its_operator(club: Club) -> None:
    own = club.here.home(COORDINATOR) / "keys"
    name, file = club.file()
    assert club.job("submit", file, keys=own).exit_code == Code.DONE
    assert json.loads(club.done("show", name, "--json"))["asked_by"] == COORDINATOR


def copied(club: Club, folder: Path) -> Path:
    """The analyst's keys as they were made, in another folder."""
    shutil.copytree(club.keys, folder)
    (folder / "agreement.json").unlink(missing_ok=True)
    return folder


def test_an_older_agreement_than_was_shown_before_is_refused(club: Club, tmp_path: Path) -> None:
    keys, (_, file) = copied(club, tmp_path / "keys"), club.file()
    assert club.job("preview", file, keys=keys).exit_code == Code.DONE
    kept = json.loads((keys / "agreement.json").read_text())
    assert [entry["terms"]["version"] for entry in kept["agreements"]] == [1]
    second = amended(club.here.terms, max_rounds=10)
    parties = {name: club.here.keyring(name) for name in (COORDINATOR, *NAMES)}
    parties["ann"] = load_keyring(keys)
    signatures = [sign_as(second, keyring) for keyring in parties.values()]
    chain = [*chain_from_record(kept), SignedTerms(second, tuple(signatures))]
    (keys / "agreement.json").write_text(json.dumps(chain_record(chain)))
    for words in (["preview", file], ["submit", file], ["permits", "job-x"], ["agreement"]):
        result = club.job(*words, keys=keys)
        assert result.exit_code == Code.USAGE
        if words[0] != "permits":
            assert "an older or another agreement was shown" in result.stderr


def test_terms_that_pin_another_key_for_who_asks_are_refused(club: Club, tmp_path: Path) -> None:
    keys, (_, file) = copied(club, tmp_path / "keys"), club.file()
    make_keyring(tmp_path / "other", "ann", now())
    shutil.copy(tmp_path / "other" / "signing.pem", keys / "signing.pem")
    for _ in range(2):
        result = club.job("preview", file, keys=keys)
        assert result.exit_code == Code.USAGE
        assert "the terms pin another key for 'ann' than it has" in result.stderr
        assert club.job("agreement", keys=keys).exit_code == Code.DONE


def test_whom_the_terms_do_not_name_reads_the_agreement_only(club: Club, tmp_path: Path) -> None:
    own, keys = club.here.home(COORDINATOR), tmp_path / "ben" / "keys"
    done("coordinator", "invite", "ben", "--analyst", "-f", own, "-o", tmp_path)
    done("keys", "new", keys, "--invitation", tmp_path / "ben.invitation")
    done("coordinator", "enrol", tmp_path / "ben" / "ben.request", "-f", own)
    (shown,) = json.loads(done("job", "agreement", "--keys", keys))["agreements"]
    assert shown["terms"]["version"] == 1
    for command in ("list", "nodes"):
        result = club.job(command, keys=keys)
        assert result.exit_code == Code.BAD
        assert "no agreement that all signed names 'ben'" in result.stderr
    done("coordinator", "revoke", "ben", "-f", own)


def test_a_coordinator_with_another_certificate_than_the_terms_pin(tmp_path: Path) -> None:
    with loopback(tmp_path / "here") as here:
        coordinator = replace(here.terms.coordinator, certificate="c0" * 32)
        here.federation.terms = replace(here.terms, coordinator=coordinator)
        here.federation.sign(here.terms, {n: here.keyring(n) for n in (COORDINATOR, *NAMES)})
        here.start()
        result = call("job", "agreement", "--keys", here.home(COORDINATOR) / "keys")
    assert result.exit_code == Code.USAGE
    assert "the terms pin another certificate for 'coordinator'" in result.stderr


def test_a_partner_cannot_ask(club: Club) -> None:
    result = club.job("list", keys=club.here.home("retailer") / "keys")
    assert result.exit_code == Code.BAD
    assert "may not use Control" in result.stderr


def test_with_other_keys_nothing_is_answered(club: Club, tmp_path: Path) -> None:
    done("keys", "new", tmp_path / "keys", "--name", "ann")
    os.link(club.keys / "access.json", tmp_path / "keys" / "access.json")
    result = club.job("list", keys=tmp_path / "keys")
    assert result.exit_code == Code.BAD
    assert result.stderr.count("\n") == 1
    missing = club.job("list", keys=tmp_path / "none")
    assert missing.exit_code == Code.USAGE


@pytest.mark.parametrize("text", ["nothing", "job = 'x'", "job = 'x'\n[task]\npurpose = 'x'\n"])
def test_a_file_that_is_no_job_is_named(text: str, club: Club, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(text)
    for command in ("preview", "submit"):
        result = club.job(command, tmp_path / "job.toml")
        assert result.exit_code == Code.USAGE
        assert result.stderr.startswith("error: job.toml: ")


def test_people_approve_and_the_operator_first(careful: Club) -> None:
    name, file = careful.file()
    waits = careful.done("submit", file, "--no-wait")
    assert waits.strip() == f"{name}: proposed"
    mine = careful.job("approve", name)
    assert mine.exit_code == Code.BAD
    assert "only the coordinator's operator" in mine.stderr
    operator = careful.here.home(COORDINATOR) / "keys"
    assert careful.job("approve", name, keys=operator).exit_code == Code.DONE
    with careful.here.federation.client() as client:
        watched = client.watch({"job": name, "after": 0})
        asked = (event["partner"] for event in watched if event["kind"] == "awaiting")
        assert set(itertools.islice(asked, 4)) == {COORDINATOR, *NAMES}
    assert "awaited      retailer, platform, brand" in careful.done("show", name)
    for party in NAMES:
        Desk(careful.here.home(party) / "desk").decide(name, "approved", now())
    assert careful.job("watch", name).stdout.strip() == f"{name}: released"


def test_who_asked_can_cancel(careful: Club) -> None:
    name, file = careful.file()
    careful.done("submit", file, "--no-wait")
    assert careful.done("cancel", name).strip() == f"{name}: cancelled"
    assert careful.job("cancel", name).exit_code == Code.USAGE
    assert careful.job("watch", name).stdout.strip() == f"{name}: cancelled: cancelled on request"


def test_where_nobody_answers_it_is_said_in_one_line(tmp_path: Path) -> None:
    with loopback(tmp_path) as here:
        result = call("job", "list", "--keys", here.home(COORDINATOR) / "keys")
    assert result.exit_code == Code.BAD
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
