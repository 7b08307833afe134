"""Tests of models that are built without weights and read them in parts."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_lora import lora
from helpers.tiny_policy import make_checkpoint
from safetensors.torch import load_file, save_file

from tvg.model.families import FAMILIES
from tvg.model.loading import ModelSource
from tvg.model.weight_reader import shard_rows
from tvg.synthetic.templates import all_queries
from tvg.synthetic.tiny import write_tiny_checkpoint


def assert_reads_all(source: ModelSource) -> None:
    """Compares a policy without weights with one that `from_pretrained` loaded."""
    processor = source.load_processor()
    whole, empty = source.load_policy(processor), source.empty_policy(processor)
    assert empty.weights is not None
    assert all(parameter.is_meta for parameter in empty.parameters())
    named = dict(whole.named_parameters())
    assert list(named) == [name for name, _ in empty.named_parameters()]
    for name, parameter in empty.named_parameters():
        assert parameter.requires_grad == named[name].requires_grad, name
        assert parameter.dtype == named[name].dtype, name
        parts = [shard_rows(len(parameter), rank=rank, num_ranks=3) for rank in range(3)]
        read = [empty.weights.rows(name.removeprefix("model."), p.start, p.stop) for p in parts]
        assert torch.equal(torch.cat(read).to(parameter.dtype), named[name]), name
    buffers = dict(whole.named_buffers())
    assert list(buffers) == [name for name, _ in empty.named_buffers()]
    for name, buffer in empty.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert empty.eos_ids == whole.eos_ids
    assert empty.model.generation_config.to_dict() == whole.model.generation_config.to_dict()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_parts_of_each_family_equal_the_loaded_weights(tmp_path, family):
    folder = write_tiny_checkpoint(
        tmp_path / family,
        family=family,
        corpus=all_queries(),
        seed=0,
        num_layers=3,
        initializer_range=0.1,
    )
    assert_reads_all(make_checkpoint(folder))


def test_adapters_start_with_the_values_of_a_complete_model(tiny_checkpoint):
    source = make_checkpoint(tiny_checkpoint)
    source.adapter = lora(seed=5)
    assert_reads_all(source)


def test_missing_tensor_is_named(tiny_checkpoint, tmp_path):
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tiny_checkpoint / "model.safetensors")
    name = next(name for name in state if name.endswith("0.mlp.up_proj.weight"))
    del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = make_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"lack 1 of the model's tensors, e\.g\. .*up_proj"):
        source.empty_policy(source.load_processor())


@pytest.mark.parametrize(("num_rows", "num_ranks"), [(7, 2), (8, 3), (2, 4), (1, 1)])
def test_rows_are_distributed_like_chunks(num_rows, num_ranks):
    chunks = [c.tolist() for c in torch.arange(num_rows).chunk(num_ranks)]
    found = [list(shard_rows(num_rows, rank=r, num_ranks=num_ranks)) for r in range(num_ranks)]
    assert [rows for rows in found if rows] == chunks
