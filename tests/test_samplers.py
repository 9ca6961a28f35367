"""Class samplers against naive ones."""

import numpy as np
import pytest
from detectron2.utils import comm
from naive_samplers import (
    assert_frequencies,
    long_tailed,
    naive_draws,
    naive_probabilities,
    objects,
    take,
)

from tde_det.data.samplers import ClassSampler
from tde_det.errors import InputError


class TestClassSamplers:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("power", [0, 0.5])
    def test_frequencies(self, power, seed):
        classes = long_tailed(seed)
        draws = take(ClassSampler(objects(classes), seed=seed, power=power), 40_000)
        assert_frequencies(draws, naive_probabilities(classes, power))
        assert draws[:9000] == [i for i, _, _ in naive_draws(classes, power, seed, 3)][:9000]

    def test_progress(self):
        classes, n = long_tailed(5), 50_000
        sampler = ClassSampler(objects(classes), ramp=5 * n, seed=1)
        draws = take(sampler, 7 * n)
        balanced, uniform = naive_probabilities(classes, 0), np.full(60, 1 / 60)
        for i in range(7):
            share = min((i + 0.5) / 5, 1)
            p = share * balanced + (1 - share) * uniform
            assert_frequencies(draws[i * n : (i + 1) * n], p)
        naive = enumerate(naive_draws(classes, 0, 1, 3))
        expected = [balanced if w < t / 9000 else any_ for t, (balanced, any_, w) in naive]
        sampler = ClassSampler(objects(classes), ramp=9000, seed=1)
        assert take(sampler, len(expected)) == expected
        empty = [i for i, labels in enumerate(classes) if not labels]
        assert empty and set(empty) <= set(draws[: 4 * n]) and not set(empty) & set(draws[5 * n :])

    @pytest.mark.parametrize("power", [0, 0.5])
    def test_seed(self, power):
        def make(classes, seed):
            return ClassSampler(objects(classes), seed=seed, power=power)

        classes = long_tailed(0)
        first = take(make(classes, 7), 5000)
        assert take(make(classes, 7), 5000) == first != take(make(classes, 8), 5000)
        sampler = make(classes, 7)
        assert take(sampler, 50) == take(sampler, 50) == first[:50]  # every iterator starts anew
        shuffled = [labels[::-1] * 2 for labels in classes]
        assert take(make(shuffled, 7), 5000) == first

    @pytest.mark.parametrize("world", [1, 2, 3, 8])
    def test_ranks_share_one_sequence(self, monkeypatch, world):
        classes = long_tailed(2)

        def make():
            return ClassSampler(objects(classes), ramp=3000, seed=4)

        whole = take(make(), 6000)
        monkeypatch.setattr(comm, "get_world_size", lambda: world)
        ranks = []
        for rank in range(world):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            ranks.append(take(make(), 6000 // world))
        assert [i for row in zip(*ranks) for i in row] == whole[: 6000 // world * world]

    def test_class_ids_may_be_any_numbers(self):
        classes = long_tailed(3)
        renamed = [[10**15 * c - 7 for c in labels] for labels in classes]
        first = take(ClassSampler(objects(classes), seed=1), 100)
        assert take(ClassSampler(objects(renamed), seed=1), 100) == first
        assert take(ClassSampler(objects([[], [5]]), seed=1), 100) == [1] * 100

    def test_of_images_without_classes(self):
        with pytest.raises(InputError, match="SAMPLER_TRAIN draws by class.*annotation"):
            ClassSampler(objects([[], []]))
