"""The device's store: bounded, never half written, never believed without a look at the bytes."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.cache import BlobCache, cache_of, cache_root, run_cache_root
from clients.loaded import Loaded
from fl_app.errors import WireError


def _name(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _put(cache: BlobCache, device: int, blob: bytes) -> str:
    name = _name(blob)
    cache.put(device, name, blob)
    return name


def _age(root: Path, device: int, name: str, seconds: int) -> None:
    """Makes a file look as if it was used ``seconds`` after the epoch."""
    os.utime(root / str(device) / name, (seconds, seconds))


def _stored(root: Path) -> int:
    """Bytes on disk: files that share their blocks count once."""
    files = [path.stat() for path in root.rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_size for status in files}.values())


def test_it_gives_back_what_was_put_in(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "not" / "yet" / "there")
    name = _put(cache, 3, b"emulator")
    assert cache.get(3, name) == b"emulator"
    assert cache.has(3, name)
    assert cache.names(3) == [name]


def test_a_device_holds_only_what_it_was_sent(tmp_path: Path) -> None:
    """Simulated devices share a disk; what one downloaded is no other's."""
    cache = BlobCache(tmp_path)
    name = _put(cache, 0, b"emulator")
    assert cache.get(1, name) is None
    assert not cache.has(1, name)
    assert cache.names(1) == []


def test_bytes_under_a_wrong_name_are_refused(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    with pytest.raises(WireError) as error:
        cache.put(0, _name(b"one thing"), b"another thing")
    assert error.value.reason == "damaged"
    assert _name(b"another thing") in str(error.value)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "../..", "../1", "{root}/victim", "x" * 64, "A" * 64, "a" * 63, "a" * 64 + "/../v"],
)
def test_a_name_that_is_no_hash_reaches_no_file(tmp_path: Path, name: str) -> None:
    """Names come with orders, and a file that is not what its name says is deleted."""
    cache = BlobCache(tmp_path / "cache")
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "cache" / "1").mkdir(parents=True)
    for ask in (cache.get, cache.has, cache.touch):
        with pytest.raises(WireError) as error:
            ask(1, name.format(root=tmp_path))
        assert error.value.reason == "damaged"
    assert victim.read_bytes() == b"mine"


def test_a_file_of_somebody_else_is_no_blob_and_stays(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    name = _put(cache, 0, b"emulator")
    (tmp_path / "0" / "notes.txt").write_text("mine")
    assert cache.names(0) == [name]
    assert (tmp_path / "0" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b"X" + b[1:], lambda b: b""])
def test_a_damaged_file_counts_as_missing_and_goes(tmp_path: Path, spoil: Any) -> None:
    cache = BlobCache(tmp_path)
    name = _put(cache, 0, b"emulator")
    path = tmp_path / "0" / name
    path.write_bytes(spoil(b"emulator"))
    assert cache.names(0) == []
    assert not path.exists()
    cache.put(0, name, b"emulator")
    path.write_bytes(spoil(b"emulator"))
    assert cache.has(0, name)  # a glance at the name says nothing of the bytes
    assert cache.get(0, name) is None
    assert not cache.has(0, name)


def test_equal_blobs_of_devices_on_one_host_share_their_blocks(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    for device in range(5):
        name = _put(cache, device, b"emulator" * 100)
    paths = [tmp_path / str(device) / name for device in range(5)]
    assert len({path.stat().st_ino for path in paths}) == 1
    assert _stored(tmp_path) == 800
    paths[0].unlink()
    assert all(cache.get(device, name) == b"emulator" * 100 for device in range(1, 5))


def test_a_damaged_file_is_never_shared(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    name = _put(cache, 0, b"emulator")
    (tmp_path / "0" / name).write_bytes(b"emulatoR")
    cache.put(1, name, b"emulator")
    assert cache.get(1, name) == b"emulator"
    assert cache.get(0, name) is None


def test_putting_twice_changes_nothing(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    name = _put(cache, 0, b"emulator")
    cache.put(0, name, b"emulator")
    assert [path.name for path in (tmp_path / "0").iterdir()] == [name]


def test_a_crash_while_writing_leaves_no_file_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes go to another name first; the rename is the last thing that happens."""
    cache = BlobCache(tmp_path)
    seen: list[bytes] = []

    def crash(self: Path, target: Path) -> None:
        seen.append(self.read_bytes())
        raise OSError("power is gone")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="power"):
        cache.put(0, _name(b"emulator"), b"emulator")
    monkeypatch.undo()
    assert seen == [b"emulator"]
    assert cache.names(0) == []
    assert not cache.has(0, _name(b"emulator"))
    assert cache.get(0, _name(b"emulator")) is None
    name = _put(cache, 0, b"emulator")  # and the next attempt works
    assert cache.get(0, name) == b"emulator"


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, max_bytes=30)
    blobs = [bytes([65 + i]) * 10 for i in range(4)]
    names = [_put(cache, 0, blob) for blob in blobs[:3]]
    for age, name in enumerate(names):
        _age(tmp_path, 0, name, 100 + age)
    assert cache.get(0, names[0]) == blobs[0]  # used now, hence the youngest
    last = _put(cache, 0, blobs[3])
    assert set(cache.names(0)) == {names[0], names[2], last}


def test_a_blob_in_memory_is_in_use_on_disk_too(tmp_path: Path) -> None:
    """Small blobs come with every round; the large one, read once, must not go first."""
    cache = BlobCache(tmp_path, max_bytes=20)
    large = _put(cache, 0, b"e" * 10)
    loaded = Loaded(cache, bytes.decode)
    assert loaded.of(0, large) == "e" * 10
    old = _put(cache, 0, b"first")
    for seconds, name in enumerate([large, old], start=1):
        _age(tmp_path, 0, name, seconds)
    assert loaded.of(0, large) == "e" * 10
    new = _put(cache, 0, b"second")
    assert cache.names(0) == sorted([large, new])
    assert not cache.touch(0, old)


def test_a_blob_larger_than_the_bound_is_kept_alone(tmp_path: Path) -> None:
    """The device needs it now; there is nothing better to do with the space."""
    cache = BlobCache(tmp_path, max_bytes=5)
    old = _put(cache, 0, b"abc")
    new = _put(cache, 1, b"far too large")
    assert (cache.names(0), cache.names(1)) == ([], [new])
    assert old != new


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    puts=st.lists(
        st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=12)), min_size=1, max_size=12
    ),
    bound=st.integers(0, 40),
)
def test_the_folder_never_exceeds_its_bound(puts: list[tuple[int, bytes]], bound: int) -> None:
    """After each put: at most ``max_bytes``, or nothing but the blob just stored."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = BlobCache(root, max_bytes=bound)
        for device, blob in puts:
            name = _put(cache, device, blob)
            assert _stored(root) <= max(bound, len(blob))
            assert cache.get(device, name) == blob
            for other in range(3):
                held = [cache.get(other, held) for held in cache.names(other)]
                assert all(blob is not None for blob in held)


def _context(run_id: int = 5, **node_config: Any) -> Context:
    return Context(run_id, 1, node_config, RecordDict(), {})


def test_a_node_keeps_its_blobs_where_it_was_told_or_for_one_run_alone(tmp_path: Path) -> None:
    kept = _context(**{"cache-dir": str(tmp_path)})
    assert cache_root(kept) == tmp_path
    assert cache_root(_context()) == run_cache_root(5)
    assert run_cache_root(5) != run_cache_root(6)
    assert run_cache_root(5).is_relative_to(tempfile.gettempdir())
    _put(cache_of(kept), 0, b"x")
    assert BlobCache(tmp_path).names(0) == [_name(b"x")]
