"""The built-in study and its text, all of it on the disk of any machine that can run the package."""
