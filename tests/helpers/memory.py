"""How much memory this process takes."""

from __future__ import annotations

from pathlib import Path


def resident(reset: bool = False) -> int:
    """The most memory that this process has had at once; None of it counts before a reset. 0 but on Linux."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
