"""``dovetail agreement``: draw up, read, compare, sign and verify what parties allow each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dovetail.cli.agreement_page import (
    identity,
    print_differences,
    print_section,
    print_title,
    signatures,
    status,
    tell_what_next,
)
from dovetail.cli.asking import confirmed
from dovetail.cli.help import command
from dovetail.cli.outcome import Code, print_json
from dovetail.cli.unlock import unlock
from dovetail.errors import AgreementError, SettingError

if TYPE_CHECKING:
    from dovetail.agreement.files import Parties, SignedFile
    from dovetail.agreement.signing import Signature
    from dovetail.agreement.terms import Terms
    from dovetail.crypto.keyring import Keyring

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Draw up, read, compare, sign and verify an agreement: one TOML file that says what the "
    "parties allow each other to ask, what it may cost, and until when. Nothing runs before all "
    "have signed it.",
)

File = Annotated[Path, typer.Argument(show_default=False, help="The agreement, a TOML file.")]
Amended = Annotated[
    Path | None,
    typer.Option("--amend", show_default=False, help="The version before, which it amends."),
]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]


@command(
    app,
    epilog="Example: [bold]dovetail agreement new spring.toml --from template.toml --parties "
    "coordinator/parties[/bold]. Without --from it asks. examples/agreement.toml is a template "
    "that explains every field.",
)
def new(
    output: Annotated[Path, typer.Argument(show_default=False, help="The file to write.")],
    template: Annotated[
        Path | None,
        typer.Option(
            "--from", show_default=False, help="An agreement without keys; its comments are kept."
        ),
    ] = None,
    parties: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Folder with coordinator.party and a NAME.request of everybody else.",
        ),
    ] = None,
    amend: Amended = None,
    as_json: Json = False,
) -> None:
    """Draw up an agreement: a template, filled in with the public keys of its parties.

    A schema in a file of its own is copied beside the agreement. With --amend it becomes the next
    version; the version before serves as the template, and its keys stay, unless others are given.
    """
    from dovetail.agreement.draft import amend as next_version
    from dovetail.agreement.draft import fill_in
    from dovetail.agreement.files import load_terms, read_parties, read_text

    if output.exists():
        raise SettingError(f"{output}: exists already, and an agreement is never replaced")
    if parties is None and amend is None:
        raise SettingError("give --parties FOLDER, where the parties' public keys are")
    known, source = read_parties(parties) if parties else None, template or amend
    if source is None:
        text, beside = _asked(known)
    else:
        text, beside = read_text(source), source.parent
    if known:
        text = fill_in(text, known)
    if amend:
        text = next_version(text, load_terms(amend))
    terms = _written(output, text, beside)
    if as_json:
        print_json({"file": str(output), **identity(terms)})
    else:
        tell_what_next(output, terms)


@command(app, epilog="Example: [bold]dovetail agreement show spring.toml[/bold]")
def show(file: File, as_json: Json = False) -> None:
    """Say in plain words what an agreement allows, what it may cost, and who has signed it."""
    from dovetail.agreement.files import signed_file
    from dovetail.agreement.terms import to_record
    from dovetail.agreement.wording import page

    found = signed_file(file)
    terms = found.signed.terms
    if as_json:
        written = [{"heading": s.heading, "sentences": list(s.sentences)} for s in page(terms)]
        print_json({**status(found), "page": written, "terms": to_record(terms)})
        return
    console = Console(highlight=False)
    print_title(console, terms)
    for section in page(terms):
        print_section(console, section.heading, section.sentences)
    print_section(console, "Signatures", signatures(found))


@command(app, epilog="Example: [bold]dovetail agreement diff spring.toml spring-2.toml[/bold]")
def diff(
    old: Annotated[Path, typer.Argument(show_default=False, help="The agreement so far.")],
    new_file: Annotated[
        Path, typer.Argument(metavar="NEW", show_default=False, help="What is to replace it.")
    ],
    as_json: Json = False,
) -> None:
    """Say in words what distinguishes two agreements, and what becomes stricter or looser."""
    from dovetail.agreement.differences import differences
    from dovetail.agreement.files import load_terms

    found = differences(load_terms(old), load_terms(new_file))
    if as_json:
        print_json({"equal": not found, "differences": [vars(each) for each in found]})
        return
    print_differences(Console(highlight=False), found)


@command(
    app,
    epilog="Example: [bold]dovetail agreement sign spring.toml --keys keys[/bold], then send "
    "[bold]spring.NAME.signature[/bold] to the coordinator. Where it replaces your keys: "
    "[bold]dovetail agreement sign spring-2.toml --keys new --former-keys old --amend spring.toml"
    "[/bold], and send both signatures.",
)
def sign(
    file: File,
    keys: Annotated[Path, typer.Option(show_default=False, help="Folder of the party's keys.")],
    former_keys: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Folder of the keys that this version replaces; they sign too. With --amend.",
        ),
    ] = None,
    amend: Amended = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Sign without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Sign an agreement as the party whose keys these are, after showing its key facts.

    Writes a signature beside the agreement. It holds for these very words: a change of any field,
    in the schema too, needs signatures anew. With --former-keys it writes two: nobody's keys are
    replaced without a signature of those that they had.
    """
    from dovetail.agreement.differences import differences
    from dovetail.agreement.files import load_terms
    from dovetail.agreement.signing import sign_as
    from dovetail.agreement.wording import key_facts

    if former_keys and not amend:
        raise SettingError("give --amend FILE, the version in which the former keys stand")
    terms, previous = load_terms(file), load_terms(amend) if amend else None
    console = Console(highlight=False, stderr=as_json)
    print_title(console, terms)
    print_section(console, "In short", tuple(key_facts(terms)))
    if previous:
        print_differences(console, differences(previous, terms))
    keyring, former = unlock(keys), unlock(former_keys) if former_keys else None
    made = [sign_as(terms, keyring, previous)]
    if former:
        made.append(_former(terms, keyring, former, previous))
    if not yes and not confirmed(f"Sign this as {keyring.name}?", "read it, and give --yes"):
        raise typer.Exit(Code.BAD)
    paths = [_save(file, signature, terms) for signature in made]
    if as_json:
        also = {"former_signature": str(paths[1])} if former else {}
        record = {"signature": str(paths[0]), **also, "party": keyring.name}
        print_json({**record, **identity(terms)})
        return
    for path in paths:
        console.print(f"{keyring.name} has signed: {path}", markup=False, soft_wrap=True)


