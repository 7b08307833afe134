"""Tests of memory estimates with hand counts, built models and the bytes that torch keeps."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers.kept_memory import kept_bytes
from helpers.sizes import BY_HAND
from helpers.tiny_policy import make_parts
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tvg.data.video.sampling import FrameSampling
from tvg.estimate.activations import Precision, Row, activations
from tvg.estimate.job import Job, OptimizerCost, Sharding, optimizer_cost
from tvg.estimate.lines import total, worst_phase
from tvg.estimate.memory import estimate
from tvg.estimate.meta import meta_model
from tvg.estimate.remedies import remedies
from tvg.model.adapters import no_adapter
from tvg.model.freezing import freeze_parts
from tvg.model.loading import ModelSource
from tvg.model.shape import Parameters, count_parameters, shape_of

GIB = 2**30
FULL = Precision(weight=4, compute=4, stream=4)
MIXED = Precision(weight=4, compute=2, stream=4)
SHAPE = BY_HAND
PARAMS = Parameters(
    trained=1000, frozen=500, is_head_trained=True, is_trunk_trained=False, is_merger_trained=True
)


def make_job(**changes) -> Job:
    settings = {
        "shape": SHAPE,
        "params": PARAMS,
        "precision": FULL,
        "is_autocast": False,
        "trained_bytes": 4,
        "has_masters": False,
        "optimizer": OptimizerCost(states=8, scratch=4),
        "sharding": Sharding(),
        "gradient_copies": 1,
        "has_reference": True,
        "offload_reference": False,
        "gradient_checkpointing": False,
        "forward": "shared_prefix",
        "samples_shared": True,
        "is_encoded": False,
        "prompts": 2,
        "prompts_per_call": None,
        "group_size": 4,
        "micro_prompts": 1,
        "micro_completions": 4,
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "patches": 24,
    }
    return Job(**{**settings, **changes})


def table(job: Job) -> dict[str, tuple[float, float]]:
    """Returns (GPU, CPU) bytes by the name of the line."""
    return {line.name: (line.gpu, line.host) for line in estimate(job)}


def test_all_lines_of_a_training_step_by_hand():
    found = {name: gpu for name, (gpu, _) in table(make_job()).items()}
    # A micro-batch has 10 + 4 * 3 tokens. Floats kept per token: 3 * 2 by a norm; query, key,
    # value, output and 2 log-sum-exps by attention; 4 * 5 by the MLP. The last layer's MLP runs
    # for 12 + 1 tokens only.
    mlp = 6 + 20
    kept = 22 * 3 * (6 + 4 + 2 + 2 + 4 + 2 + mlp) - 9 * mlp
    kept += 24 * (3 * 3 + 2 * 3)  # the merger: its norm, and twice its width
    kept += 13 * 2 * 2 + 12 * 2  # the last norm and the head's input
    head = 2 * (12 * 7 + 7 * 2)
    working = 22 * (3 * 5 + 3 * 2)
    assert found == {
        "parameters, trained": 4000,
        "parameters, frozen": 2000,
        "optimizer states": 8000,
        "reference": 4000,
        "loading": 0,
        "clips": 2 * 24 * (6 + 3) * 4,
        "vision trunk": 2 * 24 * (3 * 4 + 3 * 3) * 4,
        "keys and values": (2 * 10 + 8 * 3) * 3 * (2 + 2) * 4,
        "prefill or decode": max(2 * 10 * (3 * 5 + 3 * 2) * 4, 8 * 7 * 24),
        "reference's forward": 22 * (3 * 5 + 3 * 2) * 4,
        "gradients": 4000,
        "copies of weights, learning": 0,
        "activations": 4 * (kept + working - head),
        "logits": 4 * head,
        "gradients (still kept)": 4000,
        "step": 4000,
    }
    always = 4000 + 2000 + 8000 + 4000 + 2 * 24 * 9 * 4
    assert total(estimate(make_job())) == always + 4000 + 4 * (kept + working)
    assert worst_phase(estimate(make_job())) == "learning"


def test_a_validation_batch_by_hand():
    job = make_job(eval_prompts=3, eval_tokens=5000, group_size=1)
    # Validation has one clip more than training. Prefill of 3 prompts needs more than drawing.
    clips = 24 * (6 + 3) * 4
    cache = (3 * 10 + 3 * 5000) * 3 * (2 + 2) * 4
    drawing = max(3 * 10 * (3 * 5 + 3 * 2) * 4, 3 * 7 * 24)
    assert table(job)["evaluation batch"] == (clips + cache + drawing, 0)
    assert worst_phase(estimate(job)) == "validation"
    fewer = total(estimate(replace(job, eval_prompts=1)))
    one_by_one = next(r for r in remedies(job) if r.words == "data.eval_batch_size=1")
    assert one_by_one.saved == total(estimate(job)) - fewer > 0


def test_a_checkpoint_contains_trained_parameters_and_their_states():
    assert make_job().checkpoint_bytes == 1000 * (4 + 8)
    halved = make_job(trained_bytes=2, has_masters=True)
    assert halved.checkpoint_bytes == 1000 * (2 + 4 + 8)
    # DeepSpeed saves frozen weights and the reference, too, unless they are excluded.
    by_deepspeed = make_job(saves_frozen=True)
    assert by_deepspeed.checkpoint_bytes == 1000 * (4 + 8) + 500 * 4 + 1000 * 4


def test_repeated_prompts_and_checkpointing_by_hand():
    row = make_job(forward="repeated").row
    assert (row.tokens, row.read) == (4 * 13, 4 * 13)
    layer = 52 * (6 + 5 * 4 + 2 + 6 + 20)
    ends = 4 * 24 * (3 * 3 + 2 * 3) + 52 * 4 + 12 * 2
    found = activations(SHAPE, PARAMS, row, FULL, gradient_checkpointing=True)
    assert found.kept == 4 * (52 * 3 * 2 + ends)
    assert found.recomputed == 4 * layer
    found = activations(SHAPE, PARAMS, row, FULL, gradient_checkpointing=False)
    assert found.kept == 4 * (3 * layer + ends)
    assert found.recomputed == 0


def test_the_reference_has_the_size_of_trained_parameters():
    assert table(make_job(has_reference=False))["reference"] == (0, 0)
    assert "reference's forward" not in table(make_job(has_reference=False))
    away = table(make_job(offload_reference=True))
    assert away["reference"] == (0, 4000)
    assert away["reference's forward"][0] - table(make_job())["reference's forward"][0] == 4000


@pytest.mark.parametrize(
    ("stage", "states", "gradients", "weights"),
    [(0, 8000, 4000, 4000), (1, 2000, 4000, 4000), (2, 2000, 1000, 4000), (3, 2000, 1000, 1000)],
)
def test_sharding_divides_by_the_number_of_devices(stage, states, gradients, weights):
    found = table(make_job(sharding=Sharding(devices=4, stage=stage)))
    assert found["optimizer states"] == (states, 0)
    assert found["gradients"] == (gradients, 0)
    assert found["parameters, trained"] == (weights, 0)
    assert found["parameters, frozen"] == (weights / 2, 0)
    assert found["reference"] == (weights, 0)


def test_offloading_moves_memory_to_the_cpu():
    away = Sharding(devices=4, stage=3, offload_optimizer=True, offload_parameters=True)
    found = table(make_job(sharding=away))
    assert found["optimizer states"] == (0, 2000)
    assert found["gradients"] == (0, 1000)
    assert found["parameters, trained"] == found["reference"] == (0, 1000)
    assert found["parameters, frozen"] == (0, 500)
    assert found["step"] == (0, 0)


def test_half_precision_with_master_weights_and_with_autocast():
    half = Precision(weight=2, compute=2, stream=2)
    found = table(make_job(precision=half, trained_bytes=2, has_masters=True))
    names = ("parameters, trained", "gradients", "optimizer states")
    assert sum(found[name][0] for name in names) == 16 * 1000
    found = table(make_job(precision=MIXED, is_autocast=True, wide_reference=100))
    assert found["copies of weights, sampling"] == (2 * 900, 0)  # not of embeddings and head
    assert found["copies of weights, learning"] == (2 * 900, 0)
    # With checkpointing, only the layer that is recomputed has copies, of 24 + 30 weights.
    found = table(make_job(precision=MIXED, is_autocast=True, gradient_checkpointing=True))
    assert found["copies of weights, learning"] == (2 * 54, 0)
    assert table(make_job(gradient_copies=2))["gradients"] == (8000, 0)


def test_key_value_cache_by_hand():
    assert table(make_job(samples_shared=False))["keys and values"][0] == 8 * 13 * 48
    assert table(make_job(prompts_per_call=1))["keys and values"][0] == (10 + 4 * 3) * 48
    assert "keys and values" not in table(make_job(group_size=1, micro_completions=1))


def test_encoded_clips_need_no_pixels_and_no_trunk():
    found = table(make_job(is_encoded=True))
    assert found["clips"][0] == 2 * 24 * 3 * 4
    assert found["vision trunk"][0] == 0


def test_deepstack_keeps_features_of_several_layers():
    one, three = (
        table(make_job(is_encoded=True, shape=replace(SHAPE, mergers=mergers)))["clips"][0]
        for mergers in (1, 3)
    )
    assert three == 3 * one > 0


@pytest.mark.parametrize(
    ("target", "settings", "states", "scratch"),
    [
        ("torch.optim.AdamW", {}, 8, 4),
        ("torch.optim.AdamW", {"fused": True}, 8, 0),
        ("torch.optim.AdamW", {"foreach": False}, 8, 0),
        ("tvg.training.optimizers.adamw", {}, 8, 0),
        ("tvg.training.optimizers.adamw", {"fused": False}, 8, 4),
        ("torch.optim.SGD", {}, 0, 4),
        ("torch.optim.SGD", {"momentum": 0.9}, 4, 4),
        ("tvg.training.optimizers.adamw_8bit", {}, 2.03125, 0),
        ("bitsandbytes.optim.AdamW8bit", {}, 2.03125, 0),
        ("deepspeed.ops.adam.DeepSpeedCPUAdam", {}, 8, 0),
    ],
)
def test_bytes_per_parameter_of_optimizers(target, settings, states, scratch):
    cost = optimizer_cost(target, settings, number=4)
    assert (cost.states, cost.scratch) == (states, scratch)
    assert cost.is_on_cpu == ("CPU" in target)


def test_remedies_are_sorted_by_the_bytes_they_save():
    job = make_job(forward="repeated", params=replace(PARAMS, trained=4000))
    found = remedies(job)
    words = [remedy.words for remedy in found]
    assert found == sorted(found, key=lambda remedy: -remedy.saved)
    assert {"policy.forward=shared_prefix", "model.gradient_checkpointing=true"} <= set(words)
    assert "rollout=shared_prefix" not in words
    saved = dict(zip(words, (remedy.saved for remedy in found), strict=True))
    shared = replace(job, forward="shared_prefix")
    assert saved["policy.forward=shared_prefix"] == total(estimate(job)) - total(estimate(shared))
    assert saved["objective.reference_offload=true"] == 16000
    assert not {w for w in words if "zero2" in w and "offload" not in w}  # useless on one device
    two = [r.words for r in remedies(replace(job, sharding=Sharding(devices=2, bucket=1)))]
    assert "strategy=deepspeed_zero2" in two


# -- real models --------------------------------------------------------------------------------

# config.json of the released Qwen2.5-VL checkpoints.
RELEASED = {
    "3b": ((2048, 11008, 36, 16, 2, 151936), True),
    "7b": ((3584, 18944, 28, 28, 4, 152064), False),
}


def released(name: str) -> Qwen2_5_VLConfig:
    (hidden, mlp, layers, heads, key_heads, words), is_tied = RELEASED[name]
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "vocab_size": words,
            "tie_word_embeddings": is_tied,
        },
        vision_config={
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "depth": 32,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        tie_word_embeddings=is_tied,
    )


def released_job(name: str, **changes) -> Job:
    """Returns Time-R1's workload on one GPU: a prompt of 3,700 tokens, 8 completions of 200."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(released(name))
    freeze_parts(model, vision=True, merger=False, language=False)
    settings = {
        "shape": shape_of(model.config),
        "params": count_parameters(model),
        "precision": MIXED,
        "is_autocast": True,
        "gradient_checkpointing": True,
        "prompts": 1,
        "group_size": 8,
        "micro_completions": 8,
        "prompt_tokens": 3700,
        "completion_tokens": 200,
        "patches": 3584 * 4,
    }
    return make_job(**{**settings, **changes})


