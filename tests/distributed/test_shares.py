"""Tests that no rank allocates more than its share of a 72B model; nothing has real memory."""

import pytest
import torch
import torch.distributed as dist
from helpers.sizes import write_config
from torch.testing._internal.distributed.fake_pg import FakeStore

from tvg.model.families import family_of, read_config
from tvg.model.policy import Policy
from tvg.model.weight_reader import empty_model
from tvg.training.fsdp2 import load_shards, mixed_precision, shard_policy

pytestmark = pytest.mark.distributed
NUM_RANKS = 64


class Requests:
    """Counts the values that a rank reads from the checkpoint's files."""

    def __init__(self):
        self.shapes, self.num_values, self.largest = {}, 0, 0

    def rows(self, name, start, stop):
        values = torch.empty((stop - start, *self.shapes[name][1:]), device="meta")
        self.num_values += values.numel()
        self.largest = max(self.largest, values.numel())
        return values


@pytest.mark.parametrize("rank", [0, NUM_RANKS - 1])
def test_rank_reads_and_stores_only_its_share_of_72b(tmp_path, rank):
    config = read_config(write_config(tmp_path / "72b", "72b"))
    model = empty_model(
        family_of(config).model_class, config, dtype=torch.bfloat16, attention="sdpa"
    )
    assert all(parameter.is_meta for parameter in model.parameters())
    num_values = sum(parameter.numel() for parameter in model.parameters())
    assert num_values > 72e9
    policy = Policy(
        model=model, suppressed_ids=[], eos_ids=[0], pad_id=0, forward_by="shared_prefix"
    )
    policy.weights = requests = Requests()
    requests.shapes = {name: p.shape for name, p in model.named_parameters()}
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=NUM_RANKS)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (NUM_RANKS,))
        shard_policy(policy, mesh, mixed_precision("bf16-mixed"))
        load_shards(policy, mesh, torch.device("meta"))
        stored = sum(parameter.to_local().numel() for parameter in policy.parameters())
    finally:
        dist.destroy_process_group()
    assert stored == requests.num_values
    assert stored <= 1.01 * num_values / NUM_RANKS
    assert requests.largest <= num_values / NUM_RANKS / 10
    assert policy.weights is None
