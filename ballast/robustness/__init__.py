"""What an evaluated model withstands: corruption, attacks, missing content."""
