"""MNIST comes from a folder or from OpenML, or else an error names both ways; Omniglot comes from a folder."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from hypergrad_studies import data
from hypergrad_studies.cli import main


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    for load in (data.mnist, data.omniglot):
        load.cache_clear()
    yield
    for load in (data.mnist, data.omniglot):
        load.cache_clear()


def unreachable(*_: Any, **__: Any) -> Any:
    raise URLError("no network")


def test_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    labels = np.array([3, 7], np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images[1:], y_test=labels[1:])
    monkeypatch.setenv("HYPERGRAD_DATA", str(tmp_path))
    monkeypatch.setattr(data, "fetch_openml", unreachable)
    (train, train_labels), (test, test_labels) = data.mnist()
    np.testing.assert_array_equal(train, images.reshape(2, 784).astype(np.float32) / 255)
    np.testing.assert_array_equal(test, train[1:])
    assert (train.dtype, train_labels.dtype) == (np.float32, np.int32)
    assert (train_labels.tolist(), test_labels.tolist()) == ([3, 7], [7])


@pytest.mark.parametrize("folder", [None, "empty"])
def test_from_openml(folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if folder is None:
        monkeypatch.delenv("HYPERGRAD_DATA", raising=False)
    else:
        monkeypatch.setenv("HYPERGRAD_DATA", str(tmp_path))

    def fetch(name: str, *, version: int, return_X_y: bool, as_frame: bool) -> Any:
        assert (name, version, return_X_y, as_frame) == ("mnist_784", 1, True, False)
        images = np.repeat(np.arange(5.0)[:, None], 784, axis=1)
        return images, np.array(["0", "1", "2", "3", "4"], object)  # labels are strings there

    monkeypatch.setattr(data, "MNIST_TRAIN", 3)
    monkeypatch.setattr(data, "fetch_openml", fetch)
    (train, train_labels), (test, test_labels) = data.mnist()
    assert (train.shape, test.shape) == ((3, 784), (2, 784))
    assert test[1, 0] == np.float32(4) / 255
    assert (train.dtype, train_labels.dtype) == (np.float32, np.int32)
    assert (train_labels.tolist(), test_labels.tolist()) == ([0, 1, 2], [3, 4])


def test_missing_data_is_one_line_that_says_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYPERGRAD_DATA", str(tmp_path))
    monkeypatch.setattr(data, "fetch_openml", unreachable)
    monkeypatch.setattr(
        sys, "argv", ["hypergrad", "reproduce", "chaos", "--scale", "paper", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit):
        main()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "set HYPERGRAD_DATA to a folder that holds mnist.npz" in message
    assert "connect to a network" in message


def test_omniglot_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ink = np.random.default_rng(0).integers(0, 2, (3, 784), dtype=np.uint8)
    numbers = np.array([0, 1, 1], np.uint8)
    np.savez(
        tmp_path / "omniglot_28.npz",
        images=np.packbits(ink, axis=1),
        alphabet=numbers,
        character=numbers + 1,
        drawer=numbers + 2,
        alphabets=np.array(["Angelic", "Braille"]),
    )
    monkeypatch.setenv("HYPERGRAD_DATA", str(tmp_path))
    found = data.omniglot()
    np.testing.assert_array_equal(found.images, ink.reshape(3, 28, 28).astype(np.float32))
    assert found.names == ["Angelic", "Braille"]
    assert (found.alphabet.tolist(), found.character.tolist(), found.drawer.tolist()) == (
        [0, 1, 1],
        [1, 2, 2],
        [2, 3, 3],
    )


@pytest.mark.parametrize("folder", [None, "empty"])
def test_missing_omniglot_is_one_line_that_says_what_to_do(
    folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder is None:
        monkeypatch.delenv("HYPERGRAD_DATA", raising=False)
    else:
        monkeypatch.setenv("HYPERGRAD_DATA", str(tmp_path))
    with pytest.raises(data.MissingData, match=r"set HYPERGRAD_DATA to a folder that holds omniglot_28\.npz"):
        data.omniglot()
