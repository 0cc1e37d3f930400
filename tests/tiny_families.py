"""A tiny random model of each family of transformers: sizes cut down wherever a config has them, the rest as published.

For benchmarks/families.py, which tries every family, and for the tests, which try those that are used most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# Families as `model_type` of a config names them: those that people fine-tune, and older ones that checkpoints are still of.
TRIED: tuple[str, ...] = (
    "llama", "mistral", "ministral", "ministral3", "mistral3", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe",
    "qwen3_next", "qwen3_5_text", "qwen3_5", "qwen3_5_moe", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe",
    "gemma", "gemma2", "gemma3_text", "gemma3", "gemma3n_text", "gemma3n", "gemma4_text", "gemma4", "phi", "phi3",
    "phimoe", "gpt_oss", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v", "deepseek_v2", "deepseek_v3",
    "granite", "granitemoe", "granitemoeshared", "granitemoehybrid", "smollm3", "smolvlm", "idefics3", "olmo",
    "olmo2", "olmo3", "olmoe", "olmo_hybrid", "flex_olmo", "mixtral", "minimax", "minimax_m2", "llama4_text",
    "llama4", "mllama", "llava", "llava_next", "internvl", "cohere", "cohere2", "aya_vision", "exaone4", "falcon",
    "falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron", "nemotron_h", "bamba", "jamba", "zamba2",
    "recurrent_gemma", "rwkv", "xlstm", "lfm2", "lfm2_moe", "lfm2_vl", "ernie4_5", "ernie4_5_moe",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "seed_oss", "apertus", "arcee", "helium", "bitnet", "bloom", "mpt", "opt",
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "codegen", "starcoder2", "stablelm", "persimmon",
    "biogpt", "doge", "dots1", "diffllama", "jetmoe", "minicpm3", "nanochat", "vaultgemma", "youtu", "kimi_linear",
    "afmoe", "longcat_flash",
)  # fmt: skip
# The most used of them.
USED: tuple[str, ...] = (
    "llama", "llama4_text", "mistral", "mistral3", "qwen2", "qwen3", "qwen3_moe", "qwen3_5", "gemma2", "gemma3",
    "gemma3n_text", "gemma4", "phi3", "gpt_oss", "glm4", "glm4_moe", "deepseek_v2", "deepseek_v3", "granite", "smollm3",
    "olmo2", "olmo3", "mixtral",
)  # fmt: skip
# Whose steps are packed as trees, by docs/families.md.
PACKED: tuple[str, ...] = (
    "llama", "mistral", "ministral", "ministral3", "mistral3", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe",
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "gemma", "gemma2", "gemma3_text", "gemma3",
    "gemma3n_text", "gemma4_text", "gemma4", "phi", "phi3", "phimoe", "glm", "glm4", "glm4_moe", "glm4_moe_lite",
    "glm4v", "deepseek_v2", "deepseek_v3", "granite", "granitemoe", "granitemoeshared", "smollm3", "smolvlm",
    "idefics3", "olmo", "olmo2", "olmo3", "olmoe", "flex_olmo", "mixtral", "minimax_m2", "mllama", "llava",
    "llava_next", "internvl", "cohere", "cohere2", "exaone4", "ernie4_5", "ernie4_5_moe", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "apertus", "arcee", "helium", "bitnet", "opt", "gpt_neox", "gptj", "codegen", "starcoder2",
    "persimmon", "dots1", "diffllama", "jetmoe", "minicpm3", "nanochat", "vaultgemma", "youtu", "afmoe",
    "longcat_flash",
)  # fmt: skip
# Those of the used whose experts LoRA lies over.
EXPERTS_ADAPTED = frozenset({"deepseek_v2", "deepseek_v3", "glm4_moe", "mixtral", "qwen3_moe"})
# What configs call their sizes. A name that a config lacks, or that is None there, stays away.
SIZES: dict[str, Any] = {
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "intermediate_size": 64, "n_inner": 64, "ffn_dim": 64,
    "ffn_hidden_size": 64, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "v_head_dim": 8, "kv_channels": 8, "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256,
    "max_seq_len": 256, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
    "intermediate_size_mlp": 64, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "moe_layer_start_index": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "word_embed_proj_dim": 32, "query_pre_attn_scalar": 8, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 400, "laurel_rank": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_head": 8,
    "mamba_head_dim": 8, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_headdim": 8, "mamba_n_groups": 1,
    "mamba_ngroups": 1, "n_groups": 1, "mamba_chunk_size": 16, "chunk_size": 16, "ssm_state_size": 8, "state_size": 8,
    "time_step_rank": 4, "mamba_dt_rank": 4, "lru_width": 32, "attention_window_size": 64, "sliding_window": 64,
    "attention_chunk_size": 128, "image_size": 28, "patch_size": 14, "depth": 2, "embed_dim": 32,
    "out_hidden_size": 32, "num_global_layers": 1, "vision_output_dim": 32, "projector_input_dim": 32,
    "projector_output_dim": 32, "pixel_shuffle_ratio": 1.0, "conv_hidden_size": 32, "mm_tokens_per_image": 4,
    "attention_hidden_size": 32, "block_multiple_of": 16, "conf_num_hidden_layers": 2, "conf_num_attention_heads": 4,
    "sscp_conv_channel_size": (8, 4), "num_kv_shared_layers": 0, "index_n_heads": 2, "index_head_dim": 8,
    "index_topk": 8, "global_head_dim": 8, "num_global_key_value_heads": 2, "activation_sparsity_pattern": 0.0,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "rotary_dim": 4, "conv_dim": 32, "max_seqlen": 256, "num_memory_blocks": 1, "num_mem_heads": 4,
    "vision_feature_layer": -1, "expert_ffn_hidden_size": 32, "zero_expert_num": 0, "num_nextn_predict_layers": 0,
    "n_mamba_heads": 2, "mamba_expand": 2, "dim_model_base": 32,
}  # fmt: skip
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
# What a family needs beside, by its own names; a dict goes into the sub-config of that name.
NEEDS: dict[str, dict[str, Any]] = {
    "gemma4": {"vision_config": {"model_type": "gemma4_vision"}},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 64},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron": {"num_key_value_heads": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "qwen2_vl": {"text_config": {"rope_parameters": SECTIONS}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": SECTIONS}},
    "glm4v": {"text_config": {"rope_parameters": {**SECTIONS, "partial_rotary_factor": 1.0}}},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm2_vl": {"text_config": {"layer_types": ["conv", "full_attention"]}},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "mamba2": {"num_heads": 8},
    "deepseek_v2": {"head_dim": 4, "num_key_value_heads": 4, "num_experts_per_tok": 2},
    "kimi_linear": {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_token": 2},
    "xlstm": {"hidden_size": 128, "num_heads": 2},
    "zamba2": {"n_mamba_heads": 8, "num_key_value_heads": 4, "attention_head_dim": 16, "attention_hidden_size": 64},
    **{
        name: {"head_dim": 4, "num_key_value_heads": 4}
        for name in ("deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "longcat_flash")
    },
}


def tiny_config(model_type: str, vocabulary: int, ids: dict[str, int], **changed: Any) -> Any:
    """A small config of the family, its vocabulary and special tokens those of the tests' tokenizer."""
    from transformers import CONFIG_MAPPING

    return _small(CONFIG_MAPPING[model_type], vocabulary, ids, {**NEEDS.get(model_type, {}), **changed})


