"""Flows and where they come from: sources of logs, labelled data sets, synthetic traffic."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = [
    "Capture", "ContextWindow", "Dataset", "LiveLog", "LogStream", "Networks", "RecordSource",
    "Tally", "read_log", "write_fleet", "write_sample",
]  # fmt: skip
export(__name__)
if TYPE_CHECKING:
    from gradsense.data.datasets.captures import Capture, Dataset
    from gradsense.data.flows import ContextWindow
    from gradsense.data.networks import Networks
    from gradsense.data.sources.following import LiveLog
    from gradsense.data.sources.lines import Tally
    from gradsense.data.sources.stream import LogStream, RecordSource, read_log
    from gradsense.data.synthetic.traffic import write_fleet, write_sample
