"""CDDRec against its definition in plain loops, and each defect of the released code behind its switch."""

from typing import Any

import pytest
import torch
from conftest import ITEMS, make_store, walk
from test_diffusion import plain, seeded
from torch import Tensor
from torch.nn import functional

from ballast.data.sequences import Batch, training_batches
from ballast.errors import BallastError
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.models.views import View
from ballast.reproducibility import seed_dropout
from ballast.robustness.objective import Objective, Sample
from ballast.robustness.surface import surface

SMALL = {"dim": 8, "max_len": 10, "heads": 2, "steps": 4, "dropout": 0.0}
ENCODER = {"name": "sasrec", "layers": 1, "heads": 2}
# Every defect of the release at once.
RELEASED: dict[str, Any] = {
    "legacy_batch_attention": True,
    "augmentations": ["reorder"],
    "aug_mask": "item_id",
    "aug_targets": "as_placed",
    "cross_views": "original",
    "contrast_positions": "all",
    "mask_as_negative": True,
    "inference_noise": True,
    "similarity": "cosine",
    "zero_seen": True,
}
FULL = {"conditioning": "full", "beta_last": 0.5, "step_weights": "equal"}
MASKED = ITEMS + 1


def built(info: DatasetInfo, **settings: Any) -> Any:
    """The method in float64 and training mode, its small start weights enlarged so that mistakes show."""
    seed_dropout(0, "initial weights")
    config = registry.configure("cddrec", {"backbone": ENCODER, **SMALL, **settings}, "model")
    model = registry.build("cddrec", config, info).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(len(name))) * 0.3)
        model.items.weight[0] = 0
    return model.train()


def batch(users: int = 6) -> Batch:
    return next(iter(training_batches(make_store(walk(users)), users, 10, seeded())))


def histories(*rows: list[int], length: int = 10) -> Batch:
    padded = [[0] * (length - len(row)) + row for row in rows]
    return Batch(torch.arange(len(rows)), torch.tensor(padded))


# The loss


