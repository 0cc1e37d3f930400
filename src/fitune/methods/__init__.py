"""Training methods: SFT, language modelling, reward models, DPO, ORPO, SimPO, KTO, PPO and GRPO.

In: a word of ``method:``. Out: what the method reads, measures and allows; its model and its trainer.
Knows nothing of Settings, run folders' layout or the command line. registry.py lists the methods.
"""
