"""Studies: grids of runs that answer a research question, the runner, the report."""
