"""Tests that steps with a non-finite loss or gradient are skipped; too many stop the run."""

import functools
import json

import pytest
import torch
from helpers.grpo_module import make_module as make_grpo
from helpers.grpo_module import sample
from helpers.tiny_policy import make_parts, make_rollout
from lightning.pytorch import Trainer

from tvg.training import policy_module as base
from tvg.training import strategy
from tvg.training.ranks import is_true_on_all_ranks
from tvg.training.schedule import warmup_schedule
from tvg.training.sft import SFTModule

NAN, INF = float("nan"), float("inf")


class Poisoned(SFTModule):
    """Has a NaN loss or infinite gradient in `bad_steps`; stores its metrics and weights."""

    def on_fit_start(self):
        super().on_fit_start()
        self.logged, self.weights = [], [self._weight()]

    def backward_micro_batches(self, parts, loss_of):
        totals = super().backward_micro_batches(parts, loss_of)
        bad = self.bad_steps.get(self.global_step + 1)
        if bad == "loss":
            totals["loss"] = torch.tensor(NAN)
        if bad == "gradient":
            next(p for p in self.policy.parameters() if p.grad is not None).grad[0] = INF
        return totals

    def _log_step(self, output):
        self.logged.append({name: float(value) for name, value in output.metrics.items()})
        self.weights.append(self._weight())

    def _weight(self):
        return self.policy.model.lm_head.weight.detach().clone()


@pytest.fixture
def fit(tiny_checkpoint, tiny_world, tmp_path):
    def run(bad_steps, *, num_steps=4, max_skipped_steps=3):
        parts = make_parts(tiny_checkpoint, tiny_world)
        module = Poisoned(
            policy=parts.policy,
            tokenizer=parts.tokenizer,
            task=parts.task,
            rollout=make_rollout(),
            micro_batch_size=2,
            optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
            schedule=functools.partial(warmup_schedule, name="linear", warmup_steps=0),
            max_grad_norm=1.0,
            max_skipped_steps=max_skipped_steps,
            component_lr={},
            seed=0,
        )
        module.bad_steps = bad_steps
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=num_steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        batches = torch.utils.data.DataLoader([parts.batch(2)] * num_steps, batch_size=None)
        return module, trainer, lambda: trainer.fit(module, batches)

    return run


def test_bad_step_is_skipped_and_counted(fit):
    module, trainer, start = fit({2: "gradient", 4: "loss"})
    start()
    assert trainer.global_step == 4
    changed = [
        not torch.equal(a, b) for a, b in zip(module.weights, module.weights[1:], strict=False)
    ]
    assert changed == [True, False, True, False]
    assert [step["skipped_steps"] for step in module.logged] == [0, 1, 1, 2]
    assert [step["learning_rate"] for step in module.logged] == pytest.approx(
        [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]  # the schedule continues
    )
    (moments,) = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert moments == 2


def test_bad_steps_in_a_row_stop_the_run_and_save_the_batch(fit, tmp_path):
    module, _, start = fit({2: "loss", 3: "gradient"}, max_skipped_steps=2)
    with pytest.raises(
        ValueError, match=r"objective.max_skipped_steps: 2 steps in a row"
    ) as caught:
        start()
    path = tmp_path / "skipped_step_00000003_rank_0.json"
    assert str(path) in str(caught.value)
    saved = json.loads(path.read_text())
    assert (saved["step"], saved["grad_norm"]) == (3, "inf")
    rows = [(row["qid"], row["query"]) for row in saved["rows"]]
    assert len(rows) == 2
    assert all(qid and query for qid, query in rows)
    assert torch.equal(module._weight(), module.weights[1])


def test_good_step_resets_the_count_in_a_row(fit):
    module, _, start = fit({1: "loss", 3: "loss"}, max_skipped_steps=2)
    start()
    assert module.skipped_steps.num == 2


def test_checkpoint_contains_the_count_of_skipped_steps(fit):
    module, _, start = fit({1: "loss"}, num_steps=1)
    start()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other, _, _ = fit({})
    other.on_load_checkpoint(checkpoint)
    assert other.skipped_steps.state_dict() == {"num": 1, "num_in_a_row": 1}


def test_saved_batch_of_grpo_contains_completions_and_rewards(
    tiny_checkpoint, tiny_world, monkeypatch
):
    parts = make_parts(tiny_checkpoint, tiny_world)
    module, found = make_grpo(parts), []

    def step(loss, *, describe):
        found.extend(describe())
        return {"learning_rate": torch.tensor(0.0)}

    monkeypatch.setattr(module, "step_optimizer", step)
    rollout = sample(parts, num=2)
    module._learn_from(rollout, torch.arange(8.0))
    assert [row["reward"] for row in found] == list(range(8))
    assert [row["completion"] for row in found] == rollout.texts
    qids = [example.qid for example in rollout.prompts.examples]
    assert [row["qid"] for row in found] == [qids[0]] * 4 + [qids[1]] * 4


def test_failure_on_one_rank_counts_for_all(fit, monkeypatch):
    _, trainer, _ = fit({})
    monkeypatch.setattr(type(trainer), "world_size", 2)
    asked = []

    def decide(is_true, *, all):
        asked.append((is_true, all))
        return False  # the other rank failed

    monkeypatch.setattr(trainer.strategy, "reduce_boolean_decision", decide)
    assert is_true_on_all_ranks(trainer, True) is False
    assert asked == [(True, True)]


def test_step_is_skipped_if_another_rank_fails(fit, monkeypatch):
    module, _, start = fit({}, num_steps=2)
    asked = []

    def on_all_ranks(trainer, is_true):
        asked.append(is_true)
        return len(asked) == 1  # another rank fails in the second step

    monkeypatch.setattr(strategy, "is_true_on_all_ranks", on_all_ranks)
    start()
    assert asked == [True, True]
    changed = [
        not torch.equal(a, b) for a, b in zip(module.weights, module.weights[1:], strict=False)
    ]
    assert changed == [True, False]
    assert [step["skipped_steps"] for step in module.logged] == [0, 1]


def test_max_skipped_steps_below_1_is_refused(fit):
    with pytest.raises(
        ValueError, match=r"objective.max_skipped_steps: expected at least 1, got 0"
    ):
        fit({}, max_skipped_steps=0)


@pytest.mark.parametrize(("prefill", "warns"), [("a", False), ("b", True), (None, False)])
def test_prefill_that_merges_with_answers_gives_a_warning(fit, monkeypatch, caplog, prefill, warns):
    module, _, _ = fit({})
    monkeypatch.setattr(base, "merges_with_prefill", lambda _, text, __: text == "b")
    module.task.prefill = prefill
    SFTModule.on_fit_start(module)
    assert ("the end of 'b' and the start of an answer" in caplog.text) is warns
