"""Tests of cached vision-encoder features: written once, reused, and separate per model."""

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_policy import SMALL_FRAMES, make_parts
from safetensors.torch import load_file, save_file

from tvg.data.cache.features import FeatureCache
from tvg.data.dataset import GroundingDataset
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder, VideoError
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.model.freezing import freeze_parts
from tvg.preparation.features import missing_feature_bytes, prepare_features
from tvg.preparation.frames import ClipRequest, unique_requests
from tvg.types import Segment


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    parts = make_parts(tiny_checkpoint, tiny_world)
    freeze_parts(parts.policy.model, vision=True, merger=False, language=False)
    return parts


@pytest.fixture
def make_cache(tiny_checkpoint, tmp_path):
    def make(**changes) -> FeatureCache:
        loader = ClipLoader(
            sampling=SMALL_FRAMES, decoder=DecordDecoder(num_threads=1), timeout_s=None
        )
        settings = {"folder": tmp_path / "cache", "checkpoint": str(tiny_checkpoint)}
        return FeatureCache(**{**settings, "dtype": "float32", "loader": loader, **changes})

    return make


def prepare(parts, cache, requests=None, num_workers=0, timeout_s=None):
    if requests is None:
        requests = unique_requests(parts.dataset.examples)
    return prepare_features(
        requests,
        cache,
        policy=parts.policy,
        processor=parts.processor,
        num_workers=num_workers,
        timeout_s=timeout_s,
    )


def test_few_or_cached_clips_start_no_workers(parts, make_cache, monkeypatch):
    def start(*_):
        raise AssertionError("a worker process was started")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)
    cache = make_cache()
    requests = unique_requests(parts.dataset.examples)
    first = prepare(parts, cache, num_workers=2, timeout_s=60.0)
    again = prepare(parts, cache, num_workers=2)  # all cached: no worker needed
    assert (first.written, again.present) == (len(requests), len(requests))


class Odd(VideoDecoder):
    """Decoder that hangs, raises or fails while decoding, depending on the file name."""

    @contextmanager
    def open(self, path):
        name = Path(path).stem
        if name == "hang":
            time.sleep(3600)
        if name == "odd":
            raise RuntimeError("an odd thing\nmore")
        with DecordDecoder(num_threads=1).open(path) as video:
            yield Garbled(video, path) if name == "garbled" else video


class Garbled:
    def __init__(self, video, path) -> None:
        self.info, self.path = video.info, path

    def frames(self, indices):
        raise VideoError(self.path, "is garbled inside")
        yield


def odd_loader(timeout_s=None) -> ClipLoader:
    return ClipLoader(sampling=SMALL_FRAMES, decoder=Odd(), timeout_s=timeout_s)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_failing_decoders_do_not_stop_or_block_other_clips(
    parts, make_cache, tmp_path, num_workers, monkeypatch
):
    monkeypatch.setattr("tvg.preparation.frames.FEW_CLIPS", 0)
    good = unique_requests(parts.dataset.examples)[:2]
    bad = [tmp_path / f"{name}.mp4" for name in ("hang", "odd")]
    for path in bad:
        shutil.copy(good[0].path, path)
    requests = [good[0], *map(ClipRequest, bad), good[1]]
    cache = make_cache(loader=odd_loader())
    prepared = prepare(parts, cache, requests, num_workers=num_workers, timeout_s=2.0)
    assert prepared.written == 2
    hang, odd = (prepared.failures[str(path)] for path in bad)
    assert "was not decoded within the time limit of 2 s" in hang
    assert "the decoder failed (RuntimeError: " in odd
    alone = prepare(parts, cache, [ClipRequest(bad[1])], num_workers=num_workers)
    assert alone.failures[str(bad[1])] == "the decoder failed (RuntimeError: an odd thing)"


def test_clips_that_failed_preparation_raise_video_error(parts, make_cache, tmp_path):
    good = unique_requests(parts.dataset.examples)[0].path
    garbled = Path(shutil.copy(good, tmp_path / "garbled.mp4"))
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    cache = make_cache(loader=odd_loader())
    with pytest.raises(ValueError, match="run tvg-prepare") as caught:
        cache.load(garbled)  # not tried yet
    assert not isinstance(caught.value, VideoError)
    with pytest.raises(VideoError, match="window"):
        cache.load(garbled, Segment(900.0, 990.0))
    with pytest.raises(VideoError, match="not a readable video"):
        cache.load(text)
    prepare(parts, cache, [ClipRequest(good), ClipRequest(garbled), ClipRequest(text)])
    for path, problem in ((garbled, "is garbled inside"), (text, "not a readable video")):
        with pytest.raises(VideoError, match=f"^{path}: .*{problem}"):
            make_cache(loader=odd_loader()).load(path)

    first = parts.dataset.examples[0]
    examples = [replace(first, video_path=path) for path in (text, garbled, good)]
    data = GroundingDataset(
        examples=examples, loader=cache, memory_cache=False, on_unreadable="replace"
    )
    assert data[0].example is examples[2]
    assert len(data[0].replaces) == 2

    note = cache.store.path(cache.key(garbled, None, None)).with_suffix(".failed.json")
    note.write_text("{")  # an incomplete note does not count
    with pytest.raises(ValueError, match="run tvg-prepare"):
        cache.load(garbled)
    cache.note_failure(garbled, None, None, "is garbled inside")
    mended = prepare(parts, make_cache(), [ClipRequest(garbled)])  # by a working decoder
    assert mended.written == 1
    assert not note.exists()
    cache.load(garbled)


