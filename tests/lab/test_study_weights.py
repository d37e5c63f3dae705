"""What `study weights` refuses before it measures anything; the study itself runs in the loop of the guide."""

import pytest

from rewarddance.core.errors import ConfigError
from rewarddance.jobs.composite import fit_composite
from rewarddance.lab.study_weights import study_weights

PARTS = {"composition": "{kind: composition}", "colour_harmony": "{kind: colour_harmony}"}


@pytest.mark.parametrize(
    ("names", "combine", "reason"),
    [
        (PARTS, "minimum", "combine is minimum; this study is about weighted sums"),
        (PARTS, "mean_minus_std", "combine is mean_minus_std; this study is about weighted sums"),
        (["composition"], "sum", "has one part; there are no weights to study"),
    ],
)
def test_what_has_no_weights_is_refused(names, combine, reason, data_folder, tmp_path):
    parts = "\n".join(f"  {name}: {PARTS[name]}" for name in names)
    file = tmp_path / "set.yaml"
    file.write_text(f"preset: equal\ncombine: {combine}\nparts:\n{parts}\n")
    fit_composite(file, data_folder)
    with pytest.raises(ConfigError, match=reason):
        study_weights(file, data_folder, tmp_path / "study")
    assert not (tmp_path / "study").exists()