def test_sizes_of_the_released_models():
    three, seven = released_job("3b"), released_job("7b")
    assert three.params.total == 3_754_622_976  # as in the model card's safetensors
    assert seven.params.total == 8_292_166_656
    assert three.params.frozen == seven.params.frozen == 631_975_680
    assert (three.shape.window, three.shape.vision_full_layers) == (8, 4)
    assert three.shape.patch_values == 1176


@pytest.mark.parametrize("name", ["3b", "7b"])
def test_totals_of_the_released_models(name):
    job = released_job(name)
    found = table(job)
    model_states = ("parameters, trained", "gradients", "optimizer states")
    assert sum(found[line][0] for line in model_states) == 16 * job.params.trained
    # The peak is in the optimizer step: model states (16), reference (4) and the step's
    # temporaries (4).
    clips = found["clips"][0]
    assert total(estimate(job)) == 24 * job.params.trained + 4 * job.params.frozen + clips
    assert worst_phase(estimate(job)) == "optimizer"
    assert 0.3 < 2 * found["keys and values"][0] / GIB < 1
    # Checkpointing and prefix sharing reduce activations to less than a twentieth.
    naive = table(released_job(name, forward="repeated", gradient_checkpointing=False))
    assert naive["activations"][0] > 20 * found["activations"][0]


