"""Which filters the two methods choose."""

import collections

import numpy as np
import pytest
from builders import leave_it

import ridurre
from ridurre.methods import filters_to_keep


def kmeans(keep, seed=0):
    return ridurre.KMeansFilterPruning(keep, leave_it, None, 0, seed=seed)


def random(remove, seed=0):
    return ridurre.RandomFilterPruning(remove, leave_it, None, 0, seed=seed)


def gone(method, kernel):
    """What a method removes; neither looks at the layer."""
    chosen = method.run_pruning_for_conv2d_layer(method.pruning_factor, None, kernel)
    assert isinstance(chosen, list)
    assert all(type(i) is int for i in chosen)
    assert len(set(chosen)) == len(chosen)
    return set(chosen)


def kernel_of(points):
    """A 1 × 2 kernel with one input channel whose filters are these points of the plane."""
    return np.array(points, "float32").T[None, :, None, :]


#: Three clusters far apart; the first of each is its mean, so it is nearest to the centre.
CLUSTERS = [
    [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)],
    [(100, 0), (101, 1), (99, -1)],
    [(0, 100), (0.5, 100), (-0.5, 100)],
]


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "keep", "expected"),
    [
        (10, 0.9, 9),
        (10, 0.91, 10),
        (7, 0.5, 4),
        (5, 0.6, 3),
        (10, 1 - 0.1, 9),  # 9.000000000000002 in floats, which is 9
        (10, 1 - 0.7, 3),  # 3.0000000000000004
        (3, 1 / 3, 1),
        (100, 0.07, 7),  # 7.000000000000001
        (5, 1.0, 5),
        (5, 1e-6, 1),
        (1, 0.5, 1),
        (5, 0.0, 1),
    ],
)
def test_the_kept_fraction_is_rounded_up(filters, keep, expected):
    assert filters_to_keep(filters, keep) == expected


@pytest.mark.parametrize("filters", [1, 2, 3, 5, 7, 10])
@pytest.mark.parametrize("factor", [0.01, 0.3, 0.5, 0.9, 0.99])
def test_the_factor_means_keep_for_one_method_and_remove_for_the_other(filters, factor, rng):
    kernel = rng.normal(size=(3, 3, 5, filters))
    kept = -int(-np.round(filters * factor, 9) // 1)  # rounded up
    assert filters - len(gone(kmeans(factor), kernel)) == max(1, kept)
    assert len(gone(random(factor), kernel)) == min(filters - 1, int(filters * factor + 1e-9))


def test_nothing_to_remove():
    kernel = np.arange(10.0).reshape(1, 1, 2, 5)
    assert gone(kmeans(1.0), kernel) == set()
    assert gone(random(0.0), kernel) == set()


def test_the_factor_of_the_call_counts_and_not_that_of_the_constructor(rng):
    kernel = rng.normal(size=(1, 1, 3, 10))
    assert len(kmeans(0.9).run_pruning_for_conv2d_layer(0.3, None, kernel)) == 7
    assert len(random(0.9).run_pruning_for_conv2d_layer(0.3, None, kernel)) == 3


# --- k-means --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_keeps_the_filter_nearest_to_each_centre(seed):
    points = [p for cluster in CLUSTERS for p in cluster]
    order = np.random.default_rng(seed).permutation(len(points))
    nearest = {points.index(cluster[0]) for cluster in CLUSTERS}
    kernel = kernel_of([points[i] for i in order])
    kept = set(range(len(points))) - gone(kmeans(3 / len(points), seed), kernel)
    assert {int(order[i]) for i in kept} == nearest


def test_kmeans_looks_at_whole_filters(rng):
    """Filters that differ at one position of a large kernel only."""
    kernel = np.repeat(rng.normal(size=(3, 2, 5, 1)), 7, axis=3)
    kernel[2, 1, 4, [1, 3, 4]] += [100, 101, 99]  # in the middle: filter 1
    kept = set(range(7)) - gone(kmeans(2 / 7), kernel)
    assert 1 in kept
    assert len(kept) == 2
    assert not kept & {3, 4}


def test_identical_filters_leave_as_many_as_are_asked_for():
    assert len(gone(kmeans(0.5), np.ones((3, 3, 2, 7)))) == 3
    assert gone(kmeans(0.1), np.zeros((3, 3, 2, 7))) == set(range(1, 7))


def test_of_duplicates_one_stays_first():
    """Four filters stay: the three different ones, and then the largest of the others."""
    kernel = kernel_of([(1, 1), (5, 5), (1, 1), (5, 5), (9, 9), (1, 1), (1, 1)])
    assert gone(kmeans(4 / 7), kernel) == {2, 5, 6}
    assert gone(kmeans(3 / 7), kernel) == {2, 3, 5, 6}
    assert gone(kmeans(5 / 7), kernel) in ({2, 5}, {2, 6}, {5, 6})


def test_a_centre_whose_nearest_filter_is_taken_gives_its_place_to_the_largest():
    method = kmeans(0.5)
    points = np.array([[0.0, 0], [0, 0], [3, 0], [4, 0], [3, 0], [50, 0]])
    kept = method._nearest_to_centres(points, 5)
    assert len(set(kept)) == len(kept) == 5
    assert {2, 3, 5} <= set(kept)


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-9, 1e-12])
def test_nearly_identical_filters_are_no_problem(spread, rng):
    kernel = 1000 + spread * rng.normal(size=(1, 1, 4, 9))
    assert len(gone(kmeans(0.7), kernel)) == 2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_precision_will_do(dtype, rng):
    assert len(gone(kmeans(0.5), rng.normal(size=(3, 3, 2, 6)).astype(dtype))) == 3


