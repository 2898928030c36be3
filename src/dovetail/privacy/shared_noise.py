"""What a :class:`SharedGaussian` costs: that of a normal twin, and how far it lies from the twin.

**Setting.** A random vector ``F`` of ``d`` whole numbers (rows sampled, clipped, rounded, summed
over nodes) is seen as ``F + N``, where at least ``m = nodes - tolerated`` shares of ``N`` were
drawn independently from DG(τ), the discrete Gaussian of std ``τ = noise_std / √m``, and are known
to nobody. ``σ`` is ``noise_std``. What others add, or know, is independent of these m shares:
adding it is post-processing.

**Twin.** Let ``Y`` be a vector of independent normal numbers of variance ``s² = σ² - 1/12``, and
round it to whole numbers. ``F + round(Y) = round(F + Y)`` because F is whole, so whoever sees it
sees a post-processed Gaussian mechanism of noise multiplier ``s / l2_sensitivity`` over the same
sample: :func:`twin`. Rounding adds 1/12 to the variance, which is why s is that little less than σ.
(Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential privacy", §3, show how
close discrete and normal noise are; Kairouz, Liu and Steinke 2021, "The distributed discrete
Gaussian mechanism for federated learning with secure aggregation", do it for sums of shares,
without sampling. With a Poisson sample the Rényi divergences of F + DG(σ) at whole orders are those
of F + N(0, σ²), by Mironov, Talwar and Zhang 2019, "Rényi differential privacy of the sampled
Gaussian mechanism", §3.3, with sums in place of integrals; privacy loss distributions need
the distance below.)

**Distance.** N is within total variation distance :func:`distance` of round(Y). Three steps:

1. *Drawn numbers*: ``d`` per share, each within ``discrete_gaussian.DISTANCE`` of DG(τ).
2. *Sums of shares*: by completing the square as in ``discrete_gaussian``, with s = 1, the sum of
   DG(τ √k) and DG(τ) differs from DG(τ √(k+1)) by ``2 η``, ``η = 2.1 exp(-2π² v²)``, ``v² = τ² k /
   (k+1)`` (Kairouz et al. 2021, up to constants). With τ >= 10 that is below 10⁻⁴²⁷ for
   each number and share, far less than DISTANCE is rounded up by.
3. *Rounded normal numbers against DG(σ)*: at most ``√(exp(d / (280,000 σ⁸)) - 1) / 2``.

**Proof of 3.** Let φ be the density of N(0, σ²), r that of ``S + U`` with ``S ~ N(0, s²)`` and U
uniform on [-1/2, 1/2]. A normal number of variance s² is rounded to x with probability ``R(x) =
P(|x - S| <= 1/2) = r(x)``. DG(σ) is ``p(x) = φ(x) / θ`` with ``θ = Σ_x φ(x)``, by Poisson's formula
``1 <= θ < 1 + 3 exp(-2π² σ²)``.

*On the line.* ``ψ_k(x) = He_k(x/σ) √(φ(x) / k!)`` is an orthonormal basis, in which
``g = (r - φ) / √φ`` has the coordinates ``b_k = E He_k((S + U)/σ) / √k!`` for k >= 1 and 0 for
k = 0. From ``Σ He_k(z) t^k / k! = exp(t z - t²/2)`` and ``E exp(t S/σ) = exp(t²/2 - t²/(24 σ²))``
follows ``b_k = (12 σ²)^(-k/2) E He_k(V) / √k!`` with ``V = √12 U``: that has mean 0, variance 1 and
no odd moments, so ``b_1 = b_2 = b_3 = b_5 = 0``, ``b_4² = (6/5)² / 24 / (12 σ²)⁴ =
1 / (345,600 σ⁸)``, and ``b_k² <= 5.3 (12 σ²)^-k`` beyond, because ``|He_k(v)| <= 1.087 √k!
exp(v²/4)`` (Abramowitz and Stegun 1964, 22.14.17) and ``V² <= 3``. With σ >= 10 these add up to
less than ``10⁻⁴ b_4²``, and weighted with ``k + 1`` to less than ``10⁻³ b_4²``.

*On whole numbers.* ``|Σ_x f(x) - ∫ f| <= ½ ∫ |f'|`` for every f; with ``f = g²`` the right side is
at most ``‖g‖ ‖g'‖``, and ``ψ_k' = (√k ψ_{k-1} - √(k+1) ψ_{k+1}) / 2σ`` gives ``‖g'‖ <=
√(Σ (k+1) b_k²) / σ < 2.24 |b_4| / σ``. So ``G = Σ_x g(x)² <= b_4² (1.001 + 2.24/σ) <= 1.226 b_4²``.
Then, since R adds up to 1, ``χ² = Σ R²/p - 1 = θ (G + 2 - θ) - 1 = θ G - (θ - 1)² <= θ G <
1 / (280,000 σ⁸)``.

*In d dimensions* ``1 + χ²`` is multiplied with itself, and total variation distance is at most
``√χ² / 2`` (Tsybakov 2009, "Introduction to nonparametric estimation", §2.4). ∎

**What it costs.** Let P and Q be what k releases show together on two neighbouring tables, P' and
Q' the same of their twins. Each release changes both by its distance at most, adaptively too, so
with ``D`` the sum of the distances, for every set E of outcomes, ::

    P(E) <= P'(E) + D <= e^ε Q'(E) + δ' + D <= e^ε Q(E) + δ' + (1 + e^ε) D

A history is (ε, δ)-private where its twin is (ε, δ')-private with ``δ' = δ - (1 + e^ε) D``;
``privacy.accountant`` states ε so.
"""

from __future__ import annotations

import math
from functools import lru_cache

from dovetail.errors import PrivacyError
from dovetail.privacy.discrete_gaussian import DISTANCE, STDS
from dovetail.privacy.event import SampledGaussian, SharedGaussian, Spending

_CHI_SQUARE = 1 / 280_000
_ROUNDING_VARIANCE = 1 / 12


def twin(event: SharedGaussian) -> SampledGaussian:
    """The Gaussian mechanism whose rounded result the shared sum imitates.

    Its noise is smaller by a relative ``1 / (24 noise_std²)``, the price of rounding.

    Raises:
        PrivacyError: a share's std lies outside ``discrete_gaussian.STDS``.
    """
    _require_std(event)
    std = math.sqrt(event.noise_std**2 - _ROUNDING_VARIANCE)
    return SampledGaussian(event.sampling_prob, event.l2_sensitivity, std)


@lru_cache(maxsize=2**12)
def distance(event: SharedGaussian) -> float:
    """Total variation distance of one sum's noise from that of the twin, at most.

    Raises:
        PrivacyError: a share's std lies outside ``discrete_gaussian.STDS``.
    """
    _require_std(event)
    drawn = event.size * event.nodes * DISTANCE
    rounded = math.sqrt(math.expm1(event.size * _CHI_SQUARE * event.noise_std**-8)) / 2
    return drawn + rounded


def distance_of(spending: Spending) -> float:
    """The distances of everything that was released, added up: 0 where nothing was shared.

    Raises:
        PrivacyError: a share's std lies outside ``discrete_gaussian.STDS``.
    """
    return sum(
        count * distance(event)
        for event, count in spending.items()
        if isinstance(event, SharedGaussian)
    )


def _require_std(event: SharedGaussian) -> None:
    if not STDS[0] <= event.share_std <= STDS[1]:
        message = f"each node's share of the noise needs a std from {STDS[0]:g} to {STDS[1]:g}"
        raise PrivacyError(message)