def test_full_training_of_7b_on_one_140_gib_gpu():
    assert total(estimate(released_job("7b"))) / GIB == pytest.approx(174, abs=1)
    fused = replace(released_job("7b"), optimizer=OptimizerCost(states=8, scratch=0))
    found = total(estimate(replace(fused, offload_reference=True))) / GIB
    assert 120 < found < 0.95 * 140
    eight = optimizer_cost("tvg.training.optimizers.adamw_8bit", {}, number=4)
    found = total(estimate(replace(fused, offload_reference=True, optimizer=eight))) / GIB
    assert 78 < found < 88


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_a_meta_model_has_the_loaded_models_parameters(tiny_checkpoint, freeze_vision):
    spec = ModelSource(
        path=str(tiny_checkpoint),
        create=None,
        dtype="float32",
        attn_implementation="sdpa",
        freeze_vision=freeze_vision,
        freeze_merger=freeze_vision,
        freeze_language=False,
        gradient_checkpointing=False,
        adapter=no_adapter,
    )
    model = spec.load_policy(spec.load_processor()).model
    found = count_parameters(meta_model(spec))
    assert found == count_parameters(model)
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.total == sum(p.numel() for p in model.parameters())
    assert (found.is_trunk_trained, found.is_merger_trained) == (not freeze_vision,) * 2


