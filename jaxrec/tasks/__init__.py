"""Training tasks: how a batch becomes inputs and a loss."""

from jaxrec.tasks.base import TASKS, Resources, Task, TaskConfig
from jaxrec.tasks.next_item import NextItem, NextItemConfig

__all__ = ["TASKS", "NextItem", "NextItemConfig", "Resources", "Task", "TaskConfig"]
