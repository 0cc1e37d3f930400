"""Training methods: SFT, language modelling, reward models, DPO, PPO and GRPO."""
