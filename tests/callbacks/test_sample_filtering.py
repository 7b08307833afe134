"""Tests of rescoring and selecting examples between epochs, also after kills at any moment."""

import functools
import json
import zlib
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_policy import SMALL_FRAMES, make_parts, make_rollout
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tvg.callbacks.sample_filtering import SampleFiltering
from tvg.core.interval import segment_iou
from tvg.core.parsing import ParsedAnswer
from tvg.data.dataset import uncached
from tvg.data.padding import no_padding
from tvg.data.readers import read_charades, read_jsonl
from tvg.data.selection import keep_all, select_band, select_top
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.report import filtering_rounds
from tvg.training import evaluation
from tvg.training.checkpoint import AtomicCheckpointIO
from tvg.training.datamodule import GroundingDataModule
from tvg.training.schedule import warmup_schedule
from tvg.training.sft import SFTModule
from tvg.types import Segment

BAND = functools.partial(select_band, field="difficulty", unit=100, low=0.0, high=0.9, k=5)
EASY_FIRST = functools.partial(select_top, field="difficulty", k=4, largest=True)


def parse(text, *, anywhere=False):
    """Returns a segment for any text, because random weights give no answers that can be parsed."""
    number = zlib.crc32(text.encode("utf-8", errors="replace"))
    start_s = float(number % 9)
    return ParsedAnswer(Segment(start_s, start_s + 1 + number // 9 % 12), "crc")


class Recording(SFTModule):
    """Records step, learning rate and query ids of each batch."""

    def training_step(self, batch, batch_idx):
        rate = self.optimizers().param_groups[0]["lr"]
        shown = [example.qid for example in batch.examples]
        self.shown = [*getattr(self, "shown", []), (self.global_step, rate, shown)]
        return super().training_step(batch, batch_idx)


class KilledError(Exception):
    pass


class KillAt(Callback):
    """Raises `KilledError` in a hook at a given step."""

    def __init__(self, hook, step):
        self.hook, self.step = hook, step
        setattr(self, hook, self._kill)

    def _kill(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KilledError


@dataclass
class Done:
    module: Recording
    data: GroundingDataModule
    filtering: SampleFiltering
    trainer: Trainer

    @property
    def lists(self):
        """The query ids of each batch."""
        return [shown for _, _, shown in self.module.shown]


@pytest.fixture(scope="module")
def train_file(tiny_world, tmp_path_factory):
    """Two queries at different moments for each training clip of the small generated data set."""
    data = json.loads((tiny_world / "train.json").read_text())
    for video, entry in data.items():
        entry.pop("hints", None)
        ends = [[0.0, 4.0 + len(video) % 3], [3.0, 0.9 * entry["duration"]]]
        entry["timestamps"] = ends
        entry["sentences"] = [f"{word} {entry['sentences'][0]}" for word in ("first", "then")]
    path = tmp_path_factory.mktemp("filtering") / "train.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def fit(tiny_checkpoint, tiny_world, train_file, tmp_path):
    def run(
        name="run",
        *,
        before=(),
        resume=False,
        save_every=1,
        settings=None,
        data=None,
        lr=3e-2,
        **limits,
    ):
        torch.manual_seed(0)
        parts = make_parts(tiny_checkpoint, tiny_world)
        task = parts.task
        task.parser = parse
        run_dir = tmp_path / name
        files = {"train_file": str(train_file), "val_file": str(tiny_world / "val.json")}
        words = {
            "name": "small", "on_missing": "error", "decoder": DecordDecoder(num_threads=1),
            "clip": functools.partial(ClipLoader, sampling=SMALL_FRAMES, timeout_s=None),
            "cache": uncached, "selection": keep_all, "padding": no_padding, "batch_size": 3,
            "eval_batch_size": 2, "num_workers": 0, "shuffle": True, "memory_cache": True,
            "use_windows": True,
            "max_prompt_tokens": None, "limit_train": None, "limit_val": None, "limit_test": None,
            "task": task, "processor": parts.processor, "family": parts.family,
            "seed": 0, "reader": read_charades,
            "world": None, "annotation_file": None, "annotation_split": None,
            "extensions": ["mp4"], "video_dir": str(tiny_world / "videos"), "test_file": None,
        }  # fmt: skip
        module = Recording(
            policy=parts.policy,
            tokenizer=parts.tokenizer,
            task=task,
            rollout=make_rollout(max_new_tokens=4),
            micro_batch_size=3,
            optimizer=functools.partial(torch.optim.AdamW, lr=lr),
            schedule=functools.partial(warmup_schedule, name="linear", warmup_steps=0),
            max_grad_norm=None,
            max_skipped_steps=5,
            component_lr={},
            seed=0,
        )
        filtering = SampleFiltering(
            **{
                "run_dir": run_dir, "select": BAND, "rescore": "all", "score_first": False,
                "max_new_tokens": None, "mastered_above": 0.5, **(settings or {}),
            }
        )  # fmt: skip
        folder = run_dir / "checkpoints"
        saving = ModelCheckpoint(
            folder, "last", every_n_train_steps=save_every, enable_version_counter=False
        )
        done = Done(
            module,
            GroundingDataModule(**{**words, **files, **(data or {})}),
            filtering,
            Trainer(
                accelerator="cpu",
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                use_distributed_sampler=False,
                default_root_dir=run_dir,
                callbacks=[*before, filtering, saving],
                plugins=[AtomicCheckpointIO()],
                **limits,
            ),
        )
        path = folder / "last.ckpt" if resume else None
        done.trainer.fit(module, datamodule=done.data, ckpt_path=path, weights_only=True)
        return done

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "filtering").iterdir()}


def rows_of(folder, number):
    text = (folder / "filtering" / f"round_{number:02d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_each_epoch_trains_on_the_selected_examples(fit, tmp_path, tiny_world):
    done = fit(max_epochs=3)
    first = [e.qid for e in done.data.examples("train")]
    num = -(-len(first) // 3)
    shown = [qid for batch in done.lists[:num] for qid in batch]
    assert sorted(shown) == sorted(first)
    assert sorted(files_of(tmp_path / "run")) == [
        "round_01.json", "round_01.jsonl", "round_02.json", "round_02.jsonl"
    ]  # fmt: skip
    start = num
    for number in (1, 2):
        rows = rows_of(tmp_path / "run", number)
        assert [row["qid"] for row in rows] == first
        for row in rows:
            iou = segment_iou(Segment(*row["prediction"]), Segment(*row["segment"]))
            assert row["difficulty"] == pytest.approx(100 * iou)
        expected = [e.qid for e in BAND(read_back(tmp_path / "run", number, tiny_world))]
        assert sorted(expected) == sorted(row["qid"] for row in rows if row["selected"])
        stop = start + -(-len(expected) // 3)
        assert sorted(qid for batch in done.lists[start:stop] for qid in batch) == sorted(expected)
        start = stop
        report = json.loads(
            (tmp_path / "run" / "filtering" / f"round_{number:02d}.json").read_text()
        )
        ious = [row["difficulty"] / 100 for row in rows]
        assert report["num_selected"] == len(expected)
        assert report["num_examples"] == report["num_scored"] == len(first)
        assert report["share_zero"] == pytest.approx(sum(iou == 0 for iou in ious) / len(ious))
        assert report["share_mastered"] == pytest.approx(sum(iou > 0.5 for iou in ious) / len(ious))
        assert report["mean_difficulty"] == pytest.approx(100 * sum(ious) / len(ious))
    assert start == len(done.lists)  # three epochs, none of them empty
    # The schedule spans all rounds: linear to 0 over three epochs of the first list.
    rates = [rate for _, rate, _ in done.module.shown]
    assert rates == pytest.approx([3e-2 * (1 - step / (3 * num)) for step in range(len(rates))])


def read_back(run_dir, number, world):
    path = run_dir / "filtering" / f"round_{number:02d}.jsonl"
    return read_jsonl(path, world / "videos", clamp_ends=True, drop_invalid=True).examples


class Counting:
    """Counts scored batches, and can stop the run in one of them."""

    def __init__(self, monkeypatch, kill_at=None):
        self.num, self.kill_at = 0, kill_at
        self.real = evaluation.predict_batch
        monkeypatch.setattr(evaluation, "predict_batch", self)

    def __call__(self, **words):
        if self.num == self.kill_at:
            raise KilledError
        self.num += 1
        return self.real(**words)


def assert_same_place(one, other):
    """Checks that steps, epochs, logged steps and scores equal those of an uninterrupted run."""
    assert one.trainer.global_step == other.trainer.global_step
    assert one.trainer.current_epoch == other.trainer.current_epoch
    loops = [done.trainer.fit_loop.epoch_loop for done in (one, other)]
    assert loops[0]._batches_that_stepped == loops[1]._batches_that_stepped
    assert one.filtering.next_round == other.filtering.next_round
    assert one.filtering.scores == other.filtering.scores


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 7}], ids=["epochs", "steps"])
def test_a_killed_run_resumes_identically(fit, tmp_path, monkeypatch, limits):
    counting = Counting(monkeypatch)
    whole = fit("whole", **limits)
    num_batches = counting.num // 2  # per round
    num_first = -(-len(whole.data.examples("train")) // 3)
    assert (num_batches, num_first, len(whole.lists)) == (6, 4, 8 if "max_epochs" in limits else 7)
    assert files_of(tmp_path / "whole").keys() == {
        "round_01.json", "round_01.jsonl", "round_02.json", "round_02.jsonl"
    }  # fmt: skip
    one, two = ([row["selected"] for row in rows_of(tmp_path / "whole", n)] for n in (1, 2))
    assert one != two  # the policy has changed, and so have the difficulties
    assert whole.filtering.next_round == 3

    def check(name, kill, *, batches_left, save_every=1, scored_at=None):
        counting = Counting(monkeypatch, kill_at=scored_at)
        with pytest.raises(KilledError):
            fit(name, before=kill, save_every=save_every, **limits)
        counting.kill_at, counting.num = None, 0
        again = fit(name, resume=True, save_every=save_every, **limits)
        assert counting.num == batches_left, name
        assert files_of(tmp_path / name) == files_of(tmp_path / "whole")
        num_shown = len(again.module.shown)
        assert again.module.shown == whole.module.shown[-num_shown:]
        assert_same_place(again, whole)
        for key, value in whole.module.state_dict().items():
            assert torch.equal(value, again.module.state_dict()[key]), key
        monkeypatch.undo()

    # Killed in the first round, after two batches.
    check("in_round", (), scored_at=2, batches_left=2 * num_batches - 2)
    # Killed in the second round.
    check("in_second", (), scored_at=num_batches + 1, batches_left=num_batches - 1)
    # Killed after the epoch's last step, whose checkpoint does not record the epoch's end.
    before_round = KillAt("on_train_epoch_end", num_first)
    check("before_round", [before_round], batches_left=2 * num_batches)
    # Killed after the round. No checkpoint was written since the round's start, but the round is
    # not repeated.
    after_round = KillAt("on_train_epoch_start", num_first)
    check("after_round", [after_round], batches_left=num_batches)
    # Killed one step later, without and with a checkpoint of that step.
    in_epoch = functools.partial(KillAt, "on_train_batch_start", num_first + 1)
    check("rare_saves", [in_epoch()], save_every=100, batches_left=num_batches)
    check("in_epoch", [in_epoch()], batches_left=num_batches)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 6}], ids=["epochs", "steps"])
