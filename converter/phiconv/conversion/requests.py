"""From what a user gives to a plan: paths are opened, options written down, and the receipt laid out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phiconv.conversion.adapter_files import plan_adapter
from phiconv.conversion.adapters import merge
from phiconv.conversion.identity import check_identity
from phiconv.conversion.paths import expanded
from phiconv.conversion.planning import make_plan
from phiconv.conversion.provenance import Request, options_of, with_receipt
from phiconv.conversion.source import open_model
from phiconv.errors import UsageError
from phiconv.ir.model import Model, name_of
from phiconv_formats.calibration.ranges import read_ranges
from phiconv_formats.calibration.reader import open_calibration
from phiconv_formats.gguf.imatrix import read_imatrix
from phiconv_formats.shared.files import noting_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from pathlib import Path
    from typing import TypeAlias

    from phiconv.conversion.adapters import Lora
    from phiconv.conversion.plans import Plan
    from phiconv.recipes import Choices

    Given: TypeAlias = "str | PathLike[str]"

__all__ = ["planned"]


@dataclass(frozen=True, slots=True)
class _Sources:
    """What is read, as it was given.

    Attributes:
        source: What is converted.
        base: The model, where the source is an adapter.
        lora: Adapters to merge.
        others: Paths by what they are for: "imatrix", "calibration", "ranges", "config".
    """

    source: Given | Model
    base: Given | Model | None
    lora: Sequence[Lora]
    others: Mapping[str, Given | None]

    def roots(self, model: Model) -> dict[str, Path]:
        """The paths by what they are for; the source is the last."""
        roots = {role: expanded(path) for role, path in self.others.items() if path is not None}
        for number, each in enumerate(self.lora):
            roots[f"lora-{number}"] = expanded(each[0] if isinstance(each, tuple) else each)
        given = len(self.lora) + (self.base is not None)
        for number, adapter in enumerate(model.adapters[: len(model.adapters) - given]):
            roots[f"merged-{number}"] = adapter.path
        if self.base is not None:
            roots["base"] = self.base.path if isinstance(self.base, Model) else expanded(self.base)
        return roots | {
            "source": self.source.path if isinstance(self.source, Model) else expanded(self.source)
        }

    def weights(self) -> tuple[float, ...]:
        """Those of the adapters."""
        return tuple(float(each[1]) if isinstance(each, tuple) else 1.0 for each in self.lora)


def planned(
    source: Given | Model,
    destination: Given,
    *,
    choices: Choices,
    to: str | None = None,
    quant: str | None = None,
    split_max_size: int | None = None,
    lora: Sequence[Lora] = (),
    base: Given | Model | None = None,
    adapter_only: bool = False,
    repack_only: bool = False,
    receipt: bool = True,
    called: Path | None = None,
    others: Mapping[str, Given | None],
) -> Plan:
    """Plans a conversion; see `phiconv.convert` for the arguments.

    The source is ``called`` by another place, if there is one: an output has its source's name in it.
    """
    sources = _Sources(source, base, lora, others)
    options = options_of(
        choices,
        quant=quant,
        split_max_size=split_max_size,
        adapter_only=adapter_only,
        repack_only=repack_only,
    )
    with noting_files() as noted:
        if adapter_only:
            plan = _plan_adapter(sources, destination, to=to, quant=quant, choices=choices)
        else:
            model, choices = _opened(sources, choices)
            if called is not None and name_of(called) != name_of(model.path):
                model = replace(model, path=called)
            plan = make_plan(
                model,
                expanded(destination),
                to=to,
                quant=quant,
                split_max_size=split_max_size,
                choices=choices,
                repack_only=repack_only,
            )
    if not receipt:
        return plan
    opened = (*plan.model.opened, *noted)
    return with_receipt(plan, Request(options, sources.roots(plan.model), opened, sources.weights()))


def _opened(sources: _Sources, choices: Choices) -> tuple[Model, Choices]:
    """The model, and the choices with what the files say."""
    source, base, lora, others = sources.source, sources.base, sources.lora, sources.others
    config, imatrix = others.get("config"), others.get("imatrix")
    calibration, ranges = others.get("calibration"), others.get("ranges")
    if isinstance(source, Model):
        model = merge(source, lora)
    elif isinstance(base, Model):
        model = merge(base, (source, *lora))
    else:
        model = open_model(
            source, config=config, plain=choices.plain, lora=lora, base=base, text_only=choices.text_only
        )
    if imatrix is not None:
        choices = replace(choices, importance=read_imatrix(imatrix))
    if calibration is not None:
        choices = replace(choices, calibration=open_calibration(expanded(calibration)))
    if ranges is not None:
        measured = read_ranges(expanded(ranges))
        check_identity(measured.model, model, measured.path)
        choices = replace(choices, ranges=measured.ranges)
    return model, choices


def _plan_adapter(
    sources: _Sources, destination: Given, *, to: str | None, quant: str | None, choices: Choices
) -> Plan:
    source, base = sources.source, sources.base
    if base is None or isinstance(source, Model) or sources.lora:
        raise UsageError(
            "--adapter-only takes an adapter and the model that it is for",
            hint="write phiconv ADAPTER x.gguf --base MODEL --adapter-only",
        )
    model = base if isinstance(base, Model) else open_model(base)
    return plan_adapter(source, model, expanded(destination), to=to, quant=quant, choices=choices)
