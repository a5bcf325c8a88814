"""Calibration folders: what was measured of a model's inputs on some texts.

A folder holds ``calibration.json``, an importance matrix ``imatrix.gguf``, and plain arrays in NumPy's
format, one file each. `manifest` says what belongs to what, `arrays` how a file of an array looks, and
`reader` opens the whole.
"""
