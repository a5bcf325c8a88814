"""OpenVINO IR: an .xml file that describes a graph, and a .bin file with its constants."""
