"""Archives of others are unpacked inside of one folder, or refused."""

import errno
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

LARGEST = 100 * 10**9
"""Bytes that an archive may unpack to; the largest public set that is read here has about 10."""

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}


class ArchiveError(ValueError):
    """An archive that is not unpacked, and why."""


def unpack(path: Path, folder: Path, largest: int = LARGEST) -> None:
    """Unpack a .zip or .tar(.gz) archive into `folder`, nothing outside of it.

    Raises:
        ArchiveError: a broken archive; a member with an absolute name or `..` in it, a link that
            points outside, a device; more than `largest` bytes. The text names archive and member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(path):
            _unpack_zip(path, folder, largest)
        else:
            _unpack_tar(path, folder, largest)
    except tarfile.FilterError as error:
        raise ArchiveError(
            f"{path}: member {error.tarinfo.name!r} is refused ({type(error).__name__}): "
            "get the archive from its public home"
        ) from None
    except ArchiveError:
        raise
    except Exception as error:  # broken bytes raise whatever they run into
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise ArchiveError(
            f"{path} is not a whole zip or tar archive ({' '.join(str(error).split())}): "
            "delete the file and run this again"
        ) from None


def _unpack_zip(path: Path, folder: Path, largest: int) -> None:
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        for member in members:
            _check_name(path, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{path}: member {member.filename!r} is a link or a device")
        _check_size(path, sum(member.file_size for member in members), largest)
        file.extractall(folder)


def _unpack_tar(path: Path, folder: Path, largest: int) -> None:
    total = 0

    def check(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        nonlocal total
        total += member.size
        _check_name(path, member.name)
        _check_size(path, total, largest)
        return tarfile.data_filter(member, destination)

    with tarfile.open(path) as file:
        file.extractall(str(folder), filter=check)


def _check_name(path: Path, name: str) -> None:
    windows = PureWindowsPath(name)  # takes / and \ for separators
    if windows.drive or windows.root or ".." in windows.parts or PurePosixPath(name).is_absolute():
        raise ArchiveError(
            f"{path}: member {name!r} would be written outside of the folder: "
            "get the archive from its public home"
        )


def _check_size(path: Path, size: int, largest: int) -> None:
    if size > largest:
        raise ArchiveError(f"{path} unpacks to {size} bytes or more, the limit is {largest}")
