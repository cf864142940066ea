"""AirHub makes a JupyterHub into a training platform."""

__version__ = "0.1.0"
