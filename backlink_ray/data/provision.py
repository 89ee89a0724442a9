"""Provision: original files of a data set in place and right, fetched where they are missing, or one clear error."""

import contextlib
import hashlib
import io
import shlex
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backlink_ray.errors import DataError


class MissingError(DataError):
    """Files that are not there and were not to be fetched; nothing is wrong with those that are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One file that a data set's publisher offers, and what is needed of it.

    Attributes:
        url, filename, md5: of the file as it is downloaded; it lies directly in the data root.
        members: path below the data root and md5 of every file needed of it; the file itself, or parts of the archive.
    """

    url: str
    filename: str
    md5: str
    members: tuple[tuple[str, str], ...]

    @property
    def is_archive(self) -> bool:
        """Tell whether the members have to be unpacked."""
        return self.filename.endswith(".tar.gz")

    def faults(self, root: Path) -> list["Fault"]:
        """Return what is missing or wrong, in the order of the members."""
        checked = (Fault(path=root / name, expected=md5, found=_md5(root / name)) for name, md5 in self.members)
        return [fault for fault in checked if fault.found != fault.expected]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A file that is missing (`found` is empty) or has another md5 than the original."""

    path: Path
    expected: str
    found: str

    def __str__(self) -> str:
        if not self.found:
            return f"{self.path} is missing"
        return f"{self.path} is corrupt: expected md5 {self.expected}, found md5 {self.found}"


def provide(name: str, downloads: Sequence[Download], root: Path, download: bool) -> None:
    """Leave every file of a data set in place and right, or raise.

    Args:
        name: of the data set: two processes that want the same one take turns.
        downloads: what it consists of.
        root: folder of all data sets; made where it is missing.
        download: fetch what is missing.

    Raises:
        DataError: a file is corrupt, or missing and cannot be fetched, or the root cannot be written.
    """
    if not any(one.faults(root) for one in downloads):
        return
    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):  # two processes leave one good copy
            for one in downloads:
                _mend(one, root, download)
    except OSError as error:
        raise DataError(
            f"data root {root} cannot be written ({error.strerror}); give another with --data-root"
        ) from error


def _mend(one: Download, root: Path, download: bool) -> None:
    faults = one.faults(root)
    corrupt = [fault for fault in faults if fault.found]
    if corrupt:
        path = shlex.quote(str(corrupt[0].path))
        raise DataError(f"{corrupt[0]}; mend: rm {path} and run again, or copy a good one there")
    if faults and not download:
        raise MissingError(_how_to_get(one, root, str(faults[0])))
    if faults:
        print(f"fetching {one.filename} into {root}", file=sys.stderr, flush=True)
        try:
            _fetch(one, [fault.path for fault in faults], root)
        except Exception as error:  # whatever the network does, the user needs the same sentence
            raise DataError(_how_to_get(one, root, f"{faults[0]}; download failed: {error}")) from error


def _fetch(one: Download, missing: list[Path], root: Path) -> None:
    from torchvision.datasets.utils import download_url

    quiet = io.StringIO()  # takes its progress bar
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        download_url(one.url, root, one.filename, one.md5)
    if one.is_archive:
        with tarfile.open(root / one.filename) as archive:
            for path in missing:
                _unpack(archive, path, root)


def _unpack(archive: tarfile.TarFile, path: Path, root: Path) -> None:
    """Take one member out, whole or not at all: a process killed here leaves nothing that looks like a corrupt file."""
    source = archive.extractfile(path.relative_to(root).as_posix())
    if source is None:
        raise DataError(f"{path.name} in the archive is no file")
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with source, part.open("wb") as target:
        shutil.copyfileobj(source, target)
    part.replace(path)


def _how_to_get(one: Download, root: Path, what: str) -> str:
    folder, file = shlex.quote(str(root)), shlex.quote(str(root / one.filename))
    unpack = f" && tar -xzf {file} -C {folder}" if one.is_archive else ""
    return f"{what}; mend: curl -fL -o {file} {one.url}{unpack} (md5 {one.md5})"


def _md5(path: Path) -> str:
    """Return a file's md5, "" where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
