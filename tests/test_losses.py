"""Losses against torch's own, in value and gradient."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ballast.data.sequences import sample_negatives
from ballast.errors import BallastError
from ballast.models import losses

POSITIONS, DIM, ITEMS = 23, 6, 40
# Sets of negatives of so many positions: one for all, one for eight in a row, one for each.
SETS = {"batch": 1, "group": 3, "position": POSITIONS}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(scale=1.0, dtype=torch.float64, positions=POSITIONS, items=ITEMS):
    rng = seeded()
    hidden = torch.randn(positions, DIM, generator=rng, dtype=torch.float64) * scale
    table = torch.randn(items + 1, DIM, generator=rng, dtype=torch.float64)
    targets = torch.randint(1, items + 1, (positions,), generator=rng)
    return hidden.to(dtype).requires_grad_(), targets, table.to(dtype).requires_grad_()


def build(name, **settings):
    return losses.build({"name": name, **settings}, "params.yaml: loss")


def of_position(sharing):
    return [{"batch": 0, "group": row // 8, "position": row}[sharing] for row in range(POSITIONS)]


def reference(hidden, targets, table):
    logits = hidden @ table.T
    hide = torch.zeros(table.shape[0], dtype=logits.dtype)
    hide[0] = -torch.inf
    return functional.cross_entropy(logits + hide, targets)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss * 1.7, inputs)  # a factor, so that the outer gradient counts


# Few positions a block make blocks of items; 300 positions are cut into blocks of 130.
BLOCKS = [(POSITIONS, block) for block in (1, ITEMS + 1, 7 * (ITEMS + 1) + 3, 1 << 23)] + [
    (300, 130 * (ITEMS + 1))
]


@pytest.mark.parametrize(("positions", "block"), BLOCKS)
def test_cross_entropy_equals_torch(positions, block):
    hidden, targets, table = draw(positions=positions)
    ours = build("cross_entropy", block=block)(hidden, targets, table, None, seeded())
    theirs = reference(hidden, targets, table)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-10)
    for mine, yours in zip(gradients(ours, hidden, table), gradients(theirs, hidden, table), strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("positions", "block"), BLOCKS)
def test_weighted_cross_entropy_equals_torch(positions, block):
    hidden, targets, table = draw(positions=positions)
    weights = torch.rand(positions, generator=seeded(5), dtype=torch.float64).requires_grad_()
    ours = build("cross_entropy", block=block)(hidden, targets, table, None, seeded(), weights)
    hide = torch.zeros(ITEMS + 1).index_fill(0, torch.tensor([0]), -torch.inf)
    each = functional.cross_entropy(hidden @ table.T + hide, targets, reduction="none")
    theirs = (each * weights).sum() / weights.sum()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-10)
    both = (gradients(loss, hidden, table, weights) for loss in (ours, theirs))
    for mine, yours in zip(*both, strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", losses.known())
def test_weights_count_positions(name):
    hidden, targets, table = draw()
    exclude = targets[:, None]
    loss = build(name)
    plain = loss(hidden, targets, table, exclude, seeded())
    same = loss(hidden, targets, table, exclude, seeded(), torch.full((POSITIONS,), 0.3, dtype=torch.float64))
    assert same.item() == pytest.approx(plain.item(), rel=1e-9)
    uneven = torch.rand(POSITIONS, generator=seeded(5), dtype=torch.float64)
    each = [
        loss(hidden, targets, table, exclude, seeded(), (torch.arange(POSITIONS) == m).double()).item()
        for m in range(POSITIONS)
    ]
    expected = (uneven @ torch.tensor(each, dtype=torch.float64) / uneven.sum()).item()
    weighted = loss(hidden, targets, table, exclude, seeded(), uneven)
    assert weighted.item() == pytest.approx(expected, rel=1e-9)


def test_cross_entropy_agrees_with_finite_differences():
    hidden, targets, table = draw(positions=4, items=7)
    loss = build("cross_entropy", block=16)
    assert torch.autograd.gradcheck(lambda h, t: loss(h, targets, t, None, seeded()), (hidden, table))


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 200.0), (torch.float64, 2000.0)])
@pytest.mark.parametrize("block", [1, 1 << 23])
def test_cross_entropy_where_probabilities_underflow(dtype, scale, block):
    hidden, targets, table = draw(scale, dtype)
    scores = (hidden @ table[1:].T).detach()
    targets[::2] = scores.argmax(1)[::2] + 1  # rows that underflow beside rows that do not
    likelihood = torch.softmax(scores, 1).gather(1, targets[:, None] - 1)
    assert (likelihood == 0).any()  # or the case would test nothing
    assert (likelihood > 0.1).any()
    ours = build("cross_entropy", block=block)(hidden, targets, table, None, seeded())
    theirs = reference(hidden, targets, table)
    torch.testing.assert_close(ours, theirs)
    for mine, yours in zip(gradients(ours, hidden, table), gradients(theirs, hidden, table), strict=True):
        torch.testing.assert_close(mine, yours)


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        found = operator(*arguments, **(keywords or {}))
        returned = found if isinstance(found, tuple | list) else [found]
        self.elements = max(self.elements, *(one.numel() for one in returned if torch.is_tensor(one)), 0)
        return found


@pytest.mark.parametrize("items", [500, 4000])  # blocks of positions, and of items
def test_cross_entropy_holds_one_block_of_logits(items):
    """Backward included, no tensor is larger than a block or the table, whatever the positions."""
    positions, block = 1000, 130 * 500
    hidden, table = (torch.randn(n, 8, generator=seeded(), requires_grad=True) for n in (positions, items))
    targets = torch.randint(1, items, (positions,), generator=seeded())
    loss = build("cross_entropy", block=block)
    with _Largest() as ours:
        loss(hidden, targets, table, None, seeded()).backward()
    assert ours.elements <= max(block, table.numel())
    with _Largest() as plain:
        functional.cross_entropy(hidden @ table.T, targets).backward()
    assert plain.elements == positions * items


def test_cross_entropy_never_learns_padding():
    hidden, targets, table = draw()
    with torch.no_grad():
        table[0] = 50.0  # whatever stands there must neither compete nor move
    loss = build("cross_entropy")(hidden, targets, table, None, seeded())
    to_hidden, to_table = gradients(loss, hidden, table)
    assert to_table[0].eq(0).all()
    assert to_table[1:].ne(0).any(1).all()
    changed = table.detach().clone()
    changed[0] = -3.0
    again = build("cross_entropy")(hidden, targets, changed.requires_grad_(), None, seeded())
    assert again.item() == pytest.approx(loss.item(), abs=1e-12)
    torch.testing.assert_close(gradients(again, hidden)[0], to_hidden)


def test_cross_entropy_under_autocast():
    hidden, targets, table = draw(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = build("cross_entropy")(hidden, targets, table, None, seeded())
    theirs = reference(hidden, targets, table)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=0.01)
    for mine, yours in zip(gradients(ours, hidden, table), gradients(theirs, hidden, table), strict=True):
        assert mine.dtype == torch.float32
        assert float(functional.cosine_similarity(mine.flatten(), yours.flatten(), dim=0)) > 0.999


@pytest.mark.parametrize(
    ("sharing", "negatives"), [("batch", 200_000), ("group", 40_000), ("position", 20_000)]
)
def test_sampled_softmax_nears_the_full_one(sharing, negatives):
    hidden, targets, table = draw(items=400)
    loss = build("sampled_softmax", negatives=negatives, sharing=sharing)
    ours = loss(hidden, targets, table, None, seeded(1))
    theirs = reference(hidden, targets, table)
    assert ours.item() == pytest.approx(theirs.item(), abs=0.02)
    for mine, yours in zip(gradients(ours, hidden, table), gradients(theirs, hidden, table), strict=True):
        assert float(functional.cosine_similarity(mine.flatten(), yours.flatten(), dim=0)) > 0.995
    assert gradients(loss(hidden, targets, table, None, seeded(1)), table)[0][0].eq(0).all()


def test_sampled_softmax_without_correction():
    hidden, targets, table = draw(items=400)
    plain = build("sampled_softmax", negatives=64, sharing="batch", is_corrected=False)(
        hidden, targets, table, None, seeded(1)
    )
    drawn = torch.randint(1, 401, (1, 64), generator=seeded(1))[0]
    logits = torch.cat([(hidden * table[targets]).sum(1, keepdim=True), hidden @ table[drawn].T], 1)
    keep = torch.cat([torch.ones(POSITIONS, 1, dtype=torch.bool), drawn != targets[:, None]], 1)
    expected = -torch.log((logits[:, 0].exp()) / (logits.exp() * keep).sum(1)).mean()
    assert plain.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("sharing", ["batch", "group", "position"])
def test_sampled_softmax_from_the_batch_is_corrected_by_popularity(sharing):
    hidden, targets, table = draw(items=9)  # few items, so that the batch repeats some of them
    loss = build("sampled_softmax", negatives=16, sampling="batch", sharing=sharing)
    ours = loss(hidden, targets, table, None, seeded(1))
    drawn = targets[torch.randint(POSITIONS, (SETS[sharing], 16), generator=seeded(1))]
    drawn = drawn[of_position(sharing)]
    total = 0.0
    for row, state in enumerate(hidden.detach()):
        positive = torch.exp(state @ table[targets[row]])
        mass = positive.clone()
        for item in drawn[row].tolist():
            share = (targets == item).double().mean()
            mass += 0.0 if item == targets[row] else torch.exp(state @ table[item]) / (16 * share)
        total -= torch.log(positive / mass).item()
    assert ours.item() == pytest.approx(total / POSITIONS, rel=1e-5)


def test_sampled_softmax_masks_the_target():
    """Where every negative is the target there is nothing to lose."""
    hidden, _, table = draw(items=1)
    loss = build("sampled_softmax", negatives=8, is_corrected=False)
    assert loss(hidden, torch.ones(POSITIONS, dtype=torch.int64), table, None, seeded()).item() == 0


@pytest.mark.parametrize("negatives", [1, 5])
def test_bce_by_definition(negatives):
    hidden, targets, table = draw(items=400)
    exclude = torch.stack([targets, targets.roll(1)], 1)
    loss = build("bce", negatives=negatives)
    assert loss.needs_exclude
    ours = loss(hidden, targets, table, exclude, seeded(2))
    drawn = sample_negatives((POSITIONS, negatives), 400, exclude, seeded(2))
    positive = torch.sigmoid((hidden * table[targets]).sum(1)).log()
    negative = (1 - torch.sigmoid((hidden[:, None] * table[drawn]).sum(2))).log().sum(1)
    assert ours.item() == pytest.approx(-(positive + negative).mean().item())


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("sharing", ["batch", "group", "position"])
@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_gbce_by_definition(t, sharing, is_shifted):
    """sigmoid(s)^beta for the positive in plain float64, beta as in eq. 13 of the paper."""
    hidden, targets, table = draw(items=60)
    loss = build("gbce", negatives=12, t=t, sharing=sharing, is_shifted=is_shifted)
    ours = loss(hidden, targets, table, None, seeded(2))
    drawn = torch.randint(1, 61, (SETS[sharing], 12), generator=seeded(2))[of_position(sharing)]
    rate = 12 / 59
    power = rate * (t * (1 - 1 / rate) + 1 / rate)
    shift = math.log(power / 12) if is_shifted else 0.0
    total = 0.0
    for row, state in enumerate(hidden.detach()):
        total -= torch.log(torch.sigmoid(state @ table[targets[row]] + shift) ** power).item()
        for item in drawn[row].tolist():
            if item != targets[row]:
                total -= torch.log(1 - torch.sigmoid(state @ table[item] + shift)).item()
    assert ours.item() == pytest.approx(total / POSITIONS)
    assert power == pytest.approx({0.0: 1.0, 1.0: rate}.get(t, 1 - t * (1 - rate)))


def test_shifted_gbce_pulls_no_common_way_at_the_start():
    """Where all scores are 0, the pulls of the positive and of its negatives cancel."""
    pulls = []
    for is_shifted in (True, False):
        scores = torch.zeros(POSITIONS, 13, requires_grad=True)
        loss = build("gbce", negatives=12, is_shifted=is_shifted)
        is_target = torch.zeros(POSITIONS, 12, dtype=torch.bool)
        loss.terms(scores[:, 0], scores[:, 1:], is_target, None, 60).sum().backward()
        pulls.append(scores.grad.sum(1).abs().max().item())
    assert pulls[0] < 1e-5 < 1 < pulls[1]


def test_gbce_stays_finite():
    hidden, targets, table = draw(scale=1e4, dtype=torch.float32)
    loss = build("gbce", negatives=8)(hidden, targets, table, None, seeded())
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, hidden, table))


def test_gbce_with_more_negatives_than_items_is_bce():
    """All items are sampled, so that there is nothing to calibrate."""
    hidden, targets, table = draw(items=4)
    values = [build("gbce", negatives=9, t=t)(hidden, targets, table, None, seeded()).item() for t in (0, 1)]
    assert values[0] == pytest.approx(values[1])


def test_bce_stays_finite():
    hidden, targets, table = draw(scale=1e4, dtype=torch.float32)
    loss = build("bce")(hidden, targets, table, targets[:, None], seeded())
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, hidden, table))


@pytest.mark.parametrize("name", losses.known())
def test_same_generator_same_loss(name):
    hidden, targets, table = draw(items=400)
    values = [
        build(name)(hidden, targets, table, targets[:, None], seeded(seed)).item() for seed in (3, 3, 4)
    ]
    assert values[0] == values[1]
    assert (values[0] == values[2]) == (name in ("cross_entropy", "in_batch"))  # the others draw negatives


def test_unknown_names_and_settings():
    with pytest.raises(BallastError, match=r"params\.yaml: loss: unknown loss 'bpr'; known: bce, cross"):
        build("bpr")
    with pytest.raises(BallastError, match=r"negative.*did you mean 'negatives'"):
        build("sampled_softmax", negative=3)
