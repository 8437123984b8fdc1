"""Where many matrices are worked on at once: the cores of this machine, or Ray. Tasks hold names, no tensors."""

from .cluster import Ray
from .local import Local
from .task import Executor, Task

__all__ = ["Executor", "Local", "Ray", "Task"]
