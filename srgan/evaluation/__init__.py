"""How good a picture is: metrics as functions, and tables over benchmark folders; needs the `train` extra."""

from srgan.machine import keep_caches_together

keep_caches_together()
