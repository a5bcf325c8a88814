"""From a source to a destination: opening, planning, streaming the weights; nothing half-written."""
