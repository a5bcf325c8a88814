"""One folder to carry phiconv to a machine without a network."""
