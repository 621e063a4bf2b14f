"""All that a store's files tell, to be searched for what must not be there."""

import json

import pyarrow.parquet as pq

from knnstore.datastore.arrays import open_array, read_rows


def everything_in(root):
    """The bytes of every file of a store, and the contents of its arrays and tables as they are before compression."""
    found = [path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()]
    for path in root.rglob("zarr.json"):
        if json.loads(path.read_text())["node_type"] == "array":
            found.append(read_rows(path.parent, 0, open_array(path.parent).shape[0]).tobytes())
    found += [str(pq.read_table(path).to_pylist()).encode() for path in root.rglob("*.parquet")]
    return b"\0".join(found)
