"""GPUs by name: usable memory, compute capability, speed; and how long a step takes on one."""
