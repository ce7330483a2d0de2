"""The machine that this runs on: its memory, and how memory is taken from it."""

import contextlib
import ctypes
import os


def machine_memory(root="/"):
    """Return the bytes of main memory that this process may fill, None where unknown.

    That of the machine, or what its container is limited to if that is less.

    Args:
        root: str. The directory that Linux' `proc` and `sys` are in. Defaults to `/`.
    """
    known = _container_limits(root)
    with contextlib.suppress(AttributeError, ValueError, OSError):
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)


def _container_limits(root):
    """The limits, in bytes, of the process' control group and of those around it.

    Linux has them in two versions, also both at a time. A container sees its own group
    as the outermost one, whatever its path is outside. Numbers that no machine has, the
    first version's way to say that there is no limit, are left out.
    """
    try:
        with open(os.path.join(root, "proc/self/cgroup"), errors="replace") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    limits = []
    for _, controllers, path in groups:
        if not controllers:
            folder, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = os.path.join(root, folder)
        for part in ["", *path.split("/")]:
            folder = os.path.join(folder, part)
            try:
                with open(os.path.join(folder, name)) as file:
                    limits.append(int(file.read()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return [limit for limit in limits if limit < 2**60]


def set_allocator():
    """Set glibc's allocator for large arrays that come and go with each step.

    Without it the arrays of each step come from the kernel anew, which clears them page
    by page, in small pages unless `/sys/kernel/mm/transparent_hugepage/enabled` says
    "always". The allocator is told to keep what a step frees, in one heap for all
    threads. Does nothing on systems without glibc.

    To be called before anything is computed, if only to ask for the device: threads keep
    the heaps that they start with.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 2**26)
    mallopt(M_ARENA_MAX, 1)
