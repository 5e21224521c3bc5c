"""Training of SRResNet and SRGAN generators; needs the `train` extra (torch)."""
