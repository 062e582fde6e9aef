"""How fast training steps are: the library beside hand-written JAX, and beside torchcfm."""
