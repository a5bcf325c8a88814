"""How a complete file gets its name: in one step, and in place of another only where that is wanted."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["rename"]


def rename(old: Path, new: Path, *, replace: bool) -> None:
    """Gives a file another name in the same folder.

    A second name for the file is what every Unix refuses where the name is taken, without a moment between
    looking and doing. File systems that have none, such as FAT, get a look first.

    Args:
        old: The file.
        new: Its new name.
        replace: What has that name now goes.

    Raises:
        FileExistsError: Something has that name, and is not to be replaced.
    """
    if replace:
        os.replace(old, new)  # noqa: PTH105 - says what it does
        return
    if os.name == "nt":
        os.rename(old, new)  # noqa: PTH104 - which replaces nothing there
        return
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new)) from None
        os.rename(old, new)  # noqa: PTH104
        return
    os.unlink(old)  # noqa: PTH108
