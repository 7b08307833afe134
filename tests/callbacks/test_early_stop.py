"""Tests that training stops if the reward no longer rises, at the same step after a resume."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from tvg.callbacks.early_stop import RewardPlateau


def plateau(**changes):
    settings = {"window": 2, "patience": 4, "min_delta": 0.1, "warmup_steps": 0}
    return RewardPlateau(metric="train/reward/total", **{**settings, **changes})


def rewarding(tiny_grpo, rewards, **settings):
    class Rewarded(tiny_grpo):
        def training_step(self, batch, batch_idx):
            step = self.global_step
            super().training_step(batch, batch_idx)
            self.log("train/reward/total", torch.tensor(float(rewards[step])))

    return Rewarded(extras={}, **settings)


# Means over windows of two steps: 0.1, 0.5, 0.55, 0.5 ... The second window, which ends at step 4,
# is the best, because the third is better by less than 0.1. With a patience of four steps,
# training stops at step 8.
REWARDS = [0.0, 0.2, 0.6, 0.4, 0.5, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "last_step"),
    [
        ({}, 8),
        ({"patience": 2}, 6),
        ({"min_delta": 0.04}, 10),  # the third window is the best; it ends at step 6
        ({"warmup_steps": 10}, 10),
        ({"patience": 8}, 12),
        ({"patience": 9}, 12),  # the end of the run
        ({"window": 3}, 9),  # means 0.267, 0.5, 0.5: the best ends at step 6; patience 3
    ],
)
def test_training_stops_when_patience_is_over(fit, tiny_grpo, changes, last_step):
    if changes == {"window": 3}:
        changes = {"window": 3, "patience": 3}
    module = rewarding(tiny_grpo, REWARDS)
    trainer = fit(module, callbacks=[plateau(**changes)], max_epochs=2, max_steps=12)
    assert trainer.global_step == last_step


def test_a_run_with_a_rising_reward_is_not_stopped(fit, tiny_grpo):
    module = rewarding(tiny_grpo, [0.1 * step for step in range(12)])
    assert fit(module, callbacks=[plateau()], max_epochs=2).global_step == 12


@pytest.mark.parametrize("killed_at", [3, 5, 7])
def test_a_resumed_run_stops_at_the_same_step(fit, tiny_grpo, tmp_path, killed_at):
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    first = rewarding(tiny_grpo, REWARDS)
    fit(
        first,
        callbacks=[plateau(), saving],
        max_epochs=2,
        max_steps=killed_at,
        enable_checkpointing=True,
    )
    module = rewarding(tiny_grpo, REWARDS)
    path = str(tmp_path / f"step={killed_at}.ckpt")
    stopper = plateau()
    trainer = fit(module, callbacks=[stopper], max_epochs=2, max_steps=12, resume=path)
    assert trainer.global_step == 8
    assert (stopper.best, stopper.best_step) == (pytest.approx(0.5), 4)


def test_several_updates_of_a_batch_count_as_steps(fit, tiny_grpo):
    module = rewarding(tiny_grpo, [0.5] * 12, updates_per_batch=2)
    stopper = plateau()
    # Windows end at steps 2, 4 and 6. The first is the best; four steps later training stops.
    assert fit(module, callbacks=[stopper], max_epochs=1).global_step == 6
    assert (stopper.best, stopper.best_step) == (0.5, 2)


def test_one_rank_can_stop_all_ranks(fit, tiny_grpo, monkeypatch):
    """The strategy joins the ranks' decisions, at the same steps on every rank."""
    asked = []
    stopper = plateau(window=3, patience=3)

    def decide(decision, all):
        asked.append((decision, all))
        return True

    module = rewarding(tiny_grpo, [0.1 * step for step in range(12)])
    monkeypatch.setattr(
        SingleDeviceStrategy, "reduce_boolean_decision", lambda _, d, all=True: decide(d, all)
    )
    assert fit(module, callbacks=[stopper], max_epochs=2).global_step == 3
    assert asked == [(False, False)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, r"callbacks\.early_stop\.window: expected at least 1, got 0"),
        ({"patience": 1}, r"callbacks\.early_stop\.patience: expected at least 2, got 1"),
        ({"min_delta": -0.1}, r"callbacks\.early_stop\.min_delta: expected at least 0, got -0.1"),
        ({"warmup_steps": -1}, r"callbacks\.early_stop\.warmup_steps: expected at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plateau(**changes)


def test_a_metric_that_is_not_logged_is_refused(fit, tiny_grpo):
    stopper = RewardPlateau(
        metric="train/reward/of", window=1, patience=1, min_delta=0.0, warmup_steps=0
    )
    with pytest.raises(ValueError, match=r"reward/of is not logged; logged metrics: .*loss"):
        fit(tiny_grpo(extras={}), callbacks=[stopper])
