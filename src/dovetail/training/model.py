"""The three model families as torch modules, and their parameters as plain arrays.

The activation is ``tanh`` throughout and not an option: DP-SGD keeps more utility with bounded
activations, which keep gradients small before they are clipped (Papernot et al. 2021, "Tempered
sigmoid activations for deep learning with differential privacy", AAAI), and bounded activations
also bound what a hostile coordinator can do to the arithmetic with huge weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dovetail.agreement.request import ModelSpec
from dovetail.errors import RemoteProtocolError, SchemaError
from dovetail.schema import MISSING_CODE, Schema

Arrays = Mapping[str, npt.NDArray[np.float32]]
"""A model's parameters by the names of ``ModelSpec.parameters``."""


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
    with torch.device("meta"):
        model = TabularModel(spec, schema)
    zeros = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    replace_parameters(model, zeros)
    return model


def replace_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let the model's parameters view these tensors."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            tensor = tensors[f"{path}.{name}" if path else name]
            setattr(module, name, nn.Parameter(tensor, requires_grad=parameter.requires_grad))


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


def arrays_of(model: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """Copies of the model's parameters, float32, by name."""
    return {
        name: parameter.detach().numpy().astype(np.float32, copy=True)
        for name, parameter in model.named_parameters()
    }
