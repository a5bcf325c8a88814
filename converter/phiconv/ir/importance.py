"""An importance matrix: how much each column of a matrix matters, measured on some text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phiconv.brief import Brief
from phiconv.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from phiconv.ir import FloatArray, Tensor

__all__ = ["ColumnSums", "ImportanceMatrix"]


@dataclass(frozen=True, slots=True, repr=False)
class ImportanceMatrix(Brief):
    """Mean squared activations, as llama-imatrix collects them.

    Attributes:
        path: The file.
        weights: Finite float32 values by the tensor's name in the output, flat: of a stack of matrices one
            after the other.
        datasets: What it was measured on, as far as the file says.
        chunks: How many chunks of text; 0 if the file does not say.
    """

    path: Path
    weights: Mapping[str, FloatArray]
    datasets: tuple[str, ...] = ()
    chunks: int = 0

    def of(self, name: str, tensor: Tensor) -> FloatArray | None:
        """The weights of a tensor, shape (matrices, columns); None where there are none.

        Raises:
            InputError: There are too many or too few: the file belongs to another model.
        """
        flat = self.weights.get(name)
        matrices = tensor.shape[0] if len(tensor.shape) > 2 else 1
        if flat is None or flat.size == matrices * tensor.columns:
            return None if flat is None else flat.reshape(matrices, tensor.columns)
        if (
            name == "token_embd.weight"
        ):  # llama-quantize passes it over, since other tools write it in another size
            return None
        raise InputError(
            f"has {flat.size} importance weights, and the tensor needs {matrices} x {tensor.columns}",
            path=self.path,
            at=f"tensor {name}",
            hint="the importance matrix belongs to another model",
        )


@dataclass(frozen=True, slots=True, repr=False)
class ColumnSums(Brief):
    """What went into a matrix, or into each matrix of a stack, while a text was computed.

    Attributes:
        sums: Squared inputs, summed over the tokens; float64, shape (matrices, columns).
        counts: How many tokens went into each matrix; int64, shape (matrices,).
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]
