"""Records: what goes out comes back, and nothing else comes in."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.datastore.manifest import KeyRecipe, Manifest, ModelIdentity, load_manifest, save_manifest
from knnstore.datastore.segment import SegmentPlan
from knnstore.errors import CorruptStoreError, MismatchError, StoreNotFoundError
from knnstore.files import encode_json
from knnstore.records import fingerprint, from_json, to_json

texts = st.text(max_size=20)
models = st.builds(ModelIdentity, texts, texts, texts, texts, st.integers(1, 2**32))
recipes = st.builds(KeyRecipe, texts, st.integers(1, 2**20), st.just(256), st.integers(1, 256))
manifests = st.builds(
    Manifest,
    st.just("knnstore"),
    st.just(1),
    models,
    recipes,
    st.lists(st.from_regex(r"[0-9]{4}", fullmatch=True), max_size=3, unique=True).map(tuple),
    st.none() | st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
)
plans = st.builds(
    SegmentPlan,
    models,
    recipes,
    st.sampled_from(["int8", "float16"]),
    st.integers(1, 2**30),
    texts,
    texts,
    texts,
    st.floats(0, 0.99),
    texts,
    st.dictionaries(texts, texts, max_size=3),
)


@dataclass(frozen=True)
class Inner:
    number: int


@dataclass(frozen=True)
class Outer:
    share: float
    flag: bool
    name: str | None
    inner: tuple[Inner, ...]
    facts: dict[str, int]
    anything: Any

    def __post_init__(self):
        if self.share > 1:
            raise ValueError("share above 1")


GOOD = {"share": 0.5, "flag": True, "name": None, "inner": [{"number": 1}], "facts": {"a": 1}, "anything": [1, "x"]}


@given(manifests | plans)
def test_a_record_comes_back_from_its_json_as_it_was(record):
    assert from_json(type(record), json.loads(encode_json(to_json(record))), "here") == record


@given(manifests | plans)
def test_a_fingerprint_survives_the_way_to_disk_and_back(record):
    again = from_json(type(record), json.loads(encode_json(to_json(record))), "here")
    assert fingerprint(again) == fingerprint(record)
    assert len(fingerprint(record)) == 64


def test_a_fingerprint_changes_with_every_field():
    base = Inner(1)
    assert fingerprint(base) != fingerprint(Inner(2))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_a_whole_number_will_do_where_a_float_is_meant():
    assert from_json(Outer, GOOD | {"share": 1}, "here").share == 1.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"share": "0.5"}, "here: share: expected float, found '0.5'"),
        ({"share": True}, "here: share: expected float, found True"),
        ({"flag": 1}, "here: flag: expected bool, found 1"),
        ({"name": 7}, "here: name: expected str, found 7"),
        ({"inner": {"number": 1}}, "here: inner: expected a list, found dict"),
        ({"inner": [3]}, "here: inner: expected an object, found int"),
        ({"inner": [{"number": True}]}, "number: expected int, found True"),
        ({"inner": [{"number": 1, "more": 2}]}, r"fields \['more'\] are missing or unknown"),
        ({"facts": [1]}, "here: facts: expected an object, found list"),
        ({"facts": {"a": "b"}}, "here: facts: expected int, found 'b'"),
        ({"share": 1.5}, "here: share above 1"),
        ({"__class__": "os.system"}, r"fields \['__class__'\] are missing or unknown"),
    ],
)
def test_a_hostile_value_is_refused_by_name(change, told):
    assert from_json(Outer, GOOD, "here").inner == (Inner(1),)
    with pytest.raises(CorruptStoreError, match=told):
        from_json(Outer, GOOD | change, "here")


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_object_is_no_record(value):
    with pytest.raises(CorruptStoreError, match="here: expected an object"):
        from_json(Outer, value, "here")


@given(st.sampled_from(sorted(GOOD)))
def test_a_missing_field_is_named(name):
    with pytest.raises(CorruptStoreError, match=rf"\['{name}'\] are missing"):
        from_json(Outer, {key: value for key, value in GOOD.items() if key != name}, "here")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": "2"},
        {"segments": ["../../etc"]},
        {"segments": ["0000", "/tmp"]},
        {"index": "../index"},
        {"index": "A" * 16},
        {"key": {"layer": "ffn-input", "dimension": 0, "context": 4, "stride": 2}},
        {"key": {"layer": "ffn-input", "dimension": 8, "context": 4, "stride": 5}},
        {"key": {"layer": "ffn-input", "dimension": 2**40, "context": 4, "stride": 2}},
    ],
)
def test_a_manifest_of_a_stranger_leads_nowhere(tmp_path, change):
    good = Manifest("knnstore", 1, ModelIdentity("m", "a", "b", "c", 10), KeyRecipe("hidden", 8, 4, 2), ("0000",), None)
    save_manifest(tmp_path, good)
    assert load_manifest(tmp_path) == good
    (tmp_path / "knnstore.json").write_text(json.dumps(to_json(good) | change))
    with pytest.raises(CorruptStoreError, match=r"knnstore\.json"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, r"made by knnstore 0\.7\.0: its format is version 2, and.* Upgrade with 'pip"),
        ({"version": 0}, r"made by knnstore 0\.7\.0: its format is version 0, and.* Read it with the version"),
        ({"removed": ..., "state": ...}, r"made by knnstore 0\.7\.0: its manifest lacks removed, state, which"),
        ({"version": 2, "segments": ["../x"]}, "made by another version of knnstore: its format"),
    ],
)
def test_the_manifest_of_another_version_says_which_and_what_to_do(tmp_path, change, told):
    good = Manifest("knnstore", 1, ModelIdentity("m", "a", "b", "c", 10), KeyRecipe("hidden", 8, 4, 2), ("0000",), None)
    (tmp_path / "segments" / "0000").mkdir(parents=True)
    (tmp_path / "segments" / "0000" / "segment.json").write_text(json.dumps({"versions": {"knnstore": "0.7.0"}}))
    found = {name: value for name, value in (to_json(good) | change).items() if value is not ...}
    (tmp_path / "knnstore.json").write_text(json.dumps(found))
    with pytest.raises(MismatchError, match=told) as caught:
        load_manifest(tmp_path)
    assert f"make the store again with knnstore.ingest(corpus='PATH', store='{tmp_path}', overwrite=True)" in str(
        caught.value
    )


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN', b" " * (2**24 + 1)])
def test_a_manifest_that_is_no_json_is_one_sentence(tmp_path, data):
    (tmp_path / "knnstore.json").write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"knnstore\.json"):
        load_manifest(tmp_path)


def test_no_manifest_is_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"make one with knnstore\.ingest"):
        load_manifest(tmp_path / "nothing")