def test_the_selection_may_grow_again(fit, monkeypatch, limits):
    """If resumed at the end of an epoch, plain Lightning would cut a longer next epoch short."""

    class Growing:
        """Selects 3, then 6, then 9 examples: one, two and three batches."""

        def __call__(self, examples):
            return examples[: 3 * (self.filtering.next_round + 1)]

    def run(name, **words):
        growing = Growing()
        monkeypatch.setattr(
            SampleFiltering,
            "setup",
            lambda filtering, *_, **__: setattr(growing, "filtering", filtering),
        )
        return fit(name, settings={"score_first": True, "select": growing}, **words, **limits)

    whole = run("whole")
    assert [len(shown) for shown in whole.lists] == [3] * 6
    hooks = {"on_train_epoch_end": (1, 3), "on_train_epoch_start": (1, 3)}
    for hook, steps in hooks.items():
        for step in steps:
            name = f"{hook}_{step}"
            with pytest.raises(KilledError):
                run(name, before=[KillAt(hook, step)])
            again = run(name, resume=True)
            assert again.module.shown == whole.module.shown[step:], name
            assert_same_place(again, whole)


def test_predictions_of_other_weights_are_not_reused(fit, tmp_path, monkeypatch):
    counting = Counting(monkeypatch, kill_at=3)
    with pytest.raises(KilledError):
        fit(max_epochs=2)
    assert len(list((tmp_path / "run" / "filtering").glob("*.partial.jsonl"))) == 1
    counting.kill_at, counting.num = None, 0
    fit(max_epochs=2, lr=1e-3)  # the partial round has other weights
    assert counting.num == 6


