"""Flows and where they come from: sources of logs, labelled data sets, synthetic traffic."""
