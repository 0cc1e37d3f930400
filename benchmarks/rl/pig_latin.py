"""Does learning from rewards raise what is really right? English → Pig Latin from a half-trained model, three seeds.

    python benchmarks/rl/pig_latin.py --out /tmp/rl --methods grpo dpo  # a small model, made and half-trained here
    python benchmarks/rl/pig_latin.py --out /tmp/rl --methods ppo --steps 100
    python benchmarks/rl/pig_latin.py --out /tmp/rl --model smollm2-135m-instruct --start RUN   # from an sft run's adapter

grpo is rewarded by the rule, ppo by a judge that is trained here, dpo learns from pairs. Judge and dpo see right and subtly
wrong answers by rule, and wrong answers that the start itself gave. What is really
right is the share of words right in the greedy answers to held-out sentences, which neither policy nor judge was trained
on. Writes results.json and results.md below --out.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fitune
from fitune.demo.pig_latin import to_pig_latin
from fitune.demo.sentences import FUNCTION_WORDS, whole_words
from fitune.demo.tasks import SYSTEM, pig_latin_pairs
from fitune.evaluation.generation import Sampling, answer
from fitune.evaluation.inference_model import open_target
from fitune.models.source import resolve
from fitune.models.tokenizer import load_tokenizer
from fitune.runs.run_folder import read_rows

SPECIAL = ("<pad>", "<ask>", "<answer>", "<end>")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<ask>{% elif m['role'] == 'assistant' %}<answer>{% endif %}"
    "{% if m['role'] != 'system' %}{{ m['content'] }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
HELD_OUT = 200
OWN = 8


def make_model(folder: Path) -> Path:
    """A Llama of 1.1 million parameters with random weights, whose tokens are letters."""
    letters = [chr(code) for code in range(32, 127)]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*SPECIAL, *letters])}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", additional_special_tokens=list(SPECIAL[1:3])
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=144, intermediate_size=400, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, bos_token_id=None, eos_token_id=3, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_sentences(count: int, longest: int, seed: int) -> list[str]:
    """Different strings of 2 to `longest` everyday words."""
    words = [word for word in whole_words(load_tokenizer(resolve("smollm2-135m-instruct"))) if len(word) <= 6][:4000]
    generator = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        size = generator.randint(2, longest)
        chosen = [generator.choice(FUNCTION_WORDS if generator.random() < 0.25 else words) for _ in range(size)]
        found[" ".join(chosen)] = None
    return list(found)


def write(path: Path, sentences: list[str], system: bool, pairs: bool = False) -> Path:
    """Rows of prompt and right answer; as pairs, of prompt, right and subtly wrong answer."""
    rows: list[dict[str, str]] = (
        list(pig_latin_pairs(sentences, seed=1))
        if pairs
        else [{"system": SYSTEM, "prompt": text, "completion": to_pig_latin(text)} for text in sentences]
    )
    kept = [{name: value for name, value in row.items() if system or name != "system"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return path


def half_trained(out: Path, model: str, train: Path, test: Path, steps: int) -> str:
    """The small model after so many supervised steps, all of its weights trained; returns its folder."""
    folder = out / "half"
    if not (folder / "model").is_dir():
        settings = {
            "model": {"name": model, "precision": "fp32", "device": "cpu"},
            "data": {"train": str(train), "eval": str(test)},
            "train": {
                "tuning": "full", "batch_size": 64, "max_steps": steps, "learning_rate": 2e-3,
                "lr_scheduler": "linear",
            },
            "eval": {"samples": HELD_OUT, "max_new_tokens": 48, "every_steps": steps},
            "run": {"folder": str(out), "name": "half", "keep_checkpoints": 1, "log_steps": 50},
        }  # fmt: skip
        fitune.train(fitune.Settings.model_validate(settings))
    return str(folder / "model")


def own_pairs(start: str, sentences: list[str], system: bool) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pairs from the start's own `OWN` answers to each sentence at temperature 1.

    Returns:
        For the judge: the right answer against each wrong one. For dpo: a right answer that was given against the wrong
        one that was given most often; sentences of which no answer is right, or none is wrong, give no pair.
    """
    target = open_target(start, device="cpu")
    torch.manual_seed(1)
    asked = [
        [*([{"role": "system", "content": SYSTEM}] if system else []), {"role": "user", "content": text}]
        for text in sentences
        for _ in range(OWN)
    ]
    said = answer(target.model, target.renderer, asked, batch=256, sampling=Sampling(48, temperature=1.0))
    every, likely = [], []
    for at, text in enumerate(sentences):
        right, own = to_pig_latin(text), Counter(said[at * OWN : (at + 1) * OWN])
        wrong = [one for one, _ in own.most_common() if one.strip() and one != right]
        rows = [
            {"prompt": text, "chosen": right, "rejected": one} | ({"system": SYSTEM} if system else {}) for one in wrong
        ]
        every += rows
        likely += rows[:1] if right in own else []
    return every, likely


def judge(out: Path, values: dict[str, Any], pairs: Path, held_out: Path) -> str:
    """A reward model over the policy's base, trained on pairs; returns its folder. Prints its held-out accuracy."""
    folder = out / "judge"
    if not (folder / "report.html").exists():
        settings = {
            "method": "reward", "model": values["model"], "lora": values["lora"],
            "data": {"train": str(pairs), "eval": str(held_out)},
            "train": {"batch_size": 64, "epochs": 1, "learning_rate": 1e-3, "lr_scheduler": "linear"},
            "eval": {"every_steps": 100},
            "run": {"folder": str(out), "name": "judge", "keep_checkpoints": 1},
        }  # fmt: skip
        fitune.train(fitune.Settings.model_validate(settings))
    last = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "eval"][-1]
    print(f"judge: {last['accuracy']:.1%} of held-out pairs")
    return str(folder)


