"""The terminal objective of gradual fine-tuning beside the drift-space one."""
