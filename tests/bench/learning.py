"""Data sets in shards, dense and sparse; what logistic regression and k-means compute of a shard.

A shard is a matrix of examples and a label for each; it comes from NumPy's generator, seeded with
(seed, kind, shard). `fit_logistic` and `fit_clusters` are the references: the same steps over all
shards in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

DENSE_WIDTH = 64
SPARSE_WIDTH = 5000
SPARSE_FILLED = 20  # entries of an example
TOPIC_WIDTH = 200  # columns that the examples around one centre have entries in
CLUSTERS = 8
RATE = {"dense": 0.05, "sparse": 200.0}
DECAY = 1e-3  # of the weights, per step


@dataclass(frozen=True, slots=True)
class Dense:
    """Examples as rows of numbers."""

    examples: Vector
    labels: Vector

    @property
    def width(self) -> int:
        return int(self.examples.shape[1])

    def times(self, weights: Vector) -> Vector:
        """Each example times the weights: one column, or several."""
        return self.examples @ weights

    def sum_of(self, factors: Vector) -> Vector:
        """The sum of the examples, each times its factors: of one column, or several."""
        return self.examples.T @ factors

    def squares(self) -> Vector:
        """The squared length of each example."""
        return np.einsum("ij,ij->i", self.examples, self.examples)


@dataclass(frozen=True, slots=True)
class Sparse:
    """Examples as rows in compressed form (CSR), each of the same number of entries."""

    columns: NDArray[np.int32]
    values: Vector
    labels: Vector
    width: int

    def times(self, weights: Vector) -> Vector:
        picked = weights[self.columns]  # examples x entries (x columns)
        return np.einsum("ij,ij...->i...", self.values, picked)

    def sum_of(self, factors: Vector) -> Vector:
        if factors.ndim == 2:
            return np.stack([self.sum_of(column) for column in factors.T], axis=1)
        weighted = self.values * factors[:, None]
        return np.bincount(self.columns.ravel(), weighted.ravel(), minlength=self.width)

    def squares(self) -> Vector:
        return np.einsum("ij,ij->i", self.values, self.values)


Shard = Dense | Sparse


def make(seed: int, kind: str, shard: int, examples: int) -> Shard:
    """A shard whose labels follow hidden weights, with some noise, and whose examples lie around
    hidden centres."""
    common = np.random.default_rng((seed, len(kind)))
    draw = np.random.default_rng((seed, len(kind), shard))
    if kind == "dense":
        centres = common.normal(size=(CLUSTERS, DENSE_WIDTH)) * 2
        hidden = common.normal(size=DENSE_WIDTH) / 4
        near = centres[draw.integers(CLUSTERS, size=examples)]
        found = near + draw.normal(size=(examples, DENSE_WIDTH))
        return Dense(found, labels_of(found @ hidden, draw))
    topics = np.stack([common.permutation(SPARSE_WIDTH)[:TOPIC_WIDTH] for _ in range(CLUSTERS)])
    hidden = common.normal(size=SPARSE_WIDTH) * 12
    own = topics[draw.integers(CLUSTERS, size=examples)]
    picked = draw.random(own.shape).argpartition(SPARSE_FILLED, axis=1)[:, :SPARSE_FILLED]
    columns = np.take_along_axis(own, picked, axis=1).astype(np.int32)
    values = draw.random((examples, SPARSE_FILLED)) / np.sqrt(SPARSE_FILLED)
    found = Sparse(columns, values, np.zeros(examples), SPARSE_WIDTH)
    return Sparse(columns, values, labels_of(found.times(hidden), draw), SPARSE_WIDTH)


def labels_of(scores: Vector, draw: np.random.Generator) -> Vector:
    """0 or 1, the surer the farther the score is from the middle one."""
    return (draw.random(len(scores)) < sigmoid(scores - np.median(scores))).astype(float)


def packed(shard: Shard) -> dict[str, Any]:
    """As `put_object` takes it: arrays beside the pickle."""
    return {name: getattr(shard, name) for name in shard.__slots__}


def unpacked(fields: dict[str, Any]) -> Shard:
    return Dense(**fields) if "examples" in fields else Sparse(**fields)


# ---- logistic regression ------------------------------------------------------------------------


def sigmoid(scores: Vector) -> Vector:
    return 0.5 * (1 + np.tanh(0.5 * scores))


def gradient(shard: Shard, weights: Vector, examples: int) -> tuple[Vector, float]:
    """Of the mean loss over `examples` in all: the share that this shard has in its gradient, and
    in the loss itself."""
    scores = shard.times(weights)
    loss = np.logaddexp(0, scores) - shard.labels * scores
    return shard.sum_of(sigmoid(scores) - shard.labels) / examples, float(loss.sum()) / examples


def step(weights: Vector, slope: Vector, rate: float) -> Vector:
    """The weights of the next step."""
    return weights - rate * (slope + DECAY * weights)


def fit_logistic(shards: Sequence[Shard], steps: int, rate: float) -> tuple[Vector, list[float]]:
    """The weights after so many steps from 0, and the loss before each."""
    examples = sum(len(shard.labels) for shard in shards)
    weights, losses = np.zeros(shards[0].width), []
    for _ in range(steps):
        found = [gradient(shard, weights, examples) for shard in shards]
        losses.append(sum(loss for _, loss in found))
        weights = step(weights, sum(slope for slope, _ in found), rate)
    return weights, losses


# ---- k-means ------------------------------------------------------------------------------------


def first_centres(shard: Shard) -> Vector:
    """The first few examples, columns x clusters."""
    return shard.sum_of(np.eye(len(shard.labels), CLUSTERS))


def assigned(shard: Shard, centres: Vector) -> tuple[Vector, Vector]:
    """To which centre each example is next (a 1 in that column), and how far it is, squared."""
    far = (centres**2).sum(axis=0) - 2 * shard.times(centres)
    nearest = far.argmin(axis=1)
    rows = np.arange(len(nearest))
    return np.eye(CLUSTERS)[nearest], far[rows, nearest] + shard.squares()


def cluster_sums(shard: Shard, centres: Vector) -> Vector:
    """Columns + 2 by clusters: the sum of the examples of each cluster, how many they are, and the
    sum of their squared distances."""
    member, far = assigned(shard, centres)
    return np.vstack([shard.sum_of(member), member.sum(axis=0), far @ member])


def next_centres(sums: Vector, centres: Vector) -> Vector:
    """The middle of each cluster; an empty one stays where it was."""
    counts = sums[-2]
    return np.where(counts > 0, sums[:-2] / np.maximum(counts, 1), centres)


def fit_clusters(shards: Sequence[Shard], steps: int) -> tuple[Vector, list[float]]:
    """The centres after so many steps, and the sum of squared distances before each."""
    centres, losses = first_centres(shards[0]), []
    for _ in range(steps):
        sums = sum(cluster_sums(shard, centres) for shard in shards)
        losses.append(float(sums[-1].sum()))
        centres = next_centres(sums, centres)
    return centres, losses
