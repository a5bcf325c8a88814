"""What every reader and writer shares: files, rows, strict JSON, bits, and the layout of an output."""
