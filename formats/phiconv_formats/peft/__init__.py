"""Adapters as PEFT saves them: adapter_config.json, and adapter_model.safetensors or .bin."""

from __future__ import annotations

from phiconv_formats.peft.reader import adapter_folder, open_adapter

__all__ = ["adapter_folder", "open_adapter"]
