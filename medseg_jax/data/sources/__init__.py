"""Sets of cases, wherever they come from; each a `data.case.Source`."""
