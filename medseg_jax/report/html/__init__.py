"""Web pages that hold all they show: reports, with slices to look at.

Numbers and arrays in, text out. The templates, styles and scripts lie beside
the files that fill them.
"""
