"""The continuous cache against its definition, token by token."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from knnstore.mixing.cache import cache_probabilities


def by_definition(keys, targets, document, size, temperature):
    result = []
    for t in range(len(keys)):
        past = [i for i in range(max(0, t - size), t) if document[i] == document[t]]
        if not past:
            result.append(np.nan)
            continue
        distances = np.square(keys[past].astype(np.float64) - keys[t]).sum(axis=1)
        weights = np.exp((distances.min() - distances) / temperature)
        result.append(weights[targets[past] == targets[t]].sum() / weights.sum())
    return np.array(result)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(1, 50),
    st.floats(0.2, 20),
    st.integers(1, 7),
    st.integers(0, 2**32 - 1),
)
def test_the_cache_is_its_definition_however_the_text_is_cut_into_blocks(lengths, size, temperature, cut, seed):
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(len(lengths)), lengths)
    keys = rng.normal(5, 1, (len(document), 3)).astype(np.float32)
    targets = rng.integers(0, 4, len(document))
    expected = by_definition(keys, targets, document, size, temperature)
    found, past = [], None
    for block in np.array_split(np.arange(len(document)), cut):
        if len(block):
            p, past = cache_probabilities(
                keys[block], targets[block], document[block], past, size=size, temperatures=(temperature,)
            )
            found.append(p[:, 0])
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=2e-4, atol=1e-6)
    assert past is not None and len(past.keys) <= size
