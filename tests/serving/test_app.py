"""The server as OpenAI's own client sees it: the same tokens as chat, streams, log probabilities, adapters, faults."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2 as httpx
import openai
import pytest
import torch
from serving_fixtures import Served, serving

from fitune.evaluation.generation import Sampling, asking, complete, generate, generation_settings, stream
from fitune.evaluation.inference_model import open_target
from fitune.serving.app import ServeOptions
from fitune.serving.engine import Engine, served_models

TEXTS = ("hello there", "the dog eats", "a", "one two three four five six seven")


def chat_tokens(adapter, text, limit=24):
    """The texts of the tokens with which chat goes on, the end token too, and its whole answer."""
    target = open_target(str(adapter), device="cpu", precision="fp32")
    prompt = target.renderer.prompt_ids([{"role": "user", "content": text}])
    answers = stream(target.model, target.renderer, prompt, Sampling(limit))
    with asking(target.model):
        settings = generation_settings(target.renderer, Sampling(limit))
        ids = torch.tensor([prompt])
        (output,) = generate(target.model, ids, torch.ones_like(ids), settings)
    said = [target.renderer.tokenizer.decode([token]) for token in output[len(prompt) :].tolist()]
    while True:
        try:
            next(answers)
        except StopIteration as end:
            return said, end.value


@pytest.mark.parametrize("number", [0, 1])
def test_the_tokens_are_those_of_chat(number, adapters, ask):
    for text in TEXTS:
        tokens, wanted = chat_tokens(adapters[number], text)
        said = ask(("one", "two")[number], text, logprobs=True)
        assert [score.token for score in said.choices[0].logprobs.content] == tokens
        assert said.choices[0].message.content == wanted.text
        assert said.choices[0].finish_reason == ("stop" if wanted.stopped else "length")


def test_the_two_adapters_and_the_base_answer_differently(ask):
    assert len({ask(name).choices[0].message.content for name in ("one", "two", "base")}) == 3


def test_a_stream_gives_the_same_text_and_counts(ask):
    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason


def test_logprobs_are_the_models(ask, served):
    said = ask(logprobs=True, top_logprobs=3, max_tokens=4)
    first = said.choices[0].logprobs.content[0]
    renderer, model = served.target.renderer, served.target.peft_model
    with torch.no_grad():
        model.set_adapter("one")
        ids = torch.tensor([renderer.prompt_ids([{"role": "user", "content": "hello there"}])])
        wanted = torch.log_softmax(model(input_ids=ids).logits[0, -1].float(), -1)
    assert first.logprob == pytest.approx(float(wanted.max()), abs=1e-5)
    assert [one.logprob for one in first.top_logprobs] == pytest.approx(wanted.topk(3).values.tolist(), abs=1e-5)
    assert len(said.choices[0].logprobs.content) == said.usage.completion_tokens


def test_sampling_is_repeated_by_its_seed_whatever_else_is_asked(ask):
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    alone = ask(**options).choices[0].message.content
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(ask, text=f"number {at}", temperature=1.0) for at in range(5)]
        again = pool.submit(ask, **options).result().choices[0].message.content
        [other.result() for other in others]
    assert again == alone
    assert ask(temperature=1.5, seed=8).choices[0].message.content != alone


def test_thirty_two_at_once_and_one_that_goes_away(ask, served: Served):
    alone = {text: ask(text=text).choices[0].message.content for text in TEXTS}
    with ThreadPoolExecutor(33) as pool:
        gone = pool.submit(_leave, served)
        said = list(pool.map(lambda at: (TEXTS[at % 4], ask(text=TEXTS[at % 4]).choices[0].message.content), range(32)))
        gone.result()
    assert all(alone[text] == content for text, content in said)


def _leave(served: Served) -> None:
    chunks = served.client.chat.completions.create(
        model="one", messages=[{"role": "user", "content": "hello"}], max_tokens=200, stream=True
    )
    next(iter(chunks))
    chunks.close()


def test_a_client_that_goes_away_ends_its_answer(served: Served):
    body = {"model": "one", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=30) as response:
        next(response.iter_lines())
    start_time = time.monotonic()
    served.client.chat.completions.create(model="one", messages=[{"role": "user", "content": "hello"}], max_tokens=2)
    assert time.monotonic() - start_time < 10


def test_a_stop_text_ends_the_answer_and_is_left_out(ask):
    whole = ask().choices[0].message.content
    mark = whole[5:8]
    said = ask(stop=[mark]).choices[0]
    assert said.message.content == whole[: whole.index(mark)]
    assert said.finish_reason == "stop"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stop=[mark], stream=True) if chunk.choices)
    assert streamed == said.message.content


def test_plain_completions_go_on_from_the_text(served: Served):
    said = served.client.completions.create(model="two", prompt="the dog", max_tokens=8, logprobs=2)
    target = served.target
    ids = target.renderer.text_ids("the dog")
    target.peft_model.set_adapter("two")
    (wanted,) = complete(target.model, target.renderer, [ids], Sampling(8))
    assert said.choices[0].text.strip() == wanted.text
    assert len(said.choices[0].logprobs.token_logprobs) == said.usage.completion_tokens
    chunks = served.client.completions.create(model="two", prompt="the dog", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == said.choices[0].text


def test_models_are_listed(served: Served):
    assert [model.id for model in served.client.models.list()] == ["one", "two", "base"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("{", 400, "not JSON"),
        ("[" * 20_000, 400, "not JSON"),
        ("[]", 400, "a JSON object is needed"),
        ({"model": "onne", "messages": [{"role": "user", "content": "a"}]}, 404, 'no model "onne" (did you mean "one"?)'),
        ({"model": "one", "messages": []}, 400, "messages is empty"),
        ({"model": "one", "messages": [{"role": "narrator", "content": "a"}]}, 400, "narrator"),
        ({"model": "one", "messages": "hello"}, 400, "messages"),
        ({"model": "one", "messages": [{"role": "user", "content": "a"}], "n": 3}, 400, "n is 3"),
        ({"model": "one", "messages": [{"role": "user", "content": "a"}], "temprature": 1}, 400, "temprature is not known"),
        ({"model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 10**7}, 400, "context ends at"),
        ({"model": "one", "messages": [{"role": "user", "content": "a"}], "tools": [{"type": "x"}]}, 400, "tools[0]"),
        ({"model": "one", "messages": [{"role": "tool", "content": "a"}]}, 400, "has no call before it"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_what_is_wrong(body, status, says, served: Served):
    content = body if isinstance(body, str) else json.dumps(body)
    response = httpx.post(f"{served.url}/v1/chat/completions", content=content, timeout=30)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]


def test_a_key_is_asked_for_and_never_shown(adapters):
    target = open_target(str(adapters[0]), device="cpu", precision="fp32")
    engine = Engine(target, served_models(target, "base", "one", {}))
    with serving(engine, ServeOptions(api_key="sesame")) as url:
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            client.models.list()
        assert "sesame" not in str(refused.value)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sesame") as client:
            assert client.models.list().data


def test_a_full_queue_and_a_failing_model_are_said(served: Served):
    full = Engine(served.target, served.engine.models, max_waiting=0)
    failing = Engine(served.target, {"one": replace(served.engine.models["one"], adapter="gone")})
    for engine, status in ((full, 503), (failing, 500)):
        body = {"model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
        with serving(engine) as url:
            response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
        assert response.status_code == status
        assert response.json()["error"]["message"]
