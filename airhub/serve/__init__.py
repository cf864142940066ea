"""The inference server that runs inside a container: this folder alone, in any image with Python 3.9 or newer."""
