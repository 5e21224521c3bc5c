"""HTML pages that need nothing from outside: reports of runs, comparisons, benchmark galleries. Needs no torch."""
