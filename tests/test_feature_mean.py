"""The moving average: its values and its resistance to bad batches."""

import pytest
import torch

from tde_det.adjustments import TDE
from tde_det.adjustments.feature_mean import FeatureMean, head_cosine

MU = 0.9


def naive_update(mean, x, keep):
    """x̄ ← μ·x̄ + mean of the kept rows, one number at a time."""
    rows = [row for row, k in zip(x.tolist(), keep.tolist()) if k]
    if not rows:
        return mean
    return [MU * m + sum(r[j] for r in rows) / len(rows) for j, m in enumerate(mean)]


def test_equals_naive_loop():
    torch.manual_seed(0)
    module = FeatureMean(8, MU).double()
    expected = [0.0] * 8
    for _ in range(5):
        x, keep = torch.randn(6, 8, dtype=torch.float64), torch.rand(6) < 0.5
        module.update_mean(x, keep)
        expected = naive_update(expected, x, keep)
        torch.testing.assert_close(module.feature_mean.tolist(), expected, rtol=1e-12, atol=1e-12)


def test_no_foreground_changes_nothing():
    module = FeatureMean(4, MU)
    for x in (torch.randn(3, 4), torch.randn(0, 4)):
        module.update_mean(torch.randn(3, 4), torch.ones(3, dtype=torch.bool))
        before = {k: v.clone() for k, v in module.state_dict().items()}
        module.update_mean(x, torch.zeros(len(x), dtype=torch.bool))
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_rows_are_left_out(bad):
    x, keep = torch.randn(3, 4), torch.ones(3, dtype=torch.bool)
    module, clean = FeatureMean(4, MU), FeatureMean(4, MU)
    clean.update_mean(x[1:], keep[1:])
    x[0, 2] = bad
    module.update_mean(x, keep)
    assert torch.equal(module.feature_mean, clean.feature_mean)


def test_overflowing_sum_is_skipped():
    module = FeatureMean(4, MU)
    keep = torch.ones(3, dtype=torch.bool)
    module.update_mean(torch.ones(3, 4), keep)
    module.update_mean(torch.full((3, 4), 3e38), keep)
    assert torch.equal(module.feature_mean, torch.ones(4))
    module.update_mean(torch.ones(3, 4), keep)
    assert torch.allclose(module.feature_mean, torch.full((4,), 1 + MU))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_summed_in_float32(dtype):
    module = FeatureMean(2, 0.0)
    x = torch.full((40000, 2), 3.0, dtype=dtype)  # the sum overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.update_mean(x, torch.ones(len(x), dtype=torch.bool))
    assert module.feature_mean.dtype == torch.float32
    assert torch.equal(module.feature_mean, torch.full((2,), 3.0))


def test_cosine_is_zero_where_undefined():
    mean = torch.tensor([1.0, 0.0, 0.0, 0.0])
    x = torch.tensor([[2.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert torch.equal(head_cosine(x, mean, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_frozen():
    module = FeatureMean(4, MU)
    module.frozen = True
    module.update_mean(torch.ones(3, 4), torch.ones(3, dtype=torch.bool))
    assert not module.feature_mean.any()


@pytest.mark.parametrize(
    "name, value",
    [("mu", 1.0), ("mu", -0.1), ("mu", float("nan")), ("num_heads", 3), ("num_heads", 0)],
)
def test_bad_values_name_their_argument(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be.*{value}"):
        TDE(**{"feature_dim": 4, "num_heads": 2, "mu": MU, name: value})
