"""Training tasks: how a batch becomes inputs and a loss."""

from jaxrec.tasks.base import MEMORY, TASKS, Resources, Task, TaskConfig
from jaxrec.tasks.consistency import Consistency, ConsistencyConfig
from jaxrec.tasks.masked_item import MaskedItem, MaskedItemConfig
from jaxrec.tasks.next_item import NextItem, NextItemConfig
from jaxrec.tasks.s3rec import S3RecConfig, S3RecPretraining

__all__ = [
    "MEMORY",
    "TASKS",
    "Consistency",
    "ConsistencyConfig",
    "MaskedItem",
    "MaskedItemConfig",
    "NextItem",
    "NextItemConfig",
    "Resources",
    "S3RecConfig",
    "S3RecPretraining",
    "Task",
    "TaskConfig",
]
