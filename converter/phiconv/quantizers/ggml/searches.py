"""The searches that ggml's quantizers share, as one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from phiconv.ir import FloatArray
from phiconv.quantizers.ggml.descent import descend, fit_positive
from phiconv.quantizers.ggml.search import AffineFit, AffineSearch, LinearFit, fit_affine, fit_linear

__all__ = ["IN_NUMPY", "Searches"]

_Affine: TypeAlias = Callable[[FloatArray, FloatArray, AffineSearch], AffineFit]
_Linear: TypeAlias = Callable[[FloatArray, FloatArray, int], LinearFit]
_Positive: TypeAlias = Callable[[FloatArray, FloatArray, int], tuple[FloatArray, NDArray[np.uint8]]]
_Descent: TypeAlias = Callable[[FloatArray, int], tuple[FloatArray, FloatArray]]


class Searches(NamedTuple):
    """Functions with the arguments, and the results, of those that `IN_NUMPY` has."""

    affine: _Affine
    linear: _Linear
    positive: _Positive
    descent: _Descent


IN_NUMPY = Searches(fit_affine, fit_linear, fit_positive, descend)
