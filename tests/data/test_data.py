"""The data sets: real content, a split that does not move, and files mapped instead of read."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cadence.data import Data, TensorData
from cadence.data.arrays import arrays
from cadence.data.digits import digits
from cadence.data.pydocs import pydocs
from cadence.data.split import held_out
from cadence.data.synthetic import synthetic
from cadence.data.text import text


def tensors(data: Data) -> tuple[TensorData, TensorData]:
    assert isinstance(data.train, TensorData)
    assert isinstance(data.validation, TensorData)
    return data.train, data.validation


def whole(data: TensorData) -> tuple[torch.Tensor, ...]:
    return data.gathered(torch.arange(len(data)))


def test_digits_are_scaled_images_split_by_class() -> None:
    train, held_out = tensors(digits())
    images, classes = whole(train)
    _, held_out_classes = whole(held_out)

    assert (len(train), len(held_out)) == (1437, 360)
    assert images.shape == (1437, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    shares = torch.bincount(held_out_classes) / (
        torch.bincount(held_out_classes) + torch.bincount(classes)
    )
    assert shares == pytest.approx([0.2] * 10, abs=0.005)


def test_the_split_depends_on_its_own_seed_alone() -> None:
    first, _ = tensors(digits(split_seed=1))
    torch.manual_seed(7)
    again, _ = tensors(digits(split_seed=1))
    other, _ = tensors(digits(split_seed=2))

    assert torch.equal(first.tensors[0], again.tensors[0])
    assert not torch.equal(first.tensors[0], other.tensors[0])


def test_pydocs_are_the_reference_in_bytes_with_the_tail_held_out() -> None:
    train, held_out = tensors(pydocs(context=64, validation_share=0.25))
    raw = "\n".join(topics[name] for name in sorted(topics)).encode()
    inputs, targets = whole(train)
    held_out_inputs, _ = whole(held_out)

    assert bytes(inputs[0].tolist()) == raw[:64]
    assert bytes(targets[0].tolist()) == raw[1:65]
    cut = len(raw) - len(raw) // 4
    assert bytes(held_out_inputs[0].tolist()) == raw[cut : cut + 64]


def test_blocks_of_text_make_each_token_but_the_first_a_target_once(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(bytes(range(100)))

    train, _ = tensors(text(str(file), context=10, validation_share=0.2))
    inputs, targets = whole(train)

    assert targets.flatten().tolist() == list(range(1, 71))
    assert inputs.flatten().tolist() == list(range(70))


def test_text_too_short_for_a_sample_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("too short")

    with pytest.raises(ValueError, match=r"9 bytes are too few for a sample of 129 in each of"):
        text(str(file))


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1, math.nan])
@pytest.mark.parametrize("name", ["digits", "synthetic", "pydocs", "text", "arrays"])
def test_a_share_that_holds_out_nothing_or_all_is_refused(
    tmp_path: Path, name: str, share: float
) -> None:
    file, npz = tmp_path / "a.txt", tmp_path / "a.npz"
    file.write_bytes(bytes(1000))
    np.savez(npz, inputs=np.ones((4, 2)), targets=np.zeros(4, np.int64))
    data: dict[str, Callable[..., Data]] = {
        "digits": digits,
        "synthetic": partial(synthetic, samples=2, shape=(3,)),
        "pydocs": pydocs,
        "text": partial(text, str(file)),
        "arrays": partial(arrays, str(npz)),
    }
    message = (
        f"data.validation_share={share}: the share held out must be above 0 and below 1; try "
        "data.validation_share=0.1"
    )

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        data[name](validation_share=share)


@given(st.integers(2, 2**53), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_share_leaves_samples_on_both_sides(samples: int, share: float) -> None:
    assert 1 <= held_out(samples, share) < samples


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_digits_that_leave_one_side_without_a_class_are_refused(share: float) -> None:
    message = (
        f"data.validation_share={share}: of 1,797 digits each class needs one to train on and one "
        "to hold out; try data.validation_share=0.2"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        digits(validation_share=share)


def test_a_single_synthetic_sample_is_refused() -> None:
    message = "data.samples=1: one to train on and one to hold out are needed; try data.samples="
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        synthetic(samples=1)


def test_synthetic_classes_can_be_told_apart_without_noise() -> None:
    train, _ = tensors(synthetic(samples=50, shape=(3,), classes=4, noise=0.0))
    inputs, targets = whole(train)

    for label in range(4):
        of_class = inputs[targets == label]
        assert torch.equal(of_class, of_class[:1].expand_as(of_class))


@pytest.mark.parametrize("layout", ["npz", "compressed npz", "folder"])
def test_arrays_come_back_as_they_were_saved(tmp_path: Path, layout: str) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 5)), generator.integers(0, 3, 40)
    path = tmp_path
    if layout == "folder":
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", y)
    else:
        path = tmp_path / "data.npz"
        (np.savez if layout == "npz" else np.savez_compressed)(path, x=x, y=y)

    data = arrays(str(path), validation_share=0.25)
    train, held_out = tensors(data)

    assert (len(train), len(held_out)) == (30, 10)
    assert (data.input_shape, data.outputs) == ((5,), 3)
    rows = torch.cat([whole(train)[0], whole(held_out)[0]])
    order = rows[:, 0].argsort()
    assert torch.equal(rows[order], torch.from_numpy(x[x[:, 0].argsort()]).float())
    assert whole(train)[1].dtype == torch.int64


def test_an_uncompressed_npz_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, inputs=np.ones((8, 2), np.float32), targets=np.zeros(8, np.int64))

    train, _ = tensors(arrays(str(path)))
    before = path.read_bytes()
    train.tensors[0][:] = 5  # copy-on-write: the file does not change

    assert str(path) in Path("/proc/self/maps").read_text()
    assert path.read_bytes() == before


def test_bytes_become_numbers_between_0_and_1_and_fractions_become_targets_to_regress(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.npz"
    images = np.full((10, 2, 2), 255, np.uint8)
    np.savez(path, images=images, labels=np.linspace(0, 1, 10))

    data = arrays(str(path))
    inputs, targets = whole(tensors(data)[0])

    assert (inputs == 1).all()
    assert data.outputs == 1
    assert targets.dtype == torch.float32


@settings(max_examples=300)
@given(data=st.data(), compressed=st.booleans())
def test_an_archive_with_any_byte_damaged_is_refused_by_name_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, compressed: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.npz"
    save = np.savez_compressed if compressed else np.savez
    save(file, inputs=np.ones((600, 3), np.float32), targets=np.arange(600) % 2)
    whole = bytearray(file.read_bytes())
    is_header = [at for at, _ in enumerate(whole) if at < 260 or 7300 < at < 7700]
    at = data.draw(st.sampled_from(is_header) | st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)

    said = f"data.path={file}: "
    try:
        arrays(str(file))
    except ValueError as error:
        said = str(error)

    assert said.startswith(f"data.path={file}: ")
