"""Writers of a store in object storage that are frozen, or killed, while another takes them over."""

import pytest


def test_a_writer_that_wakes_up_after_it_was_replaced_undoes_nothing(tortured):
    pytest.importorskip("obstore", reason="needs the extra 'cloud'")
    pytest.importorskip("moto", reason="needs moto's server")
    tortured("frozen", cases=2, seed=40)  # an append and an import
