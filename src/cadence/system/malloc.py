"""Whether the C library keeps freed memory for the next pass or gives it back to the kernel.

glibc maps every large block anew, and returns it when it is freed: each forward and backward then
faults its activations in, page by page. Kept, the same pages serve the next pass. Only Linux with
glibc has such a switch; elsewhere nothing happens here. The names and numbers are those of
mallopt(3).
"""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

GLIBC_BLOCK, GLIBC_REST = 32 * 1024**2, 64 * 1024**2
"""The bytes to which glibc's own thresholds grow by themselves, as long as nobody sets them."""

LARGEST_BLOCK = 1024**3
"""Bytes up to which a block comes from kept memory."""

LARGEST_REST = 2**31 - 1
"""Bytes that may lie unused; the most that mallopt takes."""


def keep_memory(keep: bool) -> bool:
    """Keep freed memory in this process, or give it back as glibc does by itself.

    It holds for the whole process, until the next call.

    Args:
        keep: Whether to keep it. False leaves glibc alone unless it was True before: then what is
            kept is given back, and glibc's thresholds become those that it grows to by itself.

    Returns:
        Whether this machine's C library did as asked.
    """
    library = _glibc()
    if library is None:
        return False
    if keep == _Process.keeps:
        return True
    # Before 2.35 glibc takes no block above its own. Setting one threshold alone would keep the
    # other from growing.
    blocks = (LARGEST_BLOCK, GLIBC_BLOCK) if keep else (GLIBC_BLOCK,)
    rest = LARGEST_REST if keep else GLIBC_REST
    took = any(library.mallopt(M_MMAP_THRESHOLD, block) for block in blocks) and bool(
        library.mallopt(M_TRIM_THRESHOLD, rest)
    )
    _Process.keeps = keep
    if not keep:
        library.malloc_trim(0)
    return took


def give_back() -> None:
    """Give what is kept and unused back to the kernel once, as before a peak is measured."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


class _Process:
    """What this process's allocator was set to, which it cannot be asked for."""

    keeps = False


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
