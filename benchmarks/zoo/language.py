"""Language models: encoders, decoders, mixtures of experts, state spaces, encoder-decoders."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.entry import Batch, Entry, tokens, transformer

_VOCABULARY = 48
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENCODER = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    **_SPECIAL,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "head_dim": 16}
_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32}


def _labelled() -> Batch:
    ids = tokens(_VOCABULARY)
    return {"input_ids": ids, "labels": ids.clone()}


def _short() -> Batch:
    """For a model whose scan is a loop in Python."""
    ids = tokens(_VOCABULARY, length=8, batch=4)
    return {"input_ids": ids, "labels": ids.clone()}


def _encoder(name: str, kind: str, note: str = "", **config: Any) -> Entry:
    return transformer(name, "encoder", kind, {**_ENCODER, **config}, _labelled, note)


def _decoder(name: str, kind: str, note: str = "", **config: Any) -> Entry:
    return transformer(name, "decoder", kind, {**_DECODER, **config}, _labelled, note)


def _mixture(
    name: str,
    kind: str,
    experts: str,
    note: str,
    eager_only: tuple[str, ...] = (),
    **config: Any,
) -> Entry:
    config = {**_DECODER, "num_experts_per_tok": 1, **config}
    config = {key: value for key, value in config.items() if value is not None}
    family, text = "mixture of experts", f"`experts_implementation` `{experts}`: {note}"
    return transformer(name, family, kind, config, _labelled, text, eager_only, experts)


ENTRIES = (
    _encoder("bert", "BertForMaskedLM"),
    _encoder("roberta", "RobertaForMaskedLM"),
    _encoder(
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        pooler_hidden_size=32,
    ),
    _encoder(
        "albert",
        "AlbertForMaskedLM",
        num_hidden_layers=2,
        embedding_size=16,
        note="two layers share their weights",
    ),
    _encoder("modernbert", "ModernBertForMaskedLM", cls_token_id=3),
    transformer(
        "gpt2",
        "decoder",
        "GPT2LMHeadModel",
        {"vocab_size": _VOCABULARY, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32},
        _labelled,
        "its layers are `Conv1D`: linear layers with a transposed weight",
    ),
    _decoder("llama", "LlamaForCausalLM"),
    _decoder("mistral", "MistralForCausalLM", sliding_window=8),
    _decoder("qwen3", "Qwen3ForCausalLM"),
    _decoder(
        "gemma3",
        "Gemma3ForCausalLM",
        sliding_window=8,
        layer_types=["sliding_attention"],
    ),
    _decoder("phi", "PhiForCausalLM", num_key_value_heads=2, partial_rotary_factor=0.5),
    transformer(
        "opt",
        "decoder",
        "OPTForCausalLM",
        {**_ENCODER, "ffn_dim": 64, "word_embed_proj_dim": 32},
        _labelled,
    ),
    transformer(
        "bloom",
        "decoder",
        "BloomForCausalLM",
        {"vocab_size": _VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 2},
        _labelled,
    ),
    _decoder("gpt-neox", "GPTNeoXForCausalLM", is_decoder=True),
    _mixture(
        "mixtral",
        "MixtralForCausalLM",
        "eager",
        "Dynamo cannot trace a loop over the experts that have tokens and leaves it to eager mode, "
        "where nothing is pruned; `explain` counts it as such",
        eager_only=("model.layers.0.mlp.experts",),
        num_local_experts=2,
    ),
    _mixture(
        "qwen3-moe",
        "Qwen3MoeForCausalLM",
        "grouped_mm",
        "the default; blocks of the weight gradient start anew with every expert",
        **_EXPERTS,
    ),
    _mixture(
        "olmoe",
        "OlmoeForCausalLM",
        "batched_mm",
        "each token multiplies the weights that it selects; the weight gradient of one token has "
        "no block",
        **_EXPERTS,
    ),
    _mixture(
        "gpt-oss",
        "GptOssForCausalLM",
        "grouped_mm",
        "experts with biases, stored transposed",
        num_local_experts=4,
        intermediate_size=32,
        layer_types=["full_attention"],
    ),
    _mixture(
        "deepseek-v3",
        "DeepseekV3ForCausalLM",
        "grouped_mm",
        "latent attention, and a shared expert beside the routed ones",
        head_dim=None,
        num_key_value_heads=2,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=0,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
    ),
    _mixture(
        "granite-moe",
        "GraniteMoeForCausalLM",
        "grouped_mm",
        "residuals and router scaled by numbers of the configuration",
        head_dim=None,
        num_local_experts=4,
    ),
    transformer(
        "qwen3-next",
        "state space",
        "Qwen3NextForCausalLM",
        {
            **_DECODER,
            "num_hidden_layers": 2,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [],
            "shared_expert_intermediate_size": 32,
            "use_cache": False,
            "layer_types": ["linear_attention", "full_attention"],
        },
        _labelled,
        "gated delta nets: the products of a chunk have no weight, and a gradient goes through a "
        "triangular solver, which is no product",
    ),
    transformer(
        "mamba",
        "state space",
        "MambaForCausalLM",
        {**_SPECIAL, "vocab_size": _VOCABULARY, "hidden_size": 16, "state_size": 4,
         "num_hidden_layers": 1, "time_step_rank": 4},
        _short,
        "the scan's outer products (a reduction over one element) become multiplications",
    ),
    transformer(
        "mamba2",
        "state space",
        "Mamba2ForCausalLM",
        {**_SPECIAL, "vocab_size": _VOCABULARY, "hidden_size": 32, "state_size": 8,
         "num_hidden_layers": 1, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        _labelled,
    ),
    transformer(
        "recurrent-gemma",
        "state space",
        "RecurrentGemmaForCausalLM",
        {**_DECODER, "num_hidden_layers": 2, "lru_width": 32, "attention_window_size": 8,
         "block_types": ("recurrent", "attention")},
        _short,
    ),
    transformer(
        "t5",
        "encoder-decoder",
        "T5ForConditionalGeneration",
        {"vocab_size": _VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1,
         "num_heads": 2, "decoder_start_token_id": 0},
        _labelled,
    ),
    transformer(
        "bart",
        "encoder-decoder",
        "BartForConditionalGeneration",
        {**_SPECIAL, "vocab_size": _VOCABULARY, "d_model": 32, "encoder_layers": 1,
         "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
         "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32,
         "decoder_start_token_id": 2, "forced_eos_token_id": None},
        _labelled,
    ),
)  # fmt: skip
