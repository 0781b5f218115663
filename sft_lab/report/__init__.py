"""A study as a page, with tables, figures and CSV."""
