"""From a source to a destination: opening, planning, streaming the weights, files that appear when complete."""
