"""Tests of samples of a `GroundingDataset`, and of batches of their prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_policy import make_parts, make_task

from tvg.core.batches import join_prompts
from tvg.data.collate import PromptCollator, pad_rows
from tvg.data.dataset import GroundingDataset, LeftOut, Sample
from tvg.data.video.decode import VideoError
from tvg.data.video.sampling import FrameSampling
from tvg.model.families.clip_text import VIDEO_TOKEN, NumberedFrames
from tvg.task.grounding import GroundingTask
from tvg.types import EncodedClip, GroundingExample, PromptBatch, RolloutBatch, Segment, VideoClip


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


def sample(
    qid: str, *, query: str = "a red ball", num_frames: int = 4, size=(28, 28), fps: float = 2.0
) -> Sample:
    generator = torch.Generator().manual_seed(sum(qid.encode()))
    frames = torch.randint(0, 256, (num_frames, 3, *size), generator=generator, dtype=torch.uint8)
    times = torch.arange(num_frames, dtype=torch.float64) / fps
    example = GroundingExample(
        qid=qid,
        video=qid,
        video_path=None,
        query=query,
        segment=Segment(0.0, 1.0),
        duration_s=num_frames / fps,
    )
    clip = VideoClip(
        frames=frames, sampled_fps=fps, frame_times_s=times, duration_s=num_frames / fps
    )
    return Sample(example, clip)


@pytest.fixture
def samples():
    return [
        sample("a", num_frames=4, fps=1.9047619047619047),
        sample("b", num_frames=10, size=(28, 56), query="the blue square moves left", fps=2.0),
        sample("c", num_frames=6, size=(56, 56), fps=24000 / 1001),
    ]


def test_prompts_are_padded_on_the_left(parts, samples):
    batch = parts.collator(samples)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    assert batch.input_ids.shape == batch.attention_mask.shape
    lengths = batch.attention_mask.sum(1).tolist()
    assert len(set(lengths)) > 1
    assert max(lengths) == batch.input_ids.shape[1]
    for ids, mask, length in zip(batch.input_ids, batch.attention_mask, lengths, strict=True):
        num_padded = len(ids) - length
        assert mask.tolist() == [0] * num_padded + [1] * length
        assert (ids[:num_padded] == parts.tokenizer.pad_token_id).all()
        assert (ids[num_padded:] != parts.tokenizer.pad_token_id).all()


def test_one_placeholder_for_each_merged_patch(parts, samples):
    batch = parts.collator(samples)
    # [pairs of frames, rows of 14 pixels, columns of 14 pixels]; 2 x 2 patches are merged.
    assert batch.video_grid_thw.tolist() == [[2, 2, 2], [5, 2, 4], [3, 4, 4]]
    video_token = parts.tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    assert (batch.input_ids == video_token).sum(1).tolist() == [2, 10, 12]
    assert batch.pixel_values_videos.shape == (8 + 40 + 48, 3 * 2 * 14 * 14)
    starts = (batch.input_ids == parts.tokenizer.convert_tokens_to_ids("<|vision_start|>")).sum(1)
    assert starts.tolist() == [1, 1, 1]


def test_batch_keeps_the_sampled_fps_and_duration_of_clips(parts, samples):
    batch = parts.collator(samples)
    assert batch.sampled_fps.dtype == batch.duration_s.dtype == torch.float64
    assert batch.sampled_fps.tolist() == [s.clip.sampled_fps for s in samples]
    assert batch.duration_s.tolist() == [s.clip.duration_s for s in samples]
    assert [e.qid for e in batch.examples] == ["a", "b", "c"]


def test_keep_frames_adds_frames_and_unexpanded_prompts(parts, samples):
    collator = PromptCollator(
        task=parts.task, processor=parts.processor, family=parts.family, keep_frames=True
    )
    batch = collator(samples)
    assert parts.collator(samples).unexpanded == []
    mark = parts.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    for sample_, ids, prompt in zip(samples, batch.input_ids, batch.unexpanded, strict=True):
        assert torch.equal(prompt.frames, sample_.clip.frames)
        assert prompt.sampled_fps == sample_.clip.sampled_fps
        assert prompt.token_ids.count(mark) == 1
        expanded = [token for token in ids.tolist() if token != parts.policy.pad_id]
        without = [token for token in expanded if token != mark]
        assert without == [token for token in prompt.token_ids if token != mark]
    assert batch.rows(1, 3).unexpanded == batch.unexpanded[1:3]
    doubled = batch.repeat(2).unexpanded
    assert [id(p) for p in doubled] == [id(p) for p in batch.unexpanded for _ in range(2)]
    joined = join_prompts([batch.rows(0, 1), batch.rows(1, 3)], pad_id=parts.policy.pad_id)
    assert joined.unexpanded == batch.unexpanded


def test_prompts_depend_on_extra_fields_that_the_task_reads(parts, samples):
    class Options(GroundingTask):
        def messages(self, example):
            text = f"{self.asked_query(example)} {example.extra['options']}"
            content = [{"type": "video"}, {"type": "text", "text": text}]
            return [{"role": "user", "content": content}]

    task = make_task()
    task.__class__ = Options
    one, other = (
        samples[0]._replace(example=replace(samples[0].example, extra={"options": options}))
        for options in ("red", "blue")
    )
    collator = PromptCollator(task=task, processor=parts.processor, family=parts.family)
    ids = collator([one, other]).input_ids
    assert not torch.equal(ids[0], ids[1])


def test_keep_frames_refuses_cached_features(parts, samples):
    collator = PromptCollator(
        task=parts.task, processor=parts.processor, family=parts.family, keep_frames=True
    )
    clip = EncodedClip(
        features=torch.zeros(8, 4),
        grid_thw=torch.tensor([2, 2, 2]),
        sampled_fps=2.0,
        frame_times_s=torch.arange(4.0),
        duration_s=2.0,
    )
    with pytest.raises(ValueError, match=r"^a: this rollout engine needs frames.*data/cache"):
        collator([samples[0]._replace(clip=clip)])


def test_each_row_equals_its_sample_collated_alone(parts, samples):
    batch = parts.collator(samples)
    for index, each in enumerate(samples):
        alone, row = parts.collator([each]), batch.rows(index, index + 1)
        length = alone.input_ids.shape[1]
        assert torch.equal(row.input_ids[:, -length:], alone.input_ids)
        assert row.attention_mask.sum() == alone.attention_mask.sum() == length
        assert torch.equal(row.pixel_values_videos, alone.pixel_values_videos)
        assert torch.equal(row.video_grid_thw, alone.video_grid_thw)
        assert torch.equal(row.sampled_fps, alone.sampled_fps)
        assert torch.equal(row.duration_s, alone.duration_s)
        assert row.examples == alone.examples == [each.example]


def test_an_odd_number_of_frames_repeats_the_last_frame(parts):
    odd = sample("a", num_frames=5)
    frames = torch.cat([odd.clip.frames, odd.clip.frames[-1:]])
    even = Sample(odd.example, replace(odd.clip, frames=frames))
    got, expected = parts.collator([odd]), parts.collator([even])
    assert got.video_grid_thw.tolist() == [[3, 2, 2]]
    assert torch.equal(got.pixel_values_videos, expected.pixel_values_videos)
    assert torch.equal(got.input_ids, expected.input_ids)


def test_pixels_are_normalised_and_not_resized(parts):
    black, white = sample("a"), sample("b")
    black = Sample(black.example, replace(black.clip, frames=torch.zeros_like(black.clip.frames)))
    white = Sample(
        white.example, replace(white.clip, frames=torch.full_like(white.clip.frames, 255))
    )
    values = parts.collator([black, white]).pixel_values_videos
    mean = torch.tensor(parts.processor.video_processor.image_mean)
    std = torch.tensor(parts.processor.video_processor.image_std)
    for rows, level in ((values[:8], 0.0), (values[8:], 1.0)):
        expected = ((level - mean) / std).repeat_interleave(2 * 14 * 14)  # channel first
        torch.testing.assert_close(rows, expected.expand_as(rows), rtol=0, atol=1e-6)


def test_a_too_long_prompt_is_refused_with_its_id(parts, samples):
    longest = int(parts.collator(samples).attention_mask.sum(1).max())
    limited = PromptCollator(
        task=parts.task, processor=parts.processor, family=parts.family, max_prompt_tokens=longest
    )
    assert limited(samples).input_ids.shape[1] == longest
    limited.max_prompt_tokens = longest - 1
    message = (
        rf"^c: the prompt has {longest} tokens, more than data.max_prompt_tokens={longest - 1}$"
    )
    with pytest.raises(ValueError, match=message):
        limited(samples)


def test_a_query_with_the_placeholder_is_refused_with_its_id(parts):
    with pytest.raises(ValueError, match=r"^odd:7: expected <\|video_pad\|> once .* got 2 times"):
        parts.collator([sample("odd:7", query=f"a ball {VIDEO_TOKEN} falls")])


def test_a_placeholder_that_is_not_in_the_mark_is_refused(parts, monkeypatch):
    monkeypatch.setattr(
        parts.collator, "clip_text", NumberedFrames(text=None, placeholder="<slot>")
    )
    message = r"^odd:8: <slot> must not occur in the prompt, got 1 times"
    with pytest.raises(ValueError, match=message):
        parts.collator([sample("odd:8", query="a ball <slot> falls")])


def test_the_prompt_is_the_tasks_text_in_the_chat_template(parts):
    task = make_task(system="Be brief.", template="Find: {query}!", video_first=False)
    collator = PromptCollator(task=task, processor=parts.processor, family=parts.family)
    ids = collator([sample("a", query="A Ball.")]).input_ids[0]
    assert parts.tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nFind: a ball!<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_prefill_follows_the_generation_prompt(parts):
    plain, opened = (
        PromptCollator(
            task=make_task(prefill=prefill), processor=parts.processor, family=parts.family
        )([sample("a")])
        for prefill in (None, "<think>\n\n</think>\n\n")
    )
    text = parts.tokenizer.decode(opened.input_ids[0])
    assert text == parts.tokenizer.decode(plain.input_ids[0]) + "<think>\n\n</think>\n\n"
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("left", [[1, 2, 3], [0, 0, 4]], [[1, 1, 1], [0, 0, 1]]),
        ("right", [[1, 2, 3], [4, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
    ],
)
def test_rows_are_padded_on_the_given_side(side, ids, mask):
    padded = pad_rows([[1, 2, 3], [4]], 0, side=side)
    assert [part.tolist() for part in padded] == [ids, mask]


def rows_equal(got: PromptBatch, expected: PromptBatch) -> None:
    for name in ("input_ids", "attention_mask", "pixel_values_videos", "video_grid_thw"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert torch.equal(got.sampled_fps, expected.sampled_fps)
    assert got.examples == expected.examples


def test_selected_prompts_keep_their_patches(parts, samples):
    batch = parts.collator(samples)
    part = batch.rows(1, 3)
    assert len(part) == 2
    assert [e.qid for e in part.examples] == ["b", "c"]
    assert torch.equal(part.pixel_values_videos, batch.pixel_values_videos[8:])
    assert torch.equal(part.input_ids, batch.input_ids[1:])
    assert part.sampled_fps.tolist() == batch.sampled_fps.tolist()[1:]
    assert part.duration_s.tolist() == batch.duration_s.tolist()[1:]
    rows_equal(batch.rows(0, 3), batch)
    rows_equal(batch.rows(1, 9), part)  # the last micro-batch may be shorter


def test_rollout_select_picks_prompts_and_completions_per_group(parts, samples):
    prompts = parts.collator(samples)
    ids = torch.arange(3 * 2 * 5).view(6, 5)
    rollout = RolloutBatch(
        prompts=prompts,
        group_size=2,
        completion_ids=ids,
        completion_mask=ids % 2,
        sampler_logprobs=-ids.float(),
        texts=list("uvwxyz"),
        is_finished=torch.tensor([True, False, True, True, False, False]),
    )
    part = rollout.select(range(1, 2), range(2))
    assert part.completion_ids.tolist() == ids[2:4].tolist()
    assert part.completion_mask.tolist() == (ids[2:4] % 2).tolist()
    assert part.sampler_logprobs.tolist() == (-ids[2:4].float()).tolist()
    assert part.texts == ["w", "x"]
    assert part.is_finished.tolist() == [True, True]
    assert part.group_size == 2
    rows_equal(part.prompts, prompts.rows(1, 2))
    second = rollout.select(range(1, 3), range(1, 2))
    assert second.completion_ids.tolist() == ids[[3, 5]].tolist()
    assert (second.texts, second.group_size) == (["x", "z"], 1)


class Counting:
    """Records each load, and raises `VideoError` for paths that contain "bad"."""

    def __init__(self, sampling=None) -> None:
        self.loaded: list = []
        self.sampling = sampling or FrameSampling()

    def load(self, path, window=None, lead_in=None):
        self.loaded.append((str(path), window))
        if "bad" in str(path):
            raise VideoError(path, "is bad")
        return sample(str(path)).clip


@pytest.mark.parametrize("memory_cache", [True, False])
def test_memory_cache_loads_each_clip_once(tmp_path, memory_cache):
    first = replace(sample("a").example, video_path=tmp_path / "a.mp4")
    first.video_path.write_bytes(b"a video")
    window = replace(first, qid="a:1", window=Segment(1.0, 2.0))
    loader = Counting()
    data = GroundingDataset(
        examples=[first, replace(first, qid="a:2"), window],
        loader=loader,
        memory_cache=memory_cache,
    )
    qids = [data[index].example.qid for index in (0, 1, 2, 0)]
    assert qids == ["a", "a:2", "a:1", "a"]
    path = str(tmp_path / "a.mp4")
    whole, part = (path, None), (path, Segment(1.0, 2.0))
    assert loader.loaded == ([whole, part] if memory_cache else [whole, whole, part, whole])


def test_memory_cache_depends_on_file_and_sampling(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"a video")
    example = replace(sample("a").example, video_path=path)

    def times_loaded(sampling):
        loader = Counting(sampling)
        GroundingDataset(examples=[example], loader=loader, memory_cache=True)[0]
        return len(loader.loaded)

    assert times_loaded(FrameSampling()) == 1
    assert times_loaded(FrameSampling()) == 0  # cached by another data set in this process
    assert times_loaded(FrameSampling(fps=1.0)) == 1
    path.write_bytes(b"another video")
    assert times_loaded(FrameSampling()) == 1


def test_an_example_without_a_file_is_refused_with_its_id():
    data = GroundingDataset(
        examples=[sample("AB:3").example], loader=Counting(), memory_cache=False
    )
    with pytest.raises(ValueError, match=r"^AB:3: no video file is known for 'AB:3'$"):
        data[0]


def of_files(*names: str, on_unreadable: str) -> GroundingDataset:
    examples = [replace(sample(name).example, video_path=Path(name)) for name in names]
    return GroundingDataset(
        examples=examples, loader=Counting(), memory_cache=False, on_unreadable=on_unreadable
    )


def test_on_unreadable_error_raises_for_an_unreadable_clip():
    with pytest.raises(VideoError, match=r"^bad: is bad$"):
        of_files("a", "bad", on_unreadable="error")[1]


def test_on_unreadable_replace_uses_the_next_readable_example():
    data = of_files("a", "bad1", "b", "bad2", on_unreadable="replace")
    items = [data[index] for index in range(4)]
    assert [item.example.qid for item in items] == ["a", "b", "b", "a"]
    problems = ("bad1: is bad",), ("bad2: is bad",)
    assert [item.replaces for item in items] == [(), problems[0], (), problems[1]]
    assert [item.example.qid for item in (data[1], data[1])] == ["b", "b"]
    assert sum(path.startswith("bad") for path, _ in data.loader.loaded) == 2  # tried once each
    with pytest.raises(
        ValueError, match=r"^none of the 2 clips can be used; the first problem: bad2: is"
    ):
        of_files("bad1", "bad2", on_unreadable="replace")[1]


def test_on_unreadable_leave_out_drops_clips_from_the_batch(parts):
    data = of_files("a", "bad", "b", "bad", on_unreadable="leave_out")
    items = [data[index] for index in range(4)]
    assert items[1] == items[3] == LeftOut("bad: is bad")
    batch = parts.collator(items)
    rows_equal(batch, parts.collator([data[0], data[2]]))
    assert batch.unreadable == ["bad: is bad", "bad: is bad"]
    assert parts.collator([data[0]]).unreadable == []


def test_the_batch_reports_replaced_clips(parts):
    data = of_files("bad", "a", on_unreadable="replace")
    assert parts.collator([data[0], data[1]]).unreadable == ["bad: is bad"]


def test_a_batch_without_readable_clips_is_empty(parts):
    batch = parts.collator([LeftOut("x: broken")])
    assert (len(batch), batch.examples, batch.unreadable) == (0, [], ["x: broken"])
    assert len(batch.to("cpu")) == 0


@pytest.mark.parametrize("on_unreadable", ["error", "replace"])
def test_fit_segments_clamps_segments_to_the_clip(on_unreadable):
    length_s = Counting().load(Path("a")).duration_s
    spans = {"in": (0.0, length_s), "late": (0.5, 50.0), "after": (length_s, 110.0)}
    examples = [
        replace(
            sample(name).example,
            video_path=Path("a"),
            segment=Segment(*span),
            hint=Segment(0.0, 60.0) if name == "late" else Segment(90.0, 95.0),
        )
        for name, span in spans.items()
    ]
    loader = Counting()
    data = GroundingDataset(
        examples=examples,
        loader=loader,
        memory_cache=False,
        on_unreadable=on_unreadable,
        fit_segments=True,
    )
    for _ in range(2):
        items = [data[index] for index in range(3)]
        assert [item.example.qid for item in items] == ["in", "late", "in"]
        assert [item.example.segment for item in items[:2]] == [(0.0, length_s), (0.5, length_s)]
        assert [item.example.hint for item in items[:2]] == [None, (0.0, length_s)]
        assert items[0].replaces == items[1].replaces == ()
        assert items[2].replaces == (
            f"after: the segment {length_s:g} to 110 s starts after the end of a, "
            f"which is {length_s:.2f} s long",
        )
    assert len(loader.loaded) == 4 + 3  # an example that starts after the end is loaded once
    plain = GroundingDataset(examples=examples, loader=Counting(), memory_cache=False)
    assert [plain[index].example for index in range(3)] == examples


def test_query_blanks_keep_preserves_a_trailing_blank(parts):
    collator = PromptCollator(
        task=make_task(query_blanks="keep"), processor=parts.processor, family=parts.family
    )
    clip = sample("a")
    raw = ["a red ball", "a red ball ", None]
    samples = [clip._replace(example=replace(clip.example, raw_query=query)) for query in raw]
    texts = parts.tokenizer.batch_decode(collator(samples).input_ids)
    assert ["a red ball " in text for text in texts] == [False, True, False]
