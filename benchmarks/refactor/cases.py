"""The command lines that two trees are asked: CASES, name → words, in the settings' names of commit efed3fe.

This tree accepts these names as earlier ones (src/fitune/earlier_names.py).

`{recipes}` is each tree's own folder of recipes, `{old_recipes}` that of the earlier tree, `{inputs}` what inputs.py
made, `{configs}` benchmarks/memory/configs. What is compared beside the output is the folder behind `--run.name` or
`--out`. Models are tiny, runs a few steps: what counts is that every path through the code is taken.
"""

from __future__ import annotations

# Later flags are stronger: a case may say otherwise.
SHORT = (
    "--json --model.name {inputs}/llama --model.device cpu --train.max_steps 4 "
    "--eval.samples 3 --eval.every_steps 2 --eval.max_new_tokens 24"
)
DEMO = "--model.precision fp32 --data.train demo:pig-latin:160 --train.learning_rate 3e-3"
PAIRS = "--model.precision fp32 --data.train demo:pig-latin-pairs:120 --train.learning_rate 3e-3"
SAMPLED = f"{DEMO} --rl.rewards length:6,2*chrf --rl.answers 4 --rl.max_new_tokens 16 --train.max_steps 3"

RECIPES = {
    "pig-latin": "",
    "yoda": "--data.train {inputs}/yoda.jsonl --data.form prompt_completion "
    "--data.columns prompt=sentence,completion=translation --data.system 'Translate to Yoda speak.' --train.epochs 4",
    "lm-style": "--data.train {inputs}/texts.txt",
    "instruct-pythia": "--model.name {inputs}/neox --data.train {inputs}/chat.jsonl",
    "pig-latin-chain": "",
    "pig-latin-grpo": "--lora.continue_from recipe-pig-latin --rl.answers 4 --rl.max_new_tokens 16",
    "all-settings": "--data.train demo:pig-latin:160",
}
RUNS = {
    "sft": f"{DEMO} --lora.dropout 0.1",
    "sft-rows": f"{DEMO} --data.packing rows --train.micro_batch_size 2",
    "sft-padded": f"{DEMO} --data.packing off --train.micro_batch_size 4 --memory.budget 8GiB",
    "sft-checkpointing": f"{DEMO} --train.gradient_checkpointing --train.schedule linear --trainer.adam_beta2 0.9",
    "sft-full": f"{DEMO} --train.tuning full --train.optimizer adafactor --train.warmup_share 0.5",
    "sft-nf4": f"{DEMO} --model.precision bf16 --model.quantization nf4 --model.double_quant --lora.rank 64 "
    "--train.optimizer paged_adamw_8bit",
    "sft-loftq": f"{DEMO} --model.quantization fp4 --model.unquantized down_proj --lora.init loftq",
    "sft-int8": f"{DEMO} --model.precision bf16 --model.quantization int8 --lora.rank 64 --train.optimizer adamw_8bit",
    "sft-dora": f"{DEMO} --lora.dora --lora.rslora --lora.targets q_proj,v_proj --lora.train_norms --lora.bias all",
    "sft-pissa": f"{DEMO} --lora.init pissa --lora.modules_to_save lm_head --train.optimizer sgd",
    "sft-merge": f"{DEMO} --model.merge sft --eval.best_metric chrf --eval.patience 1",
    "lm": "--method lm --model.precision fp32 --data.train {inputs}/texts.txt --data.max_length 8 --data.too_long cut",
    "reward": f"--method reward {PAIRS} --reward.center 0.02 --train.micro_batch_size 4",
    "reward-padded": f"--method reward {PAIRS} --data.packing off --eval.best_metric accuracy",
    "dpo": f"--method dpo {PAIRS} --dpo.sft_weight 0.5",
    "dpo-live": f"--method dpo {PAIRS} --dpo.reference live --dpo.loss ipo --lora.continue_from sft",
    "dpo-padded": f"--method dpo {PAIRS} --data.packing off --dpo.loss robust --dpo.label_smoothing 0.1",
    "ppo": f"--method ppo {SAMPLED} --rl.passes 2 --rl.minibatches 2 --rl.lam 0.9 --rl.kl_target 0.1 "
    "--rl.rows_at_once 8 --rl.endless_reward null",
    "ppo-judge": f"--method ppo {SAMPLED} --rl.rewards run:reward --data.packing off --rl.loss_over constant",
    "grpo": f"--method grpo {SAMPLED} --rl.passes 2 --rl.clip_high 0.28 --rl.loss_over answer --rl.top_p 0.9",
    "grpo-rloo": f"--method grpo {SAMPLED} --rl.advantage rloo --rl.ratio answer --data.packing rows "
    "--train.gradient_checkpointing",
}
EXPORTS = {
    "adapter": "sft",
    "merged": "sft",
    "gguf": "sft --type q8_0",
    "ollama": "sft-nf4 --type f16 --base {inputs}/llama",
}
COMMANDS = {
    "evaluate": "evaluate runs/sft/adapter --data {inputs}/chat.jsonl --rows 8 --max-new-tokens 24",
    "next-tokens": 'generate sft "the dog eats" --top 4 --steps 4',
    "generate": 'generate dpo "the dog eats" --temperature 0.8 --top-p 0.9 --seed 3 --max-new-tokens 16',
    "score": "score reward --data demo:pig-latin-pairs:20",
}
PLANS = {
    "cards": "--gpu list",
    "recipe": f"{{recipes}}/yoda.yaml --gpu T4 {SHORT} {RECIPES['yoda']}",
    "lora": "{configs}/qwen2.5-0.5b.json --gpu 'RTX 4090' --seq-len 512 --explain",
    "nf4": "{configs}/llama-3.2-1b.json --gpu T4 --seq-len 512 --model.quantization nf4 --train.gradient_checkpointing",
    "full": "{configs}/opt-350m.json --gpu 'RTX 4090' --seq-len 512 --train.tuning full --train.optimizer adamw_8bit",
    "int8": "{inputs}/configs/falcon-7b.json --budget 4GiB --model.quantization int8 --expandable-segments --explain",
    "lm": "{inputs}/configs/llama-3.1-8b.json --gpu H100 --method lm --train.micro_batch_size 2 --data.packing off",
    "reward": "{inputs}/configs/qwen2.5-1.5b.json --gpu T4 --seq-len 512 --method reward",
    "dpo": "{configs}/qwen2.5-0.5b.json --gpu 'RTX 4090' --seq-len 512 --method dpo --dpo.reference live",
    "ppo": "{inputs}/configs/qwen2.5-3b.json --gpu 'RTX 4090' --seq-len 512 --method ppo --rl.rewards length:20",
    "grpo": "{configs}/qwen2.5-0.5b.json --budget 12GiB --method grpo --rl.rewards length:20 --rl.answers 4",
    "ladder": "{inputs}/configs/qwen2.5-7b.json --budget 5GiB --seq-len 2048 --ladder",
    "ladder-full": "{inputs}/configs/qwen2.5-1.5b.json --budget 3GiB --seq-len 1024 --train.tuning full "
    "--memory.may_change train.tuning,data.max_length --ladder",
    "max-seq-len": "{inputs}/configs/qwen2.5-0.5b.json --budget 3GiB --seq-len 512 --max seq-len",
    "max-batch": "{inputs}/configs/opt-350m.json --budget 2GiB --seq-len 256 --max batch --data.packing off",
    "max-model": "{inputs}/configs/qwen2.5-0.5b.json {inputs}/configs/qwen2.5-3b.json --gpu T4 --max model",
    "grid": "{inputs}/configs/llama-3.2-1b.json --budget 2GiB --seq-len 256 --grid",
}
# A run to interrupt and resume → the signal, and the checkpoint after which it is sent; ten steps are left then.
RESUMES = {
    "resume sft": ("SIGINT", "checkpoints/checkpoint-4"),
    "resume ppo": ("SIGKILL", "checkpoints/checkpoint-4"),
    "resume chain": ("SIGKILL", "dpo/checkpoints/checkpoint-4"),
}
LONG = f"{SHORT} --train.max_steps 14 --run.checkpoint_steps 2 --run.name"
CASES = {
    **{
        f"recipe {name}": f"train {{recipes}}/{name}.yaml {SHORT} {flags} --run.name recipe-{name}"
        for name, flags in RECIPES.items()
    },
    # The earlier tree's file, in both: every setting by its old name.
    "recipe old-names": f"train {{old_recipes}}/all-settings.yaml {SHORT} {DEMO} --train.seed 7 --run.name old-names",
    **{f"train {name}": f"train {SHORT} {flags} --run.name {name}" for name, flags in RUNS.items()},
    **{
        f"export {form}": f"export {words} --to {form} --out exports/{form} --num-prompts 4 --json"
        for form, words in EXPORTS.items()
    },
    **{f"command {name}": f"{words} --json" for name, words in COMMANDS.items()},
    **{f"plan {name}": f"plan {words} --json" for name, words in PLANS.items()},
    "resume sft": f"train {LONG} resumed-sft {RUNS['sft']}",
    "resume ppo": f"train {LONG} resumed-ppo --method ppo {SAMPLED} --rl.kl_target 0.1 --train.max_steps 14",
    "resume chain": f"train {{old_recipes}}/pig-latin-chain.yaml {LONG} resumed-chain",
}
# Cases that must have run before.
NEEDS = {
    "recipe pig-latin-grpo": "recipe pig-latin",
    "train ppo-judge": "train reward",
    "command generate": "train dpo",
    "command score": "train reward",
    "export ollama": "train sft-nf4",
    **dict.fromkeys(("train sft-merge", "train dpo-live", "command evaluate", "command next-tokens"), "train sft"),
    **dict.fromkeys(("export adapter", "export merged", "export gguf"), "train sft"),
}
