"""What every room's tests share: tiny models with random weights and real tokenizers, written to temporary folders.

`tiny_llama` and `tiny_gpt_neox` are folders made once a session: never write into them. `tiny_model` makes any family.
Tests are offline and have a cache of their own.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch, the hub client and TRL are imported: all read these once.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

pytest_plugins = ["training_fixtures"]

SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It's easy to tell the depth of a well.",
    "Translate to Pig Latin: the pig eats a banana on a string.",
    "ethay igpay eatsway away ananabay onway away ingstray.",
    "user assistant system You are a helpful assistant.",
)

# In the manner of SmolLM2: a default system prompt, and every turn ended by <|im_end|>.
CHATML_WITH_SYSTEM = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In the manner of Gemma: the template itself writes BOS, and the tokenizer would add another.
GEMMA_LIKE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)

# As SmolLM2 has them: padding is the end token itself.
SMOLLM2_SPECIALS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}

# Reason → pytest's message:category.
UPSTREAM_WARNINGS = {
    "PEFT 0.21 reads an attribute that transformers 5.24 has renamed": "`is_gradient_checkpointing` is:FutureWarning",
}

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}
SPARSE: dict[str, Any] = {**GROUPED, "hidden_size": 16, "intermediate_size": 32, "num_experts_per_tok": 2}
# What each family needs beside SMALL, under its own names.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gpt_neox": {**SMALL, "rotary_pct": 0.25},
    "gpt2": {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "mixtral": {**SPARSE, "num_local_experts": 4},
    "qwen3_moe": {**SPARSE, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 24},
    "olmoe": {**SPARSE, "num_experts": 4},
    "glm4_moe": {
        **SPARSE,
        "head_dim": 8,
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    },
    "minimax": {
        **SPARSE,
        "head_dim": 8,
        "num_local_experts": 4,
        "layer_types": ["full_attention", "linear_attention"],
        "block_size": 8,
    },
    "qwen2_moe": {
        **SPARSE,
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "granitemoe": {**SPARSE, "num_local_experts": 4},
    "gpt_oss": {
        **SPARSE,
        "head_dim": 8,
        "num_local_experts": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "falcon": {**SMALL, "new_decoder_architecture": False, "multi_query": True},
}


def make_tokenizer(specials: dict[str, str], template: str | None, adds_bos: bool, extra: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE trained on SENTENCES: 256 bytes, some 100 merges, and the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = [*dict.fromkeys([*specials.values(), *extra])]
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        bos = specials["bos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    more = {"additional_special_tokens": list(extra)} if extra else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=256, **specials, **more)
    tokenizer.chat_template = template
    return tokenizer


def make_model_folder(
    folder: Path,
    model_type: str,
    *,
    specials: dict[str, str] | None = None,
    template: str | None = CHATML_WITH_SYSTEM,
    adds_bos: bool = False,
    spare_rows: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **changed: Any,
) -> Path:
    """Write config, safetensors and tokenizer of a random model; `changed` goes into its config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    specials = specials or dict(SMOLLM2_SPECIALS)
    extra = ("<start_of_turn>", "<end_of_turn>") if template == GEMMA_LIKE else ()
    tokenizer = make_tokenizer(specials, template, adds_bos, extra)
    ids = {
        f"{kind}_token_id": tokenizer.convert_tokens_to_ids(specials.get(f"{kind}_token")) for kind in ("bos", "eos")
    }
    ids["pad_token_id"] = tokenizer.pad_token_id
    values = {**FAMILIES[model_type], "vocab_size": len(tokenizer) + spare_rows, **ids, **changed}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors; these are upstream's, raised inside upstream's own calls of one another."""
    # A job that was started in the background ignores SIGINT, and so do its children, which tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for reason, warning in UPSTREAM_WARNINGS.items():
        assert reason
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache folder of the tests' own. Gives the user's, for slow tests that need the built-in model."""
    before = os.environ.get("FITUNE_CACHE")
    os.environ["FITUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield before
    if before is None:
        del os.environ["FITUNE_CACHE"]
    else:
        os.environ["FITUNE_CACHE"] = before


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model(model_type, **options)` → folder of a random model; options are those of `make_model_folder`.

    `template` also takes "chatml", "gemma" or None. The same request gives the same folder: never write into it.
    """
    made: dict[str, Path] = {}
    templates = {"chatml": CHATML_WITH_SYSTEM, "gemma": GEMMA_LIKE}

    def make(model_type: str = "llama", **options: Any) -> Path:
        key = f"{model_type} {sorted(options.items(), key=lambda item: item[0])}"
        if key not in made:
            if options.get("template") in templates:
                options["template"] = templates[options["template"]]
            made[key] = make_model_folder(tmp_path_factory.mktemp(f"tiny-{model_type}"), model_type, **options)
        return made[key]

    return make


def write_gguf(model_folder: Path, path: Path) -> Path:
    """A GGUF file (fp32) of a tiny Llama folder, in llama.cpp's layout: its names, its order of q and k rows."""
    from gguf import GGUFWriter, TokenType
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    config, writer = model.config, GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    inner = json.loads((model_folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if at in special else TokenType.NORMAL for at in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
    }  # fmt: skip
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        for count in (count for part, count in heads.items() if part in name):
            # llama.cpp interleaves the two halves of each head that rotary embeddings pair.
            weight = weight.reshape(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` as a GGUF file, its tokenizer and template inside."""
    return write_gguf(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[..., Path]) -> Path:
    """Folder: Llama, ChatML with a default system prompt, pad token == end token, tied embeddings (as SmolLM2)."""
    return tiny_model("llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_gpt_neox(tiny_model: Callable[..., Path]) -> Path:
    """Folder: GPT-NeoX as Pythia is: no template, one special token, no pad token, untied head, spare rows."""
    end = "<|endoftext|>"
    specials = {"bos_token": end, "eos_token": end, "unk_token": end}
    return tiny_model("gpt_neox", specials=specials, template=None, spare_rows=20, tie_word_embeddings=False)
