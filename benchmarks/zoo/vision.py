"""Vision: transformers, convolutional networks, contrastive pairs and diffusion U-Nets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.entry import PROBLEM, Batch, Entry, tokens, transformer

_VIT = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def _images(size: int, batch: int = 4) -> Batch:
    return {
        "pixel_values": torch.randn(batch, 3, size, size),
        "labels": torch.arange(batch) % 2,
    }


def _classifier(name: str, family: str, kind: str, size: int, **config: Any) -> Entry:
    return transformer(name, family, kind, {**config, **PROBLEM}, lambda: _images(size))


def _captioned() -> Batch:
    images = {"pixel_values": torch.randn(4, 3, 16, 16)}
    return {**images, "input_ids": tokens(batch=4), "return_loss": True}  # type: ignore[dict-item]


def _noise_loss(model: nn.Module, batch: Batch) -> Tensor:
    """How well the U-Net predicts the noise, as in training a diffusion model."""
    noise = batch["noise"]
    inputs = {k: v for k, v in batch.items() if k != "noise"}
    return nn.functional.mse_loss(model(**inputs).sample, noise)


def _unet() -> tuple[nn.Module, Batch]:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    sample, noise = torch.randn(2, 2, 4, 8, 8)
    return model, {
        "sample": sample + noise,
        "timestep": torch.tensor([3, 40]),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "noise": noise,
    }


ENTRIES = (
    _classifier("vit", "vision transformer", "ViTForImageClassification", 16, **_VIT),
    _classifier(
        "swin",
        "vision transformer",
        "SwinForImageClassification",
        16,
        image_size=16,
        patch_size=2,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    _classifier("dinov2", "vision transformer", "Dinov2ForImageClassification", 16, **_VIT),
    transformer(
        "clip",
        "vision transformer",
        "CLIPModel",
        {
            "vision_config": _VIT,
            "text_config": {
                "vocab_size": 48,
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 16,
                "eos_token_id": 47,
            },
            "projection_dim": 16,
        },
        _captioned,
        "the similarities of images and texts are products of the model itself, without a path",
    ),
    _classifier(
        "resnet",
        "convolutional",
        "ResNetForImageClassification",
        16,
        embedding_size=16,
        hidden_sizes=[32],
        depths=[1],
    ),
    _classifier(
        "convnext",
        "convolutional",
        "ConvNextForImageClassification",
        16,
        hidden_sizes=[16],
        depths=[1],
        num_stages=1,
        patch_size=4,
        layer_scale_init_value=1.0,
    ),
    _classifier(
        "regnet",
        "convolutional",
        "RegNetForImageClassification",
        16,
        embedding_size=16,
        hidden_sizes=[32],
        depths=[1],
        groups_width=8,
    ),
    Entry("unet", "diffusion", _unet, _noise_loss, "`diffusers.UNet2DConditionModel`"),
)
