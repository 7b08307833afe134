"""Tests that `reward_health` reports why rewards give no training signal."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import pytest
import yaml
from helpers.tiny_policy import with_rows
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tvg.callbacks.reward_health import KL, RewardHealth
from tvg.config import CONF_DIR
from tvg.report.reward_causes import Limits, Tally, find_causes, tally
from tvg.tracking.mlflow_logger import make_mlflow_logger

LIMITS = Limits(
    max_unparsed=0.5,
    max_truncated=0.5,
    max_flat_groups=0.9,
    max_kl=1.0,
    max_new_tokens=20,
    max_exact_drop=0.1,
)


def row(
    group: int = 0,
    *,
    parsed: bool = True,
    finished: bool = True,
    exact: bool = True,
    **parts: float,
):
    return {
        "qid": "v:0",
        "group": group,
        "segment": [1.0, 2.0] if parsed else None,
        "parsed": parsed,
        "exact": exact,
        "finished": finished,
        "reward": sum(parts.values()),
        **{f"reward_{name}": value for name, value in parts.items()},
    }


def causes(rows, *, paid=None, kl=None, limits=LIMITS, best_exact=0.0) -> dict[str, str]:
    found = tally(rows)
    paid = [name for name in found.ranges if name] if paid is None else paid
    reported = find_causes(
        found, limits, paid=paid, penalties=["overlong"], kl=kl, best_exact=best_exact
    )
    return {cause.name: cause.message for cause in reported}


def group(*values: float, number: int = 0, **changes: Any):
    return [row(number, **changes, iou=value) for value in values]


# -- counts ---------------------------------------------------------------------------------------


def test_tallies_count_rollouts_and_can_be_added():
    first = tally(
        [
            row(0, format=1.0, iou=0.5),
            row(0, format=0.5, iou=1.0, finished=False),  # the same total
            row(1, format=1.0, iou=0.0, parsed=False),
            row(1, format=1.0, iou=0.2),
        ]
    )
    assert first == Tally(
        num=4,
        num_parsed=3,
        num_finished=3,
        num_exact=4,
        num_groups=2,
        num_flat_groups=1,
        ranges={"": (1.0, 1.5), "format": (0.5, 1.0), "iou": (0.0, 1.0)},
    )
    both = first + tally(group(-1.0, 0.3)) + Tally()
    assert (both.num, both.num_groups, both.num_flat_groups) == (6, 3, 1)
    assert both.ranges == {"": (-1.0, 1.5), "format": (0.5, 1.0), "iou": (-1.0, 1.0)}
    assert (both.unparsed, both.truncated) == pytest.approx((1 / 6, 1 / 6))
    assert both.flat_groups == pytest.approx(1 / 3)
    assert both.constant("iou") is None


def test_a_falling_share_of_exact_answers_is_reported():
    rows = group(0.1, 0.5) + group(0.3, 0.4, exact=False, number=1)
    assert causes(rows, best_exact=0.59) == {}  # 50 % of all answers are exact
    (message,) = causes(rows, best_exact=0.61).values()
    assert message.startswith("50 % of the last 4 answers have exactly the requested format, ")
    assert "against 61 % in the best earlier window" in message
    assert "reward=[format_exact,...]" in message
    assert "prompt.strict_answer=true" in message
    unparsed = group(0.1, 0.5, parsed=False, exact=False)
    assert list(causes(unparsed, best_exact=1.0)) == ["unparsed"]


# -- causes ---------------------------------------------------------------------------------------


def test_a_healthy_run_has_no_message():
    rows = group(0.1, 0.5) + group(0.3, 0.3, number=1) + group(0.1, 0.4, number=2)
    assert causes(rows) == {}
    assert causes(rows, kl=1.0) == {}


@pytest.mark.parametrize(
    ("changes", "facts", "advice"),
    [
        (
            {"parsed": False, "finished": False},
            "100 % cannot be parsed and 100 % are truncated",
            "raise it",
        ),
        ({"parsed": False}, "100 % cannot be parsed and 0 % are truncated", "answer format"),
        ({}, "0 % cannot be parsed and 0 % are truncated", "grows with closeness"),
    ],
)
def test_the_message_when_all_rewards_are_zero(changes, facts, advice):
    (name, message), *rest = causes(group(0.0, 0.0, **changes)).items()
    assert (name, rest) == ("all_zero", [])
    assert message.startswith(
        f"the total reward was 0 in all of the last 2 completions, of which {facts}"
    )
    assert "rollout.max_new_tokens=20" in message
    assert advice in message


def test_the_message_when_one_reward_is_zero():
    rows = [
        row(format=float(n % 2), iou=0.0, parsed=n < 2, finished=n < 4, extra=0.1 * n)
        for n in range(20)
    ]
    found = causes(rows)
    assert list(found) == ["flat.iou"]
    assert found["flat.iou"] == (
        "iou: 0 in all of the last 20 completions, of which 90 % cannot be parsed and 80 % are "
        "truncated at rollout.max_new_tokens=20: raise it, or ask for shorter answers "
        "(another prompt=)"
    )
    # A reward is not reported if it has no weight, or a value above 0.
    assert "flat.iou" not in causes(rows, paid=["format", "extra"])
    assert "flat.iou" not in causes([*rows, row(format=1.0, iou=0.1, extra=0.0)])


def test_a_constant_negative_reward_is_reported():
    found = causes([row(giou=-1.0, parsed=False, length=0.1 * n) for n in range(4)])
    assert found["flat.giou"].startswith(
        "giou: -1 in all of the last 4 completions, of which 100 %"
    )


def test_a_constant_positive_reward_is_reported_as_minor():
    rows = [row(format=1.0, iou=0.1 * n) for n in range(4)]
    (cause,) = find_causes(
        tally(rows), LIMITS, paid=["format", "iou"], penalties=[], kl=None, best_exact=0.0
    )
    assert (cause.name, cause.is_grave) == ("constant.format", False)
    assert cause.message.startswith("format: 1 in all of the last 4 completions")
    # A constant reward does not hide other causes.
    rows = [row(format=1.0, iou=0.1 * n, parsed=n == 0) for n in range(4)]
    assert list(causes(rows)) == ["constant.format", "unparsed"]


def test_a_penalty_of_zero_is_not_reported():
    assert causes([row(overlong=0.0, iou=0.1 * n) for n in range(4)]) == {}


def test_shares_above_their_limits_are_reported():
    # The limit is 50 %: exactly half is accepted, more is reported.
    assert causes(group(0.1, 0.2) + group(0.1, 0.0, number=1, parsed=False)) == {}
    rows = group(0.1, 0.2) + group(0.3, 0.0, 0.2, number=1, parsed=False)
    assert list(causes(rows)) == ["unparsed"]
    assert causes(rows)["unparsed"].startswith(
        "of the last 5 completions, 60 % cannot be parsed and 0 % are truncated"
    )
    rows = group(0.1, 0.2) + group(0.3, 0.0, 0.2, number=1, parsed=False, finished=False)
    assert list(causes(rows)) == ["truncated"]  # truncation explains why answers are unparsed
    flat = [r for n in range(10) for r in group(0.1 * n, 0.1 * n, number=n)]
    assert list(causes(flat)) == ["flat_groups"]
    assert "100 % of the last 10 groups" in causes(flat)["flat_groups"]
    assert "objective.resample_flat_groups" in causes(flat)["flat_groups"]
    assert causes(flat + group(0.1, 0.2, number=11) + group(0.3, 0.2, number=12)) == {}


def test_a_kl_above_its_limit_is_reported():
    rows = group(0.1, 0.2)
    assert list(causes(rows, kl=1.1)) == ["kl"]
    assert "objective.loss.kl_coef" in causes(rows, kl=1.1)["kl"]
    anything = Limits(**{**vars(LIMITS), "max_kl": None})
    assert causes(rows, kl=1e9, limits=anything) == {}
    assert list(causes(group(0.0, 0.0), kl=1.1)) == ["kl", "all_zero"]


# -- reports during a run -------------------------------------------------------------------------


def make_health(tmp_path, **changes) -> RewardHealth:
    shipped = yaml.safe_load((CONF_DIR / "callbacks" / "reward_health.yaml").read_text())
    settings = {k: v for k, v in shipped["reward_health"].items() if k != "_target_"}
    settings |= {"run_dir": tmp_path, "window": 2, "max_new_tokens": 20}
    return RewardHealth(**{**settings, **changes})


class Feed(Callback):
    """Replaces the module's rows by those of given rollouts."""

    def __init__(self, rollouts, kl=None):
        self.rollouts = iter(rollouts)
        self.kl = kl

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.extras = with_rows(next(self.rollouts, None))
        if self.kl is not None:
            trainer.callback_metrics[KL] = self.kl


