"""Probe pictures."""

from pathlib import Path

import numpy as np
import pytest

from training import probe
from training.errors import ArtifactError
from training.probe import Probe


def test_probe_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Probe(np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4), np.eye(2, 5, dtype=np.float32))
    probe.write(tmp_path / probe.PROBE, written)
    found = probe.read(tmp_path / probe.PROBE)
    assert found.pictures.dtype == np.uint8
    assert np.array_equal(found.pictures, written.pictures)
    assert np.array_equal(found.probabilities, written.probabilities)


@pytest.mark.parametrize("available", [1, 100, 128, 5000])
def test_pictures_are_chosen_once_and_alike_each_time(available: int) -> None:
    chosen = probe.choose(available).tolist()
    assert len(chosen) == min(available, probe.PICTURES)
    assert len(set(chosen) & set(range(available))) == len(chosen)
    assert chosen == probe.choose(available).tolist()


def test_damaged_probe_is_refused(tmp_path: Path) -> None:
    (tmp_path / probe.PROBE).write_bytes(b"no probe")
    with pytest.raises(ArtifactError, match="is not a probe"):
        probe.read(tmp_path / probe.PROBE)
