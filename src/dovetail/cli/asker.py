"""Whoever asks a coordinator for jobs: with which keys, and under which agreement."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.cli.unlock import access
from dovetail.errors import AgreementError

if TYPE_CHECKING:
    from dovetail.agreement.request import Request
    from dovetail.agreement.signing import Asking
    from dovetail.agreement.terms import Terms
    from dovetail.agreement.trusted import TrustedTerms


class Asker:
    """An analyst, or the coordinator's operator, and a connection that is made when first needed.

    The agreement that a coordinator shows is kept beside the keys (``agreement.json``), so that it
    cannot show an older one later.

    Attributes:
        keyring: the asker's keys.
        client: asks the coordinator.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the keys in a folder.

        Raises:
            SettingError: the keys or the coordinator's address cannot be read.
        """
        from dovetail.wire.control import ControlClient

        self._folder = folder
        self.keyring, self._access = access(folder)
        self.client = ControlClient(self._access)

    def signed(self, request: Request, purpose: Asking) -> dict[str, Any]:
        """A request under the terms in force, signed for a purpose.

        Raises:
            AgreementError: see :meth:`trusted`; or no terms are in force.
        """
        from dovetail.agreement import terms as agreed
        from dovetail.agreement.signing import request_record, sign_request

        terms = self.in_force()
        me, key = self.keyring.name, self.keyring.signing
        return request_record(sign_request(request, agreed.digest(terms), me, key, purpose))

    def in_force(self) -> Terms:
        """The terms in force today.

        Raises:
            AgreementError: see :meth:`trusted`; or no terms are in force.
        """
        return self.trusted().in_force(datetime.now(UTC).date())

    def trusted(self) -> TrustedTerms:
        """What the coordinator shows and all have signed, this asker with these keys.

        Raises:
            AgreementError: there is none, it was not signed by all, does not name this asker with
                its key or the coordinator with its certificate, or an older one than was shown
                before.
            SettingError: it cannot be kept.
        """
        return self._followed(self.client.call("Agreement", {}), self.keyring.name)

    def agreement(self) -> dict[str, Any]:
        """All versions as JSON-able data; to be read also by who is not named, or not yet.

        Raises:
            AgreementError, SettingError: as :meth:`trusted`, but for the asker's own name and key.
        """
        record = self.client.call("Agreement", {})
        self._followed(record, "")
        return record

    def terms_of(self, digest: str) -> Terms:
        """The version of the terms with this digest.

        Raises:
            AgreementError: the coordinator does not show it; or as :meth:`trusted`.
        """
        from dovetail.agreement import terms as agreed

        for signed in self.trusted().chain:
            if agreed.digest(signed.terms) == digest:
                return signed.terms
        raise AgreementError("the coordinator does not show the terms that this job ran under")

    def _followed(self, record: dict[str, Any], me: str) -> TrustedTerms:
        from dovetail.agreement.enrolment import require_coordinator
        from dovetail.agreement.signing import chain_from_record
        from dovetail.store.agreement import AGREEMENT_FILE, KeptTerms

        kept = KeptTerms(self._folder / AGREEMENT_FILE, me, self.keyring.signing.public)
        kept.follow(chain_from_record(record))
        newest = kept.trusted.newest
        if newest is None:
            raise AgreementError("the coordinator has no agreement that all parties signed yet")
        require_coordinator(newest, self._access.server_certificate)
        return kept.trusted