ZEROS, GOOD = group(0.0, 0.0), group(0.1, 0.2)


def lines(tmp_path) -> list[str]:
    path = tmp_path / "reward_health.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_a_cause_is_reported_once_and_again_when_it_returns(fit, tiny_grpo, tmp_path, caplog):
    rollouts = [ZEROS] * 4 + [GOOD] * 4 + [ZEROS] * 3
    health = make_health(tmp_path)
    with caplog.at_level(logging.INFO, logger="tvg.callbacks.reward_health"):
        fit(tiny_grpo(), callbacks=[Feed(rollouts), health], max_epochs=2)
    # The window contains only zeros at step 2 and again at step 10.
    assert [line.split(":")[0] for line in lines(tmp_path)] == ["step 2", "step 10"]
    records = [r for r in caplog.records if r.name == "tvg.callbacks.reward_health"]
    assert [r.levelname for r in records] == ["WARNING"] * 2
    assert "the total reward was 0 in all of the last 4 completions" in records[0].getMessage()


def test_a_short_interruption_is_not_reported_again(fit, tiny_grpo, tmp_path):
    rollouts = [ZEROS, ZEROS, GOOD, ZEROS, ZEROS, ZEROS]
    fit(tiny_grpo(), callbacks=[Feed(rollouts), make_health(tmp_path)])
    assert len(lines(tmp_path)) == 1


