"""An explorer of the store that the three commands made."""

import pytest

pytest.importorskip("gradio", reason="needs the extra [explore]: pip install 'knnstore[explore]'")


@pytest.fixture(scope="package")
def explorer(built):
    from knnstore.api import open as open_store
    from knnstore.explore.explorer import Explorer

    return Explorer(open_store(built[0] / "books"), exact=True)
