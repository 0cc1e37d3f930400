"""The fast LoRA layer: PEFT's own layer is the reference."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fitune.ops.fused_lora import FastLinear, use_fast_lora

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
BASES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2 with biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
}


def adapted(base, fast, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = BASES[base]().to(dtype)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, **options)
    if fast:
        assert use_fast_lora(config, model)
    torch.manual_seed(1)
    return get_peft_model(model, config)


def step(model, autocast=False):
    torch.manual_seed(2)
    ids = torch.randint(0, 64, (3, 7))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("base", BASES)
def test_loss_and_gradients_equal_pefts(base):
    plain, fast = adapted(base, False), adapted(base, True)
    fast.load_state_dict(plain.state_dict())
    assert sum(type(module) is FastLinear for module in fast.modules()) == 14
    (loss, grads), (fast_loss, fast_grads) = step(plain), step(fast)
    assert torch.allclose(loss, fast_loss, rtol=0, atol=1e-6)
    assert grads.keys() == fast_grads.keys() and len(grads) == 28
    for name, grad in grads.items():
        assert (fast_grads[name] - grad).norm() <= 1e-5 * grad.norm(), name


def test_a_model_may_change_the_result_in_place():
    torch.manual_seed(0)
    plain, fast = (get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 6)), config) for config in two_configs())
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8)
    for model in (plain, fast):
        result = model(x)
        result *= 3
        result.square().sum().backward()
    grads, ours = ({name: value.grad for name, value in model.named_parameters()} for model in (plain, fast))
    assert all(torch.allclose(grads[name], ours[name], atol=1e-5) for name in grads if grads[name] is not None)


def two_configs():
    """PEFT's own LoRA, and fitune's."""
    made = [LoraConfig(r=2, target_modules=["0"], init_lora_weights=False) for _ in range(2)]
    assert use_fast_lora(made[1], torch.nn.Sequential(torch.nn.Linear(8, 6)))
    return made


def test_under_autocast_it_is_at_least_as_near_to_fp32_as_peft():
    exact, plain, fast = adapted("llama", False), adapted("llama", False), adapted("llama", True)
    for model in (plain, fast):
        model.load_state_dict(exact.state_dict())
        model.get_base_model().to(torch.bfloat16)
        for value in model.parameters():
            value.data = value.data.float() if value.requires_grad else value.data
    wanted = step(exact)[1]

    def distance(grads):
        return sum(float((grads[name] - value).norm() ** 2) for name, value in wanted.items()) ** 0.5

    ours, theirs = distance(step(fast, autocast=True)[1]), distance(step(plain, autocast=True)[1])
    assert ours <= 1.2 * theirs


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"use_dora": True, "lora_dropout": 0.5}]
)
def test_what_is_not_plain_is_left_to_peft(options, monkeypatch):
    model = adapted("llama", True, **options)
    calls = []
    original = Linear.forward
    monkeypatch.setattr(
        Linear, "forward", lambda self, *args, **kwargs: calls.append(1) or original(self, *args, **kwargs)
    )
    model.train()
    step(model)
    assert len(calls) == 14


def test_disabled_merged_and_saved_as_pefts(tmp_path):
    model = adapted("llama", True).eval()
    ids = torch.arange(7)[None]
    with torch.no_grad():
        on = model(ids).logits
        with model.disable_adapter():
            off = model(ids).logits
        assert not torch.allclose(on, off)
        assert torch.allclose(off, BASES_plain()(ids).logits, atol=1e-6)
        model.merge_adapter()
        assert torch.allclose(model(ids).logits, on, atol=1e-5)
        model.unmerge_adapter()
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(BASES_plain(), tmp_path).eval()
        assert not any(isinstance(module, FastLinear) for module in again.modules())
        assert torch.allclose(again(ids).logits, on, atol=1e-6)


def BASES_plain():
    torch.manual_seed(0)
    return BASES["llama"]().eval()


def test_layers_that_only_look_linear_leave_the_choice_to_peft():
    class Quantized(torch.nn.Linear):
        pass

    model = BASES["llama"]()
    model.model.layers[0].mlp.up_proj = Quantized(32, 48, bias=False)
    assert not use_fast_lora(LoraConfig(), model)