def test_a_single_filter_stays():
    kernel = np.ones((3, 3, 2, 1))
    assert gone(kmeans(0.1), kernel) == set()
    assert gone(random(0.9), kernel) == set()


def test_the_kernel_is_not_changed(rng):
    kernel = rng.normal(size=(3, 3, 2, 6))
    before = kernel.copy()
    gone(kmeans(0.5), kernel)
    gone(random(0.5), kernel)
    np.testing.assert_array_equal(kernel, before)


# --- random ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [1, 2, 3, 100])
def test_random_never_takes_all(filters):
    kernel = np.ones((1, 1, 1, filters))
    for seed in range(20):
        assert len(gone(random(0.999, seed), kernel)) == min(filters - 1, int(0.999 * filters))


def test_random_takes_every_filter_equally_often():
    method = random(0.4)
    kernel = np.ones((1, 1, 1, 5))
    counts = collections.Counter(i for _ in range(2000) for i in gone(method, kernel))
    # 800 are expected of each; the standard deviation is 22.
    assert set(counts) == set(range(5))
    assert all(700 < n < 900 for n in counts.values())


def test_random_takes_every_pair_equally_often():
    method = random(0.4)
    kernel = np.ones((1, 1, 1, 5))
    pairs = collections.Counter(tuple(sorted(gone(method, kernel))) for _ in range(2000))
    assert len(pairs) == 10
    assert all(130 < n < 270 for n in pairs.values())


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [kmeans, random])
def test_the_same_seed_gives_the_same_filters(method, rng):
    kernels = rng.normal(size=(3, 1, 1, 4, 12))

    def run(seed):
        pruning = method(0.5, seed)
        return [gone(pruning, kernel) for kernel in kernels]

    assert run(1) == run(1)


def test_another_seed_gives_other_filters():
    kernel = np.ones((1, 1, 1, 12))
    assert len({frozenset(gone(random(0.5, seed), kernel)) for seed in range(5)}) > 1


def test_the_global_state_of_numpy_plays_no_part(rng):
    kernel = rng.normal(size=(1, 1, 4, 12))

    def run(state):
        np.random.seed(state)
        return gone(kmeans(0.5, 1), kernel), gone(random(0.5, 1), kernel)

    before = run(1)
    after = np.random.get_state()[1].copy()
    assert run(2) == before
    np.random.seed(1)
    np.testing.assert_array_equal(np.random.get_state()[1], after)
