"""`Report` -> text, JSON and so on: one module a format, one `render(report)` each."""
