"""Speech: recognition from spectrograms and classification of waveforms."""

from __future__ import annotations

import torch

from benchmarks.zoo.entry import Batch, tokens, transformer

_WAVEFORM = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
    "classifier_proj_size": 16,
}


def _spectrogram() -> Batch:
    return {"input_features": torch.randn(2, 16, 32), "labels": tokens()}


def _waveform() -> Batch:
    return {"input_values": torch.randn(2, 256), "labels": torch.tensor([0, 1])}


ENTRIES = (
    transformer(
        "whisper",
        "speech",
        "WhisperForConditionalGeneration",
        {
            "vocab_size": 48,
            "num_mel_bins": 16,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        _spectrogram,
    ),
    transformer("wav2vec2", "speech", "Wav2Vec2ForSequenceClassification", _WAVEFORM, _waveform),
)
