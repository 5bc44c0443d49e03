"""Error numbers of the hypercall interface (xen/errno.h). A failed hypercall returns one of them, negated.

EINTR and ERESTART are Xen's own and never reach a guest: they ask for a hypercall continuation.
"""
from __future__ import annotations

from typing import Final

EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
EINTR: Final = 4
EIO: Final = 5
ENXIO: Final = 6
E2BIG: Final = 7
ENOEXEC: Final = 8
EBADF: Final = 9
ECHILD: Final = 10
EAGAIN: Final = 11
EWOULDBLOCK: Final = 11
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
EBUSY: Final = 16
EEXIST: Final = 17
EXDEV: Final = 18
ENODEV: Final = 19
ENOTDIR: Final = 20
EISDIR: Final = 21
EINVAL: Final = 22
ENFILE: Final = 23
EMFILE: Final = 24
ENOSPC: Final = 28
EROFS: Final = 30
EMLINK: Final = 31
EDOM: Final = 33
ERANGE: Final = 34
EDEADLK: Final = 35
EDEADLOCK: Final = 35
ENAMETOOLONG: Final = 36
ENOLCK: Final = 37
ENOSYS: Final = 38
ENOTEMPTY: Final = 39
ENODATA: Final = 61
ETIME: Final = 62
EBADMSG: Final = 74
EOVERFLOW: Final = 75
EILSEQ: Final = 84
ERESTART: Final = 85
ENOTSOCK: Final = 88
EMSGSIZE: Final = 90
EOPNOTSUPP: Final = 95
EADDRINUSE: Final = 98
EADDRNOTAVAIL: Final = 99
ENOBUFS: Final = 105
EISCONN: Final = 106
ENOTCONN: Final = 107
ETIMEDOUT: Final = 110
ECONNREFUSED: Final = 111

_ALIASES: Final = ("EWOULDBLOCK", "EDEADLOCK")
NAMES: Final[dict[int, str]] = {
    value: key for key, value in list(globals().items()) if isinstance(value, int) and key not in _ALIASES
}


def name(number: int) -> str:
    """The name of an error number of either sign ("EINVAL" for 22 and -22); its digits if Xen has none."""
    return NAMES.get(abs(number), str(number))
