"""What each backbone computes, against loops that follow the papers, and how it hides or shuffles items."""

import math

import pytest
import torch
from conftest import ITEMS
from torch import Tensor
from torch.nn import functional

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models import backbones, registry
from ballast.models.backbones import MASK, Backbone, bert4rec, cl4srec
from ballast.models.layers import Dropout, PaddedGRU
from ballast.models.method import DatasetInfo

DIM, MAX_LEN = 8, 10
WITH_STATES = [name for name in backbones.known() if name != "din"]  # which has tests of its own


def built(name: str, dropout: float = 0.0, **settings: object) -> Backbone:
    """A backbone in evaluation mode, its small start weights enlarged so that mistakes show."""
    torch.manual_seed(0)
    backbone = backbones.build({"name": name, **settings}, DIM, MAX_LEN, dropout, "model.backbone").eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return backbone


def padded(*histories: list[int], length: int = MAX_LEN) -> Tensor:
    return torch.tensor([[0] * (length - len(history)) + history for history in histories])


def table(dtype: torch.dtype = torch.float32) -> Tensor:
    rows = torch.randn(ITEMS + 1, DIM, generator=seeded(7))
    rows[0] = 0
    return rows.to(dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sequences(users: int, length: int, seed: int = 0) -> Tensor:
    """(B, L) random items after a random amount of padding; the first row has one item, the second all."""
    rng = seeded(seed)
    items = torch.randint(1, ITEMS + 1, (users, length), generator=rng)
    real = torch.randint(1, length + 1, (users, 1), generator=rng)
    real[0], real[1] = 1, length
    return items * (torch.arange(length) >= length - real)


def training_batch(items: Tensor) -> Batch:
    """Sequences as the training loop cuts them into histories and targets."""
    history = items[:, :-1]
    return Batch(torch.arange(len(items)), history, items[:, 1:] * (history != 0))


HISTORY = padded([3], [5, 6, 5, 9], list(range(11, 21)), [40, 2, 7])


# All of them


@pytest.mark.parametrize(("name", "std"), [("sasrec", 0.02), ("gru4rec", 0.1), ("caser", 0.1), ("din", 0.3)])
def test_item_vectors_start_as_large_as_the_backbone_asks(
    name: str, std: float, toy_info: DatasetInfo
) -> None:
    settings = {"backbone": {"name": name}, "loss": {"name": "bce"}, "dim": 32, "max_len": 10}
    torch.manual_seed(0)
    model = registry.build("next_item", registry.configure("next_item", settings, "model"), toy_info)
    assert float(model.item_table()[1:].detach().std()) == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("name", WITH_STATES)
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
def test_autocast(name: str, rows: torch.dtype) -> None:
    """An item table that is itself a product comes in bfloat16."""
    backbone = built(name, dropout=0.3).train()
    items = table(rows).requires_grad_()
    batch = training_batch(sequences(6, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        view = backbone.training_view(batch, seeded())
        states = backbone(view.history, items)
        extra = backbone.extra_losses(batch, items, seeded())
        query = backbone.query(batch.history, items)
    (states.float().square().mean() + query.float().square().mean() + sum(extra.values())).backward()
    assert states.shape == (*view.history.shape, DIM)
    assert query.shape == (6, DIM)
    assert torch.isfinite(states).all()
    for parameter in (items, *backbone.parameters()):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", WITH_STATES)
@torch.inference_mode()
def test_what_stands_in_the_padding_row_never_reaches_a_real_state(name: str) -> None:
    """Attacks on the table may move it."""
    backbone, moved = built(name), table()
    states = backbone(HISTORY, moved)
    moved[0] = 3.0
    changed = backbone(HISTORY, moved)
    assert torch.equal(changed[HISTORY != 0], states[HISTORY != 0])
    assert torch.equal(backbone.query(HISTORY, moved), backbone.query(HISTORY, table()))


@pytest.mark.parametrize("name", [name for name in WITH_STATES if name != "bert4rec"])
@torch.inference_mode()
def test_the_query_is_the_last_state(name: str) -> None:
    backbone = built(name)
    last = backbone(HISTORY, table())[:, -1]
    torch.testing.assert_close(backbone.query(HISTORY, table()), last)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "cl4srec"])
def test_heads_must_divide_the_width(name: str) -> None:
    with pytest.raises(BallastError, match=f"{name}: dim 8 is not a multiple of heads 3"):
        built(name, heads=3)


# GRU4Rec


@torch.inference_mode()
def test_gru_states_are_those_of_the_bare_sequence() -> None:
    torch.manual_seed(0)
    layer = PaddedGRU(DIM, 6, layers=2)
    vectors = functional.embedding(HISTORY, table())
    states = layer(vectors, HISTORY != 0)
    for row, history in enumerate(HISTORY):
        real = history != 0
        alone = layer.gru(vectors[row : row + 1, real])[0][0]
        torch.testing.assert_close(states[row, real], alone)
        assert not states[row, ~real].any()


def test_the_gradient_of_padding_is_zero() -> None:
    layer = PaddedGRU(DIM, 6)
    vectors = torch.randn(*HISTORY.shape, DIM, generator=seeded(), requires_grad=True)
    layer(vectors, HISTORY != 0).square().sum().backward()
    assert vectors.grad is not None
    assert not vectors.grad[HISTORY == 0].any()
    assert vectors.grad[HISTORY != 0].any(dim=1).all()


# NARM


@pytest.mark.parametrize("attention", ["sum", "softmax"])
@torch.inference_mode()
def test_narm_sums_all_states_up_to_now(attention: str) -> None:
    backbone = built("narm", hidden=6, attention=attention)
    states = backbone.gru(functional.embedding(HISTORY, table()), HISTORY != 0)
    newest, earlier = backbone.newest.weight, backbone.earlier.weight
    ours = backbone(HISTORY, table())
    for row, history in enumerate(HISTORY):
        for now in torch.nonzero(history)[:, 0].tolist():
            past = [then for then in range(now + 1) if history[then] != 0]
            inner = [newest @ states[row, now] + earlier @ states[row, then] for then in past]
            alpha = torch.stack([torch.dot(backbone.weigh, torch.sigmoid(each)) for each in inner])
            if attention == "softmax":
                alpha = alpha.exp() / alpha.exp().sum()
            local = sum(weight * states[row, then] for weight, then in zip(alpha, past, strict=True))
            expected = backbone.bilinear.weight @ torch.cat([states[row, now], local])
            torch.testing.assert_close(ours[row, now], expected)


# Caser


@pytest.mark.parametrize("window", [1, 3, 5])
@torch.inference_mode()
def test_caser_reads_the_last_items_only(window: int) -> None:
    backbone = built("caser", window=window, horizontal_filters=3, vertical_filters=2)
    ours, rows = backbone(HISTORY, table()), table()
    for row, history in enumerate(HISTORY.tolist()):
        for now in range(MAX_LEN):
            ids = [0] * window + history[: now + 1]
            image = rows[ids[-window:]]  # (W, D)
            parts = []
            for height, kernel in enumerate(backbone.horizontal, start=1):
                places = [image[top : top + height].flatten() for top in range(window - height + 1)]
                parts.append(torch.stack([torch.relu(kernel(place)) for place in places]).amax(0))
            for channel in range(DIM):
                parts.append(backbone.vertical.weight @ image[:, channel])
            torch.testing.assert_close(ours[row, now], torch.relu(backbone.output(torch.cat(parts))))


def test_caser_needs_a_window_within_max_len() -> None:
    with pytest.raises(BallastError, match=r"caser: window 11 is not within 1\.\.10"):
        built("caser", window=11)


# FMLP-Rec


@pytest.mark.parametrize("length", [1, 6, MAX_LEN])
@torch.inference_mode()
def test_fmlp_filters_the_past(length: int) -> None:
    layer = built("fmlp_rec").layers[0]
    states = torch.randn(2, length, DIM, generator=seeded())
    expected = torch.zeros(2, length, DIM)
    for now in range(length):
        for then in range(now + 1):
            expected[:, now] += layer.kernel[now - then] * states[:, then]
    torch.testing.assert_close(layer.filter(states), expected)


# BERT4Rec


def test_bert4rec_asks_for_what_follows() -> None:
    backbone, items = built("bert4rec"), table()
    with torch.inference_mode():
        asked = torch.cat([HISTORY, torch.full((len(HISTORY), 1), MASK)], dim=1)[:, 1:]
        torch.testing.assert_close(backbone.query(HISTORY, items), backbone(asked, items)[:, -1])
        later = HISTORY.clone()
        later[:, -1] = 1
        states, others = backbone(HISTORY, items), backbone(later, items)
    assert not torch.isclose(states[2, 0], others[2, 0]).all()  # both sides are read


@pytest.mark.parametrize("length", [5, MAX_LEN, MAX_LEN + 1])
def test_the_targets_are_the_hidden_items(length: int) -> None:
    """A batch's sequences are its histories and the item behind them, cut to max_len."""
    items = sequences(200, length)
    items = items[(items != 0).sum(1) > 1]
    batch = training_batch(items)
    view = built("bert4rec", mask_rate=0.3).training_view(batch, seeded())
    kept = items[:, -MAX_LEN:]
    hidden = view.history == MASK
    assert view.targets is not None
    assert torch.equal(view.targets != 0, hidden)
    assert torch.equal(torch.where(hidden, view.targets, view.history), kept)
    assert not hidden[kept == 0].any()
    assert hidden.any(1).all()


def test_a_hidden_item_is_not_in_the_view() -> None:
    backbone, items = built("bert4rec"), sequences(50, 8)
    view = backbone.training_view(training_batch(items), seeded(1))
    other = torch.where(view.history == MASK, items % ITEMS + 1, items)
    changed = backbone.training_view(training_batch(other), seeded(1))
    assert torch.equal(changed.history, view.history)
    assert not torch.equal(changed.targets, view.targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("last_rate", [0.0, 0.25, 1.0])
def test_the_shares_of_hidden_items(last_rate: float) -> None:
    items = torch.randint(1, ITEMS + 1, (4000, MAX_LEN), generator=seeded())
    backbone = built("bert4rec", mask_rate=0.4, last_rate=last_rate)
    hidden = backbone.training_view(training_batch(items), seeded()).history == MASK
    only_last = hidden[:, -1] & (hidden.sum(1) == 1)
    by_chance = 0.4 * 0.6 ** (MAX_LEN - 1) + 0.6**MAX_LEN  # the last alone is drawn, or none and it steps in
    assert only_last.double().mean().item() == pytest.approx(
        last_rate + (1 - last_rate) * by_chance, abs=0.02
    )
    drawn = hidden[:, :-1].double().mean().item()
    assert drawn == pytest.approx(0.4 * (1 - last_rate), abs=0.02)


def test_with_no_rate_the_last_item_is_hidden() -> None:
    items = sequences(30, 8)
    items = items[(items != 0).sum(1) > 1]  # a lone item is no training sequence
    view = bert4rec_view(items, mask_rate=0.0, last_rate=0.0)
    assert torch.equal(view.history[:, :-1], items[:, :-1])
    assert (view.history[:, -1] == MASK).all()


def bert4rec_view(items: Tensor, **settings: float) -> Batch:
    backbone = built("bert4rec", **settings)
    assert isinstance(backbone, bert4rec.Encoder)
    return backbone.training_view(training_batch(items), seeded())


# CL4SRec


def real(row: Tensor) -> list[int]:
    """The items of a left-padded row; fails if there is padding between or behind them."""
    items = row.tolist()
    count = sum(item != 0 for item in items)
    assert all(item != 0 for item in items[len(items) - count :])
    return items[len(items) - count :]


def numbered(users: int, length: int) -> Tensor:
    """Sequences of n items that count from 1 to n, so that each item tells its place."""
    items = sequences(users, length)
    count = (items != 0).sum(1, keepdim=True)
    return (torch.arange(length) - (length - count) + 1).clamp(min=0)


@pytest.mark.parametrize("rate", [0.0, 0.29, 0.6, 1.0])
def test_crop_keeps_a_run(rate: float) -> None:
    items = numbered(200, 12)
    starts = set()
    for before, after in zip(items, cl4srec.crop(items, rate, seeded()), strict=True):
        whole, kept = real(before), real(after)
        assert len(kept) == max(1, math.floor(rate * len(whole) + 1e-9))
        assert kept == list(range(kept[0], kept[0] + len(kept)))
        assert kept[-1] <= len(whole)
        if len(whole) == 12:
            starts.add(kept[0])
    assert len(starts) > 1 or rate == 1.0


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_mask_hides_a_share(rate: float) -> None:
    items = sequences(200, 12)
    masked = cl4srec.mask(items, rate, seeded())
    hidden = masked == MASK
    count = (items != 0).sum(1)
    assert hidden.sum(1).tolist() == [math.floor(rate * n + 1e-9) for n in count.tolist()]
    assert not hidden[items == 0].any()
    assert torch.equal(masked[~hidden], items[~hidden])
    if rate == 0.3:
        shares = hidden[count == 12].double().mean(0)
        assert (shares > 0).all()  # no place is spared


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
def test_reorder_shuffles_a_run(rate: float) -> None:
    items = numbered(200, 12)
    shuffled = cl4srec.reorder(items, rate, seeded())
    moved = shuffled != items
    for before, after, changed in zip(items, shuffled, moved, strict=True):
        whole = real(before)
        assert sorted(real(after)) == whole
        places = torch.nonzero(changed)[:, 0].tolist()
        if places:
            assert places[-1] - places[0] < math.floor(rate * len(whole) + 1e-9)
    assert moved.any() == (rate > 0)


def test_each_view_is_of_one_operator() -> None:
    backbone = built("cl4srec", crop=0.5, mask=0.5, reorder=1.0)
    items = torch.arange(1, 11).expand(300, -1)
    views = backbone.augmented(items, seeded())
    cropped = (views == 0).sum(1) == 5
    masked = (views == MASK).sum(1) == 5
    reordered = views.sort(1).values.eq(items).all(1)
    assert (cropped.int() + masked.int() + reordered.int() == 1).all()
    assert min(cropped.sum(), masked.sum(), reordered.sum()) > 60
    assert torch.equal(backbone.augmented(items, seeded()), views)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_nt_xent_by_definition(temperature: float) -> None:
    states = torch.randn(6, DIM, generator=seeded())
    total = 0.0
    for one in range(6):
        other = (one + 3) % 6
        likeness = {j: math.exp(float(states[one] @ states[j]) / temperature) for j in range(6) if j != one}
        total -= math.log(likeness[other] / sum(likeness.values()))
    assert cl4srec.nt_xent(states, temperature).item() == pytest.approx(total / 6, rel=1e-5)


def test_the_contrast_is_weighed() -> None:
    batch, losses = training_batch(sequences(6, 8)), []
    for weight in (0.1, 0.4):
        extra = built("cl4srec", contrast=weight).extra_losses(batch, table(), seeded())
        losses.append(extra["contrast"].item())
    assert losses[1] == pytest.approx(4 * losses[0], rel=1e-5)


@pytest.mark.parametrize("rate", [0.0005, 0.0015, 0.002, 0.1, 0.9, 1.0])
def test_dropout_keeps_what_its_rate_says(rate: float) -> None:
    """Rates are rounded to 1 / 256; one that rounds to none once dropped everything."""
    torch.manual_seed(0)
    kept = Dropout(rate).train()(torch.ones(200_000))
    assert (kept != 0).float().mean().item() == pytest.approx(1 - rate, abs=0.004)
    assert kept.mean().item() == pytest.approx(1.0 if rate < 1 else 0.0, abs=0.03)
