"""adapter_config.json of PEFT: what counts for a merge, and what makes one impossible.

Every key has its place in a table here. One that is in none and is set is refused: what it changes is not
known. The keys are those of PEFT 0.21's ``LoraConfig``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from phiconv.architectures.config import Config
from phiconv.errors import UnsupportedModelError, printable
from phiconv_formats.shared.patterns import check_steps, takes_long

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["LoraConfig", "parse"]

_READ = frozenset(
    "peft_type r lora_alpha use_rslora use_dora rank_pattern alpha_pattern init_lora_weights "
    "modules_to_save base_model_name_or_path".split()
)

# How it was trained, or on what: the tensors say what came out. fan_in_fan_out is about layers that no model
# here has, and PEFT resets it for others; the settings of an init count only with that init.
_IRRELEVANT = frozenset(
    "task_type inference_mode lora_dropout target_modules exclude_modules layers_to_transform layers_pattern "
    "bias fan_in_fan_out revision auto_mapping peft_version runtime_config megatron_core qalora_group_size "
    "loftq_config eva_config corda_config lora_ga_config".split()
)

_REFUSED = {
    "alora_invocation_tokens": "it acts behind certain tokens only",
    "arrow_config": "it chooses among adapters while it runs",
    "ensure_weight_tying": "embedding and head share what is added",
    "kasa_config": "it is more than a product that is added",
    "layer_replication": "it gives the model more layers",
    "lora_bias": "it adds to biases",
    "megatron_config": "its modules are Megatron's",
    "monteclora_config": "it is more than a product that is added",
    "target_parameters": "it changes stacks of matrices",
    "trainable_token_indices": "it replaces the embeddings of single tokens",
    "use_bdlora": "its matrices are of blocks",
    "use_qalora": "its inputs are averaged in groups",
    "velora_config": "it is more than a product that is added",
}

_INITS = ("gaussian", "eva", "orthogonal")
"""Those that leave the base as it is; others are right only for a base that was changed as well."""


_Patterns: TypeAlias = "Mapping[str, tuple[re.Pattern[str], float]]"


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What an adapter's configuration says of its products.

    Attributes:
        r: Rank where ``rank_pattern`` names no other.
        alpha: ``lora_alpha`` where ``alpha_pattern`` names no other.
        rslora: Whether the scale is alpha over the root of the rank, and not over the rank.
        dora: Whether rows have lengths of their own.
        rank_pattern: Ranks by patterns of module names, the first that fits counts.
        alpha_pattern: The same of alpha.
        modules_to_save: Ends of names of modules that were trained as a whole.
    """

    r: int
    alpha: float
    rslora: bool
    dora: bool
    rank_pattern: _Patterns
    alpha_pattern: _Patterns
    modules_to_save: tuple[str, ...]

    def check_modules(self, modules: Collection[str], path: Path) -> None:
        """Refuses modules whose names it would take long to match with the patterns; ``path`` is their file.

        Raises:
            MalformedFileError: It would.
        """
        check_steps([*self.rank_pattern, *self.alpha_pattern], modules, path)

    def rank(self, module: str) -> int:
        """The rank that a module should have."""
        return int(_matching(self.rank_pattern, module, self.r))

    def scale(self, module: str, rank: int) -> float:
        """What its product is multiplied with: alpha / r, or alpha / sqrt(r) with ``use_rslora``."""
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def parse(values: Mapping[str, Any], path: Path) -> LoraConfig:
    """Checks an adapter_config.json.

    Raises:
        UnsupportedModelError: A key that says what cannot be merged exactly.
        ConfigError: A value that is none of its key.
    """
    config = Config(values, path)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise _refusal(path, "peft_type", f"is {printable(kind, 40)}, and only LORA can be merged")
    for key, value in values.items():
        if key in _READ or key in _IRRELEVANT or not value:
            continue
        why = _REFUSED.get(key, "it is a key that phiconv does not know")
        raise _refusal(path, key, f"is set, and this cannot be merged: {why}")
    _check_init(values.get("init_lora_weights"), path)
    saved = values.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise config.error("modules_to_save", "must be a list of names")
    return LoraConfig(
        config.integer("r"),
        _number(config, "lora_alpha", values.get("lora_alpha")),
        config.boolean("use_rslora", default=False),
        config.boolean("use_dora", default=False),
        _pattern(config, "rank_pattern"),
        _pattern(config, "alpha_pattern"),
        tuple(saved),
    )


def _check_init(value: Any, path: Path) -> None:
    if value is None or isinstance(value, bool) or value in _INITS:
        return
    raise _refusal(
        path,
        "init_lora_weights",
        f"is {printable(value, 40)}, which changed the base as well",
        "save it again with path_initial_model_for_weight_conversion",
    )


def _refusal(
    path: Path, key: str, message: str, hint: str = "merge it by PEFT itself"
) -> UnsupportedModelError:
    return UnsupportedModelError(message, path=path, at=f"key {printable(key, 80)}", hint=hint)


def _number(config: Config, key: str, value: Any) -> float:
    """A finite number other than 0, which would be no adapter."""
    if type(value) not in {int, float} or not 0 < abs(value) < 1e30:
        raise config.error(key, f"must be a number other than 0, not {printable(value, 40)}")
    return float(value)


def _pattern(config: Config, key: str) -> _Patterns:
    """Numbers by patterns, which fit the end of a module's name, as PEFT's ``get_pattern_key`` has it."""
    section = config.section(key)
    found = {}
    for pattern, value in ({} if section is None else section.values).items():
        at = f"{key}.{pattern}"
        number = _number(config, at, value)
        if key == "rank_pattern" and (type(value) is not int or value < 1):
            raise config.error(at, f"must be an integer of at least 1, not {printable(value, 40)}")
        if takes_long(pattern):
            raise config.error(at, "is no pattern that phiconv takes", "name the modules instead")
        try:
            compiled = re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise config.error(at, f"is no regular expression: {error}") from None
        found[pattern] = compiled, number
    return found


def _matching(patterns: _Patterns, module: str, default: float) -> float:
    """The value of the first pattern that fits a module's name."""
    for pattern, value in patterns.values():
        if pattern.match(module):
            return value
    return default
