"""Blocks with the least error of a matrix's outputs that more effort can find, in a runtime's own format.

The format stays what it is; only its codes, scales and minima are chosen otherwise. The error that counts is
that of the outputs on some text, which the second moment of the inputs measures (`metric`). A first fit is
found group by group (`search`, by the `kinds` of parameters), then codes and parameters are changed one by
one as long as that makes the error smaller (`descent`). `choice` keeps what was learned from one text from
doing harm on others.

    best(rows, encoding, shrunk(moments, choice.amount))
"""

from phiconv.quantizers.best.choice import AMOUNTS, Choice, choose, keep_better, sample
from phiconv.quantizers.best.matrices import SWEEPS, best, merged, supports
from phiconv.quantizers.best.metric import output_error, shrunk

__all__ = [
    "AMOUNTS",
    "SWEEPS",
    "Choice",
    "best",
    "choose",
    "keep_better",
    "merged",
    "output_error",
    "sample",
    "shrunk",
    "supports",
]
