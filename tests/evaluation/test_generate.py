"""Batched answers equal single ones, streams equal answers; the next-token view agrees with a plain forward."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from fitune.adapters.inject import attach, lora_config
from fitune.errors import ModelError
from fitune.evaluation.generation import Answer, Sampling, answer, check_fits, complete, generation_settings, stream
from fitune.evaluation.inference_model import open_target
from fitune.evaluation.next_tokens import next_tokens


@pytest.fixture(scope="module")
def target(tiny_model):
    # An untied head with large weights: a tied one of random weights only repeats its input.
    folder = tiny_model("llama", tie_word_embeddings=False, initializer_range=0.5)
    return open_target(str(folder), device="cpu", precision="fp32")


def asked(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def test_batched_answers_equal_single_ones(target):
    texts = ("pig", "the smooth planks of the well", "a", "Translate to Pig Latin: a banana", "eat")
    together = answer(target.model, target.renderer, asked(*texts), max_new_tokens=12, batch=5)
    alone = [answer(target.model, target.renderer, asked(text), max_new_tokens=12)[0] for text in texts]
    assert together == alone and len(set(together)) > 1


def test_greedy_is_what_a_plain_loop_over_the_likeliest_token_gives(target):
    ids = target.renderer.prompt_ids(asked("pig")[0])
    wanted = list(ids)
    with torch.no_grad():
        for _ in range(8):
            wanted.append(target.model(torch.tensor([wanted])).logits[0, -1].argmax().item())
            if wanted[-1] in target.renderer.stop_ids:
                break
    said = complete(target.model, target.renderer, [ids], Sampling(8))[0].text
    assert said == target.renderer.tokenizer.decode(wanted[len(ids) :], skip_special_tokens=True).strip()


def test_a_stream_is_the_answer_in_pieces_and_can_be_left(target):
    ids = target.renderer.prompt_ids(asked("the birch canoe")[0])
    pieces = list(stream(target.model, target.renderer, ids, Sampling(12)))
    assert "".join(pieces).strip() == complete(target.model, target.renderer, [ids], Sampling(12))[0].text
    left = stream(target.model, target.renderer, ids, Sampling(200))
    next(left)
    left.close()


def test_an_error_in_the_stream_reaches_the_reader(target):
    with pytest.raises((IndexError, RuntimeError)):
        list(stream(target.model, target.renderer, [10_000], Sampling(2)))


def test_generation_leaves_the_model_as_it_was(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    renderer = open_target(str(tiny_llama), device="cpu", precision="fp32").renderer
    model.train()
    model.config.use_cache = False
    answer(model, renderer, asked("pig"), max_new_tokens=2)
    assert model.training and model.config.use_cache is False
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("adapted", [False, True])
def test_the_models_own_habits_are_set_aside_and_put_back(tiny_model, target, adapted: bool):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama", tie_word_embeddings=False, initializer_range=0.5))
    if adapted:
        model = attach(model, lora_config(model, init="debug"))
    plain = answer(model, target.renderer, asked("pig", "a banana"), max_new_tokens=10)
    habits = GenerationConfig(repetition_penalty=50.0, no_repeat_ngram_size=1, do_sample=True, top_k=3)
    owner = model.get_base_model() if adapted else model
    owner.generation_config = model.generation_config = habits
    assert answer(model, target.renderer, asked("pig", "a banana"), max_new_tokens=10) == plain
    assert owner.generation_config is habits and model.generation_config is habits


def test_sampling_draws_from_every_token_unless_told_otherwise(target):
    settings = generation_settings(target.renderer, Sampling(4, temperature=1.0))
    assert settings.do_sample and settings.top_k == 0 and settings.top_p == 1.0
    assert not generation_settings(target.renderer, Sampling(4)).do_sample


def test_an_answer_tells_whether_it_ended_or_was_cut(target):
    ids = target.renderer.prompt_ids(asked("pig")[0])
    endless = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    never = replace(target.renderer, end_ids=(), template_text=endless)
    said = next(next_tokens(target.model, never, ids, top=1, steps=1)).ids[0]
    at_once = replace(never, end_ids=(said,))
    assert not complete(target.model, never, [ids], Sampling(3))[0].stopped
    assert complete(target.model, at_once, [ids], Sampling(3))[0] == Answer("", True)
    for renderer, ended in ((never, False), (at_once, True)):
        pieces = stream(target.model, renderer, ids, Sampling(3))
        with pytest.raises(StopIteration) as end:
            while True:
                next(pieces)
        assert end.value.value.stopped is ended


def test_an_fp32_adapter_on_a_bf16_base_answers(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    adapted = attach(model, lora_config(model, init="debug"))
    renderer = open_target(str(tiny_llama), device="cpu", precision="fp32").renderer
    said = answer(adapted, renderer, asked("pig", "the dog"), max_new_tokens=4)
    with adapted.disable_adapter():
        base = answer(adapted, renderer, asked("pig", "the dog"), max_new_tokens=4)
    assert len(said) == 2 and said != base


def test_sampling_follows_the_seed(target):
    ids = target.renderer.prompt_ids(asked("pig")[0])
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(complete(target.model, target.renderer, [ids], Sampling(10, temperature=1.5))[0].text)
    assert draws[0] == draws[1] != draws[2]


def test_next_tokens_are_the_softmax_of_a_plain_forward(target):
    ids = target.renderer.text_ids("the pig")
    steps = list(next_tokens(target.model, target.renderer, ids, top=3, steps=4))
    for step in steps:
        with torch.no_grad():
            probabilities = target.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        best = probabilities.topk(3)
        assert step.ids == tuple(best.indices.tolist())
        assert step.probabilities == pytest.approx(best.values.tolist(), rel=1e-4)
        assert step.chosen == target.renderer.tokenizer.decode([step.ids[0]])
        ids = [*ids, step.ids[0]]
    whole = next(next_tokens(target.model, target.renderer, ids[:2], top=target.model.config.vocab_size, steps=1))
    assert sum(whole.probabilities) == pytest.approx(1, abs=1e-4)
    more = next(next_tokens(target.model, target.renderer, ids[:2], top=10**6, steps=1))
    assert more.ids == whole.ids, "asked for more tokens than there are"


def test_a_prompt_that_does_not_fit_the_context_is_refused(target):
    with pytest.raises(ModelError, match=r"250 tokens and the answer may have 10; the model's context ends at 256"):
        check_fits(target.model, [1] * 250, 10)
    with pytest.raises(ModelError, match="250 tokens"):
        next(next_tokens(target.model, target.renderer, [1] * 250, steps=10))
    with pytest.raises(ModelError, match="0 tokens"):
        next(next_tokens(target.model, target.renderer, []))
