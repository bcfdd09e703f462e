"""DIN against a loop over pairs; its two ways of scoring agree, and no position sees the future."""

import pytest
import torch
from conftest import ITEMS
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models import registry
from ballast.models.backbones import din
from ballast.models.method import DatasetInfo
from ballast.models.sequential import SequentialMethod

DIM = 8
HISTORY = torch.tensor([[0, 0, 3, 5, 3], [0, 0, 0, 0, 7], [11, 12, 13, 14, 15], [0, 0, 0, 0, 0]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(dropout: float = 0.0) -> din.Encoder:
    torch.manual_seed(0)
    backbone = din.Encoder(din.Encoder.Config(name="din", attention=6, hidden=5), DIM, 10, dropout).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return backbone


def tables() -> tuple[Tensor, Tensor]:
    both = torch.randn(2, ITEMS + 1, DIM, generator=seeded(3))
    both[:, 0] = 0
    return both[0], both[1]


@torch.inference_mode()
def test_scores_are_those_of_the_pairs_one_by_one() -> None:
    backbone, (inputs, outputs) = built(), tables()

    def layer(part: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        inner = part.left(x) + part.right.weight @ y + part.both.weight @ (x * y)
        found: Tensor = part.weigh(part.activation(inner[None])[0])
        return found[0]

    scores = backbone.candidate_scores(HISTORY, torch.arange(ITEMS + 1), inputs, outputs)
    assert scores.shape == (4, ITEMS + 1)
    for row, history in enumerate(HISTORY.tolist()):
        for item in (1, 7, 40):
            goal = outputs[item]
            pooled = torch.zeros(DIM)
            for seen in history:
                if seen:
                    pooled += layer(backbone.attend, inputs[seen], goal) * inputs[seen]
            torch.testing.assert_close(scores[row, item], layer(backbone.judge, pooled, goal))


@pytest.mark.parametrize("held", [1, 1000, 1 << 26])
@torch.inference_mode()
def test_both_ways_of_scoring_agree_whatever_the_blocks(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, (inputs, outputs) = built(), tables()
    every = torch.arange(ITEMS + 1)
    paired = backbone.candidate_scores(HISTORY, every.expand(4, -1), inputs, outputs)
    monkeypatch.setattr(din, "HELD", held)
    shared = backbone.candidate_scores(HISTORY, every, inputs, outputs)
    torch.testing.assert_close(shared, paired)


@torch.inference_mode()
def test_what_stands_in_the_padding_row_never_reaches_a_score() -> None:
    backbone, (inputs, outputs) = built(), tables()
    every = torch.arange(ITEMS + 1)
    for items in (every, every.expand(4, -1)):
        scores = backbone.candidate_scores(HISTORY, items, inputs, outputs)
        moved = inputs.clone()
        moved[0] = 3.0
        assert torch.equal(backbone.candidate_scores(HISTORY, items, moved, outputs), scores)


def method(info: DatasetInfo, loss: str, name: str = "next_item") -> SequentialMethod:
    model = {"backbone": {"name": "din"}, "loss": {"name": loss}, "dim": DIM, "max_len": 10, "dropout": 0.0}
    torch.manual_seed(0)
    found = registry.build(name, registry.configure(name, model, "params.yaml: model"), info)
    assert isinstance(found, SequentialMethod)
    return found


@pytest.mark.parametrize("loss", ["bce", "gbce", "sampled_softmax"])
def test_the_loss_of_a_position_sees_no_later_item(loss: str, toy_info: DatasetInfo) -> None:
    model = method(toy_info, loss)
    history = torch.tensor([[0, 3, 5, 9, 4, 8]])
    targets = torch.tensor([[0, 0, 9, 0, 0, 0]])  # one position: after 3 and 5
    table = model.item_table()

    def at(items: Tensor) -> float:
        # Negatives are drawn outside the whole sequence: keep it, and change the order of what comes later.
        batch = Batch(torch.tensor([1]), items, targets)
        return model.next_item_loss(batch, table, table, seeded()).item()

    assert at(history[:, [0, 1, 2, 5, 4, 3]]) == at(history)
    assert at(history[:, [0, 2, 1, 3, 4, 5]]) == pytest.approx(at(history))  # a sum has no order
    assert at(history[:, [0, 1, 3, 2, 4, 5]]) != pytest.approx(at(history), abs=1e-7)


def test_a_loss_over_the_catalogue_is_refused(toy_info: DatasetInfo) -> None:
    model = method(toy_info, "cross_entropy")
    batch = Batch(torch.tensor([1]), torch.tensor([[3, 5]]), torch.tensor([[5, 9]]))
    with pytest.raises(BallastError, match=r"model.loss: cross_entropy scores all items .* take bce, gbce"):
        model.training_step(batch, seeded())


@torch.inference_mode()
def test_scores_are_in_full_precision_under_autocast(toy_info: DatasetInfo) -> None:
    """In half precision neighbours in rank would be tied, and early stopping goes by ranks."""
    torch.manual_seed(0)
    settings = {"backbone": {"name": "din"}, "loss": {"name": "bce"}, "dim": DIM, "max_len": 10}
    model = registry.build("next_item", registry.configure("next_item", settings, "model"), toy_info).eval()
    batch = Batch(user_id=torch.arange(4), history=HISTORY)
    exact = model.score(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.score(batch), exact)
