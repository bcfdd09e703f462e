"""Measures of collapse against definitions written out, and on tables whose collapse is known."""

import math

import pytest
import torch
from torch.nn import functional

from ballast.evaluation.degeneration import BINS, alignment, degeneration, mean_cosine, uniformity


def rows(count: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = rows(9)
    cosines = [
        float(functional.cosine_similarity(vectors[i], vectors[j], dim=0)) for i in range(9) for j in range(i)
    ]
    assert mean_cosine(vectors) == pytest.approx(sum(cosines) / len(cosines))
    assert mean_cosine(vectors[:1]) == 0.0


def test_uniformity_is_that_of_all_pairs() -> None:
    unit = functional.normalize(rows(9), dim=1)
    terms = [math.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i in range(9) for j in range(i)]
    assert uniformity(rows(9)) == pytest.approx(math.log(sum(terms) / len(terms)))


def test_alignment_forgets_lengths_and_not_directions() -> None:
    users = rows(5)
    assert alignment(users, 3 * users) == pytest.approx(0.0)
    assert alignment(users, -users) == pytest.approx(4.0)


def test_a_collapsed_table_is_told_from_a_round_one() -> None:
    counts = torch.arange(41)
    targets = torch.tensor([3, 7, 11])
    direction = rows(1, seed=1)
    round_table, narrow = rows(41), direction + 0.05 * rows(41)
    healthy, collapsed = (
        degeneration(table, counts, table[targets] + 0.1, targets) for table in (round_table, narrow)
    )
    assert collapsed["cosine"] > 0.9 > abs(healthy["cosine"])
    assert abs(collapsed["cosine_centred"]) < 0.1  # one direction shared by all goes with the mean
    assert collapsed["effective_rank"] < healthy["effective_rank"] <= 6
    assert collapsed["spectrum_area"] < healthy["spectrum_area"] <= 1
    assert collapsed["uniformity_items"] > healthy["uniformity_items"]
    assert healthy["spectrum"][0] == 1.0
    assert len(healthy["cosine_by_popularity"]) == BINS
    assert healthy["mean_count_by_popularity"] == sorted(healthy["mean_count_by_popularity"])


def test_the_padding_row_counts_for_nothing() -> None:
    table, counts, targets = rows(41), torch.arange(41), torch.tensor([3, 7])
    other = table.clone()
    other[0] = 100.0
    measured = (degeneration(one, counts, table[targets], targets) for one in (table, other))
    assert next(measured) == next(measured)
