"""The way of one picture through the service, at its turn.

service         what an application owns, put together
admission       who may come in, and the lanes where pictures wait
upscaling       from the bytes of an upload to those of its result
models          which there are, loaded once
device, fair    the processor, shared by turns
"""
