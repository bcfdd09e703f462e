"""Functions of DataFrames: tables, figures, the page."""
