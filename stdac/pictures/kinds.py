"""What kind of input a file is: its first bytes tell, or else its name."""

import gzip
import os
import zlib

from stdac.pictures.arrays import IDX_TYPES

KIND_NAMES = {
    "array": "an .npz, .npy or IDX file",
    "parquet": "a Parquet file",
    "tar": "a tar file",
}

TAR_NAMES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def recognize_kind(path: str) -> str:
    """What a file is by its first bytes, or else by its name; "picture" where neither says.

    A key of `stdac.pictures.sources.KINDS`.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            head = file.read(512) or b""
    except OSError:
        head = b""
    name = os.fsdecode(path).lower()
    if head[:4] == b"PAR1":
        return "parquet"
    if head[257:262] == b"ustar" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0":
        return "tar"
    if head[:2] == b"\x1f\x8b" and not name.endswith(TAR_NAMES):
        return "tar" if _read_unpacked_head(path)[257:262] == b"ustar" else "array"
    is_idx = len(head) > 2 and head[:2] == b"\0\0" and head[2] in IDX_TYPES
    if is_idx or head[:4] in (b"\x93NUM", b"PK\3\4", b"PK\5\6"):
        return "array"
    by_name = {".npz": "array", ".npy": "array", ".gz": "array", ".parquet": "parquet"}
    return "tar" if name.endswith(TAR_NAMES) else by_name.get(name[name.rfind(".") :], "picture")


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for what it may say, as some below /proc and /sys would make one."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_unpacked_head(path: str) -> bytes:
    """The first bytes in a gzipped file, none where it is damaged."""
    try:
        with gzip.open(path) as file:
            return file.read(512)
    except (OSError, EOFError, zlib.error):
        return b""
