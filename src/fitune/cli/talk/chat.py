"""`fitune chat`: talk to a run or a model in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import click

from fitune.cli.options.shared import DEVICE, FOLDER, SEED, TEMPERATURE, THINKING, TOP_P
from fitune.cli.talk.chat_input import messages

if TYPE_CHECKING:
    from fitune.data.examples import Message
    from fitune.evaluation.generation import Answer, Sampling
    from fitune.evaluation.inference_model import Target

HELP = '''/base        answer with the base model alone     /adapter   answer with the adapter again
/adapters    adapters in memory                   /use NAME  answer with another one, loaded if necessary
/merge       merge the adapter into the base      /unmerge   subtract it again, and report what was restored
/unload      remove all adapters from memory      /clear     clear the conversation
/system TEXT set the system prompt (empty: none)  /retry     answer the last message again
/tool TEXT   give the result of the tool call that is next, with --tools
/quit        exit (also Ctrl-D)                   """ or \\   a message of several lines'''
COMMANDS = (
    "/base", "/adapter", "/adapters", "/use", "/merge", "/unmerge", "/unload", "/system", "/clear", "/retry", "/tool",
    "/help", "/quit",
)  # fmt: skip


@click.command()
@click.argument("target")
@click.option("--system", default=None, help='System prompt; "" for none.  [default: that of the training rows]')
@click.option(
    "--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="Maximum answer length in tokens."
)
@TEMPERATURE
@TOP_P
@THINKING
@FOLDER
@click.option("--tools", type=click.Path(), help="A JSON file with the tools that the model may call.")
@SEED
@click.option("--json", "as_json", is_flag=True, help="For programs: a JSON object a line, in and out.")
@DEVICE
def chat(
    target: str,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    thinking: str,
    folder: str,
    tools: str | None,
    seed: int | None,
    as_json: bool,
    device: str,
) -> None:
    """Talk to TARGET: a run's name or folder, an adapter folder, or a model.

    \b
    fitune chat demo
    fitune chat runs/demo --system "Translate to Pig Latin."

    The chat template and the system prompt are those of the training. Answers are streamed; Ctrl-C stops one. A line
    that ends with \\ continues in the next, and lines between two \"\"\" are one message. Messages can be piped in.
    Commands in the chat: /adapters /use /base /merge /unmerge /unload /system /clear /retry /tool /help /quit

    With --tools the calls of an answer are listed, and /tool TEXT gives their results, one after the other; the model
    answers when it has all.
    """
    from fitune.console import log
    from fitune.evaluation.generation import Sampling, fix_seed
    from fitune.evaluation.inference_model import open_target
    from fitune.evaluation.tool_calls import read_tools

    fix_seed(seed)
    listed = read_tools(tools) if tools else ()
    opened = open_target(target, folder, device, thinking=thinking)
    if system is None:
        system = opened.renderer.asking.system
    if as_json:
        from fitune.cli.talk.chat_lines import ChatLines

        ChatLines(opened, system, Sampling(max_new_tokens, temperature, top_p), _say_json).answer_all(sys.stdin)
        return
    talk = Conversation(opened, system, Sampling(max_new_tokens, temperature, top_p), listed, folder)
    if sys.stdin.isatty():
        log("\n".join(_greeting(opened, system, temperature)))
    for line in messages(COMMANDS, lambda: log("\n/quit or Ctrl-D exits")):
        if not line.startswith("/"):
            talk.ask(line)
        elif not talk.command(line):
            return


def _say_json(told: dict[str, object]) -> None:
    """A line of JSON, out at once."""
    from fitune.console import json_text

    click.echo(json_text(told))
    sys.stdout.flush()


def _greeting(opened: Target, system: str | None, temperature: float) -> list[str]:
    """What talks, how it is asked, and where help is."""
    with_adapter = f" with {opened.adapter}" if opened.adapter else ""
    lines = [f"{opened.base_name}{with_adapter}; /help lists the commands, Ctrl-D exits"]
    if system:
        lines.append(f"system prompt: {system} (/system TEXT changes it, /system alone removes it)")
    if temperature == 0:
        lines.append("greedy decoding: the same question gets the same answer; --temperature 0.7 samples")
    return lines


class Conversation:
    """History, the adapters, and the commands."""

    def __init__(
        self,
        target: Target,
        system: str | None,
        sampling: Sampling,
        tools: Sequence[dict[str, object]] = (),
        runs_folder: str = "runs",
    ):
        from fitune.evaluation.adapter_session import Desk

        self.target, self.system, self.sampling, self.tools = target, system, sampling, tools
        self.messages: list[Message] = []
        self.open_calls: list[tuple[str, str]] = []  # (id, name) of calls without a result
        self.desk = Desk(target, runs_folder)

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
            self.messages, self.open_calls = [], []
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
            if asked := [at for at, said in enumerate(self.messages) if said["role"] == "user"]:
                question = self.messages[asked[-1]]["content"]
                self.messages = self.messages[: asked[-1]]
                self.ask(question)
        elif name == "/tool":
            self.give(rest.strip())
        else:
            log(f"there is no command {name}{did_you_mean(name, COMMANDS)}; /help lists them")
        return True

    def ask(self, text: str) -> None:
        """Stream the answer to `text`; calls of the answer before it stay without results."""
        self.open_calls = []
        self._answer([*self.messages, {"role": "user", "content": text}])

    def give(self, result: str) -> None:
        """The result of the next open call; with the last one the model answers."""
        from fitune.console import log

        if not self.open_calls:
            log("no tool call waits for a result")
            return
        (number, name), *self.open_calls = self.open_calls
        self.messages = [*self.messages, {"role": "tool", "content": result, "tool_call_id": number, "name": name}]
        if self.open_calls:
            log(f"next: the result of {self.open_calls[0][1]} (/tool TEXT)")
        else:
            self._answer(self.messages)

    def _answer(self, asked: list[Message]) -> None:
        """Stream an answer; it joins the history even when it was cut short."""
        from fitune.console import log
        from fitune.errors import FituneError
        from fitune.evaluation.generation import check_fits, stream

        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        said: Answer | None = None
        pieces: list[str] = []
        try:
            prompt = self.target.renderer.prompt_ids(system + asked, self.tools)
            check_fits(self.desk.model, prompt, self.sampling.max_new_tokens)
            self._mark()
            answers = stream(self.desk.model, self.target.renderer, prompt, self.sampling)
            try:
                said = self._spell(answers, pieces)
            except KeyboardInterrupt:
                answers.close()
            click.echo()
            if said and not said.stopped:
                most = self.sampling.max_new_tokens
                log(f"truncated at {most:,} tokens: the model had not ended its answer; raise --max-new-tokens")
        except FituneError as error:
            log(f"error: {error}")
            return
        answer: Message = {"role": "assistant", "content": said.text if said else "".join(pieces)}
        if said and said.reasoning:
            answer = {**answer, "reasoning_content": said.reasoning}
        self.messages = [*asked, self._with_calls(answer, said.raw) if said and self.tools else answer]

    def _with_calls(self, answer: Message, raw: str) -> Message:
        """The answer with the calls that it makes, which are listed and wait for their results."""
        from fitune.console import log
        from fitune.data.render.answer import split_answer
        from fitune.serving.call_reader import CallReader

        renderer = self.target.renderer
        reader = CallReader.of(renderer)
        content, calls = reader.read(raw, self.tools) if reader else (raw, [])
        if not calls:
            return answer
        before = sum(said["role"] == "tool" for said in self.messages)
        self.open_calls = [(f"call{before + at:05}", call.name) for at, call in enumerate(calls)]
        for call in calls:
            log(f"calls {call.name}({json.dumps(call.arguments, ensure_ascii=False)})")
        log(f"/tool TEXT gives the result of {calls[0].name}")
        made: list[dict[str, Any]] = [
            {"type": "function", "id": number, "function": {"name": call.name, "arguments": call.arguments}}
            for (number, _), call in zip(self.open_calls, calls, strict=True)
        ]
        said = split_answer(content, renderer.chat_format, renderer.special_texts)
        return {**answer, "content": said.content, "tool_calls": made}

    def _mark(self) -> None:
        """On a terminal, who answers: the adapter's name, or base."""
        if sys.stdin.isatty() and sys.stdout.isatty():
            click.secho(f"{self.desk.speaker()}: ", fg="green", nl=False)

    @staticmethod
    def _spell(answers: Generator[str, None, Answer], pieces: list[str]) -> Answer:
        """Print the pieces as they come and keep them; the whole answer at its end."""
        from fitune.console import printable

        while True:
            try:
                piece = next(answers)
            except StopIteration as end:
                return end.value
            pieces.append(piece)
            click.echo(printable(piece), nl=False)
