"""Pixels are kept in 8 bits, and restored to the floats of the processor, bit for bit."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from runyard.trainer.data.pixels import (
    CHUNK,
    PackedArray,
    PackedColumn,
    PixelCodec,
    concatenate_padded,
    join_packed,
)
from tests.trainer import miniatures

FAMILIES = (
    "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "llava", "llava_next",
    "llava_onevision", "gemma3", "gemma4", "paligemma", "florence2",
)  # fmt: skip


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def process(image_processor: Any, image: Image.Image) -> dict[str, Any]:
    output = image_processor(images=[[image]], return_tensors="np")
    return {name: np.asarray(value) for name, value in output.items()}


def assert_restored(packed: PackedArray, tables: Any, array: Any) -> None:
    restored = packed.restore(tables)
    assert (restored.dtype, restored.shape) == (array.dtype, array.shape)
    assert restored.tobytes() == array.tobytes()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_keeps_one_byte_per_pixel_and_channel(model_type: str) -> None:
    image_processor = miniatures.make(model_type)[1].image_processor
    codec = PixelCodec(image_processor)
    for size in ((24, 16), (40, 40), (90, 31)):
        for name, array in process(image_processor, make_image(*size)).items():
            packed = codec.pack(array)
            assert_restored(packed, codec.tables, array)
            if name == "pixel_values":
                assert packed.data.dtype == np.uint8
                assert packed.size_bytes == array.size


@pytest.fixture(scope="module")
def qwen() -> Any:
    import transformers

    return transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": 512 * 512}
    )


def test_repeated_frames_are_kept_once(qwen: Any) -> None:
    codec, array = PixelCodec(qwen), process(qwen, make_image(300, 200))["pixel_values"]
    packed = codec.pack(array)
    assert packed.repeats == 2
    assert packed.size_bytes == array.size // 2
    assert_restored(packed, codec.tables, array)


def test_frames_that_differ_are_all_kept(qwen: Any) -> None:
    codec, array = PixelCodec(qwen), process(qwen, make_image(60, 60))["pixel_values"]
    array[3, 200] = array[3, 201]
    packed = codec.pack(array)
    assert (packed.repeats, packed.size_bytes) == (1, array.size)
    assert_restored(packed, codec.tables, array)


@pytest.mark.parametrize("changed", [0.1234, -0.0, np.nan, np.inf, 1e30])
def test_floats_that_no_pixel_has_are_kept_as_they_are(qwen: Any, changed: float) -> None:
    codec, array = PixelCodec(qwen), process(qwen, make_image(60, 60))["pixel_values"]
    array[-1, [-1, 195]] = changed
    packed = codec.pack(array)
    assert packed.block == 0
    assert_restored(packed, codec.tables, array)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((1, 2, 30, 40), np.int64),
        np.arange(-3, 300).reshape(1, -1),
        np.asarray([[1, 1 << 40]]),
        np.asarray([True, False]),
        np.zeros((0, 3), np.int64),
        np.zeros((0, 3), np.float32),
        np.random.default_rng(0).normal(size=(2, 3)),
    ],
)
def test_other_arrays_are_restored_from_fewer_bytes(qwen: Any, array: Any) -> None:
    codec = PixelCodec(qwen)
    packed = codec.pack(array)
    assert packed.size_bytes <= array.nbytes
    assert_restored(packed, codec.tables, array)


def test_an_unknown_processor_keeps_floats() -> None:
    array = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    for image_processor in (None, object()):
        codec = PixelCodec(image_processor)
        assert len(codec.tables) == 0
        assert_restored(codec.pack(array), codec.tables, array)


@pytest.mark.parametrize("sizes", [[(40, 40)], [(40, 40), (40, 40)], [(300, 200), (200, 300)]])
@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl"])
def test_a_batch_is_the_arrays_concatenated(
    model_type: str, sizes: list[tuple[int, int]], qwen: Any
) -> None:
    is_qwen = model_type == "qwen2_5_vl"
    image_processor = qwen if is_qwen else miniatures.make(model_type)[1].image_processor
    codec = PixelCodec(image_processor)
    arrays = [
        process(image_processor, make_image(*size, seed))["pixel_values"]
        for seed, size in enumerate(sizes)
    ]
    packed = [codec.pack(array) for array in arrays]
    expected = concatenate_padded(arrays)
    for joined in (
        join_packed(packed, codec.tables),
        PackedColumn(packed, codec.tables).join(range(len(packed))),
    ):
        assert joined.flags.writeable
        assert joined.tobytes() == expected.tobytes()
    if is_qwen and len(sizes) == 2 and sizes[0] != (40, 40):
        assert packed[0].data.size > CHUNK
