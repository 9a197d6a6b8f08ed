"""Probabilities as a file has them."""

import numpy as np

from glioray.tasks.segmentation.outputs import round_map


def test_rounded_probabilities_have_the_mask_of_the_exact_ones():
    half = np.float32(0.5)
    around = [half]
    for towards in (0, 1):
        around.append(np.nextafter(half, np.float32(towards)))
    values = np.array([*around, *np.linspace(0, 1, 100_001)], np.float32)
    rounded = round_map(values)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded > 0.5, values > 0.5)
    np.testing.assert_allclose(rounded, values, atol=0.5 / 255 + 1e-6)
    assert (rounded[values == 0], rounded[values == 1]) == (0, 1)
    np.testing.assert_array_equal(np.rint(255 * rounded), np.float32(255) * rounded)
