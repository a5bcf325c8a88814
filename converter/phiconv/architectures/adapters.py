"""Which weights of a model the modules of an adapter are.

PEFT names them as the model is built in transformers. What one family fuses another has apart although both
compute the same (Phi-4 is a Phi-3 on Microsoft's page, and a Llama on others), so both ways of naming fit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from phiconv.architectures.architecture import full_name
from phiconv.architectures.llama import LLAMA
from phiconv.architectures.phi3 import PHI3
from phiconv.architectures.weights import all_roles, pieces_of_role, role_shape
from phiconv.errors import ConfigError, UnsupportedModelError, printable
from phiconv.ir.model import Role
from phiconv.quantizers.joining import join
from phiconv.quantizers.merging import merge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from phiconv.architectures.architecture import Architecture
    from phiconv.ir import Tensor
    from phiconv.ir.adapter import Adapter, LowRank
    from phiconv.ir.model import Hyperparameters

__all__ = ["ModuleRows", "apply_adapter", "changes_by_role", "modules_of"]

_SAME_DECODER = {PHI3.name: LLAMA.names, LLAMA.name: PHI3.names}
"""What other families call the same matrices."""


class ModuleRows(NamedTuple):
    """Rows of a module that are a role's.

    Attributes:
        role: The role.
        at: The first of them in the role, seen as a matrix.
        start, stop: Which rows of the module.
        columns: Weights in a row.
    """

    role: Role
    at: int
    start: int
    stop: int
    columns: int


def modules_of(architecture: Architecture, hp: Hyperparameters) -> dict[str, list[ModuleRows]]:
    """Every module that an adapter of a model may name, and what its rows are; norms included."""
    found: dict[str, list[ModuleRows]] = {}
    layouts = [architecture.names, *(layout.names for layout in architecture.layouts)]
    for names in (*layouts, _SAME_DECODER.get(architecture.name, {})):
        more: dict[str, list[ModuleRows]] = {}
        for role in all_roles(architecture, hp.num_hidden_layers):
            if role.name in names:
                for module, rows in _modules(role, names, hp):
                    more.setdefault(module, []).append(rows)
        found = more | found
    return found


def _modules(role: Role, names: Mapping[str, str], hp: Hyperparameters) -> Iterator[tuple[str, ModuleRows]]:
    """The modules of a role: one, or one for each expert; none where a module is no matrix."""
    name, shape = full_name(role.name, names[role.name], role.layer), role_shape(role.name, hp)
    columns = shape[-1] if len(shape) > 1 else 1
    if "{e}" in name:
        count, rows, columns = shape
        for e in range(count):
            yield name.format(e=e), ModuleRows(role, e * rows, 0, rows, columns)
    elif len(shape) < 3:
        (piece,) = pieces_of_role(hp, role.name, names, name, shape)
        yield name, ModuleRows(role, 0, piece.start, piece.stop, columns)


def apply_adapter(
    architecture: Architecture, hp: Hyperparameters, tensors: Mapping[Role, Tensor], adapter: Adapter
) -> tuple[Hyperparameters, dict[Role, Tensor]]:
    """The weights of a model with an adapter merged into them, as views.

    A head that is the embedding becomes a matrix of its own where the adapter changes one of the two: PEFT
    changes what it was trained on, and the other one stays.

    Args:
        architecture: The family.
        hp: The sizes.
        tensors: The weights by role.
        adapter: What to merge.

    Returns:
        The hyperparameters, whose ``tie_word_embeddings`` is true only of the weights; and the weights.

    Raises:
        UnsupportedModelError: A module that the model does not have.
        ConfigError: A matrix of another shape than the model's.
    """
    modules, result = modules_of(architecture, hp), dict(tensors)
    embedding, head = Role("token_embedding"), Role("output")
    touched = {
        rows.role
        for name in (*adapter.changes, *(name.rpartition(".")[0] for name in adapter.replaced))
        for rows in modules.get(name, ())
    }
    if hp.tie_word_embeddings and touched & {embedding, head}:
        hp = replace(hp, tie_word_embeddings=False)
        result[head] = result[embedding]
    for name, tensor in adapter.replaced.items():
        module, _, part = name.rpartition(".")
        for rows in _known(modules, module, adapter, name):
            _check_shape(tensor, rows, modules[module], adapter, name)
            role = rows.role._replace(part=part)
            if role not in result:
                raise _unknown(adapter, name)
            result[role] = _with_rows(result[role], rows, tensor.slice_rows(rows.start, rows.stop))
    for rows, change in _changes(modules, adapter):
        new = merge(_rows(result[rows.role], rows), change)
        result[rows.role] = _with_rows(result[rows.role], rows, new)
    return hp, result


def changes_by_role(architecture: Architecture, hp: Hyperparameters, adapter: Adapter) -> dict[Role, LowRank]:
    """What an adapter adds to each weight, for a file of the adapter alone.

    Raises:
        UnsupportedModelError: A module that the model does not have, or that is one of several experts.
        ConfigError: A matrix of another shape than the model's.
    """
    found: dict[Role, LowRank] = {}
    for rows, change in _changes(modules_of(architecture, hp), adapter):
        if len(role_shape(rows.role.name, hp)) > 2:
            raise UnsupportedModelError(
                "adapters of single experts are merged only", path=adapter.file, at=f"module of {rows.role}"
            )
        found[rows.role] = change
    return found


def _changes(
    modules: Mapping[str, list[ModuleRows]], adapter: Adapter
) -> Iterator[tuple[ModuleRows, LowRank]]:
    """What is added to the rows of every role, if it fits the model."""
    for module, change in adapter.changes.items():
        for rows in _known(modules, module, adapter, module):
            shape = _count(modules[module]), rows.columns
            if change.shape != shape:
                raise _wrong_shape(change.shape, shape, adapter, module)
            yield rows, change.slice_rows(rows.start, rows.stop)


def _known(
    modules: Mapping[str, list[ModuleRows]], module: str, adapter: Adapter, name: str
) -> list[ModuleRows]:
    if module not in modules:
        raise _unknown(adapter, name)
    return modules[module]


def _unknown(adapter: Adapter, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "the model has nothing of this name",
        path=adapter.file,
        at=f"module {printable(name)}",
        hint="is it an adapter of this model?",
    )


def _check_shape(
    tensor: Tensor, rows: ModuleRows, module: list[ModuleRows], adapter: Adapter, name: str
) -> None:
    count = _count(module)
    vector = name.endswith(".bias") or rows.columns == 1
    shape = (count,) if vector else (count, rows.columns)
    if tensor.shape != shape:
        raise _wrong_shape(tensor.shape, shape, adapter, name)


def _wrong_shape(found: tuple[int, ...], shape: tuple[int, ...], adapter: Adapter, name: str) -> ConfigError:
    hint = "is it an adapter of this model?"
    if name.rpartition(".")[0].endswith(("embed_tokens", "lm_head")):
        hint = "an adapter with more tokens than the model has can be merged by PEFT only"
    return ConfigError(
        f"is for a shape of {list(found)}, but the model's is {list(shape)}",
        path=adapter.file,
        at=f"module {printable(name)}",
        hint=hint,
    )


def _rows(tensor: Tensor, rows: ModuleRows) -> Tensor:
    """The rows of a weight that a module has."""
    matrix = tensor.reshape((tensor.rows, tensor.columns)) if len(tensor.shape) > 1 else tensor
    return matrix.slice_rows(rows.at, rows.at + rows.stop - rows.start)


def _with_rows(tensor: Tensor, rows: ModuleRows, new: Tensor) -> Tensor:
    """A weight with other rows in the place of some."""
    matrix = tensor.reshape((tensor.rows, tensor.columns)) if len(tensor.shape) > 1 else tensor
    end = rows.at + rows.stop - rows.start
    parts = [matrix.slice_rows(0, rows.at), new, matrix.slice_rows(end, matrix.rows)]
    return join([part for part in parts if part.rows]).reshape(tensor.shape)


def _count(module: list[ModuleRows]) -> int:
    """Rows of a module."""
    return max(rows.stop for rows in module)
