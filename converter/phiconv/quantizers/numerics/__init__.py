"""What the quantizers of all runtimes count with: layouts of tiles, exact conversions of floats, memory."""
