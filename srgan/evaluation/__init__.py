"""How good a picture is: metrics as functions, and tables over benchmark folders; needs the `train` extra."""