def test_a_run_shorter_than_the_window_is_checked_at_its_end(fit, tiny_grpo, tmp_path):
    fit(tiny_grpo(), callbacks=[Feed([ZEROS] * 6), make_health(tmp_path, window=20)])
    assert [line.split(":")[0] for line in lines(tmp_path)] == ["step 6"]
    assert "last 12 completions" in lines(tmp_path)[0]


def test_rewards_without_weight_are_ignored(fit, tiny_grpo, tmp_path):
    from types import SimpleNamespace

    rollouts = [[row(iou=0.1 * n, unpaid=0.0, paid=0.0) for n in range(4)]] * 6
    module = tiny_grpo()
    module.reward = SimpleNamespace(weights={"iou": 1.0, "unpaid": 0.0, "paid": 0.5})
    fit(module, callbacks=[Feed(rollouts), make_health(tmp_path)])
    assert [line.split(":")[1] for line in lines(tmp_path)] == [" paid"]


def test_a_high_kl_is_reported_during_a_run(fit, tiny_grpo, tmp_path):
    fit(tiny_grpo(), callbacks=[Feed([GOOD] * 6, kl=0.9), make_health(tmp_path)])
    assert lines(tmp_path) == []
    fit(tiny_grpo(), callbacks=[Feed([GOOD] * 6, kl=1.5), make_health(tmp_path)])
    assert len(lines(tmp_path)) == 1
    assert "the KL to the reference is 1.5 per token" in lines(tmp_path)[0]


DRIFTED = group(0.1, 0.2, exact=False)