def test_cached_features_equal_those_of_the_vision_encoder(parts, make_cache):
    cache = make_cache()
    prepared = prepare(parts, cache)
    assert (prepared.written, prepared.present, prepared.failures) == (6, 0, {})
    dataset = GroundingDataset(
        examples=parts.dataset.examples, loader=cache, memory_cache=False, on_unreadable="error"
    )
    kept = parts.collator([dataset[i] for i in range(4)])
    direct = parts.policy.encode_clips(parts.batch(4))
    assert kept.pixel_values_videos is None
    assert torch.equal(kept.video_features, direct.video_features.bfloat16())
    assert torch.equal(kept.input_ids, direct.input_ids)
    assert torch.equal(kept.sampled_fps, direct.sampled_fps)
    embeds = parts.policy.embed_prompts(kept)
    torch.testing.assert_close(embeds, parts.policy.embed_prompts(direct), atol=0.02, rtol=0.02)


def test_second_preparation_computes_nothing(parts, make_cache):
    first = prepare(parts, make_cache())
    files = {f: f.read_bytes() for f in make_cache().store.folder.glob("??/*")}
    again = prepare(parts, make_cache())
    assert (again.written, again.present) == (0, first.written)
    assert again.num_bytes == first.num_bytes == sum(map(len, files.values()))
    assert {f: f.read_bytes() for f in files} == files


def test_a_stopped_preparation_continues(parts, make_cache):
    whole = prepare(parts, make_cache())
    wanted = {f.name: f.read_bytes() for f in make_cache().store.folder.glob("??/*")}
    shutil.rmtree(make_cache().folder)
    prepare(parts, make_cache(), unique_requests(parts.dataset.examples)[:2])
    resumed = prepare(parts, make_cache())
    assert (resumed.present, resumed.written) == (2, whole.written - 2)
    assert {f.name: f.read_bytes() for f in make_cache().store.folder.glob("??/*")} == wanted


def test_damaged_entry_is_named_and_recomputed(parts, make_cache):
    cache = make_cache()
    prepare(parts, cache)
    path, window, lead_in = unique_requests(parts.dataset.examples)[0]
    entry = cache.store.path(cache.key(path, window, lead_in))
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ValueError, match=rf"{entry.name}.*tvg-prepare"):
        cache.load(path)
    assert prepare(parts, make_cache()).rebuilt == [str(entry)]
    assert entry.read_bytes() == whole


def test_features_depend_on_model_precision_and_processor(
    parts, make_cache, tiny_checkpoint, tmp_path
):
    prepare(parts, make_cache())
    path = unique_requests(parts.dataset.examples)[0].path
    make_cache().load(path)
    with pytest.raises(ValueError, match=r"no features of this clip .* bfloat16"):
        make_cache(dtype="bfloat16").load(path)

    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if "visual.blocks" in name)
    weights[name] = weights[name] + 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="run tvg-prepare"):
        make_cache(checkpoint=str(other)).load(path)

    third = shutil.copytree(tiny_checkpoint, tmp_path / "third")
    file = next(third.glob("*processor_config.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "changed": 1}))
    with pytest.raises(ValueError, match="run tvg-prepare"):
        make_cache(checkpoint=str(third)).load(path)


def test_bad_video_is_named_and_the_rest_is_prepared(parts, make_cache, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    good = unique_requests(parts.dataset.examples)[:2]
    prepared = prepare(parts, make_cache(), [good[0], ClipRequest(bad), good[1]])
    assert prepared.written == 2
    assert list(prepared.failures) == [str(bad)]


def test_size_estimate_is_a_tight_upper_bound(parts, make_cache):
    cache = make_cache()
    requests = unique_requests(parts.dataset.examples)
    infos = {request.path: cache.decoder.probe(request.path) for request in requests}
    config = parts.policy.model.config
    estimate = missing_feature_bytes(requests, infos, cache, config=config)
    written = prepare(parts, cache).num_bytes
    assert written <= estimate <= written + 1024 * len(requests)
    assert missing_feature_bytes(requests, infos, cache, config=config) == 0


def test_feature_cache_needs_a_checkpoint(make_cache):
    with pytest.raises(ValueError, match=r"model\.path"):
        make_cache(checkpoint=None)