@command(
    app,
    epilog="Example: [bold]dovetail agreement verify spring.toml[/bold]. Exit code 0: all parties "
    "have signed; 1: somebody has not, or a signature does not fit.",
)
def verify(file: File, amend: Amended = None, as_json: Json = False) -> None:
    """Check that every party named in an agreement has signed exactly it.

    With --amend also that it follows the version before, as every node will demand.
    """
    from dovetail.agreement.files import load_terms, signed_file

    found = signed_file(file, load_terms(amend) if amend else None)
    complaint = _breach(found, amend)
    good = not (found.signed.missing() or found.unusable or complaint)
    if as_json:
        print_json({"valid": good, **status(found), "complaint": complaint})
    else:
        console = Console(highlight=False)
        print_title(console, found.signed.terms)
        print_section(console, "Signatures", signatures(found))
        if complaint:
            console.print(complaint, style="bold red", markup=False, soft_wrap=True)
    if not good:
        raise typer.Exit(Code.BAD)


def _asked(parties: Parties | None) -> tuple[str, Path]:
    from dovetail.agreement.draft import answered
    from dovetail.cli.questions import ask_answers

    assert parties is not None  # noqa: S101 - checked by the only caller
    answers, folder = ask_answers(parties)
    return answered(answers, parties), folder


def _written(output: Path, text: str, beside: Path) -> Terms:
    """Writes an agreement that was found to be usable, and its schema beside it."""
    from dovetail.agreement.files import schema_file, terms_of_toml
    from dovetail.store.whole_file import write_whole

    terms, name = terms_of_toml(text, beside / output.name), schema_file(text)
    try:
        if name and not (output.parent / name).exists():
            write_whole(output.parent / name, (beside / name).read_bytes())
        if name and (output.parent / name).read_bytes() != (beside / name).read_bytes():
            raise SettingError(f"{output.parent / name}: is another schema than {beside / name}")
        write_whole(output, text.encode())
    except OSError as error:
        raise SettingError(f"{output}: cannot be written ({error.strerror})") from None
    return terms


def _former(terms: Terms, now: Keyring, former: Keyring, previous: Terms | None) -> Signature:
    """The yes of a party with the keys that these terms replace."""
    from dovetail.agreement.signing import sign_as

    if former.name != now.name:
        raise SettingError(f"the former keys belong to {former.name!r}, the others to {now.name!r}")
    if former.signing.public == now.signing.public:
        raise SettingError("the former keys are the same as the new ones")
    return sign_as(terms, former, previous)


def _save(file: Path, signature: Signature, terms: Terms) -> Path:
    from dovetail.agreement.files import signature_path
    from dovetail.store.whole_file import write_whole

    path = signature_path(file, signature, terms)
    try:
        write_whole(path, (json.dumps(vars(signature), indent=2) + "\n").encode())
    except OSError as error:
        raise SettingError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def _breach(found: SignedFile, amend: Path | None) -> str:
    """Why nodes that hold the version before would not go on to this one; empty if they would."""
    from dovetail.agreement.files import require_follows

    if amend is None:
        return ""
    try:
        require_follows(found.signed, amend)
    except AgreementError as error:
        return str(error)
    return ""
