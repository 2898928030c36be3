"""The three model families as torch modules, and their parameters as plain arrays.

The activation is ``tanh`` throughout and not an option: DP-SGD keeps more utility with bounded
activations, which keep gradients small before they are clipped (Papernot et al. 2021, "Tempered
sigmoid activations for deep learning with differential privacy", AAAI). What a hostile coordinator
could do to the arithmetic with huge weights, :func:`require_steady` refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dovetail.agreement.request import ModelSpec
from dovetail.errors import RemoteProtocolError, SchemaError
from dovetail.schema import MISSING_CODE, Schema

Arrays = Mapping[str, npt.NDArray[np.float32]]
"""A model's parameters by the names of ``ModelSpec.parameters``."""

LARGEST_AMPLIFICATION = 2.0**20
"""By what factor a model may magnify rounding units: beyond models that predict, and where attacks
by search moved sums by less than 1 % more than clipping allows."""


class TabularModel(nn.Module):
    """Numbers and category codes in, one logit per row out.

    ``logistic`` is the case without hidden layers. Categories enter one-hot, or embedded where
    the spec says so; the embedding of a missing value stays at its public initial value.
    """

    def __init__(self, spec: ModelSpec, schema: Schema) -> None:
        super().__init__()
        cardinalities = [category.cardinality for category in schema.categories]
        self.embedded = spec.family == "embedding_mlp"
        self.embedding_dim = spec.embedding_dim
        self.embeddings = nn.ModuleList(
            nn.Embedding(cardinality, spec.embedding_dim, padding_idx=MISSING_CODE)
            for cardinality in (cardinalities if self.embedded else ())
        )
        width = len(schema.number_features)
        width += len(cardinalities) * spec.embedding_dim if self.embedded else sum(cardinalities)
        self.hidden = nn.ModuleList()
        self._one_hot_width = 0 if self.embedded else width
        for outputs in spec.hidden:
            self.hidden.append(nn.Linear(width, outputs))
            width = outputs
        self.output = nn.Linear(width, 1)
        self._cardinalities = cardinalities

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Logits of rows.

        Args:
            numbers: float32 ``(n, number features)``.
            codes: int64 ``(n, categories)``.

        Returns:
            ``(n,)``, and not ``(n, 1)``: a loss against ``(n,)`` labels would broadcast the
            latter to ``(n, n)`` in silence, and every clip bound would be void.
        """
        units = self._embed(numbers, codes) if self.embedded else self.one_hot(numbers, codes)
        for layer in self.hidden:
            units = torch.tanh(layer(units))
        logits: Tensor = self.output(units)
        return logits.squeeze(1)

    def _embed(self, numbers: Tensor, codes: Tensor) -> Tensor:
        columns = codes.unbind(1)
        parts = [embed(column) for embed, column in zip(self.embeddings, columns, strict=True)]
        return torch.cat([numbers, *parts], dim=1)

    def one_hot(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Inputs ``(n, numbers + all codes)`` of a family that does not embed."""
        if not self._cardinalities:
            return numbers
        first = numbers.shape[1]
        offsets = np.cumsum([first, *self._cardinalities[:-1]])
        units = numbers.new_zeros(len(numbers), self._one_hot_width)
        units[:, :first] = numbers
        return units.scatter_(1, codes + torch.from_numpy(offsets), 1.0)


def adjacent_rows(codes: Tensor, sizes: Tensor) -> Tensor:
    """Where embedding tables lie end to end, the rows that codes read.

    Args:
        codes: int64 ``(n, tables)``.
        sizes: int64 ``(tables,)``, rows of each table.

    Raises:
        SchemaError: a code lies outside its table: it would read another column's row.
    """
    if ((codes < 0) | (codes >= sizes)).any():
        raise SchemaError("a category has a code that the schema does not declare")
    return codes + (sizes.cumsum(0) - sizes)


