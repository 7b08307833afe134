"""Tests of the GRPO module: the loss formula, micro-batches, the reference and checkpoints."""

from dataclasses import replace

import pytest
import torch
from helpers.completions import without_float32_inside
from helpers.grpo_module import learn, logprobs_of, make_module, sample
from helpers.tiny_policy import make_parts

from tvg.model.flops import rollout_flops, trunk_flops
from tvg.model.freezing import freeze_parts
from tvg.model.shape import shape_of
from tvg.training.rollout_log import parse_completions, reward_metrics, rollout_rows
from tvg.training.step_output import StepOutput
from tvg.types import RewardOutput, Segment


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    made.policy.double()
    return made


@pytest.fixture(scope="module")
def rollout(parts):
    return sample(parts, num=3)


def gradients(module):
    return {n: p.grad.clone() for n, p in module.policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_micro_batches_give_the_gradient_of_the_full_step(parts, rollout, kl_coef, reduction):
    advantages = torch.linspace(-1, 1, 12, dtype=torch.float64)
    seen = []
    for size in (3, 2, 1):
        module = make_module(parts, kl_coef=kl_coef, reduction=reduction, micro_batch_size=size)
        if module.reference is not None:
            with torch.no_grad():
                module.reference.model.lm_head.weight.mul_(1.05)
        module.policy.zero_grad()
        totals = learn(module, rollout, advantages)
        seen.append((totals, gradients(module)))
    whole_totals, whole = seen[0]
    for totals, parts_of_it in seen[1:]:
        for name in whole_totals:
            torch.testing.assert_close(totals[name], whole_totals[name], rtol=1e-6, atol=1e-9)
        for name, gradient in whole.items():
            scale = gradient.abs().max().clamp_min(1e-12)
            assert float((parts_of_it[name] - gradient).abs().max() / scale) < 1e-6, name


@pytest.mark.parametrize("reduction", ["token_mean", "group_token_mean", "sequence_mean"])
def test_split_groups_give_the_gradient_of_complete_groups(parts, rollout, reduction, monkeypatch):
    without_float32_inside(monkeypatch)
    advantages = torch.linspace(-1, 1, 12, dtype=torch.float64)
    seen = []
    for micro_batch_size, size in ((2, None), (2, 1), (2, 2), (1, 3), (3, 3), (2, 4), (3, 9)):
        module = make_module(
            parts,
            kl_coef=0.3,
            reduction=reduction,
            micro_batch_size=micro_batch_size,
            micro_batch_completions=size,
        )
        assert module.reference is not None
        with torch.no_grad():
            module.reference.model.lm_head.weight.mul_(1.05)
        module.policy.zero_grad()
        totals = learn(module, rollout, advantages)
        seen.append((totals, gradients(module), size))
    whole_totals, whole, _ = seen[0]
    assert float(whole_totals["kl"]) > 0
    for totals, parts_of_it, size in seen[1:]:
        for name in whole_totals:
            torch.testing.assert_close(totals[name], whole_totals[name], rtol=1e-6, atol=1e-9)
        assert parts_of_it.keys() == whole.keys()
        for name, gradient in whole.items():
            scale = gradient.abs().max().clamp_min(1e-12)
            assert float((parts_of_it[name] - gradient).abs().max() / scale) < 1e-10, (name, size)


def test_micro_batch_completions_below_1_are_refused(parts):
    with pytest.raises(ValueError, match=r"objective\.micro_batch_completions.*0"):
        make_module(parts, micro_batch_completions=0)


@pytest.fixture
def fixed_vision(parts):
    """Freezes the vision encoder for one test."""
    freeze_parts(parts.policy.model, vision=True, merger=False, language=False)
    yield parts
    parts.policy.requires_grad_(True)


def test_offloaded_reference_gives_the_same_loss(fixed_vision, rollout):
    advantages = torch.linspace(-1, 1, 12, dtype=torch.float64)
    seen = []
    for offload in (False, True):
        module = make_module(fixed_vision, kl_coef=0.3, reference_offload=offload)
        with torch.no_grad():
            module.reference.model.model.language_model.norm.weight.mul_(1.05)
        module.policy.zero_grad()
        seen.append((learn(module, rollout, advantages), gradients(module)))
        assert all(p.device.type == "cpu" for p in module.reference.parameters())
        # Lightning moves submodules to the GPU.
        assert ("reference" in dict(module.named_children())) != offload
    (resident, gradients_resident), (offloaded, gradients_offloaded) = seen
    assert float(resident["kl"]) > 0
    assert {n: float(v) for n, v in resident.items()} == {n: float(v) for n, v in offloaded.items()}
    for name, gradient in gradients_resident.items():
        assert torch.equal(gradient, gradients_offloaded[name]), name


def test_frozen_weights_are_shared_with_the_reference(fixed_vision):
    module = make_module(fixed_vision, kl_coef=0.1)
    policy, reference = module.policy, module.reference
    other = dict(reference.named_parameters())
    shared = {
        name
        for name, p in policy.named_parameters()
        if p.untyped_storage().data_ptr() == other[name].untyped_storage().data_ptr()
    }
    assert shared == {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert any(name.startswith("model.model.visual.blocks") for name in shared)
    assert all(torch.equal(p, other[name]) for name, p in policy.named_parameters())
    assert not any(p.requires_grad for p in reference.parameters())
    lm_head = reference.model.lm_head.weight
    assert lm_head is reference.model.get_input_embeddings().weight  # tied, as in the policy


def test_step_reports_its_flops_and_stage_times(fixed_vision, monkeypatch):
    module = make_module(fixed_vision, kl_coef=0.1)
    sampled = []
    generate = module.rollout.generate
    monkeypatch.setattr(
        module.rollout,
        "generate",
        lambda *given, **more: sampled.append(generate(*given, **more)) or sampled[0],
    )
    monkeypatch.setattr(
        module, "step_optimizer", lambda *_, **__: {"learning_rate": torch.zeros(())}
    )
    monkeypatch.setattr(module, "_log_step", lambda *_, **__: None)
    batch = fixed_vision.batch(2)
    outputs = StepOutput.of(module.training_step(batch, 0))
    expected = rollout_flops(module.policy, sampled[0], has_reference=True, is_encoded=False)
    assert outputs.num_flops == expected > 0
    stages = {"vision", "sampling", "reward", "reference", "policy", "backward"}
    assert outputs.stage_s.keys() == stages
    assert all(seconds >= 0 for seconds in outputs.stage_s.values())
    sampled.clear()
    encoded = StepOutput.of(module.training_step(module.policy.encode_clips(batch), 0))
    trunk = sum(
        trunk_flops(shape_of(module.policy.model.config), grid)
        for grid in batch.video_grid_thw.tolist()
    )
    again = rollout_flops(module.policy, sampled[0], has_reference=True, is_encoded=False)
    assert again - encoded.num_flops == pytest.approx(trunk)


def test_loss_equals_the_formula(parts, rollout):
    advantages = torch.linspace(-1, 1, 12, dtype=torch.float64)
    module = make_module(parts, kl_coef=0.1, reduction="sequence_mean", micro_batch_size=3)
    assert module.reference is not None
    with torch.no_grad():
        module.reference.model.lm_head.weight.mul_(1.05)
        logprobs = logprobs_of(module, module.policy, rollout)
        ref_logprobs = logprobs_of(module, module.reference, rollout)
    expected = 0.0
    for n in range(12):
        length = int(rollout.completion_mask[n].sum())
        for t in range(length):
            gap = float(ref_logprobs[n, t] - logprobs[n, t])
            kl = torch.tensor(gap).double().exp() - gap - 1
            expected += float(-advantages[n] + 0.1 * kl) / length / 12
    module.policy.zero_grad()
    totals = learn(module, rollout, advantages)
    assert float(totals["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(totals["kl"]) > 0


def test_one_update_per_rollout_has_ratio_1_and_clips_nothing(parts, rollout):
    module = make_module(parts, micro_batch_size=2)
    module.policy.zero_grad()
    totals = learn(module, rollout, torch.linspace(-1, 1, 12, dtype=torch.float64))
    assert float(totals["importance_ratio"]) == pytest.approx(1.0, abs=1e-6)
    assert float(totals["clip_fraction"]) == 0
    assert float(totals["sampler_gap"]) < 1e-4
    assert float(totals["entropy"]) > 0


def test_zero_advantages_give_zero_gradients(parts, rollout):
    module = make_module(parts, micro_batch_size=3)
    module.policy.zero_grad()
    learn(module, rollout, torch.zeros(12, dtype=torch.float64))
    assert all(not gradient.any() for gradient in gradients(module).values())


def test_reference_exists_only_with_a_kl_term(parts):
    assert make_module(parts).reference is None
    with_kl = make_module(parts, kl_coef=0.1)
    assert with_kl.reference is not None
    assert not any(p.requires_grad for p in with_kl.reference.parameters())
    assert any(p.requires_grad for p in with_kl.policy.parameters())


def test_the_reference_is_not_saved_with_the_checkpoint(parts):
    module = make_module(parts, kl_coef=0.1)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"]
    assert all(name.startswith("policy.") for name in checkpoint["state_dict"])


def test_checkpoint_with_other_initial_weights_is_refused(parts):
    module = make_module(parts)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"resume.*other weights"):
        module.on_load_checkpoint({**checkpoint, "initial_fingerprint": "0"})
    with pytest.raises(ValueError, match="lacks"):
        module.on_load_checkpoint({**checkpoint, "state_dict": {}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, r"objective\.group_size.*1"),
        ({"num_updates": 0}, r"objective\.num_updates.*0"),
        ({"old_logprobs": "engine"}, r"objective\.old_logprobs.*'engine'"),
        ({"kl_coef": 0.1, "reference": None}, r"objective\.loss\.kl_coef: 0\.1.*reference"),
        ({"sampler_ratio_cap": 2.0, "old_logprobs": "sampler"}, r"objective\.loss\.sampler_ratio"),
    ],
)
def test_invalid_settings_are_refused(parts, changes, message):
    with pytest.raises(ValueError, match=message):
        make_module(parts, **changes)


def test_each_stream_has_a_separate_seed(parts):
    module = make_module(parts)
    seeds = {module.step_seed(stream) for stream in range(5)}
    assert len(seeds) == 5
    assert module.step_seed() == module.step_seed()


def test_reward_metrics_equal_hand_computed_numbers():
    total = torch.tensor([1.0, 3.0, 2.0, 2.0])
    metrics = reward_metrics(RewardOutput(total=total, components={"iou": total}), group_size=2)
    assert float(metrics["reward/total"]) == 2.0
    assert float(metrics["reward/iou_std"]) == pytest.approx((2**0.5 + 0) / 2)
    assert float(metrics["reward/iou_flat_groups"]) == 0.5


def test_each_completion_has_a_table_row(parts, rollout):
    rollout = replace(rollout, texts=["<answer>1.0 to 2.0</answer>"] * 12)
    rewards = RewardOutput(total=torch.arange(12.0), components={"iou": torch.arange(12.0) / 2})
    rows = rollout_rows(rollout, parse_completions(parts.task, rollout), rewards)
    assert [row["reward"] for row in rows] == list(map(float, range(12)))
    assert rows[5]["qid"] == rollout.prompts.examples[1].qid
    assert rows[5]["segment"] == [1.0, 2.0]
    assert rows[5]["truth"] == list(rollout.prompts.examples[1].segment or Segment(0, 0))
