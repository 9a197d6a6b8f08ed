"""What batch prediction writes for a case, without the cluster that it runs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glioray.cases.labels import to_internal
from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.cases.nifti import read_volume, to_canonical
from glioray.cases.phantom import write_phantoms
from glioray.storage import open_storage
from glioray.tasks.segmentation.findings import flag_case
from glioray.tasks.segmentation.prediction import predict_case
from glioray.tasks.segmentation.predictor import Predictor, uncertainty


@pytest.mark.parametrize("with_uncertainty", [True, False])
def test_a_mask_and_what_is_unsure_about_it(
    make_predictor: Callable[..., Predictor], tmp_path: Path, with_uncertainty: bool
):
    data = open_storage(tmp_path / "data")
    write_phantoms(data, num_cases=1, shape=(48, 48, 24))
    ((files,), _) = discover_cases(data)
    predictor = make_predictor(**{"postprocess.min_component_ml": 1.0})
    answer = predict_case(data.uri, str(tmp_path / "out"), None, with_uncertainty, False, predictor, files)
    names = [f"{files.case_id}_seg.nii.gz"] + [f"{files.case_id}_uncertainty.nii.gz"] * with_uncertainty
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    case = load_case(data, files)
    # What random weights label is no tumour, and the job's log says so.
    flags = flag_case(case, predictor.predict(case), case.spacing_mm)
    assert "of the brain was labelled as tumour" in flags[0]
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in names}
    assert answer == {"mask": f"{tmp_path}/out/{names[0]}", "notes": flags, "sizes": sizes}

    assert case.convention is not None
    mask, *maps = (read_volume((tmp_path / "out" / name).read_bytes(), name=name) for name in names)
    found, _ = to_canonical(mask.array, mask.affine)
    np.testing.assert_array_equal(to_internal(found, case.convention), predictor.predict(case))
    for volume in maps:
        values, affine = to_canonical(volume.array, volume.affine)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(affine, case.affine)
        np.testing.assert_array_equal(values, uncertainty(predictor.probs(case), "regions"))
        assert values.max() > 0.5
