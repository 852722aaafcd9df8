"""From flows that raise alerts to people: grouping, texts, formats and sinks."""
