"""Tests of the tiny checkpoint, a Hugging Face folder in the format of Qwen2.5-VL."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.video_utils import VideoMetadata

from tvg.synthetic.templates import all_queries
from tvg.synthetic.tiny import write_tiny_checkpoint
from tvg.synthetic.tiny_tokenizer import ADDED_TOKENS, SPECIAL_TOKENS, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("tiny") / "model", family="qwen2_5_vl", seed=0
    )


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoProcessor.from_pretrained(folder).tokenizer


def test_from_pretrained_loads_every_weight_with_the_released_architecture(folder):
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "qwen2_5_vl"
    assert config.vision_config.patch_size == 14
    assert config.vision_config.spatial_merge_size == 2
    assert config.vision_config.temporal_patch_size == 2
    text = config.text_config
    assert text.hidden_size // text.num_attention_heads == 32  # a head size that vLLM supports
    assert 2 * sum(text.rope_parameters["mrope_section"]) == 32
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 3e6
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_token_ids_in_config_equal_the_tokenizers(folder, tokenizer):
    config = AutoConfig.from_pretrained(folder)
    assert config.text_config.vocab_size == len(tokenizer)
    for name, token in {
        "video_token_id": "<|video_pad|>",
        "image_token_id": "<|image_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }.items():
        assert getattr(config, name) == tokenizer.convert_tokens_to_ids(token)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert config.text_config.eos_token_id == tokenizer.eos_token_id
    generation = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).generation_config
    assert generation.eos_token_id == tokenizer.eos_token_id
    assert generation.pad_token_id == tokenizer.pad_token_id


def test_special_tokens_follow_the_vocabulary_in_qwens_order(tokenizer):
    ids = tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, *ADDED_TOKENS])
    first = len(tokenizer) - len(ids)
    assert ids == list(range(first, len(tokenizer)))
    for token in SPECIAL_TOKENS:
        assert tokenizer(token).input_ids == [tokenizer.convert_tokens_to_ids(token)]
        assert tokenizer.decode(tokenizer(token).input_ids, skip_special_tokens=True) == ""
    for token in ADDED_TOKENS:
        assert tokenizer.decode(tokenizer(token).input_ids, skip_special_tokens=True) == token


def test_whole_seconds_are_single_tokens(tokenizer):
    ids = tokenizer("<answer>12.5 to 20.0</answer>").input_ids
    pieces = [tokenizer.decode([i]) for i in ids]
    digits = [p for p in pieces if any(c.isdigit() for c in p)]
    assert digits == ["12", "5", "20", "0"]
    assert "".join(pieces) == "<answer>12.5 to 20.0</answer>"
    for second in range(21):
        assert tokenizer.tokenize(str(second)) == [str(second)]


def test_synthetic_queries_need_about_one_token_per_word(tokenizer):
    for query in all_queries():
        words = query.rstrip(".").lower().split()
        assert len(tokenizer(query.rstrip(".").lower()).input_ids) <= len(words) + 1, query


@settings(max_examples=300)
@given(st.text(max_size=80))
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "e\u0301 is not é",
        "a\r\n\r\n b  ,  c ",
        "\u0000\ufeff\U0001f3ac",
        "do n't <|im_end|> <tool_call>",
    ],
)
def test_awkward_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=False) == text


def test_chat_template_equals_qwens(folder):
    processor = AutoProcessor.from_pretrained(folder)
    user = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}
    assert processor.apply_chat_template([user], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>When?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    system = {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "Now."}
    assert processor.apply_chat_template([system, user, answer], tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>When?<|im_end|>\n"
        "<|im_start|>assistant\nNow.<|im_end|>\n"
    )


def test_processor_and_model_accept_a_video(folder):
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    text = "<|vision_start|><|video_pad|><|vision_end|>When?"
    metadata = VideoMetadata(total_num_frames=8, fps=2.0, frames_indices=list(range(8)))
    inputs = processor(
        text=[text],
        videos=[torch.randint(0, 256, (8, 3, 28, 56), dtype=torch.uint8)],
        video_metadata=[metadata],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )
    assert inputs["video_grid_thw"].tolist() == [[4, 2, 4]]
    assert (inputs["input_ids"] == model.config.video_token_id).sum() == 4 * 1 * 2
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)
    assert logits.isfinite().all()


_WRITE = """
import sys
from tvg.synthetic.tiny import write_tiny_checkpoint
write_tiny_checkpoint(sys.argv[1], family="qwen2_5_vl", seed=0)
"""


@pytest.mark.slow
def test_same_seed_writes_equal_files_in_another_process(folder, tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    other = tmp_path / "again"
    subprocess.run([sys.executable, "-c", _WRITE, str(other)], check=True, env=environment)
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in other.iterdir())
    for name in names:
        digests = [hashlib.sha256((f / name).read_bytes()).hexdigest() for f in (folder, other)]
        assert digests[0] == digests[1], name


def test_seed_sets_the_weights_and_keeps_the_global_state(folder, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    other = write_tiny_checkpoint(tmp_path / "other", family="qwen2_5_vl", seed=1)
    assert torch.equal(torch.rand(3), expected)
    weights = [(f / "model.safetensors").read_bytes() for f in (folder, other)]
    assert weights[0] != weights[1]
    assert (folder / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_unsupported_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"hidden_size: expected a multiple of 64 .*, got 96"):
        write_tiny_checkpoint(tmp_path / "x", family="qwen2_5_vl", seed=0, hidden_size=96)
    with pytest.raises(ValueError, match="frame_side: expected a multiple of 28 pixels, got 30"):
        write_tiny_checkpoint(tmp_path / "x", family="internvl", seed=0, frame_side=30)
    with pytest.raises(ValueError, match=r"of type 'qwen', supported: .*'qwen2_vl'"):
        write_tiny_checkpoint(tmp_path / "x", family="qwen", seed=0)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="at least 278"):
        train_tokenizer(["a"], vocab_size=100)
