"""kdgen: teacher-generated datasets for knowledge distillation of LLMs."""

__version__ = "0.1.0"
