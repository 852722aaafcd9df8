"""What a record is, its classes and its words: one folder a task, found by being there."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.tasks.task import ClassAdvice, Task, Wording, get_task
else:
    export(__name__)

__all__ = ["ClassAdvice", "Task", "Wording", "get_task"]
