"""Training of SRResNet and SRGAN generators; needs the `train` extra (torch)."""

from srgan.machine import keep_caches_together

keep_caches_together()
