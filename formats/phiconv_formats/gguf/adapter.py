"""An adapter as a file of its own, which llama.cpp adds to a model while it runs (``--lora``).

Layout (llama.cpp's convert_lora_to_gguf.py and src/llama-adapter.cpp): for a tensor T of the model there are
``T.lora_a``, shape (rank, columns), and ``T.lora_b``, shape (rows, rank). What is added is
``alpha / rank * (B @ A)`` with one alpha for the whole file, so a scale of another kind goes into B. Where
llama.cpp has one matrix and the adapter several, their A stand one after the other, and each B beside zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf.constants import GGUFValueType, Keys

from phiconv.architectures import ARCHITECTURES
from phiconv.architectures.adapters import changes_by_role
from phiconv.errors import UnsupportedModelError
from phiconv.ir.factors import placed, transposed, zeros
from phiconv.ir.model import title_of
from phiconv.quantizers.joining import join
from phiconv_formats.gguf.names import name_of_role, rows_in_order
from phiconv_formats.gguf.values import GgufValue
from phiconv_formats.gguf.writer import FILE_TYPES, one_file
from phiconv_formats.shared.output import OutputTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phiconv.ir import Encoding, Tensor
    from phiconv.ir.adapter import Adapter, LowRank
    from phiconv.ir.model import Model, Role
    from phiconv_formats.shared.output import Package

__all__ = ["adapter_package", "adapter_tensors"]

_STRING, _F32, _U32 = GGUFValueType.STRING, GGUFValueType.FLOAT32, GGUFValueType.UINT32


def adapter_tensors(model: Model, adapter: Adapter) -> list[OutputTensor]:
    """Both factors of every matrix.

    Args:
        model: The model that it is for.
        adapter: The adapter.

    Raises:
        UnsupportedModelError: What llama.cpp cannot add while it runs, or an adapter of another model.
        ConfigError: A matrix of another shape than the model's.
    """
    assert model.architecture is not None  # noqa: S101 - checked by the caller
    assert model.hyperparameters is not None  # noqa: S101 - the same
    architecture, hp = ARCHITECTURES[model.architecture], model.hyperparameters
    _check(adapter)
    changes = changes_by_role(architecture, hp, adapter)
    ends = {role.name for role in changes} & {"token_embedding", "output"}
    if hp.tie_word_embeddings and ends:
        raise _refusal(adapter, f"an adapter of {min(ends)}, where embedding and head are one matrix")
    groups: dict[Role, None] = {}
    for role in changes:
        groups[role._replace(name=architecture.group(role.name)[0])] = None
    result = []
    for first in groups:
        roles = [first._replace(name=name) for name in architecture.group(first.name)]
        a, b = _joined(roles, changes, model, adapter)
        name = name_of_role(first, architecture)
        result += [OutputTensor(f"{name}.lora_a", a, None), OutputTensor(f"{name}.lora_b", b, None)]
    return result


def adapter_package(
    model: Model,
    adapter: Adapter,
    tensors: Sequence[OutputTensor],
    encodings: Sequence[Encoding],
    *,
    file_name: str,
    recipe: str,
) -> Package:
    """The whole file, but for the weights; see `phiconv_formats.Writer`."""
    assert model.architecture is not None  # noqa: S101 - checked by the caller
    metadata = [
        (Keys.General.ARCHITECTURE, GgufValue(_STRING, ARCHITECTURES[model.architecture].gguf.name)),
        (Keys.General.TYPE, GgufValue(_STRING, "adapter")),
        (Keys.General.NAME, GgufValue(_STRING, title_of(adapter.path))),
        (Keys.General.FILE_TYPE, GgufValue(_U32, FILE_TYPES[recipe])),
        (Keys.Adapter.TYPE, GgufValue(_STRING, "lora")),
        (Keys.Adapter.LORA_ALPHA, GgufValue(_F32, adapter.alpha)),
    ]
    return one_file(file_name, metadata, tensors, encodings, model)


def _check(adapter: Adapter) -> None:
    """Refuses what is more than products to add."""
    if adapter.replaced:
        raise _refusal(adapter, f"the whole tensor {min(adapter.replaced)}")
    if any(change.magnitude is not None for change in adapter.changes.values()):
        raise _refusal(adapter, "use_dora")


def _refusal(adapter: Adapter, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"llama.cpp cannot add this while it runs: {what}",
        path=adapter.path,
        hint="merge it: leave out --adapter-only",
    )


def _joined(
    roles: Sequence[Role], changes: dict[Role, LowRank], model: Model, adapter: Adapter
) -> tuple[Tensor, Tensor]:
    """A and B of a tensor that holds the rows of some roles."""
    found = [changes.get(role) for role in roles]
    parts = list({change.a: change for change in found if change is not None}.values())
    rank = sum(part.rank for part in parts)
    before, at = {}, 0
    for part in parts:
        before[part.a] = at
        at += part.rank
    rows = []
    for role, change in zip(roles, found, strict=True):
        if change is None:
            rows.append(zeros(model.tensors[role].shape[0], rank))
            continue
        factor = change.scale * rank / adapter.alpha
        b = rows_in_order(change.b, role, model)
        same = factor == 1 and change.rank == rank
        rows.append(b if same else placed(b, before=before[change.a], columns=rank, factor=factor))
    if parts[0].transposed:  # llama.cpp looks up rows of what is A here
        return transposed(parts[0].a), rows[0]
    return join([part.a for part in parts]), join(rows)