def test_score_first_adds_a_round_before_the_first_epoch(fit, tmp_path, monkeypatch):
    counting = Counting(monkeypatch, kill_at=1)
    settings = {"score_first": True}
    with pytest.raises(KilledError):
        fit(max_steps=3, settings=settings)
    counting.kill_at = None
    fit(max_steps=3, settings=settings, resume=True)
    whole = fit("whole", max_steps=3, settings=settings)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    rows = rows_of(tmp_path / "whole", 0)
    selected = sorted(row["qid"] for row in rows if row["selected"])
    num = -(-len(selected) // 3)
    assert sorted(qid for batch in whole.lists[:num] for qid in batch) == selected


def test_examples_that_are_not_rescored_keep_their_difficulty(fit, tmp_path):
    settings = {"rescore": "selected", "select": EASY_FIRST}
    same = {"max_epochs": 3, "settings": settings, "data": {"shuffle": False}}
    done = fit(**same)
    one, two = rows_of(tmp_path / "run", 1), rows_of(tmp_path / "run", 2)
    kept = [(a, b) for a, b in zip(one, two, strict=True) if not a["selected"]]
    assert kept
    assert all(a["difficulty"] == b["difficulty"] for a, b in kept)
    report = json.loads((tmp_path / "run" / "filtering" / "round_02.json").read_text())
    assert report["num_scored"] == 4
    with pytest.raises(KilledError):
        fit("again", before=[KillAt("on_train_batch_start", 5)], **same)
    resumed = fit("again", resume=True, **same)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "run")
    assert_same_place(resumed, done)
    # A curriculum: examples are used in the order of the selection, from easy to hard.
    by_difficulty = sorted((row for row in two if row["selected"]), key=lambda r: -r["difficulty"])
    assert [qid for batch in done.lists[-2:] for qid in batch] == [r["qid"] for r in by_difficulty]


