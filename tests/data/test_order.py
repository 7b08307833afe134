"""Tests of the order of examples on each rank, and of loaders that resume at a position."""

import re

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tvg.data.order import BatchOrder, ResumableLoader


def make_order(num_examples=10, batch_size=3, *, epoch=0, **changes) -> BatchOrder:
    settings = {"shuffle": True, "seed": 5, "rank": 0, "world_size": 1}
    order = BatchOrder(num_examples=num_examples, batch_size=batch_size, **{**settings, **changes})
    order.epoch = epoch
    return order


def flat(order: BatchOrder) -> list[int]:
    return [index for batch in order for index in batch]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_examples", [1, 2, 7, 8, 12])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_has_every_example_and_equal_ranks(world_size, num_examples, shuffle):
    ranks = [
        make_order(num_examples, 3, shuffle=shuffle, rank=rank, world_size=world_size, epoch=2)
        for rank in range(world_size)
    ]
    per_rank = -(-num_examples // world_size)
    for order in ranks:
        batches = list(order)
        assert len(order) == len(batches) == -(-per_rank // 3)
        assert [len(batch) for batch in batches[:-1]] == [3] * (len(batches) - 1)
        assert 1 <= len(batches[-1]) <= 3
        assert sum(map(len, batches)) == per_rank
    # Interleaved over ranks, the examples follow the epoch's order. Its start fills up the end.
    whole = flat(make_order(num_examples, 3, shuffle=shuffle, epoch=2))
    dealt = [flat(ranks[i % world_size])[i // world_size] for i in range(per_rank * world_size)]
    assert sorted(whole) == list(range(num_examples))
    assert dealt == [whole[i % num_examples] for i in range(len(dealt))]


def test_the_order_depends_only_on_seed_and_epoch():
    assert flat(make_order(epoch=3)) == flat(make_order(epoch=3))
    torch.manual_seed(1)
    again = flat(make_order(epoch=3))
    torch.manual_seed(2)
    assert flat(make_order(epoch=3)) == again
    orders = [tuple(flat(make_order(seed=seed, epoch=e))) for seed in (0, 1) for e in range(3)]
    assert len(set(orders)) == 6


def test_the_unshuffled_order_is_the_file_order():
    for epoch in range(3):
        assert list(make_order(7, 3, shuffle=False, epoch=epoch)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_examples": 0}, "the data set is empty"),
        ({"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
    ],
)
def test_impossible_orders_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_order(**changes)


def make_loader(num_workers=0) -> ResumableLoader:
    order = make_order(7, 2)
    return ResumableLoader(list(range(7)), order=order, num_workers=num_workers)


def take(loader: ResumableLoader, num_batches: int) -> list[list[int]]:
    """Returns the next batches of a loader, across epochs if needed."""
    batches: list[list[int]] = []
    while len(batches) < num_batches:
        for batch in loader:
            batches.append(batch.tolist())
            if len(batches) == num_batches:
                break
    return batches


EPOCHS = [batch for epoch in range(3) for batch in make_order(7, 2, epoch=epoch)]


def test_the_loader_continues_with_the_next_epoch():
    assert take(make_loader(), 12) == EPOCHS


@pytest.mark.parametrize(
    ("num_workers", "num_seen"), [*((0, k) for k in range(9)), (2, 1), (2, 3), (2, 4), (2, 6)]
)
def test_a_restored_loader_continues_after_the_last_batch(num_workers, num_seen):
    first = make_loader(num_workers)
    assert take(first, num_seen) == EPOCHS[:num_seen]
    fresh = make_loader(num_workers)
    fresh.load_state_dict(first.state_dict())
    assert take(fresh, 12 - num_seen) == EPOCHS[num_seen:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_examples": 6}, "data (its files, selection, limit_train): the run that is resumed "
         "had num_examples=7, got 6: "),
        ({"batch_size": 3}, "data.batch_size: the run that is resumed had batch_size=2, got 3: "),
        ({"world_size": 2}, "trainer.devices (processes in all): the run that is resumed had "
         "world_size=1, got 2: "),
        ({"shuffle": False}, "data.shuffle: the run that is resumed had shuffle=True, got False: "),
        ({"seed": 6}, "seed: the run that is resumed had seed=5, got 6: "),
    ],
)  # fmt: skip
def test_the_state_of_another_order_is_refused(changes, message):
    first = make_loader()
    take(first, 2)
    order = make_order(**{"num_examples": 7, "batch_size": 2, **changes})
    other = ResumableLoader(list(range(7)), order=order)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        other.load_state_dict(first.state_dict())
    assert "start a new run" in str(caught.value)
    assert (other.epoch, other.batches_done) == (0, 0)
    # Older checkpoints do not record the order; other ranks of the same run are accepted.
    other.load_state_dict({"epoch": 1, "batches_done": 1})
    assert (other.epoch, other.batches_done) == (1, 1)


def test_every_rank_resumes_at_the_saved_position():
    orders = [make_order(7, 2, rank=rank, world_size=2) for rank in (0, 1)]
    first, second = (ResumableLoader(list(range(7)), order=order) for order in orders)
    take(first, 1)
    second.load_state_dict(first.state_dict())
    assert take(second, 1) == list(make_order(7, 2, rank=1, world_size=2))[1:2]


class Recording(LightningModule):
    """Records every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.seen.append(batch.tolist())
        self.manual_backward(self.weight.sum())
        self.optimizers().step()


def fit(folder, max_steps, ckpt_path=None) -> list[list[int]]:
    module = Recording()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        ],
    )
    trainer.fit(module, make_loader(), ckpt_path=ckpt_path, weights_only=True)
    return module.seen


def test_a_trainer_runs_all_batches_of_every_epoch(tmp_path):
    module = Recording()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    loader = make_loader()
    trainer.fit(module, loader)
    assert module.seen == EPOCHS[:12]
    assert (trainer.current_epoch, loader.epoch, loader.batches_done) == (3, 3, 0)


def test_the_epoch_end_is_saved_as_the_next_start():
    first = make_loader()
    take(first, 4)
    assert (first.epoch, first.batches_done) == (1, 0)
    older = make_loader()  # older checkpoints recorded the end of the epoch
    older.load_state_dict({"epoch": 0, "batches_done": 4})
    assert (older.epoch, older.batches_done) == (1, 0)
    assert take(older, 4) == EPOCHS[4:8]


def test_a_resumed_trainer_gets_the_remaining_batches(tmp_path):
    assert fit(tmp_path, 10) == EPOCHS[:10]
    for step in (1, 3, 4, 5, 8, 9):  # 4 and 8 are the ends of epochs
        assert fit(tmp_path / "again", 10, tmp_path / f"step={step}.ckpt") == EPOCHS[step:10], step
