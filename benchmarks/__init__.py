"""The figures of docs/benchmarks.md: ``python -m benchmarks.SUBJECT.NAME`` in the root folder."""
