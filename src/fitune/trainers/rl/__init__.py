"""Learning from rewards: sampled answers, the formulas of the losses, a reward run as a reward."""
