"""`fitune chat`: talk to a run or a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator

import click

HELP = """/base        answer with the base model alone     /adapter     answer with the adapter again
/adapters    adapters in memory                   /use NAME    answer with another one, loaded if necessary
/merge       merge the adapter into the base       /unmerge     subtract it again, and report what was restored
/unload      remove all adapters from memory    /clear       clear the conversation
/system TEXT set the system prompt (empty: none)  /retry       answer the last message again
/quit        exit (also Ctrl-D)"""
COMMANDS = (
    "/base", "/adapter", "/adapters", "/use", "/merge", "/unmerge", "/unload", "/system", "/clear", "/retry", "/help",
    "/quit",
)  # fmt: skip


@click.command()
@click.argument("target")
@click.option("--system", default=None, help="System prompt.")
@click.option(
    "--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="Maximum answer length in tokens."
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="0 is greedy decoding.",
)
@click.option(
    "--top-p",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from the most likely tokens up to this total probability.",
)
@click.option("--seed", type=click.IntRange(0), help="Seed for sampling.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mps"]))
def chat(
    target: str,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    device: str,
) -> None:
    """Talk to TARGET: a run's name or folder, an adapter folder, or a model.

    \b
    fitune chat demo
    fitune chat runs/demo --system "Translate to Pig Latin."

    The chat template is that of the training. Answers are streamed; Ctrl-C stops one. Messages can be piped in, one
    per line. Commands in the chat: /adapters /use /base /merge /unmerge /unload /system /clear /retry /help /quit
    """
    from fitune.console import log
    from fitune.evaluation.generation import Sampling, fix_seed
    from fitune.evaluation.inference_model import open_target

    fix_seed(seed)
    opened = open_target(target, device=device)
    interactive = sys.stdin.isatty()
    if interactive:
        log(f"{opened.base_name}{' with ' + str(opened.adapter) if opened.adapter else ''}; /help lists the commands")
    talk = Conversation(opened, system, Sampling(max_new_tokens, temperature, top_p))
    while True:
        try:
            line = input("you: ") if interactive else next(iter(sys.stdin.readline, ""))
        except (EOFError, StopIteration):
            return
        except KeyboardInterrupt:
            log("\n/quit or Ctrl-D exits")
            continue
        if not (line := line.strip()):
            continue
        if line.startswith("/"):
            if not talk.command(line):
                return
        else:
            talk.ask(line)


class Conversation:
    """History, the adapters, and the commands."""

    def __init__(self, target, system: str | None, sampling):
        from fitune.evaluation.adapter_session import Desk

        self.target, self.system, self.sampling = target, system, sampling
        self.messages: list[dict[str, str]] = []
        self.desk = Desk(target)

    def command(self, line: str) -> bool:
        """Carry out a /command; False leaves the chat."""
        from fitune.console import log
        from fitune.errors import FituneError, did_you_mean

        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/help":
            log(HELP)
        elif name == "/clear":
            self.messages = []
            log("conversation cleared")
        elif name == "/system":
            self.system = rest.strip() or None
            log(f"system prompt: {self.system or 'none'}")
        elif name in ("/base", "/adapter", "/adapters", "/use", "/merge", "/unmerge", "/unload"):
            try:
                log(getattr(self.desk, name[1:])(*([rest.strip()] if name == "/use" else [])))
            except FituneError as error:
                log(f"error: {error}")
        elif name == "/retry":
            if self.messages:
                question = self.messages[-2]["content"]  # questions and answers come in pairs
                self.messages = self.messages[:-2]
                self.ask(question)
        else:
            log(f"there is no command {name}{did_you_mean(name, COMMANDS)}; /help lists them")
        return True

    def ask(self, text: str) -> None:
        """Stream the answer to `text`; it joins the history even when it was cut short."""
        from fitune.console import log
        from fitune.errors import FituneError
        from fitune.evaluation.generation import check_fits, stream

        asked = [*self.messages, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        pieces: list[str] = []
        try:
            prompt = self.target.renderer.prompt_ids(system + asked)
            check_fits(self.desk.model, prompt, self.sampling.max_new_tokens)
            answers = stream(self.desk.model, self.target.renderer, prompt, self.sampling)
            try:
                stopped = self._spell(answers, pieces)
            except KeyboardInterrupt:
                answers.close()
                stopped = True
            click.echo()
            if not stopped:
                most = self.sampling.max_new_tokens
                log(f"truncated at {most:,} tokens: the model had not ended its answer; raise --max-new-tokens")
        except FituneError as error:
            log(f"error: {error}")
            return
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    @staticmethod
    def _spell(answers: Generator[str, None, bool], pieces: list[str]) -> bool:
        """Print the pieces as they come and keep them; True when the answer ended by itself."""
        while True:
            try:
                piece = next(answers)
            except StopIteration as end:
                return end.value
            pieces.append(piece)
            click.echo(piece, nl=False)
