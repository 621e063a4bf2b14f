"""Open a store, ask it for contexts like a text, and read a key of your own back from it."""

import sys

import numpy as np

import knnstore

text = sys.argv[1] if len(sys.argv) > 1 else "The standard type hierarchy"
store = knnstore.open()  # the only one in this folder
print(f"{store.name}: {len(store):,} keys of {store.dimension}")

for neighbour in store.neighbours(text, k=5):
    print(f"{neighbour.distance:8.1f}  {neighbour.token!r:14} {neighbour.document}: …{neighbour.context[-50:]!r}")

# keys may come from anywhere: here, the states after two texts, searched together
keys = np.stack([store.key(text), store.key(text.split()[0])])
found = store.search(keys, k=64)
for distances, values in zip(found.distances, found.values, strict=True):
    token, votes = max(zip(*np.unique(values, return_counts=True), strict=True), key=lambda pair: pair[1])
    print(f"nearest at {distances[0]:.1f}; {votes} of 64 say {store.lm.loaded.decode([int(token)])!r}")
