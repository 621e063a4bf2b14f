"""The training's k-means, in itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from knnstore.indexes.ivfpq.kmeans import chain, two_level_kmeans


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32))
def test_a_chain_goes_through_every_point_always_to_the_nearest_that_is_left(count, dimension, seed):
    generator = np.random.default_rng(seed)
    points = generator.integers(-9, 10, (count, dimension)).astype(np.float32)
    here = np.zeros(dimension, np.float32)
    left = set(range(count))
    for place in chain(points, here).tolist():
        squared = {other: float(np.square(points[other] - here).sum()) for other in left}
        assert squared[place] == min(squared.values())
        left.remove(place)
        here = points[place]
    assert not left


def test_lists_near_to_each_other_have_numbers_near_to_each_other():
    points = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)
    _, centroids = two_level_kmeans(
        lambda rows: points[rows], len(points), nlist=100, cells=10, seed=0, advance=lambda _: None
    )
    step = np.linalg.norm(np.diff(centroids, axis=0), axis=1).mean()
    anyone = np.linalg.norm(centroids[:, None] - centroids, axis=2).mean()
    assert step < anyone / 3