def learn(out: Path, method: str, seed: int, values: dict[str, Any]) -> list[dict[str, Any]]:
    """One run; its evaluations, the first of them before step one."""
    name = f"{method}-{seed}"
    if not (out / name / "report.html").exists():
        run = {"folder": str(out), "name": name, "keep_checkpoints": 1}
        settings = {**values, "method": method, "run": run, "train": {**values["train"], "seed": seed}}
        fitune.train(fitune.Settings.model_validate(settings))
    rows = read_rows(out / name / "metrics.jsonl")
    kl = {row["step"]: row.get("kl") for row in rows if row["kind"] == "train"}
    return [{**row, "kl": kl.get(row["step"])} for row in rows if row["kind"] == "eval"]


def table(curves: dict[str, list[list[dict[str, Any]]]]) -> str:
    """Words right, KL and length by step, mean ± standard deviation over the seeds."""
    lines = [
        "| method | step | words right | KL to the start | tokens of an answer | stopped |",
        "|---|---|---|---|---|---|",
    ]
    for method, seeds in curves.items():
        for at in range(len(seeds[0])):
            rows = [rows[at] for rows in seeds]
            cells = [f"{rows[0]['step']}", spread([100 * row["word_accuracy"] for row in rows], "%")]
            for name in ("kl", "answer_tokens", "stopped"):
                known = [row[name] for row in rows if row.get(name) is not None]
                cells.append(spread(known) if known else "–")
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], unit: str = "") -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}{unit}" if len(values) > 1 else f"{values[0]:.2f}{unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="another model than the small one made here")
    parser.add_argument("--start", help="with --model: the run or adapter to start from")
    parser.add_argument("--methods", nargs="+", default=["grpo", "ppo", "dpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--half-steps", type=int, default=150, help="supervised steps of the small model")
    parser.add_argument("--steps", type=int, default=200, help="steps of learning from rewards")
    parser.add_argument("--prompts", type=int, default=32, help="prompts or pairs a step")
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--rates", nargs="+", default=["grpo=5e-4", "ppo=2e-4", "dpo=2e-4"], help="learning rates")
    parser.add_argument("--sft-weight", type=float, default=1.0, help="dpo.sft_weight")
    parser.add_argument("--ppo-kl", type=float, default=0.2, help="rl.kl_coef of ppo, whose judge can be fooled")
    parser.add_argument("--pairs", type=int, default=6_000, help="sentences that the judge and dpo learn from")
    parser.add_argument("--longest", type=int, default=2, help="words of the longest sentence")
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    seen = make_sentences(13_000, args.longest, seed=7)
    fresh = [text for text in make_sentences(3 * args.held_out, args.longest, seed=8) if text not in set(seen)]
    test = write(args.out / "test.jsonl", fresh[: args.held_out], bool(args.model))
    test_pairs = write(args.out / "test-pairs.jsonl", fresh[: args.held_out], bool(args.model), pairs=True)
    train = write(args.out / "train.jsonl", seen[:12_000], bool(args.model))
    if args.model:
        model: dict[str, Any] = {"name": args.model}
        lora: dict[str, Any] = {"continue_from": args.start}
    else:
        base = make_model(args.out / "small") if not (args.out / "small").exists() else args.out / "small"
        half = half_trained(args.out, str(base), train, test, args.half_steps)
        model, lora = {"name": half, "precision": "fp32", "device": "cpu"}, {"rank": 32, "alpha": 64}
    system = bool(args.model)
    rates = {method: float(rate) for method, _, rate in (word.partition("=") for word in args.rates)}
    pairs, judged = args.out / "pairs.jsonl", args.out / "judged.jsonl"
    if {"ppo", "dpo"} & set(args.methods) and not judged.exists():
        by_rule = write(args.out / "by-rule.jsonl", seen[: args.pairs // 2], system, pairs=True).read_text()
        for path, rows in zip(
            (judged, pairs), own_pairs(args.start or model["name"], seen[: args.pairs], system), strict=True
        ):
            path.write_text(by_rule + "".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": model,
        "data": {"train": str(train), "eval": str(test)},
        "lora": lora,
        "eval": {"samples": args.held_out, "max_new_tokens": 48, "every_steps": max(args.steps // 4, 1)},
    }  # fmt: skip
    rl = {"num_generations": args.answers, "max_new_tokens": 48, "generation_batch_size": 128}
    if "ppo" in args.methods:
        learnt = [f"run:{judge(args.out, values, judged, test_pairs)}"]
    curves = {}
    for method in args.methods:
        given = {
            **values,
            "train": {
                "batch_size": args.prompts, "max_steps": args.steps, "learning_rate": rates[method],
                "lr_scheduler": "linear",
            },
        }  # fmt: skip
        if method == "dpo":
            given |= {"data": {"train": str(pairs), "eval": str(test_pairs)}, "dpo": {"sft_weight": args.sft_weight}}
        else:
            given |= {
                "rl": {
                    **rl,
                    **({"rewards": ["pig_latin"]} if method == "grpo" else {"rewards": learnt, "kl_coef": args.ppo_kl}),
                }
            }
        curves[method] = [learn(args.out, method, seed, given) for seed in args.seeds]
    (args.out / "results.json").write_text(json.dumps(curves, indent=1))
    (args.out / "results.md").write_text(table(curves) + "\n")
    print(table(curves))


if __name__ == "__main__":
    main()
