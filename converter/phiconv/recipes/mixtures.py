"""What a size to aim at chooses from: the types of each target, and what matrices are worth by their place.

Facts behind the worths: the probe of `phiconv.quality.sensitivity` on three trained models (the two of
``fixtures/``, and SmolLM2-135M). They are used where the model at hand was not probed itself.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.ir import AnyBlockEncoding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from phiconv.ir import Encoding
    from phiconv.ir.model import Role
    from phiconv.recipes.choices import Choices
    from phiconv_formats.shared.output import OutputTensor

__all__ = ["LADDERS", "NAMED_AFTER", "alike", "ladder", "tensor_type_lines", "usual_worth"]

LADDERS: dict[str, tuple[str, ...]] = {
    "gguf": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    "litert": ("wi4", "wi4b64", "wi4b32", "wi8"),
    "mlx": ("2bit", "3bit", "4bit", "5bit", "6bit", "8bit"),
    "onnx": ("int4-g128", "int4", "int8"),
    "openvino": ("int4-asym", "int4-asym-g64", "int4-asym-g32", "int8-asym"),
    "compressed-tensors": ("w4a16", "w4a16-g64", "w4a16-g32", "w8a16"),
}
"""The types that each target's runtime multiplies with at full speed, the smallest first."""

NAMED_AFTER: dict[str, tuple[str, ...]] = {
    "gguf": ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"),
    "litert": ("wi4", "wi4b32", "wi8"),
    "mlx": ("2bit", "3bit", "4bit", "5bit", "6bit", "8bit"),
    "onnx": ("int4", "int8"),
    "openvino": ("int4-asym", "int8-asym"),
    "compressed-tensors": ("w4a16", "w8a16"),
}
"""The recipes that a mixture may be called by: that of the nearest size."""

_ALIKE: dict[str, tuple[tuple[str, ...], ...]] = {
    "compressed-tensors": (
        ("attn_q", "attn_k", "attn_v"),
        ("ffn_gate", "ffn_up"),
        ("experts_gate", "experts_up", "experts_down"),
    )
}
"""The matrices of a layer that a runtime multiplies as one, and so in one type: here vLLM."""


def alike(target: str, roles: Sequence[Role | None], forms: Sequence[dict[Encoding, str]]) -> list[list[int]]:
    """The numbers of the tensors that get one type together, in order.

    Args:
        target: Name of the format.
        roles: What each tensor is for.
        forms: What `ladder` gives for them.
    """
    found: dict[object, list[int]] = {}
    for number, (role, some) in enumerate(zip(roles, forms, strict=True)):
        own = role.name if role is not None and len(some) > 1 else None
        group = next((names for names in _ALIKE.get(target, ()) if own in names), None)
        key = number if role is None or group is None else (role.layer, group, *some.values())
        found.setdefault(key, []).append(number)
    return [*found.values()]


_WORTHS = {
    "attn_q": 0.5, "attn_k": 0.5, "attn_v": 2.0, "attn_output": 1.0,
    "ffn_gate": 1.2, "ffn_up": 1.2, "ffn_down": 1.5,
    "experts_gate": 1.2, "experts_up": 1.2, "experts_down": 1.5,
    "token_embedding": 20.0, "output": 20.0,
}  # fmt: skip
_FIRST, _LAST = 5.0, 2.0
"""How much more those of the first and of the last layer are worth; queries and keys are not."""


def usual_worth(role: Role, layers: int) -> float:
    """The divergence that rounding a matrix makes, as a multiple of that of an ordinary one."""
    worth = _WORTHS.get(role.name, 1.0)
    if role.name in {"attn_q", "attn_k"} or role.layer is None:
        return worth
    return worth * (_FIRST if role.layer == 0 else _LAST if role.layer == layers - 1 else 1.0)


def ladder(
    target: str,
    tensors: Sequence[OutputTensor],
    choices: Choices,
    assign: Callable[[Choices], list[Encoding]],
) -> list[dict[Encoding, str]]:
    """What each tensor may become.

    Args:
        target: Name of the format.
        tensors: What will be stored.
        choices: What the user wants otherwise, which stands.
        assign: The encodings of all tensors with other choices.

    Returns:
        The types' names by encoding, from the smallest; of a tensor that is not to be changed, its encoding.

    Raises:
        UsageError: The target has no types to choose from.
    """
    if target not in LADDERS:
        raise UsageError(f"a size to aim at means nothing for {target}")
    usual = assign(choices)
    open_ = [
        tensor.required is None
        and not tensor.in_encoder
        and len(tensor.tensor.shape) > 1
        and isinstance(encoding, AnyBlockEncoding)
        for tensor, encoding in zip(tensors, usual, strict=True)
    ]
    pattern = _pattern([tensor.name for tensor, each in zip(tensors, open_, strict=True) if each])
    found: list[dict[Encoding, str]] = [{} for _ in tensors]
    for name in LADDERS[target]:
        try:
            encodings = assign(replace(choices, tensor_types=(*choices.overrides, (pattern, name))))
        except UsageError:  # rows that cannot be cut into its groups
            continue
        for steps, encoding in zip(found, encodings, strict=True):
            steps.setdefault(encoding, name)
    return [
        steps if each else {encoding: ""} for steps, each, encoding in zip(found, open_, usual, strict=True)
    ]


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Finds just these names; of several layers, their numbers in one place."""
    return re.compile(f"^({'|'.join(_folded(names))})$")


def _folded(names: Sequence[str]) -> list[str]:
    layers: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = re.search(r"(?<=\.)\d+(?=\.)", name)
        before, after = (name[: match.start()], name[match.end() :]) if match else (name, "")
        layers.setdefault((before, after), []).append(match[0] if match else "")
    result = []
    for (before, after), numbers in layers.items():
        middle = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
        result.append(re.escape(before) + middle + re.escape(after))
    return result


def tensor_type_lines(
    tensors: Sequence[OutputTensor], types: Sequence[str]
) -> tuple[tuple[re.Pattern[str], str], ...]:
    """The same as choices: a pattern for each kind of tensor and type, as `--tensor-type` takes them.

    Args:
        tensors: What will be stored.
        types: The type of each; "" for no choice.
    """
    groups: dict[str, list[str]] = {}
    for tensor, name in zip(tensors, types, strict=True):
        if name:
            groups.setdefault(name, []).append(tensor.name)
    return tuple(
        (re.compile(f"^{pattern}$"), name) for name, names in groups.items() for pattern in _folded(names)
    )
