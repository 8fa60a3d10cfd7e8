"""Log-mel features as Voxtral hears them, computed only where there is sound.

`WhisperFeatureExtractor` transforms the whole zero-padded window, 30 s for a clip of five. Frames that reach no sample
of the clip all hold the same value, so here they are filled in. What is left is the extractor's own arithmetic
(transformers, `models/whisper/feature_extraction_whisper.py`, `_torch_extract_fbank_features`) in the same order and
memory layout, because the result is equal to the last bit: a model hears in training what servers will give it.

The floor is the loudest value of the whole recording - 8, whatever the number of windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from voxtral_finetune.data.audio import Wave

QUIETEST = 1e-10
"""The power from which the logarithm is taken where there is none."""


def log_mel(extractor: Any, wave: Wave, window_samples: int) -> torch.Tensor:
    """Mono 16 kHz samples (n,) to float32 features (windows, mel bins, frames), the last window padded with silence.

    `window_samples` is a multiple of the extractor's hop (160). No samples give one window of silence. Equal to
    `extractor` called on the padded wave.
    """
    hop, size = extractor.hop_length, extractor.n_fft
    windows = max(1, -(-len(wave) // window_samples))
    frames = windows * window_samples // hop
    # Frame f is centred at f × hop and hears size / 2 samples to each side. So the wave below ends in as many zeros as
    # `stft` can mirror behind it, or where the padded wave ends too.
    sounding = min(frames, -(-(len(wave) + size // 2) // hop))
    power = _power(extractor, np.pad(wave, (0, sounding * hop - len(wave))))
    # The product has all columns, although most are zero: in which order BLAS adds up a column's numbers depends on how
    # many columns there are, on the processor and on the number of threads, and so does the last bit.
    padded = torch.nn.functional.pad(power, (0, frames - sounding))
    filters = torch.from_numpy(extractor.mel_filters).to(torch.float32)
    head = torch.clamp((filters.T @ padded)[0, :, :sounding], min=QUIETEST).log10()
    floor = head.max() - 8.0
    silence = torch.maximum(torch.tensor(QUIETEST).log10(), floor)
    mel = torch.full((len(head), frames), ((silence + 4.0) / 4.0).item())
    mel[:, :sounding] = (torch.maximum(head, floor) + 4.0) / 4.0
    return mel.reshape(len(mel), windows, -1).transpose(0, 1)


def _power(extractor: Any, wave: Wave) -> torch.Tensor:
    """The power at each frequency and in each frame, shape (1, n_fft / 2 + 1, frames)."""
    window = torch.hann_window(extractor.n_fft)
    batch = torch.from_numpy(wave[None])  # with a batch of one, as the extractor has it: it decides how `@` goes about
    spectrum = torch.stft(batch, extractor.n_fft, extractor.hop_length, window=window, return_complex=True)
    return (spectrum[..., :-1].abs() ** 2).contiguous()
