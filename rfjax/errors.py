"""The errors a user can meet, and the exit status of each.

Every message names the thing, its value and the remedy. The command line prints the message alone and exits with the
class's status. Launchers requeue on `Preempted.exit_status` only.
"""

import errno


class RfjaxError(Exception):
    """A failure that the user can act on."""

    exit_status = 1


class ConfigError(RfjaxError):
    """A config, an option or an input file that cannot be used as given."""

    exit_status = 2


class Preempted(RfjaxError):
    """The run was told to stop, has saved what it could, and should be started again."""

    exit_status = 75  # EX_TEMPFAIL: what batch systems requeue on


class Diverged(RfjaxError):
    """Training met too many non-finite steps in a row; starting it again cannot help."""

    exit_status = 65  # EX_DATAERR: no launcher requeues on it


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE}
_DISK |= {errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}


def disk_trouble(error: BaseException, where: object = "") -> RfjaxError | None:
    """Returns the error to raise for an `OSError` whose cause the user can mend, such as a full disk; returns None for
    any other exception.

    `where` is the folder that the command works in, if it has one.
    """
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    place = where or error.filename or "a file"
    remedy = "make room or mend the disk or its permissions, then give the same command again"
    return RfjaxError(f"{place} cannot be used ({error}); {remedy}")
