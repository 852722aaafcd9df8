"""What a record is, its classes and its words: one folder a task, found by being there."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["ClassAdvice", "Task", "Wording", "get_task"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.tasks.task import ClassAdvice, Task, Wording, get_task