def _small(kind: Any, vocabulary: int, ids: dict[str, int], changed: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    whole = kind()
    published = whole.to_dict()
    values = {name: value for name, value in SIZES.items() if published.get(name) is not None}
    for name, value in list(values.items()):  # one value a layer
        if isinstance(published[name], list | tuple) and not isinstance(value, tuple):
            values[name] = [value] * SIZES["num_hidden_layers"]
    for name in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types"):
        if published.get(name) and not isinstance(getattr(kind, name, None), property):
            kinds = list(dict.fromkeys(published[name]))
            values[name] = (kinds * 2)[: max(len(kinds), 2)]
            for count in ("num_hidden_layers", "n_layer"):
                if count in values:
                    values[count] = max(values[count], len(values[name]))
    if "vocab_size" in published:
        values["vocab_size"] = vocabulary
    values |= {name: value for name, value in ids.items() if name in published}
    if "num_hidden_layers" in values:
        for name in ("layer_types", "mlp_layer_types"):
            if name in values:
                values[name] = (values[name] * 4)[: values["num_hidden_layers"]]
    for name in getattr(kind, "sub_configs", None) or {}:
        own = getattr(whole, name, None)
        if own is None and "model_type" in changed.get(name, {}):
            own = CONFIG_MAPPING[changed[name]["model_type"]]()
        if own is not None:
            values[name] = _small(type(own), vocabulary, ids, changed.get(name, {})).to_dict()
    subs = getattr(kind, "sub_configs", None) or {}
    return kind(**{**values, **{name: value for name, value in changed.items() if name not in subs}})


def make_family(folder: Path, model_type: str, seed: int = 0, **changed: Any) -> Path:
    """Write a tiny random checkpoint of the family: the whole model where it has a vision tower beside the text model."""
    from conftest import CHATML_WITH_SYSTEM, SMOLLM2_SPECIALS, make_tokenizer

    tokenizer = make_tokenizer(dict(SMOLLM2_SPECIALS), CHATML_WITH_SYSTEM, adds_bos=False)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = tiny_config(model_type, len(tokenizer) + 4, ids, **changed)
    torch.manual_seed(seed)
    model = class_of(config).from_config(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def class_of(config: Any) -> Any:
    """The auto class of the published checkpoint: with its towers where it has any."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    whole = AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if type(config) in whole else AutoModelForCausalLM
