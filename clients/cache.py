"""A device's bounded store of downloaded emulators, on disk, addressed by content hash.

A file is written beside its final name and renamed, so a crash leaves no half file under a valid
name; a file whose bytes no longer match its name is deleted and counts as missing.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path

from flwr.app import Context

from fl_app.errors import WireError

DEFAULT_MAX_BYTES = 4 * 2**30
_HASH = re.compile(r"[0-9a-f]{64}")
"""SHA-256 in hexadecimal: nothing else is a blob's name, for names come from the network."""


class BlobCache:
    """Blobs of one or more devices below one folder; the least recently used ones go first.

    Devices that share a host (simulated ones) share the disk blocks of equal blobs by hard links,
    yet each device holds only what it downloaded itself.

    Every method that takes a name raises ``WireError`` where it is no SHA-256 in hexadecimal.

    Args:
        root: folder, made on first use.
        max_bytes: the most the folder may hold; the blob just stored always stays.
    """

    def __init__(self, root: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._root, self._max_bytes = root, max_bytes

    @property
    def max_bytes(self) -> int:
        """The most the folder may hold."""
        return self._max_bytes

    def put(self, device: int, name: str, blob: bytes) -> None:
        """Stores a blob.

        Raises:
            WireError: the bytes do not have the hash ``name``.
        """
        digest = hashlib.sha256(blob).hexdigest()
        if digest != name:
            raise WireError("damaged", f"the emulator has SHA-256 {digest}, expected {name}")
        path = self._path(device, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}")
        twin = next((p for p in self._root.glob(f"*/{name}") if p != path), None)
        if twin is not None and twin.stat().st_size == len(blob) and twin.read_bytes() == blob:
            temporary.unlink(missing_ok=True)
            os.link(twin, temporary)
        else:
            temporary.write_bytes(blob)
        temporary.replace(path)
        self._evict(keep=path)

    def get(self, device: int, name: str) -> bytes | None:
        """Returns a blob, or None where the device holds none or a damaged one."""
        path = self._path(device, name)
        if not path.is_file():
            return None
        blob = path.read_bytes()
        if hashlib.sha256(blob).hexdigest() != name:
            path.unlink()
            return None
        os.utime(path)
        return blob

    def has(self, device: int, name: str) -> bool:
        """Tells whether the device holds a file of this name; ``get`` checks its bytes."""
        return self._path(device, name).is_file()

    def touch(self, device: int, name: str) -> bool:
        """Notes that a blob is in use, so that others go first; False where there is none."""
        path = self._path(device, name)
        if not path.is_file():
            return False
        os.utime(path)
        return True

    def names(self, device: int) -> list[str]:
        """Returns the hashes of the undamaged blobs of a device, sorted."""
        folder = self._root / str(device)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        blobs = [path.name for path in files if _HASH.fullmatch(path.name)]
        return [name for name in blobs if self.get(device, name) is not None]

    def _path(self, device: int, name: str) -> Path:
        if not _HASH.fullmatch(name):
            raise WireError("damaged", f"{name[:80]!r} is no content hash (64 digits of 0-9a-f)")
        return self._root / str(device) / name

    def _evict(self, keep: Path) -> None:
        files = [p for p in self._root.glob("*/[!.]*") if p.is_file()]
        inodes = {p.stat().st_ino: p.stat().st_size for p in files}
        total = sum(inodes.values())  # hard links share their blocks
        kept = keep.stat().st_ino
        for path in sorted(files, key=lambda p: p.stat().st_mtime_ns):
            if total <= self._max_bytes:
                return
            inode = path.stat().st_ino
            if inode == kept:
                continue
            path.unlink()
            if all(not p.is_file() or p.stat().st_ino != inode for p in files):
                total -= inodes[inode]


def run_cache_root(run_id: int) -> Path:
    """Returns where devices without a ``cache-dir`` of their own keep blobs during one run."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"deft-cache-{user}" / f"run-{run_id}"


def cache_root(context: Context) -> Path:
    """Returns a node's cache folder: its ``cache-dir``, or a temporary one for this run alone."""
    folder = context.node_config.get("cache-dir")
    return Path(str(folder)) if folder else run_cache_root(context.run_id)


def cache_of(context: Context) -> BlobCache:
    """Returns a node's cache."""
    return BlobCache(cache_root(context))