def naive(model: Any, given: Batch, seed: int) -> Tensor:
    """The loss, one step, one view and one position after another, with the method's own draws."""
    config, rng = model.config, seeded(seed)
    views = model.views(given, rng)
    negatives = model._negatives(given, views[0].place // given.history.shape[1], rng)
    noise = model._noise([len(view.place) for view in views], len(negatives), rng)
    table = torch.cat([model.items.weight, model.mask])
    goals = given.targets.flatten()[views[0].place]  # type: ignore[union-attr]
    of_origin = {int(cell): number for number, cell in enumerate(views[0].origin)}
    total = torch.zeros((), dtype=torch.float64)
    for t in range(config.steps):
        estimates = []
        for view, drawn in zip(views, noise.estimates, strict=True):
            known = [of_origin[int(cell)] for cell in view.origin]
            estimates.append(at_step(model, view, table, t, drawn[t], table[goals[known]]))
        target, other = table[goals], table[negatives]
        if config.conditioning == "step":
            signal, spread = model.schedule.signal[t], model.schedule.noise[t]
            target = signal * target + spread * noise.target[t]
            if config.negatives == "noised":
                other = signal * other + spread * noise.negative[t]
        bce = [[], []]  # of the history, of augmented views: (loss, weight)
        for number, view in enumerate(views):
            for place in range(len(view.place)):
                known, state = of_origin[int(view.origin[place])], estimates[number][place]
                loss = functional.softplus(-state @ target[known]) + functional.softplus(state @ other[known])
                bce[min(number, 1)].append((loss, float(view.weights[place])))
        means = [sum(v * w for v, w in part) / sum(w for _, w in part) for part in bce]
        real = [place for place in range(len(goals)) if goals[place] != 0]
        inside = plain(estimates[0][None, real], target[None, real], config.temperature)[0]
        pairs = [
            (one, two)
            for one, cell in enumerate(views[-2].origin.tolist())
            for two, same in enumerate(views[-1].origin.tolist())
            if cell == same
        ]
        first, second = (estimates[-2][[p[0] for p in pairs]], estimates[-1][[p[1] for p in pairs]])
        across = plain(first[None], second[None], config.temperature)[0]
        weight = 1 / (t + 1) if config.step_weights == "inverse" else 1.0
        total = total + weight * (
            sum(means) + config.in_view_weight * inside + config.cross_view_weight * across
        )
    return total


def at_step(model: Any, view: View, table: Tensor, t: int, drawn: Tensor, goal: Tensor) -> Tensor:
    """(P, D) estimates of one step, with the decoder's parts called for that step alone."""
    condition = model.encoder(view.history, table)
    visible, step = model._visible(view.history), torch.tensor([t])
    if model.is_full:
        clean = functional.normalize(goal.detach(), dim=1) * goal.shape[1] ** 0.5
        noised = model.schedule.signal[t] * clean + model.schedule.noise[t] * drawn
        grid = torch.zeros(view.history.numel(), goal.shape[1], dtype=goal.dtype)
        grid[view.place] = noised
        asked = model.decoder.query(condition, visible, grid.view(1, *condition.shape), step)
        return model.decoder(asked.flatten(1, 2)[:, view.place], step)[0]
    context = model.decoder.context(condition, visible).flatten(0, 1)[view.place]
    return model.decoder(context[None], step)[0] + model.schedule.posterior_std[t] * drawn


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"negatives": "noised", "step_weights": "equal"},
        {"cross_views": "original", "augmentations": ["crop"]},
        FULL,
        RELEASED,
    ],
)
def test_all_steps_at_once_are_the_loop_over_steps(settings: dict[str, Any], toy_info: DatasetInfo) -> None:
    model, given = built(toy_info, **settings), batch()
    parts = model.training_step(given, seeded(1))
    expected = naive(model, given, 1)
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-10)
    ours = torch.autograd.grad(parts["loss"], list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for (name, _), mine, yours in zip(model.named_parameters(), ours, theirs, strict=True):
        if name == "items.weight":
            mine[0], yours[0] = 0, 0  # padding gets no gradient; the loop does not mind it
        torch.testing.assert_close(mine, yours, atol=1e-9, rtol=1e-7, msg=name)


@pytest.mark.parametrize("settings", [{}, FULL, RELEASED, {"divergence": "kl", "negatives": "noised"}])
def test_gradients_reach_every_parameter(settings: dict[str, Any], toy_info: DatasetInfo) -> None:
    model = built(toy_info, **settings)
    model.training_step(batch(), seeded(1))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_the_contrast_may_be_estimated(toy_info: DatasetInfo) -> None:
    exact = built(toy_info).training_step(batch(), seeded(1))
    estimated = built(toy_info, contrast="random_features", features=4096).training_step(batch(), seeded(1))
    for part in ("in_view", "cross_view"):
        assert estimated[part] != exact[part]
        assert estimated[part].item() == pytest.approx(exact[part].item(), rel=0.05)


def test_kl_prefers_the_target_by_its_distance(toy_info: DatasetInfo) -> None:
    model = built(toy_info, divergence="kl")
    state, near, far = torch.zeros(1, 1, 8), torch.full((1, 1, 8), 0.1), torch.full((1, 1, 8), 3.0)
    right, wrong = model._divergence(state, near, far, None), model._divergence(state, far, near, None)
    assert right.item() == pytest.approx(functional.softplus(torch.tensor(0.04)).item(), rel=1e-5)
    assert wrong.item() > 36


# Views


def test_a_view_keeps_each_position_with_its_own_target(toy_info: DatasetInfo) -> None:
    """Whatever the operator, the target follows the item in the history, and the view has not shown it."""
    model = built(toy_info)
    rows = [list(range(start, start + 9)) for start in (1, 11, 21, 31)]
    history = torch.tensor([[0, *row[:8]] for row in rows])
    for seed in range(20):
        view = model._augmented(history, history != 0, seeded(seed))
        user, column = view.place // 9, view.place % 9
        origin = view.origin % 9
        assert torch.equal(view.origin // 9, user)
        assert (view.history[user, column] != 0).all()
        assert (view.weights == 1).all()
        target = history[user, origin] + 1  # rows count upwards
        for place in range(len(user)):
            assert target[place] not in view.history[user[place], : column[place] + 1]


@pytest.mark.parametrize("operator", ["crop", "mask", "reorder"])
def test_each_operator_by_itself(operator: str, toy_info: DatasetInfo) -> None:
    model = built(toy_info, augmentations=[operator])
    history = torch.arange(1, 11)[None].repeat(3, 1)
    for seed in range(10):
        view = model._augmented(history, history != 0, seeded(seed))
        real = view.history[view.history != 0].view(3, -1)
        shown = view.history.flatten()[view.place]
        if operator == "crop":  # a run of 6, each item before its own successor
            assert torch.equal(real, real[:, :1] + torch.arange(6))
            assert torch.equal(shown, history.flatten()[view.origin])
            assert len(view.place) == 18
        if operator == "mask":  # 3 hidden, nothing moved
            assert ((real == MASKED).sum(1) == 3).all()
            assert torch.equal(view.origin, torch.arange(30))
        if operator == "reorder":  # the same items; places stay, but for those whose target is shown
            assert torch.equal(real.sort(1).values, history)
            assert torch.equal(view.origin, view.place)
            assert 3 * 4 <= len(view.place) < 30


def test_two_views_are_drawn_for_the_cross_view_contrast(toy_info: DatasetInfo) -> None:
    views = built(toy_info).views(batch(), seeded())
    assert len(views) == 3
    assert not torch.equal(views[1].history, views[2].history)
    assert len(built(toy_info, cross_views="original").views(batch(), seeded())) == 2
    bare = built(toy_info, augmentations=[])
    assert len(bare.views(batch(), seeded())) == 1
    assert set(bare.training_step(batch(), seeded())) == {"loss", "next_item", "in_view"}


# The defects of the release, each present behind its switch and absent without


def scores(model: Any, given: Batch) -> Tensor:
    with torch.inference_mode():
        return model.eval().score(given)


def means(model: Any, given: Batch) -> Tensor:
    """(B, L, D) mu of the first step at every position."""
    with torch.inference_mode():
        model.eval()
        condition = model.encoder(given.history, model.item_table())
        context = model.decoder.context(condition, model._visible(given.history))
        return model.decoder(context.flatten(0, 1)[None], torch.tensor([0]))[0].view_as(condition)


ROWS = [[3, 4, 5, 6], [10, 2, 30, 7, 9, 12], [8, 1]]


@pytest.mark.parametrize(
    ("settings", "is_independent"),
    [
        ({}, True),
        ({"decoder_mask": "none"}, False),
        ({"legacy_batch_attention": True}, False),
        (RELEASED, False),
    ],
)
def test_a_row_alone(settings: dict[str, Any], is_independent: bool, toy_info: DatasetInfo) -> None:
    """Without a mask it is the padding that comes with company, across users the company itself."""
    model = built(toy_info, **settings)
    together = scores(model, histories(*ROWS))
    for number, row in enumerate(ROWS):
        alone = scores(model, histories(row, length=len(row)))[0]
        assert torch.allclose(alone, together[number], atol=1e-5) == is_independent


def test_only_attention_across_users_needs_company_of_equal_length(toy_info: DatasetInfo) -> None:
    rows = [row[:4] for row in ([3, 4, 5, 6], [10, 2, 30, 7], [8, 1, 22, 9])]
    for settings, is_independent in [
        ({"decoder_mask": "none"}, True),
        ({"legacy_batch_attention": True}, False),
    ]:
        model = built(toy_info, **settings)
        together = scores(model, histories(*rows, length=4))
        alone = torch.cat([scores(model, histories(row, length=4)) for row in rows])
        assert torch.allclose(alone, together, atol=1e-5) == is_independent


@pytest.mark.parametrize(
    ("settings", "leaks"), [({}, False), ({"decoder_mask": "none"}, True), (RELEASED, False)]
)
def test_a_later_item(settings: dict[str, Any], leaks: bool, toy_info: DatasetInfo) -> None:
    """Batch attention has no leak of its own; mended without a mask, it does."""
    model = built(toy_info, **settings)
    before, after = means(model, histories([3, 4, 5, 6])), means(model, histories([3, 4, 5, 20]))
    assert torch.equal(before[:, -4:-1], after[:, -4:-1]) != leaks
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize(("mask", "leaks"), [("causal", False), ("none", True)])
def test_a_later_item_in_training_on_noised_items(mask: str, leaks: bool, toy_info: DatasetInfo) -> None:
    """With full conditioning a position is shown its own noised target, and of the rest the past alone."""
    model = built(toy_info, **FULL, decoder_mask=mask).eval()
    table = torch.cat([model.items.weight, model.mask])
    noise = torch.randn(4, 4, 8, generator=seeded(), dtype=torch.float64)
    found = []
    for last in (6, 20):
        history = histories([3, 4, 5, last]).history
        place = history.flatten().nonzero()[:, 0]
        view = View(history, place, place, torch.ones(4))
        with torch.no_grad():
            found.append(model._estimates(view, table, table[[4, 5, last, 9]], noise))  # (T, 4, D)
    is_same = [torch.equal(found[0][:, place], found[1][:, place]) for place in range(4)]
    assert is_same == ([False] * 4 if leaks else [True, True, False, False])


@pytest.mark.parametrize("settings", [FULL, {"inference_noise": True}])
def test_an_attack_sees_through_what_is_drawn(settings: dict[str, Any], toy_info: DatasetInfo) -> None:
    """The gradient of the mean gain over draws is that mean's slope: the chain hides nothing from it."""
    model = built(toy_info, **settings).eval()
    store = make_store(walk(12))
    sample = Sample.of(store, torch.arange(1, 13), model, ITEMS)
    target = surface(model, "items")
    objective = Objective(model, sample, target, draws=4)
    zero = torch.zeros_like(target.values)
    gradient = objective.at(zero).gradient
    assert gradient is not None
    assert objective.draws == 4
    towards = gradient / gradient.norm()
    step = 1e-3 * target.unit
    up, down = (objective.at(sign * step * towards, with_gradient=False).gain for sign in (1, -1))
    assert (up - down) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02)
    # Of one draw alone it is another: what is attacked is the mean.
    once = Objective(model, sample, target, draws=1).at(zero).gradient
    assert once is not None
    assert not torch.allclose(once, gradient, rtol=0.01)


def test_noise_at_inference(toy_info: DatasetInfo) -> None:
    quiet, noisy = built(toy_info), built(toy_info, inference_noise=True)
    given = histories(*ROWS)
    assert not torch.equal(scores(noisy, given), scores(quiet, given))
    assert torch.equal(scores(noisy, given), scores(noisy, given))
    one, two = (noisy.score(given, seeded(seed)) for seed in (1, 2))
    assert not torch.equal(one, two)
    assert torch.equal(quiet.score(given, seeded(1)), quiet.score(given, seeded(2)))


def test_released_weights_are_item_ids(toy_info: DatasetInfo) -> None:
    view = built(toy_info, **RELEASED)._augmented(batch().history, batch().targets != 0, seeded())
    is_real = view.history.flatten() != 0
    assert torch.equal(view.weights[is_real].long(), view.history.flatten()[is_real])
    assert not view.weights[~is_real].any()


def test_released_cropped_targets_are_of_other_items(toy_info: DatasetInfo) -> None:
    model = built(toy_info, augmentations=["crop"], aug_targets="as_placed")
    history = torch.arange(1, 11)[None]
    wrong = [model._augmented(history, history != 0, seeded(seed)) for seed in range(10)]
    assert all(torch.equal(view.origin, view.place) for view in wrong)
    assert any(not torch.equal(view.history.flatten()[view.place], view.origin + 1) for view in wrong)


def test_released_reordered_views_show_their_targets(toy_info: DatasetInfo) -> None:
    model = built(toy_info, **RELEASED)
    history = torch.arange(1, 11)[None]
    shown = 0
    for seed in range(10):
        view = model._augmented(history, history != 0, seeded(seed))
        assert (view.history.sort(1).values == history).all()  # reordered, always
        shown += sum(int(cell) + 2 in view.history[0, : int(cell) + 1].tolist() for cell in view.place)
    assert shown > 10


def test_released_negatives_may_be_the_mask(toy_info: DatasetInfo) -> None:
    for settings, highest in [({}, ITEMS), ({"mask_as_negative": True}, MASKED)]:
        rows = torch.arange(3000) % 6
        drawn = built(toy_info, **settings)._negatives(batch(), rows, seeded())
        assert drawn.max() == highest
        assert drawn.min() >= 1


def test_released_contrast_has_padding(toy_info: DatasetInfo) -> None:
    given = batch()
    assert (given.history == 0).any()
    for settings, count in [({}, (given.targets != 0).sum()), (RELEASED, given.history.numel())]:  # type: ignore[operator]
        views = built(toy_info, **settings).views(given, seeded())
        assert len(views[0].place) == count
        assert views[0].weights.sum() == (given.targets != 0).sum()  # type: ignore[union-attr]


def test_released_scores_are_cosines_and_seen_items_beat_some_unseen(toy_info: DatasetInfo) -> None:
    given = histories([3, 4, 5, 6])
    ours, theirs = scores(built(toy_info), given), scores(built(toy_info, **RELEASED), given)
    assert ours.abs().max() > 1
    assert theirs.abs().max() <= 1
    assert theirs[0, [3, 4, 5, 6]].tolist() == [0, 0, 0, 0]
    assert (theirs[0, 1:] < 0).any()


# The variants


def test_only_full_conditioning_reads_the_noised_item(toy_info: DatasetInfo) -> None:
    """T steps of the released decoder are T shifts of one state: no noise reaches it."""
    given, step, full = batch(), built(toy_info), built(toy_info, **FULL)
    for model, is_read in [(step, False), (full, True)]:
        view = model.views(given, seeded())[0]
        table, count = torch.cat([model.items.weight, model.mask]), len(view.place)
        goal = model.items.weight[torch.ones(count, dtype=torch.int64)]
        noises = [torch.randn(4, count, 8, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2)]
        spread = 0 if is_read else model.schedule.posterior_std.view(-1, 1, 1)
        one, two = (model._estimates(view, table, goal, noise) - spread * noise for noise in noises)
        assert torch.allclose(one, two) != is_read
        assert not torch.allclose(one[0], one[1])


def test_the_reverse_chain_is_repeatable_and_its_draws_differ(toy_info: DatasetInfo) -> None:
    model = built(toy_info, **FULL, draws=3).eval()
    given = histories(*ROWS)
    with torch.inference_mode():
        passes = model.states(given)
        assert passes.shape == (3, 3, 8)
        assert not torch.allclose(passes[0], passes[1])
        assert torch.equal(passes, model.states(given))
        assert torch.equal(model.states(given, seeded(4)), model.states(given, seeded(4)))
        assert not torch.equal(model.states(given, seeded(4)), passes)
        torch.testing.assert_close(model.score(given), (passes.mean(0) @ model.item_table().T).float())
        alone = torch.cat([model.states(histories(row, length=len(row))) for row in ROWS], dim=1)
    torch.testing.assert_close(alone, passes, atol=1e-6, rtol=1e-6)


def test_more_draws_spread_less(toy_info: DatasetInfo) -> None:
    """Rows of one history draw independently from a generator, and so tell what the draws are worth."""
    given, spread = histories(*[ROWS[0]] * 400), []
    for draws in (1, 16):
        model = built(toy_info, **FULL, draws=draws).eval()
        with torch.inference_mode():
            spread.append(model.score(given, seeded()).std(0).mean().item())
            assert len(model.score(given).unique(dim=0)) == 1
    assert spread[1] == pytest.approx(spread[0] / 4, rel=0.2)


def test_the_chain_runs_as_many_steps_as_it_is_told(toy_info: DatasetInfo) -> None:
    for count in (1, 3, None):
        model = built(toy_info, **FULL, reverse_steps=count).eval()
        asked: list[int] = []
        model.decoder.register_forward_hook(
            lambda module, given, found, asked=asked: asked.append(int(given[1][0]))
        )
        scores(model, histories(*ROWS))
        assert len(asked) == (count or 4)
        assert asked[0] == 3
        assert asked == sorted(asked, reverse=True)


def test_the_control_has_no_noise_left(toy_info: DatasetInfo) -> None:
    model = built(toy_info, steps=1, noise=False, augmentations=[])
    parts, again = (model.training_step(batch(), seeded(seed)) for seed in (1, 1))
    assert torch.equal(parts["loss"], again["loss"])
    with torch.no_grad():
        view = model.views(batch(), seeded())[0]
        table, count = torch.cat([model.items.weight, model.mask]), len(view.place)
        goal = table[batch().targets.flatten()[view.place]]  # type: ignore[union-attr]
        noise = model._noise([count], count, seeded())
        target, _ = model._compared(goal, goal, noise)
        estimate = model._estimates(view, table, goal, noise.estimates[0])
    assert torch.equal(target[0], goal)
    assert torch.equal(estimate, model._estimates(view, table, goal, torch.zeros(1, count, 8)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "not a multiple of 3"),
        ({**FULL, "noise": False}, "would be shown the target"),
        ({**FULL, "legacy_batch_attention": True}, "belongs to conditioning: step"),
        ({"reverse_steps": 5}, r"reverse_steps: between 1 and steps \(4\)"),
        ({"draws": 0}, "draws: at least 1"),
        ({"draws": 2}, "draws: more than 1 needs"),
        ({**FULL, "negatives": "noised"}, "negatives, .*: belong to conditioning: step"),
        ({**FULL, "inference_noise": True}, "inference_noise: belong to conditioning: step"),
        ({"contrast_positions": "all"}, "contrast_positions: all needs aug_targets: as_placed"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, toy_info: DatasetInfo) -> None:
    with pytest.raises(BallastError, match=message):
        built(toy_info, **settings)
