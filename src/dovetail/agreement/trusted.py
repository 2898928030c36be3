"""The newest terms that all parties signed: moving forward only, and handed out only in force.

The idea is that of The Update Framework's trusted metadata set: an object that cannot hold
anything else, with no I/O in it.

::

    first terms        every party signed, with the key that these terms pin for it
    next terms         the same; and the same name, the next version, ``previous`` the digest of
                       the terms held; and every party that stays signed with the key that the
                       terms held pin for it, so that nobody's key is replaced without its owner
    a whole history    the same for each version, all or none of them
    the same terms     accepted and change nothing
    older terms        refused

Whoever relies on terms must be named by the newest of them, with the key that it has now; in
versions before it may have had another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from dovetail.agreement import terms as agreed
from dovetail.agreement.signing import SignedTerms
from dovetail.agreement.terms import Terms
from dovetail.errors import AgreementError

OLDER = "an older or another agreement was shown than the one held here"


class TrustedTerms:
    """What may be relied on.

    Guarantees:
        ``newest`` was signed by every party that it names. It is never replaced by an older
        version, nor by one that skips a version, nor by one that a party which stays did not sign
        with the key it had before. :meth:`in_force` returns nothing that has expired, has not
        begun, or pins another key for the party that relies on it.
    """

    def __init__(self, me: str = "", key: str = "", kept: Iterable[SignedTerms] = ()) -> None:
        """Trusts what was accepted before, and nothing else yet.

        Args:
            me: the party that relies on this; empty for an onlooker.
            key: that party's own public key: terms that pin another one for it are refused.
            kept: all versions that were accepted here before, oldest first. The newest of them
                may pin a key that the party had then: no terms that come before it are accepted,
                and nothing is in force until terms come that pin ``key``.

        Raises:
            AgreementError: what was kept is not a history that all parties signed.
        """
        self._me, self._key = me, key
        self._chain: tuple[SignedTerms, ...] = ()
        for signed in kept:
            self._chain = (*self._chain, _following(self._chain, signed))

    @property
    def newest(self) -> Terms | None:
        """The newest terms that all signed, in force or not."""
        return self._chain[-1].terms if self._chain else None

    @property
    def chain(self) -> tuple[SignedTerms, ...]:
        """All versions that were accepted here, oldest first."""
        return self._chain

    def in_force(self, day: date) -> Terms:
        """The terms, on a day on which they hold.

        Args:
            day: today, in UTC.

        Raises:
            AgreementError: there are none, they pin another key for the party that relies on
                them, they have not begun, or they have expired.
        """
        terms = self.newest
        if terms is None:
            raise AgreementError("no terms are in force here: not all parties have signed any")
        self._require_mine(terms)
        if day < terms.valid_from:
            raise AgreementError(f"the terms begin on {terms.valid_from.isoformat()}")
        if day > terms.valid_until:
            raise AgreementError(f"the terms ended on {terms.valid_until.isoformat()}")
        return terms

    def update(self, signed: SignedTerms) -> bool:
        """Moves on to newer terms.

        Returns:
            Whether they are new; ``False`` for the ones held already.

        Raises:
            AgreementError: they cannot follow; says why, and nothing changes.
        """
        held = self.newest
        if held is not None and agreed.digest(held) == agreed.digest(signed.terms):
            return False
        following = _following(self._chain, signed)
        self._require_mine(signed.terms)
        self._chain = (*self._chain, following)
        return True

    def follow(self, chain: Iterable[SignedTerms]) -> bool:
        """Moves along a whole history, skipping what is held already or older.

        Returns:
            Whether anything was new.

        Raises:
            AgreementError: a version cannot follow, or the history ends before the terms held,
                or is another one: somebody shows an older agreement. Nothing changes.
        """
        held, last = self._chain, None
        for last in chain:
            if not held or last.terms.version > held[-1].terms.version:
                held = (*held, _following(held, last))
        if held and (last is None or agreed.digest(last.terms) != agreed.digest(held[-1].terms)):
            raise AgreementError(OLDER)
        if held is self._chain:
            return False
        self._require_mine(held[-1].terms)
        self._chain = held
        return True

    def _require_mine(self, terms: Terms) -> None:
        if not self._me:
            return
        mine = {party.name: party for party, _ in terms.parties}.get(self._me)
        if mine is None:
            raise AgreementError(f"the terms no longer name {self._me!r}")
        if mine.key != self._key:
            raise AgreementError(f"the terms pin another key for {self._me!r} than it has")


def _following(chain: tuple[SignedTerms, ...], signed: SignedTerms) -> SignedTerms:
    """The terms, if they may come after what is held."""
    held = chain[-1].terms if chain else None
    if held is not None:
        _require_next(held, signed.terms)
    if missing := signed.missing():
        raise AgreementError(f"not signed by {', '.join(missing)}")
    if held is not None:
        _require_handed_over(held, signed)
    return signed


def _require_next(held: Terms, terms: Terms) -> None:
    if terms.name != held.name:
        raise AgreementError("these are the terms of another collaboration")
    if terms.version <= held.version:
        raise AgreementError(f"version {terms.version} is not newer than version {held.version}")
    if terms.version != held.version + 1:
        raise AgreementError(f"version {held.version + 1} is missing in between")
    if terms.previous != agreed.digest(held):
        raise AgreementError("these terms follow other ones than are held here")


def _require_handed_over(held: Terms, signed: SignedTerms) -> None:
    staying = {party.name for party, _ in signed.terms.parties}
    unasked = [p.name for p, _ in held.parties if p.name in staying and not signed.signed_by(p.key)]
    if unasked:
        raise AgreementError(f"not signed with the key held until now by {', '.join(unasked)}")
