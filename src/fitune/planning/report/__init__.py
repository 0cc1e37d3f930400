"""Plans as text, tables, SVG and HTML. In: a `Plan` and its question. Out: what is shown."""
