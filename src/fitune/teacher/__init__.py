"""Training data from a larger model: any OpenAI-compatible address writes rows from seeds, documents or prompts.

Reading order: `teacher.py` (asking, with a journal and a budget), `row_tasks.py` (what is asked for a row), `make_rows.py` (many at
once, resumed, checked). What is asked stands in `prompts/`, plain files that a user can copy and change. Needs the extra
`fitune[generate]`.
"""