def test_an_empty_selection_stops_the_run(fit, caplog, tmp_path):
    nothing = functools.partial(
        select_band, field="difficulty", unit=100, low=100.0, high=101.0, k=None
    )
    done = fit(max_epochs=3, settings={"select": nothing})
    num = -(-len(done.data.examples("train")) // 3)
    assert done.trainer.global_step == num
    assert "no example of the training list is left" in caplog.text
    done.trainer.save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    caplog.clear()
    again = fit(max_epochs=3, settings={"select": nothing}, resume=True)
    assert again.trainer.global_step == num
    assert "no example of the training list is left" in caplog.text


def test_resuming_a_finished_run_removes_partial_files(fit, tmp_path):
    fit(max_epochs=1)
    partial = tmp_path / "run" / "filtering" / "round_00.rank_0.partial.jsonl"
    partial.parent.mkdir(exist_ok=True)
    partial.touch()  # as after a kill that follows the last checkpoint
    fit(max_epochs=1, resume=True)
    assert not partial.exists()


def test_max_new_tokens_applies_only_while_scoring(fit, tmp_path, monkeypatch):
    lengths = []

    def note(**words):
        lengths.append(words["rollout"].sampling.max_new_tokens)
        return []

    monkeypatch.setattr(evaluation, "predict_batch", note)
    done = fit(max_steps=5, settings={"max_new_tokens": 2})
    assert set(lengths) == {2}
    assert done.module.rollout.sampling.max_new_tokens == 4
    # No example could be scored, so none is selected.
    report = json.loads((tmp_path / "run" / "filtering" / "round_01.json").read_text())
    assert (report["num_scored"], report["num_selected"]) == (0, 0)
    assert report["num_unreadable"] == len(done.data.examples("train"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rescore": "some"}, r"sample_filtering\.rescore: expected 'all' or 'selected'"),
        ({"max_new_tokens": 0}, r"sample_filtering\.max_new_tokens: expected at least 1, got 0"),
        ({"mastered_above": 70}, r"sample_filtering\.mastered_above: expected 0 to 1, got 70"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, changes, message):
    settings = {
        "run_dir": tmp_path, "select": BAND, "rescore": "all", "score_first": False,
        "max_new_tokens": None, "mastered_above": 0.7,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        SampleFiltering(**{**settings, **changes})


def test_a_data_module_of_prompts_is_required(tmp_path):
    filtering = SampleFiltering(
        run_dir=tmp_path,
        select=BAND,
        rescore="all",
        score_first=False,
        max_new_tokens=None,
        mastered_above=0.7,
    )
    with pytest.raises(ValueError, match="needs a data module of prompts, got NoneType"):
        filtering.setup(SimpleNamespace(), None, "fit")


def test_the_table_of_rounds_is_printed(tmp_path, capsys):
    report = {
        "round": 1, "step": 12, "num_selected": 30, "num_examples": 40, "mean_difficulty": 51.25,
        "share_zero": 0.125, "share_mastered": 0.25, "share_unparsed": 0.0,
    }  # fmt: skip
    filtering_rounds.print_rounds(tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "round_01.json").write_text(json.dumps(report))
    filtering_rounds.print_rounds(tmp_path)
    row = next(line for line in capsys.readouterr().out.splitlines() if "0.512" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["1", "12", "30", "40", "0.512", "12.5%", "25.0%", "0.0%"]