def test_a_fall_of_exact_answers_is_reported_once(fit, tiny_grpo, tmp_path):
    rollouts = [GOOD, GOOD, GOOD, DRIFTED, DRIFTED, DRIFTED]
    fit(tiny_grpo(), callbacks=[Feed(rollouts), make_health(tmp_path)])
    assert [line.split(":")[0] for line in lines(tmp_path)] == ["step 4"]
    assert (
        "of the last 4 answers have exactly the requested format, against 100 %"
        in lines(tmp_path)[0]
    )


def test_a_resumed_run_restores_the_best_share(fit, tiny_grpo, tmp_path):
    before, after = make_health(tmp_path), make_health(tmp_path)
    fit(tiny_grpo(), callbacks=[Feed([GOOD] * 6), before])
    after.load_state_dict(before.state_dict())
    fit(tiny_grpo(), callbacks=[Feed([DRIFTED] * 6), after])
    assert len(lines(tmp_path)) == 1
    fit(tiny_grpo(), callbacks=[Feed([DRIFTED] * 6), make_health(tmp_path / "new")])
    assert lines(tmp_path / "new") == []  # the share was never higher


@pytest.mark.parametrize(
    ("window", "rollouts"),
    [(3, [GOOD, ZEROS, ZEROS, ZEROS, DRIFTED, DRIFTED]), (9, [ZEROS] * 6)],
)
def test_a_resumed_run_writes_the_same_report(fit, tiny_grpo, tmp_path, window, rollouts):
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    def run(name, *callbacks, **settings):
        health = make_health(tmp_path / name, window=window)
        fit(tiny_grpo(), callbacks=[*callbacks, health], max_steps=len(rollouts), **settings)
        return lines(tmp_path / name)

    whole = run("whole", Feed(rollouts), saves, enable_checkpointing=True)
    assert whole
    for step in range(1, len(rollouts) + 1):
        health = tmp_path / str(step) / "reward_health.txt"
        shutil.copytree(tmp_path / "whole", health.parent)  # the files after a kill at the end
        resume = str(tmp_path / f"step={step}.ckpt")
        assert run(str(step), Feed(rollouts[step:]), resume=resume) == whole, step
        if window > len(rollouts):  # nothing is reported before the end
            new = f"stopped_at_{step}"
            assert run(new, Feed(rollouts[step:]), resume=resume) == whole, step


def test_other_ranks_are_silent(fit, tiny_grpo, tmp_path, monkeypatch):
    import lightning.pytorch as pl

    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    fit(tiny_grpo(), callbacks=[Feed([ZEROS] * 6), make_health(tmp_path)])
    assert lines(tmp_path) == []


@pytest.mark.parametrize("rows", [None, []])
def test_steps_without_rollouts_are_ignored(fit, tiny_grpo, tmp_path, rows):
    fit(tiny_grpo(), callbacks=[Feed([rows] * 6), make_health(tmp_path)])
    assert lines(tmp_path) == []


def test_causes_are_recorded_in_mlflow(store, fit, tiny_grpo, tmp_path):
    logger = make_mlflow_logger(
        tracking_uri=store, experiment_name="health", run_name=None, run_dir=tmp_path
    )
    fit(tiny_grpo(), callbacks=[Feed([ZEROS] * 6), make_health(tmp_path)], logger=logger)
    run = logger.experiment.get_run(logger.run_id)
    assert run.data.tags["reward_health.all_zero"] == lines(tmp_path)[0]
    artifacts = [file.path for file in logger.experiment.list_artifacts(logger.run_id)]
    assert "reward_health.txt" in artifacts


@pytest.mark.parametrize(
    ("setting", "value"), [("window", 0), ("max_unparsed", 1.1), ("max_flat_groups", -0.1)]
)
def test_settings_out_of_range_are_refused(tmp_path, setting, value):
    with pytest.raises(ValueError, match=rf"callbacks\.reward_health\.{setting}.*got {value}"):
        make_health(tmp_path, **{setting: value})
