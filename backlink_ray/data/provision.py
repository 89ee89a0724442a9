"""Provision: check the original files of a data set against their checksums, and download the missing ones."""

import contextlib
import hashlib
import io
import shlex
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backlink_ray.errors import DataError
from backlink_ray.output import say


class MissingError(DataError):
    """Files are missing and downloading is off; the files that exist are intact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One file that a data set's publisher offers, and the parts of it that are needed.

    Attributes:
        url, filename, md5: of the download, which is stored directly in the data root.
        members: path below the data root and md5 of every needed file: members of the archive, or the download itself.
    """

    url: str
    filename: str
    md5: str
    members: tuple[tuple[str, str], ...]

    @property
    def is_archive(self) -> bool:
        """Return whether the members have to be unpacked."""
        return self.filename.endswith(".tar.gz")

    def is_intact(self, root: Path) -> bool:
        """Return whether all members exist with their checksums: not those that another process still writes."""
        return all(_md5(root / name) == md5 for name, md5 in self.members)

    def missing(self, root: Path) -> list[Path]:
        """Return the members that do not exist; DataError if one is corrupt."""
        found = {root / name: (md5, _md5(root / name)) for name, md5 in self.members}
        for path, (expected, md5) in found.items():
            if md5 not in ("", expected):
                raise DataError(
                    f"{path} is corrupt: expected md5 {expected}, found md5 {md5}; fix: rm {shlex.quote(str(path))} "
                    "and run again, or replace it with an intact copy"
                )
        return [path for path, (_, md5) in found.items() if not md5]


def provide(name: str, downloads: Sequence[Download], root: Path, download: bool) -> None:
    """Make sure every file of a data set exists and matches its checksum.

    Args:
        name: of the data set; names the lock file, so that concurrent processes download it once.

    Raises:
        DataError: a file is corrupt, or missing and cannot be downloaded, or the root is not writable.
    """
    if all(one.is_intact(root) for one in downloads):
        return
    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            for one in downloads:
                _download_missing(one, root, download)
    except OSError as error:
        raise DataError(
            f"data root {root} cannot be written ({error.strerror}); choose another with --data-root"
        ) from error


def _download_missing(one: Download, root: Path, download: bool) -> None:
    missing = one.missing(root)
    if missing and not download:
        raise MissingError(_with_command(one, root, f"{missing[0]} is missing"))
    if missing:
        say(f"downloading {one.filename} to {root}")
        try:
            _download(one, missing, root)
        except Exception as error:  # any network failure calls for the same advice
            raise DataError(_with_command(one, root, f"{missing[0]} is missing; download failed: {error}")) from error


def _download(one: Download, missing: list[Path], root: Path) -> None:
    from torchvision.datasets.utils import download_url

    quiet = io.StringIO()  # swallows the progress bar
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        download_url(one.url, root, one.filename, one.md5)
    if one.is_archive:
        with tarfile.open(root / one.filename) as archive:
            for path in missing:
                _unpack(archive, path, root)


def _unpack(archive: tarfile.TarFile, path: Path, root: Path) -> None:
    """Extract one member atomically: a process killed here leaves no partial file, which would count as corrupt."""
    source = archive.extractfile(path.relative_to(root).as_posix())
    if source is None:
        raise DataError(f"{path.name} in the archive is not a file")
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with source, part.open("wb") as target:
        shutil.copyfileobj(source, target)
    part.replace(path)


def _with_command(one: Download, root: Path, what: str) -> str:
    folder, file = shlex.quote(str(root)), shlex.quote(str(root / one.filename))
    unpack = f" && tar -xzf {file} -C {folder}" if one.is_archive else ""
    return f"{what}; fix: curl -fL -o {file} {one.url}{unpack} (md5 {one.md5})"


def _md5(path: Path) -> str:
    """Return a file's md5, or "" if there is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
