"""An upload folder of the test's own, with a way to put files there as a browser would."""

import numpy as np
import pytest

from voxtral_finetune.data import audio


@pytest.fixture
def upload(tmp_path, monkeypatch):
    """Writes a file into Gradio's upload folder: speech of some seconds, or the bytes given. Returns its path."""
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))

    def put(name="take.wav", seconds=1.0, content=None, seed=0):
        path = folder / str(len(list(folder.glob("*")))) / name
        path.parent.mkdir(parents=True)
        if content is not None:
            path.write_bytes(content)
        else:
            noise = np.random.default_rng(seed).standard_normal(int(16_000 * seconds)) * 0.1
            audio.write(path, noise.astype(np.float32), 16_000)
        return path

    return put
