"""The machines that a bundle can be for, and what their wheels are called.

Tags: https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/. On Linux those of
glibc 2.28 and older are asked for, which all distributions of the last years have.
"""

from __future__ import annotations

import platform
import re
import sys
from typing import NamedTuple

from phiconv.errors import UsageError
from phiconv.spelling import did_you_mean

__all__ = ["ONLY_THERE", "PLATFORMS", "Target", "here", "targets"]

_GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")


def _linux(machine: str) -> tuple[str, ...]:
    named = (f"manylinux2014_{machine}", f"manylinux1_{machine}") if machine == "x86_64" else ()
    return (*(f"manylinux_{version}_{machine}" for version in _GLIBC), f"manylinux2014_{machine}", *named)


PLATFORMS = {
    "linux-x86_64": _linux("x86_64"),
    "linux-aarch64": _linux("aarch64"),
    "macos-arm64": tuple(
        f"macosx_{major}_0_{kind}" for major in (14, 13, 12, 11) for kind in ("arm64", "universal2")
    ),
    "windows-x86_64": ("win_amd64",),
}
"""By the names that ``--platform`` takes."""

ONLY_THERE = {"windows-x86_64": ("colorama",)}
"""What is needed on one platform only: pip asks itself that of the machine that it runs on."""

_OLDEST = (3, 11)
_VERSION = re.compile(r"3\.(\d{1,2})")


class Target(NamedTuple):
    """A Python on a kind of machine.

    Attributes:
        python: Its version, like ``3.12``.
        platform: A key of `PLATFORMS`.
    """

    python: str
    platform: str

    @property
    def abi(self) -> str:
        """What its own wheels are for."""
        return "cp" + self.python.replace(".", "")

    @property
    def name(self) -> str:
        """What its list of requirements is called."""
        return f"{self.abi}-{self.platform}"


def here() -> Target:
    """The Python that runs this."""
    system = {"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")
    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return Target(f"{sys.version_info[0]}.{sys.version_info[1]}", f"{system}-{machine}")


def targets(pythons: str, platforms: str) -> list[Target]:
    """Every Python of a list on every platform of another, each separated by commas; "" for the one here.

    Raises:
        UsageError: A version or a platform that there is not.
    """
    own = here()
    versions = [version.strip() for version in pythons.split(",") if version.strip()] or [own.python]
    names = [name.strip() for name in platforms.split(",") if name.strip()] or [own.platform]
    for version in versions:
        match = _VERSION.fullmatch(version)
        if match is None or (3, int(match[1])) < _OLDEST:
            raise UsageError(
                f"--python {version}: phiconv runs on 3.11 and newer", hint="like 3.12 or 3.11,3.13"
            )
    for name in names:
        if name not in PLATFORMS:
            choice = f"one of {', '.join(PLATFORMS)}"
            raise UsageError(f"--platform {name}: unknown", hint=did_you_mean(name, [*PLATFORMS], choice))
    return [Target(version, name) for version in dict.fromkeys(versions) for name in dict.fromkeys(names)]
