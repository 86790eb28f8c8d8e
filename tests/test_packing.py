"""First-fit: nothing overfills a row, and nothing is left out that had room."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bagpiper_jax.input_pipeline.packing import RowShape, by_falling_size, first_fit


def test_first_fit_by_falling_size():
    rows = np.array([10, 60, 40, 50, 30, 80])
    windows = np.array([0, 0, 4, 4, 0, 0])
    shape = RowShape(100, 4)
    order = by_falling_size(rows, windows, shape)
    # (50, 4) 1.5, (40, 4) 1.4, 80 fits nowhere, 60, 30, 10
    assert rows[order].tolist() == [50, 40, 80, 60, 30, 10]
    assert first_fit(rows[order], windows[order], 2, shape).tolist() == [0, 1, -1, 1, 0, 0]


sizes = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 8)), max_size=60)


@given(sizes, st.integers(1, 8))
def test_rows_are_never_overfilled_nor_skipped(examples, num_rows):
    rows = np.array([r for r, _ in examples], np.int64)
    windows = np.array([w for _, w in examples], np.int64)
    found = first_fit(rows, windows, num_rows, RowShape(100, 8))
    used, used_windows = np.zeros(num_rows), np.zeros(num_rows)
    for example, row in enumerate(found):
        fits = (used + rows[example] <= 100) & (used_windows + windows[example] <= 8)
        assert row == (np.argmax(fits) if fits.any() else -1)
        if row >= 0:
            used[row] += rows[example]
            used_windows[row] += windows[example]
