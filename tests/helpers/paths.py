"""Where the project's files are, for tests in any folder."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FIXTURES", "ROOT"]

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
