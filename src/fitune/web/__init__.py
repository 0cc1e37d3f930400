"""What every page of fitune shares: the stylesheet, line charts, bars, plain tables.

In: numbers and texts. Out: HTML and SVG, everything escaped, without script and without inline styles, so that the same
text stands in report.html, which loads nothing, and in the studio, whose content security policy allows none.
"""
