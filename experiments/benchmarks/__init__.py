"""How fast training steps and samplers are, beside hand-written JAX and torch, and what distances cost."""