def build_model(spec: ModelSpec, schema: Schema) -> TabularModel:
    """The model of ``spec`` over ``schema``, all parameters zero until :func:`load_arrays`.

    Its ``state_dict`` has exactly the names and shapes of ``spec.parameters(schema)``.
    """
    model = blueprint(spec, schema)
    return with_parameters(model, {n: torch.zeros(p.shape) for n, p in model.named_parameters()})


@lru_cache(maxsize=32)
def blueprint(spec: ModelSpec, schema: Schema) -> TabularModel:
    """The structure of a model on torch's device without memory: it has no value that could leak.

    Torch takes longer to put modules together than a round of a small model takes to train; so
    this is done once, and everybody works on a :func:`with_parameters` of their own.
    """
    with torch.device("meta"):
        return TabularModel(spec, schema)


_Module = TypeVar("_Module", bound=nn.Module)


def with_parameters(module: _Module, tensors: Mapping[str, Tensor], prefix: str = "") -> _Module:
    """A module of the same structure whose parameters view these tensors.

    It shares neither parameters nor hooks nor submodules with ``module``.

    Args:
        module: one without buffers; stays as it is.
        tensors: by the names of ``module``'s parameters, each preceded by ``prefix``.
        prefix: empty but for submodules.
    """
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict | list | set):
            vars(twin)[name] = value.copy()
    for name, parameter in module.named_parameters(recurse=False):
        tensor = tensors[prefix + name]
        twin.register_parameter(name, nn.Parameter(tensor, parameter.requires_grad))
    for name, child in module.named_children():
        twin.add_module(name, with_parameters(child, tensors, f"{prefix}{name}."))
    return twin


def load_arrays(model: nn.Module, arrays: Arrays) -> None:
    """Copy arrays into the model's parameters.

    Raises:
        RemoteProtocolError: a name is missing or surplus, a shape differs, or a value is not
            finite; the model may then be partly loaded.
    """
    parameters = dict(model.named_parameters())
    if set(arrays) != set(parameters):
        raise RemoteProtocolError("the arrays received are not the parameters of this model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            array = np.ascontiguousarray(arrays[name], dtype=np.float32)
            if array.shape != tuple(parameter.shape):
                raise RemoteProtocolError(f"array {name!r} has the wrong shape")
            if not np.isfinite(array).all():
                raise RemoteProtocolError(f"array {name!r} holds values that are not finite")
            parameter.copy_(torch.tensor(array))


def require_steady(model: TabularModel, largest_embedding: float | None = None) -> None:
    """Refuse parameters that magnify what float32 rounds into gradients of another size.

    How a row's products are rounded depends on the rows beside it in a batch, hence on whether
    another customer takes part. Clipping bounds what each customer adds, not how much all the
    others change: with weights of 1e12 one customer more or less moved a sum by 70 clip norms.
    The bound looks at parameters alone and so says nothing of any row.

    Args:
        model: with parameters that may be looked at.
        largest_embedding: a bound on its embeddings where they may not be looked at.

    Raises:
        RemoteProtocolError: rounding errors could reach the logits more than
            :data:`LARGEST_AMPLIFICATION` times as large.
    """
    if largest_embedding is None:
        largest_embedding = largest_in_tables(model)
    error, inputs = 0.0, max(1.0, largest_embedding)
    for layer in cast("list[nn.Linear]", [*model.hidden, model.output]):
        weights = float(layer.weight.detach().double().abs().sum(1).max())
        error = weights * (error + inputs) + float(layer.bias.detach().abs().max())
        inputs = 1.0
    if not error <= LARGEST_AMPLIFICATION:
        raise RemoteProtocolError(
            "the model received is too large to be computed with; it may have diverged: lower the "
            "learning rate"
        )


def largest_in_tables(model: TabularModel) -> float:
    """The largest magnitude in the embeddings; 0 where there are none."""
    tables = [float(table.detach().abs().max()) for table in model.embeddings.parameters()]
    return max(tables, default=0.0)


def arrays_of(model: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """Copies of the model's parameters, float32, by name."""
    return {
        name: parameter.detach().numpy().astype(np.float32, copy=True)
        for name, parameter in model.named_parameters()
    }
