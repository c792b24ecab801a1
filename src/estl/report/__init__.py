"""What a person sees of runs: tables, plots, pages of pictures."""
