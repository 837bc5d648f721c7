"""The hot loops: numpy arrays in, numpy arrays out, each beside the plain reference it is tested against."""
