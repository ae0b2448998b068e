"""Build, train, run, export and measure the DeepSeek family of language models."""

__version__ = "0.1.0"
