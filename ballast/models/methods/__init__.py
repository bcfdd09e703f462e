"""Methods, one file each; the registry finds them by the file's name."""
