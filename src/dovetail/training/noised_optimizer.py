"""The local optimiser behind Opacus's interface: clipped sums in, noised steps out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from dovetail.agreement.request import TrainingTask
from dovetail.errors import LocalProtocolError
from dovetail.privacy.mechanism import add_noise
from dovetail.privacy.sampler import SecureSampler

OptimizerState = Mapping[str, npt.NDArray[np.float32]]
"""Momentum or moments over all parameters end to end, and Adam's step count; empty at first."""


class NoisedSumOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimiser over one vector, fed with clipped sums in the place of gradients.

    Guarantees:
        Each step applies the sum with Gaussian noise of the event's standard deviation, divided
        by the expected batch size: a public number, whatever the size of the sampled batch was.
        It is not rounded: a floor (Opacus issues 571 and 819) would rescale gradient and noise
        alike, which costs no privacy and makes the learning rate mean something else.
    """

    def __init__(
        self,
        values: nn.Parameter,
        clipped: Tensor,
        task: TrainingTask,
        declared_customers: int,
        sampler: SecureSampler,
    ) -> None:
        """Set up the task's local optimiser.

        Args:
            values: ``(size,)``, what is optimised.
            clipped: ``(size,)``, where clipped sums are gathered before each step; cleared by it.
            task: names the optimiser, its settings and the noise.
            declared_customers: public; times the sampling probability, the expected batch size.
            sampler: source of the noise.
        """
        super().__init__(
            local_optimizer(task, values),
            noise_multiplier=task.noise_multiplier,
            max_grad_norm=task.l2_clip_norm,
            expected_batch_size=task.sampling_prob * declared_customers,
        )
        self._clipped = clipped
        self._event = task.event if task.noise_multiplier else None
        self._sampler = sampler

    @property
    def accumulated_iterations(self) -> int:
        """1: the expected batch size is that of the whole Poisson batch."""
        return 1

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # noqa: ARG002
        """Turn the clipped sum into a noised, normalised gradient; always goes on to the step."""
        self.clip_and_accumulate()
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True

    def clip_and_accumulate(self) -> None:
        """Take over what has been gathered, clipped already."""
        (values,) = self.params
        values.summed_grad = self._clipped

    def add_noise(self) -> None:
        """Noise the sum, in place, through ``privacy.mechanism``.

        Without noise only where the task's protection is ``none``, which nodes refuse.
        """
        (values,) = self.params
        if self._event is not None:
            add_noise(values.summed_grad.numpy(), self._event, self._sampler)
        values.grad = values.summed_grad

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take a step, and clear what has been gathered so that none of it counts twice."""
        super().step(closure)
        (values,) = self.params
        values.grad = values.summed_grad = None
        self._clipped.zero_()


def local_optimizer(task: TrainingTask, values: nn.Parameter) -> torch.optim.Optimizer:
    """Torch's optimiser of the task, with torch's defaults but for what the task states."""
    if task.local_optimizer == "adam":
        return torch.optim.Adam([values], lr=task.learning_rate)
    return torch.optim.SGD([values], lr=task.learning_rate, momentum=task.momentum)


def restore(
    optimizer: NoisedSumOptimizer,
    values: nn.Parameter,
    task: TrainingTask,
    state: OptimizerState,
) -> None:
    """Put a state of :func:`state_of` back; an empty one changes nothing.

    Raises:
        LocalProtocolError: the state is not one of this task's optimiser.
    """
    if not state:
        return
    fits = set(state) == _state_names(task) and all(
        array.shape == (() if name == "step" else tuple(values.shape))
        for name, array in state.items()
    )
    if not fits:
        raise LocalProtocolError("the optimiser's state is not one of this task")
    optimizer.state[values] = {
        name: torch.tensor(np.asarray(array, dtype=np.float32)) for name, array in state.items()
    }


def state_of(
    optimizer: NoisedSumOptimizer, values: nn.Parameter
) -> dict[str, npt.NDArray[np.float32]]:
    """What the next round needs, as plain named arrays; empty for SGD without momentum."""
    return {
        name: value.numpy().copy()
        for name, value in optimizer.state[values].items()
        if isinstance(value, Tensor)
    }


def _state_names(task: TrainingTask) -> set[str]:
    if task.local_optimizer == "adam":
        return {"step", "exp_avg", "exp_avg_sq"}
    return {"momentum_buffer"} if task.momentum else set()
