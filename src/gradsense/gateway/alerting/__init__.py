"""From alarms to people: grouping, words, formats, queues and sinks."""
