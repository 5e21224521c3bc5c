"""From a name or a file to the engine that runs it, and between files of weights."""
