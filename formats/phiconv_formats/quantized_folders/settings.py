"""What ``quantization_config`` says, with every key checked as those of config.json are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiconv.architectures.config import Config
from phiconv.errors import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phiconv.errors import ConfigError
    from phiconv.ir.model import Checkpoint

__all__ = ["read_settings", "refuse"]

_PREFIX = "quantization_config."


def read_settings(folder: Checkpoint, quantization: Mapping[str, Any]) -> Config:
    """The keys of ``quantization_config``, or of a file beside config.json, for typed access."""
    beside = folder.config_path is not None and folder.config_path.name != "config.json"
    return Config(quantization, folder.config_path, "" if beside else _PREFIX)


def refuse(settings: Config, key: str, what: str) -> ConfigError:
    """That a key has a value which is not read."""
    value = printable(settings.get(key)[1], 60)
    return settings.error(key, f"{what} {value} is not read", "take the unquantized model")
