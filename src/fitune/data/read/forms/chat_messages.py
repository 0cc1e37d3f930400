"""Whole conversations in one column: messages (the usual keys), conversations (ShareGPT's), OpenAI's batch requests."""

from __future__ import annotations

from collections.abc import Mapping

from fitune.data.read.forms.cells import Cells, Messages, say
from fitune.data.read.forms.data_form import DataForm


def _messages(row: Cells) -> Messages:
    return row.messages("messages")


def _conversations(row: Cells) -> Messages:
    return row.messages("conversations", "from", "value")


def _body(row: Cells) -> Mapping[str, object]:
    return row.mapping("body")


MESSAGES = DataForm(
    name="messages",
    needs=("messages",),
    may_have=("system", "tools", "functions"),
    kinds=("rows", "prompts"),
    conversation=_messages,
    example={"messages": [say("user", "The pig eats."), say("assistant", "Ethay igpay eatsway.")]},
)
CONVERSATIONS = DataForm(
    name="conversations",
    needs=("conversations",),
    may_have=("system", "tools"),
    kinds=("rows", "prompts"),
    conversation=_conversations,
    example={
        "conversations": [
            {"from": "human", "value": "The pig eats."},
            {"from": "gpt", "value": "Ethay igpay eatsway."},
        ]
    },
)
OPENAI_BATCH = DataForm(
    name="openai_batch",
    needs=("custom_id", "body"),
    kinds=("rows", "prompts"),
    unpack=_body,
    conversation=_messages,
    example={
        "custom_id": "1",
        "body": {"messages": [say("user", "The pig eats."), say("assistant", "Ethay igpay eatsway.")]},
    },
)
