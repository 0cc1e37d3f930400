"""Rewards for PPO and GRPO: built in, your own functions, or several with weights.

In: answers with their questions, as `Sample`s. Out: scores, or a `RewardError` that says which reward failed and how.
Knows nothing of models or training; a learnt reward is handed in as one more function.

A reward is any function that takes `answers` and whatever else it names out of `reasonings` (what a thinking model wrote
before its answer), `questions`, `prompts`, `messages`,
`wanted`, `stopped`, `tokens`, `token_ids`, `row_numbers` and the columns of the data, each a list with one item an
answer, and returns as many numbers. `completions` is another word for `answers`, so that functions written for TRL's
plain-text data work as they are.
"""
