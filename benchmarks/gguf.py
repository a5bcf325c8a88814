"""Compares phiconv with the released llama.cpp: the same weights, the same machine, the same run.

    python benchmarks/gguf.py kernels [--types Q8_0,Q4_K] [--source bf16] [--importance]
    python benchmarks/gguf.py job [--model FOLDER | --layers N] [--quant Q4_K_M] [--jobs N]

README.md beside this script says what the numbers are. The libraries come from fixtures/fetch_llama.py; what
needs them is skipped, and said to be, where they cannot be had.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


_HERE = Path(__file__).resolve().parent


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    from benchmarks import job as whole_job
    from benchmarks import kernels as tiles

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    kernels = commands.add_parser("kernels", help="encode and pack one tile, in one thread")
    kernels.set_defaults(run=tiles.run)
    kernels.add_argument("--types", type=lambda text: text.upper().split(","), help="e.g. Q8_0,Q4_K")
    kernels.add_argument("--source", choices=("bf16", "f32", "f16"), default="bf16")
    kernels.add_argument("--importance", action="store_true", help="also with importance weights")
    kernels.add_argument("--repeat", type=int, default=7, help="best of how many")
    job = commands.add_parser("job", help="convert and quantize a whole model")
    job.set_defaults(run=whole_job.run)
    job.add_argument("--model", type=Path, help="a model folder; otherwise a random one is made")
    job.add_argument("--layers", type=int, default=2, help="of the random model")
    job.add_argument("--quant", default="Q4_K_M")
    job.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads of either program")
    job.add_argument("--repeat", type=int, default=1, help="best of how many")
    job.add_argument(
        "--peer-converter", help="a command with {model} and {out}: the other route's first half"
    )
    job.add_argument("--scratch", type=Path, help="folder for the temporary files")
    for command in (kernels, job):
        command.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if unknown := set(getattr(options, "types", None) or ()) - set(tiles.kernel_types()):
        parser.error(f"no such types: {', '.join(sorted(unknown))}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and prints what it found."""
    from benchmarks.printing import show

    from phiconv.errors import PhiconvError

    options = parse(arguments)
    try:
        result = options.run(options)
    except PhiconvError as error:  # a model or recipe that does not go
        sys.exit(str(error))
    show(result, as_json=options.json)


if __name__ == "__main__":
    # Or else `import gguf`, which means the package of this name, would find this script.
    sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]
    main()
