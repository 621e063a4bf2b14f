"""The cache: what is fetched, what is kept, and that nothing comes out of it that wasn't written."""

import os
import threading

import google_crc32c
import numpy as np
import pytest
from s3_servers import BUCKET

from knnstore.datastore.arrays import chunk_file, create_array, write_chunk
from knnstore.datastore.mapped import MappedArray
from knnstore.errors import CorruptStoreError, ResourceError, UsageError
from knnstore.files.objects import blocks, cache, service
from knnstore.files.objects.blocks import CachedObject
from knnstore.files.objects.cache import Cache, the_cache

MIB = 2**20


def random_bytes(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def object_of_ten(url):
    """An object of ten blocks and a bit, and its bytes."""
    data = random_bytes(10 * MIB + 123)
    url.write_bytes(data)
    return url, data


def cached_files():
    folder = the_cache().folder
    return sorted(path for path in folder.glob("??/*") if path.is_file())


def on_disk():
    return sum(path.stat().st_blocks * 512 for path in cached_files())


def part(cached, begin, end):
    cached.require(begin, end)
    return os.pread(cached.file.fileno(), end - begin, begin)


def test_only_the_blocks_that_are_asked_for_are_fetched_and_only_once(object_of_ten, s3):
    url, data = object_of_ten
    s3.forget()
    cached = CachedObject(url, 1)
    assert part(cached, 3 * MIB + 5, 4 * MIB + 7) == data[3 * MIB + 5 : 4 * MIB + 7]
    assert (s3.requests["GET"], s3.received) == (1, 2 * MIB)
    assert part(cached, 3 * MIB, 5 * MIB) == data[3 * MIB : 5 * MIB]
    assert part(cached, 10 * MIB, len(data)) == data[10 * MIB :]
    assert (s3.requests["GET"], s3.received) == (2, 2 * MIB + 123)
    assert on_disk() < 3 * MIB
    again = CachedObject(url, 1)  # as another process would
    assert part(again, 3 * MIB, 5 * MIB) == data[3 * MIB : 5 * MIB]
    assert (s3.requests["GET"], s3.received) == (2, 2 * MIB + 123)


def test_a_scan_asks_for_several_blocks_at_once(object_of_ten, s3):
    url, data = object_of_ten
    cached = CachedObject(url, 1)
    s3.forget()
    assert part(cached, 0, len(data)) == data
    assert s3.requests["GET"] == 2


def test_threads_that_want_the_same_blocks_fetch_them_once(object_of_ten, s3):
    url, data = object_of_ten
    cached, found = CachedObject(url, 1), []
    s3.forget()
    cached.will_need(0, 6 * MIB)
    threads = [threading.Thread(target=lambda: found.append(part(cached, 0, 6 * MIB))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data[: 6 * MIB]] * 8
    assert s3.received == 6 * MIB


def test_a_bit_that_flips_in_the_cache_is_fetched_again(object_of_ten, s3):
    url, data = object_of_ten
    part(CachedObject(url, 1), 0, 2 * MIB)
    (file,) = cached_files()
    with file.open("r+b") as damaged:
        damaged.seek(MIB + 17)
        byte = damaged.read(1)[0]
        damaged.seek(MIB + 17)
        damaged.write(bytes([byte ^ 4]))
    s3.forget()
    assert part(CachedObject(url, 1), 0, 2 * MIB) == data[: 2 * MIB]
    assert s3.received == MIB


def test_bytes_that_are_not_what_was_written_never_come_out(url, client, s3):
    data = random_bytes(2 * MIB)
    url.write_bytes(data)
    sums = client.head_object(Bucket=BUCKET, Key=url.key)["Metadata"]
    client.put_object(Bucket=BUCKET, Key=url.key, Body=data[:-1] + b"?", Metadata=sums)
    cached = CachedObject(url, 1)
    cached.require(0, MIB)
    with pytest.raises(CorruptStoreError, match=r"is damaged in bytes 1048576 to 2097152: build the index again"):
        cached.require(MIB, 2 * MIB)
    with pytest.raises(CorruptStoreError, match=r"isn't what was written.*knnstore\.verify"):
        url.read_bytes()


def test_an_object_that_is_replaced_while_it_is_read_is_no_mixture(object_of_ten):
    url, _ = object_of_ten
    cached = CachedObject(url, 1)
    cached.require(0, 1)
    url.write_bytes(random_bytes(10 * MIB + 123, seed=1))
    with pytest.raises(CorruptStoreError, match="was replaced while it was read: run the same command again"):
        cached.require(5 * MIB, 6 * MIB)


def test_an_object_without_sums_is_fetched_whole_and_verified_by_its_own(url, client, s3):
    body = random_bytes(3 * MIB)
    chunk = body + int(google_crc32c.value(body)).to_bytes(4, "little")
    client.put_object(Bucket=BUCKET, Key=url.key, Body=chunk)
    s3.forget()
    assert part(CachedObject(url, 1), 0, 10) == chunk[:10]
    assert s3.received == len(chunk)
    assert part(CachedObject(url, 1), 2 * MIB, len(chunk)) == chunk[2 * MIB :]
    assert s3.received == len(chunk)
    client.put_object(Bucket=BUCKET, Key=url.key, Body=chunk[:-1] + bytes([chunk[-1] ^ 1]))
    with pytest.raises(CorruptStoreError, match="is damaged"):
        CachedObject(url, 1).require(0, 10)


def test_the_cache_keeps_to_its_limit_and_lets_go_of_what_was_opened_longest_ago(url, monkeypatch, tmp_path):
    small = Cache(tmp_path / "cache", 8 * MIB)
    monkeypatch.setattr(blocks, "the_cache", lambda: small)
    held = None
    for number in range(12):
        (url / str(number)).write_bytes(random_bytes(2 * MIB, number))
        cached = CachedObject(url / str(number), 1)
        cached.require(0, 2 * MIB)
        os.utime(cached.file.fileno(), (number, number))
        held = held or cached
        files = list((tmp_path / "cache").glob("??/*"))
        assert sum(file.stat().st_blocks * 512 for file in files) <= 8 * MIB
    assert small.file(url / "0", held._version).exists()  # it is the oldest, and held
    assert not small.file(url / "1", CachedObject(url / "1", 1)._version).stat().st_blocks
    assert part(held, 0, 100) == random_bytes(2 * MIB, 0)[:100]


@pytest.mark.parametrize("fault", ["broken", "cut", "slow"])
def test_what_goes_wrong_on_the_way_is_tried_again(object_of_ten, s3, fault):
    url, data = object_of_ten
    setattr(s3.faults, fault, 2)
    s3.faults.pause = 0.1
    assert part(CachedObject(url, 1), 0, len(data)) == data
    assert url.read_bytes() == data
    assert s3.struck[fault] >= 2


def test_a_service_that_stalls_is_given_up_and_asked_again(object_of_ten, s3, monkeypatch):
    from datetime import timedelta

    url, data = object_of_ten
    monkeypatch.setattr(service, "_STALLED", timedelta(seconds=0.5))
    service.bucket_of.cache_clear()
    s3.forget()
    s3.faults.stalled, s3.faults.pause = 3, 2.0
    assert part(CachedObject(url, 1), 0, len(data)) == data
    assert s3.struck["stalled"] >= 1


def test_a_whole_object_is_kept_and_only_asked_whether_it_changed(url, s3):
    data = random_bytes(MIB)
    url.write_bytes(data)
    assert url.read_bytes() == data
    s3.forget()
    assert url.read_bytes() == data
    assert (s3.requests["GET"], s3.received) == (1, 0)
    url.write_bytes(data[::-1])
    assert url.read_bytes() == data[::-1]


@pytest.mark.parametrize("compression", ["none"])
def test_an_array_in_a_bucket_is_mapped_like_one_on_a_disk(url, tmp_path, s3, compression):
    rows = np.random.default_rng(0).integers(-127, 127, (10_000, 96), np.int8)
    for root in (url, tmp_path):
        create_array(root / "g" / "keys", rows.shape, 4096, rows.dtype, compression)
        for chunk in range(3):
            write_chunk(root / "g" / "keys", chunk, rows[chunk * 4096 : (chunk + 1) * 4096])
    there, here = MappedArray(url / "g" / "keys"), MappedArray(tmp_path / "g" / "keys")
    for begin, end in ((0, 10), (4000, 5000), (4096, 8192), (0, 10_000), (9_999, 10_000), (7, 7)):
        there.will_need(begin, max(end, begin + 1))
        np.testing.assert_array_equal(there.rows(begin, end), here.rows(begin, end))
    some = np.array([9_000, 3, 4_096, 3])
    np.testing.assert_array_equal(there.take(some), rows[some])
    chunk_file(url / "g" / "keys", 1, 2).unlink()
    with pytest.raises(CorruptStoreError, match=r"rows 4096 to 8192\) is missing: build the index again"):
        MappedArray(url / "g" / "keys").rows(5000, 5001)


def test_a_cache_that_is_too_small_or_has_no_place_is_a_sentence(object_of_ten, monkeypatch, tmp_path):
    url, _ = object_of_ten
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "1MB")
    with pytest.raises(UsageError, match=r"a cache of 1MB can't hold.*store_cache= at least 64.0 MB"):
        CachedObject(url, 1)
    monkeypatch.delenv(cache.LIMIT_VARIABLE)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(ResourceError, match=r"can't use the cache .*KNNSTORE_STORE_CACHE_FOLDER"):
        CachedObject(url, 1)
