"""How ``dovetail agreement`` prints an agreement, its signatures, and differences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from dovetail.agreement.differences import Difference
    from dovetail.agreement.files import SignedFile
    from dovetail.agreement.terms import Terms


def identity(terms: Terms) -> dict[str, Any]:
    """Which version of which agreement it is, exactly."""
    from dovetail.agreement.terms import digest

    return {"name": terms.name, "version": terms.version, "digest": digest(terms)}


def status(found: SignedFile) -> dict[str, Any]:
    """Who has signed an agreement, who has not, and what cannot be used, for programs."""
    terms, missing = found.signed.terms, found.signed.missing()
    return {
        **identity(terms),
        "signed_by": [party.name for party, _ in terms.parties if party.name not in missing],
        "missing": list(missing),
        "unusable": list(found.unusable),
    }


def signatures(found: SignedFile) -> tuple[str, ...]:
    """The same in sentences."""
    from dovetail.agreement.wording import listed

    terms, missing = found.signed.terms, found.signed.missing()
    signed = [party.name for party, _ in terms.parties if party.name not in missing]
    if not missing:
        said = [f"All {len(signed)} parties have signed: {listed(signed)}."]
    else:
        said = [f"{listed(signed)} {'have' if signed[1:] else 'has'} signed."] if signed else []
        said.append(f"Not signed by {listed(missing)}.")
    return (*said, *found.unusable)


def print_title(console: Console, terms: Terms) -> None:
    """An agreement's name, version and digest."""
    console.print(Text(f"{terms.name}, version {terms.version}", style="bold"))
    console.print(Text(f"digest {identity(terms)['digest']}", style="dim"), soft_wrap=True)


def print_section(console: Console, heading: str, sentences: tuple[str, ...]) -> None:
    """A heading, and sentences under it."""
    console.print()
    console.print(Text(heading, style="bold"))
    for sentence in sentences:
        console.print(Padding(Text(sentence), (0, 0, 0, 2), expand=False))


def print_differences(console: Console, found: list[Difference]) -> None:
    """What distinguishes two agreements, and what becomes stricter or looser."""
    if not found:
        console.print("The two say the same.")
    for difference in found:
        style = {"looser": "yellow", "stricter": "green"}.get(difference.tendency, "")
        console.print(Text(f"{difference.tendency:<10}", style=style), end="")
        console.print(Text(difference.words), soft_wrap=True)


def tell_what_next(output: Path, terms: Terms) -> None:
    """Where an agreement was written, and what is to be done with it."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{output}: {terms.name!r}, version {terms.version}", markup=False)
    console.print(
        f"Read it with dovetail agreement show {output}, and send it to all "
        f"{len(terms.parties)} parties to sign.",
        markup=False,
    )
