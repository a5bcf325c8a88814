"""OpenVINO: the numbers of NNCF, its compression library."""
