"""A partner hands its node the agreement by itself; and its key is replaced by an amendment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dovetail.agreement.draft import as_toml
from dovetail.agreement.files import load_terms, signature_path
from dovetail.agreement.request import Request
from dovetail.agreement.terms import Terms
from dovetail.cli.main import app
from dovetail.cli.outcome import Code
from dovetail.coordinator import app as apps
from dovetail.crypto.keyring import load_keyring
from dovetail.node.opening import kept_terms
from dovetail.node.settings import load_settings
from dovetail.simulation.federation import COORDINATOR
from dovetail.store.ledger import LedgerStore
from tests.coordinator.nodes import now
from tests.loopback import Loopback, eventually, loopback
from tests.node.homes import amended, signed, terms_of, write_homes
from tests.samples import TASK, terms

GENTLE = replace(TASK, noise_multiplier=6.0)
OLDER = "an older or another agreement was shown than the one held here"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == Code.DONE, result.output
    return result.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_homes(tmp_path) / "retailer"


def written(home: Path, known: Terms) -> Path:
    """A version in a file, with the signatures of all beside it."""
    path = home.parent / f"version-{known.version}.toml"
    path.write_text(as_toml(known))
    for signature in signed(home.parent, known).signatures:
        signature_path(path, signature, known).write_text(json.dumps(vars(signature)))
    return path


def hand(home: Path, *files: object) -> Result:
    return call("node", "agreement", *files, "--node", home / "node.toml")


def held(home: Path) -> Terms | None:
    settings = load_settings(home / "node.toml")
    return kept_terms(settings, load_keyring(settings.keys)).trusted.newest


def test_a_node_is_handed_what_all_have_signed(home: Path) -> None:
    first = terms_of(home)
    second = amended(first, max_rounds=10)
    third = amended(second, max_rounds=5)
    paths = [written(home, version) for version in (first, second, third)]
    (home / "agreement.json").unlink()
    result = hand(home, paths[0])
    assert result.stdout.startswith("retailer holds now: 'loyalty', version 1\ndigest ")
    assert json.loads(hand(home, paths[2], paths[1], "--json").stdout)["version"] == 3
    assert held(home) == third
    for given in (paths[0], paths[2]):
        again = hand(home, given)
        assert again.exit_code == Code.DONE
        assert again.stdout.startswith("retailer held already: 'loyalty', version 3")


def test_what_cannot_follow_is_not_held(home: Path) -> None:
    first = terms_of(home)
    second, other = amended(first, max_rounds=10), amended(first, max_rounds=20)
    third = amended(second, max_rounds=5)
    path = written(home, second)
    path.with_name("version-2.brand.signature").unlink()
    for files, message in (
        ([path], "not signed by brand"),
        ([written(home, third)], "version 2 is missing in between"),
        ([home / "nothing.toml"], "nothing.toml: cannot be read"),
    ):
        result = hand(home, *files)
        assert result.exit_code == Code.USAGE
        assert message in result.stderr
        assert held(home) == first
    assert hand(home, written(home, second)).exit_code == Code.DONE
    result = hand(home, written(home, other))
    assert (result.exit_code, OLDER in result.stderr) == (Code.USAGE, True)
    assert held(home) == second


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A federation of one partner."""
    monkeypatch.setattr(apps, "TIDY_SECONDS", 0.05)
    monkeypatch.setattr("dovetail.node.attending.LOOK_SECONDS", 0.05)
    known = terms()
    with loopback(tmp_path / "here", replace(known, partners=known.partners[:1])) as made:
        yield made


def run(here: Loopback, job: str) -> str:
    here.federation.submit(Request(job, GENTLE))
    return here.watch(job)[-1]


def test_a_coordinator_that_withholds_an_amendment_gets_no_answer(
    here: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dovetail")
    home = here.home("retailer")
    here.start()
    here.attend("retailer")
    assert run(here, "job-1") == "released"
    path = written(home, amended(here.terms, max_rounds=10))
    assert hand(home, path).exit_code == Code.DONE
    assert run(here, "job-2") == "refused"
    assert here.call("Show", job="job-2")["reason"] == f"retailer: terms: {OLDER}"
    eventually(lambda: "open under version 2" in caplog.text)
    own = here.home(COORDINATOR)
    for file in path.parent.glob("version-2.*"):
        file.rename(own / file.name)
    (own / "version-2.toml").replace(own / "agreement.toml")
    here.federation.terms = load_terms(own / "agreement.toml")
    eventually(lambda: here.coordinator._trusted.newest == here.terms)
    assert run(here, "job-3") == "released"


def test_a_partner_goes_on_with_the_key_that_replaced_its_own(
    here: Loopback, tmp_path: Path
) -> None:
    """From new keys to a job under the amendment, by the commands that people type."""
    own, home, anew = here.home(COORDINATOR), here.home("retailer"), tmp_path / "anew"
    first, second = own / "agreement.toml", own / "agreement-2.toml"
    here.start()
    (node,) = here.attend("retailer")
    assert run(here, "job-1") == "released"
    node.leave()
    done("coordinator", "revoke", "retailer", "-f", own)
    done("coordinator", "invite", "retailer", "-f", own, "-o", tmp_path)
    done("keys", "new", anew / "keys", "--invitation", tmp_path / "retailer.invitation")
    done("coordinator", "enrol", anew / "retailer.request", "-f", own)
    done("agreement", "new", second, "--amend", first, "--parties", own / "parties")
    both = ["--keys", anew / "keys", "--former-keys", home / "keys"]
    done("agreement", "sign", second, *both, "--amend", first, "--yes")
    done("agreement", "sign", second, "--keys", own / "keys", "--yes")
    done("agreement", "verify", second, "--amend", first)
    refused = call("node", "agreement", second, "--node", home / "node.toml")
    assert refused.exit_code == Code.USAGE
    assert "the terms pin another key for 'retailer' than it has" in refused.stderr
    second.replace(first)
    here.federation.terms = load_terms(first)
    eventually(lambda: here.coordinator._trusted.newest == here.terms)
    (home / "keys").rename(home / "keys of last year")
    (anew / "keys").rename(home / "keys")
    here.attend("retailer")
    assert run(here, "job-2") == "released"
    assert held(home) == here.terms
    assert json.loads((home / "agreement.json").read_text()).keys() == {"agreements"}
    with LedgerStore(home / "retailer.ledger", here.terms.budget, now) as ledger:
        assert set(ledger.refresh().spending_by_job()) == {"job-1", "job-2"}
    steps = json.loads(done("node", "check", "--node", home / "node.toml", "--json"))["steps"]
    assert [step["name"] for step in steps if not step["good"]] == []
