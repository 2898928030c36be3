"""What a person costs who is a customer of several partners that share one noise.

Each of n partners samples the person independently with probability q and clips what they add to
C, so that all together move the sum by at most ``k C``, k from a binomial distribution of n and q.
Two bounds on this are known here:

**At once** (:func:`joint_event`). The person takes part at some partner with probability
``p = 1 - (1 - q)^n``, and then moves the sum by at most ``n C``: one event with sampling
probability p and sensitivity ``n C``.

*Proof.* Fix everybody else's part, f. Let S be the set of partners that sampled the person, w_S its
probability given that S is not empty, and ``M_S = f + Δ_S + N``, with ``|Δ_S| <= n C``. Without the
person the result is M_∅, with them ``(1 - p) M_∅ + p Σ_S w_S M_S = Σ_S w_S ((1 - p) M_∅ + p M_S)``.
The hockey-stick divergence ``H(P, Q) = sup_E P(E) - e^ε Q(E)`` is jointly convex, hence ::

    H(Σ_S w_S ((1 - p) M_∅ + p M_S), M_∅)  <=  max_S H((1 - p) M_∅ + p M_S, M_∅)

and the same with the arguments exchanged. The right side is that of a Gaussian mechanism sampled
with probability p, of sensitivity ``|Δ_S| <= n C``, in which it grows; averaging over everybody
else's part is joint convexity again. So it holds for every ε, and these pairs dominate under
adaptive composition (Zhu, Dong and Wang 2022, "Optimal accounting of differential privacy via
characteristic function"). ∎

**In parts** (:func:`joint_parts`). Noise of variance σ² is the sum of n independent normal ones of
variance ``σ²/n``, so that the sum is post-processed from n results, each of one partner's rows and
with noise ``σ/√n``: n events of sampling probability q and sensitivity C. They are shared sums'
*normal twins* that are split so, and stating the event with ``noise_std = σ/√n`` states a twin with
no more noise, ``σ²/n - 1/12 < (σ² - 1/12)/n``, and n times a distance that is larger than the whole
sum's; both err to the safe side. ∎

With q = 1 both cost the same. The smaller q, the cheaper are the parts: a person is seldom sampled
twice (q = 0.01, five partners, noise multiplier 11, 100 sums, δ = 10⁻⁶: ε of 1.07 at once, 0.17 in
parts and 0.03 for a customer of one partner). Nothing was found where they cost more.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dovetail.errors import PrivacyError
from dovetail.privacy.event import SharedGaussian


def joint_event(event: SharedGaussian, partners: int) -> SharedGaussian:
    """One event that bounds what a sum costs a person who is a customer of every partner.

    Args:
        event: the sum, with the sensitivity to what one customer does at one partner.
        partners: of how many partners one person may be a customer, >= 1.

    Returns:
        The event to charge, as often as ``event``; the event itself for one partner.

    Raises:
        PrivacyError: ``partners`` is no whole number >= 1.
    """
    _require_partners(partners)
    if partners == 1:
        return event
    q = event.sampling_prob
    prob = -math.expm1(partners * math.log1p(-q)) if q < 1 else 1.0
    return replace(event, sampling_prob=prob, l2_sensitivity=partners * event.l2_sensitivity)


def joint_parts(event: SharedGaussian, partners: int) -> tuple[SharedGaussian, int]:
    """As :func:`joint_event`, by another event and how often it is to be charged for each sum.

    What is drawn is still ``event``: the part's ``noise_std`` is for the accounting alone.

    Raises:
        PrivacyError: ``partners`` is no whole number >= 1.
    """
    _require_partners(partners)
    return replace(event, noise_std=event.noise_std / math.sqrt(partners)), partners


def _require_partners(partners: int) -> None:
    if isinstance(partners, bool) or not isinstance(partners, int) or partners < 1:
        raise PrivacyError("the number of partners is a whole number of at least 1")
