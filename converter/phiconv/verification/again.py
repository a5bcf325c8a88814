"""The conversion that a receipt describes, planned once more, to a place where nothing will be written."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from phiconv.conversion.requests import planned
from phiconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from phiconv.conversion.adapters import Lora
    from phiconv.conversion.plans import Plan
    from phiconv.verification.stated import Stated

__all__ = ["planned_again"]


@contextmanager
def planned_again(
    stated: Stated,
    source: Path,
    lora: Sequence[Lora],
    base: str | PathLike[str] | None,
    others: Mapping[str, str | PathLike[str] | None],
) -> Iterator[Plan]:
    """Plans a conversion as its receipt says.

    Args:
        stated: The receipt.
        source: What was converted.
        lora: The adapters that were merged; their weights are the receipt's.
        base: The model, where the source is an adapter.
        others: Other files that were given, by what they are for.

    Raises:
        PhiconvError: It is no such source, or the options of the receipt are none.
    """
    adapters = [each[0] if isinstance(each, tuple) else each for each in lora]
    if len(stated.lora) != len(adapters):
        raise UsageError(
            f"{len(stated.lora)} adapters were merged, and {len(adapters)} are given", hint="give --lora"
        )
    with TemporaryDirectory(prefix="phiconv-") as folder:
        place = Path(folder, "output")
        if stated.output:
            place.mkdir()
        yield planned(
            source,
            place / stated.output,
            to=stated.format,
            choices=stated.choices,
            lora=[*zip(adapters, stated.lora, strict=True)],
            base=base,
            called=Path(folder, stated.source_name, "model"),
            **stated.options,
            others=others,
        )
