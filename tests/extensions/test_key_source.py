"""Keys that no LM of transformers made, from a source outside the package, in a store like any other."""

import numpy as np
import pytest
from counted_keys import ByteKeys, hashed_ngrams

import knnstore
from knnstore.datastore.store import Datastore
from knnstore.errors import CorpusError
from knnstore.exchange.importing import ImportOptions, import_keys
from knnstore.indexes.registry import open_searcher
from knnstore.mixing.knn import target_probabilities
from knnstore.scheduling import Job

OPTIONS = {"key": "hashed-ngrams", "vocabulary": 256}


@pytest.fixture
def store(tmp_path):
    (tmp_path / "text").mkdir()
    for name, word in (("tide.txt", "the tide is high, "), ("moon.txt", "a moon is low; ")):
        (tmp_path / "text" / name).write_text(word * 60)
    import_keys(ByteKeys(tmp_path / "text"), ImportOptions(store=str(tmp_path / "bytes"), **OPTIONS), Job())
    return tmp_path / "bytes"


def test_a_store_of_other_keys_is_indexed_searched_and_verified(store):
    knnstore.index(store=store, nlist=8)
    assert knnstore.verify(store=store).intact
    searcher = open_searcher(Datastore(store.with_suffix(".knnstore")))
    text = b"well, the tide is hi"
    found = searcher.search(hashed_ngrams(text, 32)[12:], 16, rows=True)
    p = target_probabilities(found, np.frombuffer(text, np.uint8)[12:].astype(np.int64), [16], [10.0])
    assert np.exp(np.log(np.maximum(p, 1e-9)).mean()) > 0.5  # any byte has 1/256, and the text's most frequent one 1/5


def test_each_document_of_the_source_can_be_removed(store):
    assert knnstore.info(store).corpus.documents == 2
    assert knnstore.remove(store=store, document=["tide.txt"]).removed.documents == 1
    opened = Datastore(store.with_suffix(".knnstore"))
    assert (opened.live_rows, opened.rows) == (900, 900 + 1080)


def test_a_value_that_is_not_a_token_is_refused_by_its_row(tmp_path, store):
    class Wrong(ByteKeys):
        def read_values(self, begin, end):
            return super().read_values(begin, end) + 200

    source = Wrong(tmp_path / "text")
    with pytest.raises(CorpusError, match=r"row 0 isn't a token of a vocabulary of 256: .*check how they were made"):
        import_keys(source, ImportOptions(store=str(tmp_path / "wrong"), **OPTIONS), Job())
