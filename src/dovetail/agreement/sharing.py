"""How a job's noise is shared: everything that follows from the task and the terms alone.

Nodes and coordinator each work it out from what all signed, so that nothing of it is negotiated,
and a node can refuse before a row is read.

One customer moves a node's contribution by at most ``l2_sensitivity``:

- one step (``local_steps = 1``): the sum of the sampled customers' clipped gradients, which one
  customer moves by the clip norm and by what floating point makes of it
  (:func:`dovetail.agreement.rounding.rounding_slack`). The step over the union of all partners'
  customers is a step of DP-SGD (Abadi et al. 2016), each customer sampled on its own and in secret;
- several local steps: the node's update, clipped to the clip norm as a whole. One customer may turn
  it from any vector of that norm into any other, so that it moves by at most twice the clip norm,
  and sampling within the node amplifies nothing. Taking the whole partner away moves the sum by the
  clip norm, hence the same ε holds for each partner as a unit at half the sensitivity.

Contributions become whole numbers (:mod:`dovetail.secagg.encoding`): a sum of ``size`` coordinates
moves by up to ``sqrt(size)`` units more for being rounded, which the event counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dovetail.agreement import request as requests
from dovetail.agreement import terms as agreed
from dovetail.agreement.request import Request, TrainingTask
from dovetail.agreement.rounding import rounding_slack
from dovetail.agreement.terms import Terms
from dovetail.crypto import canonical
from dovetail.errors import SettingError
from dovetail.privacy.discrete_gaussian import DiscreteGaussian
from dovetail.privacy.event import SharedGaussian
from dovetail.secagg.encoding import Encoding
from dovetail.secagg.group import Group

FINEST_STD = 2.0**20
"""Units of a node's noise beyond which a finer grid would gain nothing."""
COARSEST_STD = 2.0**7
"""Units of a node's noise below which it would be told from a normal one too easily."""
_LONGEST, _SPARE = 15.0, 64.0
"""No noise exceeds so many standard deviations and so many units (``DiscreteGaussian.bound``)."""
LARGEST_ROUNDING = 0.01
"""How much more noise rounding may ask for before 64 bits are taken instead of 32."""


@dataclass(frozen=True)
class Sharing:
    """How the partners of a job add up.

    Attributes:
        group: who adds up, and what is assumed of them.
        encoding: how a contribution becomes whole numbers.
        event: what one round costs a customer of one partner.
    """

    group: Group
    encoding: Encoding
    event: SharedGaussian


def sharing_of(task: TrainingTask, terms: Terms) -> Sharing:
    """How a task's noise is shared under these terms.

    Raises:
        SettingError: the terms share no noise, or no grid serves so many partners, parameters, so
            large a sample and so little noise; names the limit.
        SchemaError: the task names columns that the terms do not have.
    """
    group = group_of(terms)
    partners, tolerated = len(group.members), group.tolerated
    sensitivity, bound = _norms(task, terms)
    share = task.noise_multiplier * task.l2_clip_norm / math.sqrt(partners - tolerated)
    encoding, share_std = _grid(_size(task, terms), partners, sensitivity, bound, share)
    event = SharedGaussian(
        sampling_prob=task.sampling_prob if task.local_steps == 1 else 1.0,
        l2_sensitivity=encoding.sensitivity(sensitivity),
        noise_std=share_std * math.sqrt(partners - tolerated),
        nodes=partners,
        tolerated=tolerated,
        size=encoding.size,
    )
    return Sharing(group, encoding, event)


def sum_digest(request: Request, terms: Terms) -> str:
    """What keys, masks and signatures of a job's sums are bound to, in hex.

    The terms belong to it: a request says the same under two versions of them whose grids and
    noise differ, and contributions under one must not add up with those under another.
    """
    return canonical.digest({"request": requests.digest(request), "terms": agreed.digest(terms)})


def group_of(terms: Terms) -> Group:
    """The partners, their keys, and what they assume of each other.

    Raises:
        SettingError: the terms share no noise.
    """
    assumed = terms.secure_aggregation
    if assumed is None:
        raise SettingError("the terms do not say how noise is shared")
    keys = {partner.name: partner.key for partner in terms.partners}
    return Group(tuple(sorted(keys)), keys, assumed.dropouts, assumed.colluders)


def _size(task: TrainingTask, terms: Terms) -> int:
    arrays = task.model.parameters(terms.schema.select(task.features))
    return sum(math.prod(array.shape) for array in arrays)


def _norms(task: TrainingTask, terms: Terms) -> tuple[float, float]:
    """How far one customer moves a contribution, and the largest coordinate that one may have.

    A step's coordinates are cut off where those of an expected sample of the largest partner end:
    a projection on a box moves no two vectors further apart.
    """
    if task.local_steps > 1:
        return 2 * task.l2_clip_norm, task.l2_clip_norm
    largest = max(partner.customers for partner in terms.partners)
    slack = rounding_slack(_size(task, terms), terms.schema.max_rows_per_customer)
    moved = task.l2_clip_norm * (1 + slack)
    return moved, task.l2_clip_norm * max(1.0, task.sampling_prob * largest)


def _grid(
    size: int, partners: int, sensitivity: float, bound: float, share: float
) -> tuple[Encoding, float]:
    """The encoding, and the std of one node's noise in its units.

    32 bits where rounding then asks for hardly more noise, and 64 otherwise.
    """
    for bits in (32, 64):
        room = (2.0 ** (bits - 1) / partners - _SPARE) / (bound + _LONGEST * share)
        std = min(FINEST_STD, room * share)
        scale = std / share
        fine = math.sqrt(size) <= LARGEST_ROUNDING * scale * sensitivity
        if std >= COARSEST_STD and (fine or bits == 64):
            encoding = Encoding(bound, scale, bits, size)
            encoding.check_room(partners, DiscreteGaussian(std).bound)
            return encoding, std
    raise SettingError(
        f"the sum of {partners} partners does not fit into 64 bits: lower sampling_prob, or raise "
        "noise_multiplier"
    )
