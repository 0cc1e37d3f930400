"""The forms a data set may have, one file a form or family: the registry that reading, settings and documents share.

In: a row and, where the file names its columns otherwise, the mapping. Out: messages, a text, or a pair.
Knows nothing of tokens. A new form is a `DataForm` in a file of its own and a line here (docs/extending.md).
"""

from __future__ import annotations

from fitune.data.read.forms.alpaca import ALPACA, RANKED
from fitune.data.read.forms.chat_messages import CONVERSATIONS, MESSAGES, OPENAI_BATCH
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.forms.glaive import GLAIVE
from fitune.data.read.forms.plain_text import TEXT
from fitune.data.read.forms.preference_pairs import PREFERENCE
from fitune.data.read.forms.prompt_completion import PROMPT, PROMPT_COMPLETION
from fitune.data.read.forms.question_answer import INPUT_OUTPUT, QUERY_RESPONSE, QUESTION_ANSWER
from fitune.data.read.forms.unpaired import UNPAIRED, UNPAIRED_MESSAGES

_FORMS = (
    MESSAGES, CONVERSATIONS, PROMPT_COMPLETION, ALPACA, TEXT, PREFERENCE, UNPAIRED, PROMPT,
    QUESTION_ANSWER, QUERY_RESPONSE, INPUT_OUTPUT, OPENAI_BATCH, GLAIVE, RANKED, UNPAIRED_MESSAGES,
)  # fmt: skip
# By name. Columns are tried against them in this order.
DATA_FORMS: dict[str, DataForm] = {form.name: form for form in _FORMS}
