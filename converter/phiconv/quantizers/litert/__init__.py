"""The quantizers of LiteRT's own tool."""
