"""Fine-tuning of pretrained networks on images or latents, with or without classes."""