# -- bytes that torch keeps ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    frames = FrameSampling(min_pixels=4 * 28 * 28, max_pixels=12 * 28 * 28)
    return make_parts(tiny_checkpoint, tiny_world, sampling=frames)


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("freeze_vision", [True, False], ids=["trunk_frozen", "trunk_trained"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("forward", ["shared_prefix", "repeated"])
def test_activations_match_the_bytes_that_torch_keeps(
    parts, forward, checkpointing, freeze_vision, is_half
):
    policy, batch = parts.policy, parts.batch(2)
    policy.model.gradient_checkpointing_disable()
    policy.requires_grad_(True).train()
    freeze_parts(policy.model, vision=freeze_vision, merger=False, language=False)
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.forward_by = forward
    batch = policy.encode_clips(batch)
    group, length = 3, 40
    ids = torch.randint(30, 500, (2 * group, length), generator=torch.Generator().manual_seed(0))
    params = count_parameters(policy.model)

    def run():
        with torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext():
            policy(batch, ids, torch.ones_like(ids), group_size=group, temperature=1.0)

    measured = kept_bytes(run, policy)
    if is_half and not checkpointing:  # weight copies have a separate line
        measured -= 2 * params.trained
    row = Row(
        prompts=2,
        completions=group,
        prompt_tokens=int(batch.attention_mask.sum()) // 2,
        completion_tokens=length,
        patches=int(batch.video_grid_thw.prod(-1).sum()) // 2,
        forward=forward,
    )
    precision = MIXED if is_half else FULL
    found = activations(
        shape_of(policy.model.config), params, row, precision, gradient_checkpointing=checkpointing
    )
    assert 0.75 < found.kept / measured < 1.33
