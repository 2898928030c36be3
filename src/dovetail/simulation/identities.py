"""Keys of parties that exist in a simulation only: the same for a name, every time, and no secret.

They let a simulation run the very code that checks who asks and who permits.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from hashlib import sha256

from dovetail.agreement import terms as agreed
from dovetail.agreement.party import Partner, Party
from dovetail.agreement.request import Request
from dovetail.agreement.signing import SignedRequest, sign_request
from dovetail.agreement.terms import Terms
from dovetail.crypto.keys import SigningKey, signing_key_of

COORDINATOR = "simulated-coordinator"
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2999, 12, 31)
"""Between which simulated terms hold."""


@lru_cache(maxsize=4096)
def signing_key(name: str) -> SigningKey:
    """The key of a simulated party."""
    return signing_key_of(sha256(f"dovetail simulation, key of {name}".encode()).digest())


def coordinator() -> Party:
    """The simulated coordinator, who also asks."""
    return Party(COORDINATOR, signing_key(COORDINATOR).public, _pin(COORDINATOR))


def partner(name: str, role: str, customers: int, first_day: date, last_day: date) -> Partner:
    """A simulated partner; arguments as those of :class:`~dovetail.agreement.party.Partner`."""
    key = signing_key(name).public
    return Partner(name, key, _pin(name), role, customers, first_day, last_day)


def asked(request: Request, terms: Terms) -> SignedRequest:
    """The request as the simulated coordinator asks it."""
    return sign_request(request, agreed.digest(terms), COORDINATOR, signing_key(COORDINATOR))


def _pin(name: str) -> str:
    """Nobody connects in a simulation; this only tells parties apart."""
    return sha256(f"dovetail simulation, certificate of {name}".encode()).hexdigest()
