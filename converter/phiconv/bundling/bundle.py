"""Makes a bundle: wheels, their hashes, a list of materials, the documentation, and how to install it.

    wheels/                       phiconv and all that it needs
    requirements/cp312-...txt     for each Python and platform: which of them, with hashes
    install.py                    installs them without an index
    sbom.cdx.json, docs/, SHA256SUMS

pip resolves and fetches what is needed, on a machine that has an index, with pip's own settings.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from phiconv.bundling.platforms import ONLY_THERE, PLATFORMS, Target
from phiconv.bundling.sbom import bill_of_materials
from phiconv.bundling.wheels import documents, own_wheel, read_wheel
from phiconv.errors import OutputError, OutputExistsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from phiconv.bundling.wheels import Wheel

__all__ = ["make_bundle"]

LEFT_OUT = {"gguf": frozenset({"requests", "tqdm"})}
"""What distributions call needed, and phiconv never makes them import: an HTTP client, a progress bar."""

_INSTALL = Path(__file__).with_name("install.py.txt")


def make_bundle(folder: Path, targets: Collection[Target], extras: Collection[str] = ()) -> tuple[Path, ...]:
    """Makes a bundle.

    Args:
        folder: Where; it must not exist, or be empty.
        targets: The Pythons and platforms that it is for.
        extras: Of phiconv, such as ``images``.

    Returns:
        The files, in order of their names.

    Raises:
        OutputExistsError: There is something in the folder.
        OutputError: It cannot be written.
        UsageError: pip is not there, or finds no wheels.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError("is there, and not empty", path=folder, hint="choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        made = Path(work) / "bundle"
        try:
            _fill(made, targets, extras)
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", path=folder) from error
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


def _fill(made: Path, targets: Collection[Target], extras: Collection[str]) -> None:
    wheels_folder = made / "wheels"
    wheels_folder.mkdir(parents=True)
    own = read_wheel(own_wheel(wheels_folder))
    known = {requirement.extra for requirement in own.requirements} - {""}
    for extra in extras:
        if extra not in known:
            raise UsageError(
                f"--extra {extra}: phiconv has none of this name", hint=f"one of {', '.join(sorted(known))}"
            )
    wheels: dict[str, Wheel] = {}
    edges: dict[str, set[str]] = {}
    (made / "requirements").mkdir()
    for target in targets:
        fetched = _fetched(own, target, extras, wheels_folder.parent / "fetched")
        needed = _needed(own, fetched, extras, edges)
        for wheel in needed:
            shutil.copyfile(wheel.path, wheels_folder / wheel.path.name)
            wheels[wheel.path.name] = wheel
        text = _requirements(target, [own, *needed])
        (made / "requirements" / f"{target.name}.txt").write_bytes(text.encode())
        shutil.rmtree(wheels_folder.parent / "fetched")
    (made / "sbom.cdx.json").write_bytes(bill_of_materials(own, wheels.values(), edges))
    (made / "install.py").write_bytes(_INSTALL.read_bytes())
    for name, data in documents():
        page = made / "docs" / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_bytes(data)
    (made / "SHA256SUMS").write_bytes(_sums(made))


def _fetched(own: Wheel, target: Target, extras: Collection[str], folder: Path) -> list[Wheel]:
    """What pip fetches for a target, phiconv's own wheel aside."""
    wanted = f"{own.path}[{','.join(sorted(extras))}]" if extras else str(own.path)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--only-binary", ":all:", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", target.python]
    for abi in (target.abi, "abi3", "none"):
        command += ["--abi", abi]
    for name in PLATFORMS[target.platform]:
        command += ["--platform", name]
    more = ONLY_THERE.get(target.platform, ())
    done = subprocess.run([*command, wanted, *more], capture_output=True, text=True, check=False)  # noqa: S603 - pip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "")
        raise UsageError(
            f"pip finds no wheels for Python {target.python} on {target.platform}: {reason}",
            hint="this needs an index that pip can reach, or one given by pip's own settings",
        )
    return [read_wheel(path) for path in sorted(folder.glob("*.whl")) if path.name != own.path.name]


def _needed(
    own: Wheel, fetched: Iterable[Wheel], extras: Collection[str], edges: dict[str, set[str]]
) -> list[Wheel]:
    """The wheels that phiconv needs, `LEFT_OUT` left out; notes in ``edges`` which needs which."""
    by_name = {wheel.name: wheel for wheel in fetched} | {own.name: own}
    waiting, reached = [(own.name, tuple(extras))], set[tuple[str, tuple[str, ...]]]()
    while waiting:
        node = waiting.pop()
        if node in reached:
            continue
        reached.add(node)
        name, wanted = node
        for requirement in by_name[name].requirements:
            other = requirement.name
            used = not requirement.extra or requirement.extra in wanted
            if used and other in by_name and other not in LEFT_OUT.get(name, ()):
                edges.setdefault(name, set()).add(other)
                waiting.append((other, requirement.extras))
    return [by_name[name] for name in sorted({name for name, _ in reached} - {own.name})]


def _requirements(target: Target, wheels: Iterable[Wheel]) -> str:
    lines = [f"# Python {target.python} on {target.platform}: install.py hands this to pip."]
    lines += [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in wheels]
    return "\n".join([*lines, ""])


def _sums(folder: Path) -> bytes:
    """As ``sha256sum --check`` reads them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes: Mapping[str, str] = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }
    return "".join(f"{digest}  {name}\n" for name, digest in hashes.items()).encode()
