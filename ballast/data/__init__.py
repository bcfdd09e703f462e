"""Tables, readers, splits and the ragged sequence store."""
