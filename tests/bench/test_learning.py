"""Logistic regression and k-means over shards: the steps that workers share."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from . import learning
from .learning import Dense, Shard, Sparse

SEED = 9


def as_dense(shard: Shard) -> Dense:
    if isinstance(shard, Dense):
        return shard
    full = np.zeros((len(shard.labels), shard.width))
    np.add.at(full, (np.arange(len(full))[:, None], shard.columns), shard.values)
    return Dense(full, shard.labels)


def test_sparse_examples_compute_as_dense_ones_do() -> None:
    shard = learning.make(SEED, "sparse", 0, 200)
    assert isinstance(shard, Sparse)
    full = as_dense(shard)
    draw = np.random.default_rng(SEED)
    for shape in [(shard.width,), (shard.width, 3)]:
        weights = draw.normal(size=shape)
        assert np.allclose(shard.times(weights), full.times(weights))
        factors = draw.normal(size=(len(shard.labels), *shape[1:]))
        assert np.allclose(shard.sum_of(factors), full.sum_of(factors))
    assert np.allclose(shard.squares(), full.squares())


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_the_gradient_is_the_slope_of_the_loss(kind: str) -> None:
    shard = learning.make(SEED, kind, 0, 100)
    draw = np.random.default_rng(SEED)
    weights = draw.normal(size=shard.width) / 10
    slope, _ = learning.gradient(shard, weights, 100)
    way = draw.normal(size=shard.width)
    losses = [learning.gradient(shard, weights + way * h, 100)[1] for h in (1e-6, -1e-6)]
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(float(slope @ way), rel=1e-4)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_both_methods_learn(kind: str) -> None:
    shards = [learning.make(SEED, kind, i, 500) for i in range(4)]
    weights, losses = learning.fit_logistic(shards, 30, learning.RATE[kind])
    assert losses[0] == pytest.approx(np.log(2))
    assert losses[-1] < 0.9 * losses[0]
    assert np.isfinite(weights).all()
    _, spread = learning.fit_clusters(shards, 10)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(spread))
    assert spread[-1] < spread[0]


def test_a_step_over_shards_is_one_over_all_examples() -> None:
    shards = [learning.make(SEED, "dense", i, 300) for i in range(3)]
    examples = np.concatenate([shard.examples for shard in shards])
    labels = np.concatenate([shard.labels for shard in shards])
    whole = [Dense(examples, labels)]
    ours, theirs = learning.fit_logistic(shards, 5, 1.0), learning.fit_logistic(whole, 5, 1.0)
    assert np.allclose(ours[0], theirs[0])
    centres = learning.first_centres(shards[0])
    total = sum(learning.cluster_sums(shard, centres) for shard in shards)
    assert np.allclose(total, learning.cluster_sums(whole[0], centres))
    assert total[-2].sum() == len(labels)


def test_shards_travel_as_arrays() -> None:
    for kind in ("dense", "sparse"):
        shard = learning.make(SEED, kind, 0, 50)
        again = learning.unpacked(learning.packed(shard))
        assert type(again) is type(shard)
        assert np.array_equal(again.labels, shard.labels)
