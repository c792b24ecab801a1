"""Archives from others, unpacked safely into one folder."""

import errno
import stat
import tarfile
import zipfile
from pathlib import Path, PureWindowsPath

LARGEST = 100 * 10**9
"""Bytes that an archive may unpack to; the largest public set that is read here has about 10."""

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}


class ArchiveError(ValueError):
    """An archive that is refused, and why."""


def unpack(path: Path, folder: Path, largest: int = LARGEST) -> None:
    """Unpack a .zip or .tar(.gz) archive into `folder`, nothing outside of it.

    Raises:
        ArchiveError: a broken archive; a member with an absolute name or `..` in it (which the
            standard library would change), a link that points outside, a device; more than
            `largest` bytes. The text names archive and member.
    """
    total = 0

    def check(name: str, size: int) -> None:
        nonlocal total
        total += size
        windows = PureWindowsPath(name)  # takes / and \ for separators
        if windows.drive or windows.root or ".." in windows.parts:
            raise ArchiveError(
                f"{path}: member {name!r} would be written outside of the folder: "
                "get the archive from its public home"
            )
        if total > largest:
            raise ArchiveError(f"{path} unpacks to {total} bytes or more, the limit is {largest}")

    def check_tar(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        check(member.name, member.size)
        return tarfile.data_filter(member, destination)

    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not zipfile.is_zipfile(path):
            with tarfile.open(path) as tar:
                tar.extractall(str(folder), filter=check_tar)
            return
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                check(member.filename, member.file_size)
                if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ArchiveError(f"{path}: member {member.filename!r} is a link or a device")
            file.extractall(folder)
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
