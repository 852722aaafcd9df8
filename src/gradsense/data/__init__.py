"""Flows and where they come from: sources of logs, labelled data sets, synthetic traffic."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.data.datasets.captures import Capture, Dataset
    from gradsense.data.flows import ContextWindow
    from gradsense.data.networks import Networks
    from gradsense.data.synthetic.traffic import write_fleet, write_sample
    from gradsense.data.tally import Tally
else:
    export(__name__)

__all__ = [
    "Capture",
    "ContextWindow",
    "Dataset",
    "Networks",
    "Tally",
    "write_fleet",
    "write_sample",
]
