"""The traced model: graph, layers, bit-widths, devices."""
