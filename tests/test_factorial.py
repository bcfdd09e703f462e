"""Encoder and loss as two factors: shares of variance by hand, and no table where they are not crossed."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
from test_params import TEXT

from ballast.params import MethodParams, Params, load
from ballast.reporting import factorial, plots

BACKBONES, LOSSES = ("gru4rec", "narm", "sasrec"), ("cross_entropy", "bce")


@pytest.fixture
def params(tmp_path: Path) -> Params:
    (tmp_path / "params.yaml").write_text(TEXT)
    return load(tmp_path / "params.yaml")


def crossed(params: Params, pairs: list[tuple[str, str]]) -> Params:
    blocks = {
        f"{backbone}-{loss}": MethodParams(
            label=f"{backbone}, {loss}", method="next_item",
            model={"backbone": {"name": backbone}, "loss": {"name": loss}})
        for backbone, loss in pairs
    }  # fmt: skip
    params.methods.clear()
    params.methods.update({"popularity": MethodParams(label="P", method="popularity"), **blocks})
    params.content_methods.clear()
    params.transfer_methods.clear()
    return params


def accuracy(
    params: Params, of_backbone: list[float], of_loss: list[float], extra: float = 0.0
) -> pd.DataFrame:
    rows = [{"dataset": "shop", "method": "popularity", "ndcg@10": 0.001, "ndcg@10_sd": 0.0}]
    for name, block in list(params.methods.items())[1:]:
        backbone, loss = block.model["backbone"]["name"], block.model["loss"]["name"]
        value = 0.05 + of_backbone[BACKBONES.index(backbone)] + of_loss[LOSSES.index(loss)]
        value += extra * (backbone == "sasrec" and loss == "bce")
        rows.append({"dataset": "shop", "method": name, "ndcg@10": value, "ndcg@10_sd": 0.001})
    return pd.DataFrame(rows)


def test_shares_of_the_variance_by_hand(params: Params) -> None:
    study = crossed(params, list(itertools.product(BACKBONES, LOSSES)))
    frame = factorial.combinations(accuracy(study, [0.0, 0.01, 0.02], [0.0, 0.02]), study)
    assert len(frame) == 6  # popularity has no encoder
    # Variances of the main effects: 2/3 * 1e-4 and 1e-4, in all 5/3 * 1e-4.
    (row,) = factorial.shares(frame).to_dict("records")
    assert row["backbone"] == pytest.approx(0.4)
    assert row["loss"] == pytest.approx(0.6)
    assert row["interaction"] == pytest.approx(0.0, abs=1e-9)
    mixed = factorial.combinations(accuracy(study, [0.0, 0.0, 0.0], [0.0, 0.0], extra=0.06), study)
    (row,) = factorial.shares(mixed).to_dict("records")
    # One of six cells differs, and with it the means of its row (2/5 of the variance) and its column (1/5).
    assert row["backbone"] == pytest.approx(2 / 5)
    assert row["loss"] == pytest.approx(1 / 5)
    assert row["interaction"] == pytest.approx(2 / 5)


def test_the_table_and_the_figure_have_a_place_for_each_pair(params: Params) -> None:
    study = crossed(params, list(itertools.product(BACKBONES, LOSSES)))
    frame = factorial.combinations(accuracy(study, [0.0, 0.01, 0.02], [0.0, 0.02]), study)
    table = factorial.table(frame, {"shop": "Shop · 9 users"})
    (group,) = table.groups()
    texts = [[cell.text for cell in row] for row in group.rows]
    assert texts == [["gru4rec", "0.0500", "0.0700", "bce"], ["narm", "0.0600", "0.0800", "bce"],
                     ["sasrec", "0.0700", "0.0900", "bce"]]  # fmt: skip
    assert [cell.is_best for cell in group.rows[2]] == [False, True, True, False]
    assert "Shop: backbone 40 %, loss 60 %, interaction 0 %" in table.note
    drawn = plots.grid(frame, {"shop": "Shop"})
    assert sorted(text.get_text() for text in drawn.axes[0].texts) == sorted(
        f"{value:.4f}" for value in frame["ndcg@10"]
    )


@pytest.mark.parametrize(
    "pairs",
    [
        list(itertools.product(BACKBONES, LOSSES))[:-1],  # one is missing
        list(itertools.product(BACKBONES[:1], LOSSES)),
        list(itertools.product(BACKBONES, LOSSES[:1])),
    ],
)
def test_what_is_not_crossed_is_not_compared(pairs: list[tuple[str, str]], params: Params) -> None:
    study = crossed(params, pairs)
    frame = accuracy(study, [0.0, 0.01, 0.02], [0.0, 0.02])
    found = factorial.combinations(frame, study)
    assert found.empty
    assert list(found) == ["dataset", "method", "backbone", "loss", "ndcg@10", "ndcg@10_sd"]
